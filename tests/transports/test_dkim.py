"""What DKIMSigned hands on is verified by dkimpy, with a key from a DNS of the test's own."""

from __future__ import annotations

import base64
import functools
import hashlib
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import typing as t

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from dkim.canonicalization import Relaxed
from hypothesis import given
from hypothesis import strategies as st

from amail import (
    ConfigError,
    Envelope,
    InvalidAttachment,
    InvalidHeader,
    Mailer,
    MemoryTransport,
    Message,
    SendTimeout,
    SMTPSettings,
    SMTPTransport,
)
from amail.mime import Content, compose
from amail.testing import FaultServer
from amail.transports.base import PoolStats, Transport
from amail.transports.dkim import DKIMSigned, RelaxedBody
from amail.transports.null import NullTransport
from tests import oracle
from tests.messages import ADA, tokened

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.musts import Musts

DOMAIN, SELECTOR = "example.com", "s1"
ALGORITHMS = ("rsa-sha256", "ed25519-sha256")
RSA = rsa.generate_private_key(65537, 2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()


def pem(key: t.Any, how: PrivateFormat = PrivateFormat.PKCS8) -> str:
    text: bytes = key.private_bytes(Encoding.PEM, how, NoEncryption())
    return text.decode()


def seed(key: ed25519.Ed25519PrivateKey) -> str:
    return base64.b64encode(key.private_bytes_raw()).decode()


KEYS = {"rsa-sha256": pem(RSA), "ed25519-sha256": seed(ED25519)}
_RECORDS = {
    "rsa": RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "ed25519": ED25519.public_key().public_bytes_raw(),
}


def lookup(name: bytes, timeout: float = 5, *, kind: str) -> bytes:
    """The DNS of these tests: one name, one record."""
    assert name.decode() in {f"{SELECTOR}._domainkey.{DOMAIN}.", f"s2._domainkey.{DOMAIN}."}
    return f"v=DKIM1; k={kind}; p={base64.b64encode(_RECORDS[kind]).decode()}".encode()


def verifies(content: bytes, algorithm: str, number: int = 0) -> bool:
    """Whether dkimpy finds that signature good: the topmost is number 0."""
    dns = functools.partial(lookup, kind=algorithm.partition("-")[0])
    return bool(dkim.DKIM(content).verify(number, dnsfunc=dns))


def signing(transport: Transport | None = None, key: t.Any = KEYS["ed25519-sha256"]) -> DKIMSigned:
    return DKIMSigned(transport or MemoryTransport(), domain=DOMAIN, selector=SELECTOR, key=key)


def hello(**fields: t.Any) -> Content:
    usual: dict[str, t.Any] = {"recipients": ["Bob Ö <bob@example.org>"], "sender": ADA}
    return compose(Message(**{"subject": "Hello", "body": "Hi", **usual, **fields}))[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_a_server_receives_verifies(musts: Musts, algorithm: str) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        transport = SMTPTransport(SMTPSettings.from_url(server.url))
        async with Mailer(signing(transport, KEYS[algorithm])) as mailer:
            token = musts.token()
            message = tokened(token, html="<p>a  b </p>\n \n\n\n")
            message.subject = "Grüße " * 20
            receipt = await musts.outcome_of(mailer.send(message), token=token)
            assert mailer.stats().accepted == 1
        assert getattr(receipt, "outcome", None) == "accepted"
        [stored] = server.messages
        size = server.commands[1].line.partition("SIZE=")[2].split(" ")[0]
    assert verifies(stored.content, algorithm)
    assert int(size) == len(stored.content)
    assert stored.content.endswith(message.as_bytes())
    assert f"a={algorithm};".encode() in stored.content


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "field",
    [
        *("From: eve@example.net", "To: eve@example.net", "Subject: other", "Cc: eve@example.net"),
        *("Date: Thu, 01 Jan 1970 00:00:00 +0000", "Message-ID: <other@example.net>"),
        *("List-Unsubscribe: <https://example.net/>", "Reply-To: eve@example.net"),
        *("List-Unsubscribe-Post: List-Unsubscribe=One-Click", "Content-Type: text/html"),
    ],
)
def test_a_field_added_afterwards_breaks_the_signature(algorithm: str, field: str) -> None:
    unsubscribe = {"List-Unsubscribe": "<https://example.com/>"}
    for content in (hello(), hello(extra_headers=unsubscribe)):
        signed = bytes(signing(key=KEYS[algorithm]).signed(content))
        assert verifies(signed, algorithm)
        head, _, rest = signed.partition(b"\r\nFrom:")
        below = rest.replace(b"\r\n\r\n", f"\r\n{field}\r\n\r\n".encode(), 1)
        for changed in (f"{field}\r\n".encode() + signed, head + b"\r\nFrom:" + below):
            assert not verifies(changed, algorithm)


def test_fields_that_relays_and_lists_add_leave_the_signature_good() -> None:
    signed = bytes(signing().signed(hello()))
    added = b"Received: from a by b\r\nList-Id: <l.example.net>\r\nSender: l@example.net\r\n"
    assert verifies(added + signed, "ed25519-sha256")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_changed_body_breaks_the_signature(algorithm: str) -> None:
    signed = bytes(signing(key=KEYS[algorithm]).signed(hello(body="pay 100")))
    changed = signed.replace(b"pay 100", b"pay 900")
    assert changed != signed
    with pytest.raises(dkim.ValidationError, match="body hash mismatch"):
        verifies(changed, algorithm)


def test_the_signed_content_is_the_content_below_one_field() -> None:
    content = hello(body="é" * 100, attachments=None)
    signed = signing().signed(content)
    field, _, rest = bytes(signed).partition(b"\r\nFrom:")
    assert b"From:" + rest == bytes(content)
    assert field.startswith(b"DKIM-Signature: v=1;")
    assert len(signed) == len(bytes(signed)) == len(content) + len(field) + 2
    assert len(list(signed.chunks())) == 1
    assert signed.message_id == content.message_id
    assert "bob@example.org" in str(oracle.read(bytes(signed)).mailboxes)


def test_what_the_content_needs_stays() -> None:
    signed = signing().signed(hello(recipients=["jörg@münchen.de"], body="é" * 100))
    assert (signed.needs_utf8, signed.needs_8bit) == (True, True)
    assert verifies(bytes(signed), "ed25519-sha256")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_content_is_signed_the_same_each_time(algorithm: str) -> None:
    wrapper, content = signing(key=KEYS[algorithm]), hello()
    assert bytes(wrapper.signed(content)) == bytes(wrapper.signed(content))


async def test_one_in_another_signs_with_both_kinds_of_key() -> None:
    memory = MemoryTransport()
    inner = DKIMSigned(memory, domain=DOMAIN, selector="s2", key=KEYS["rsa-sha256"])
    async with Mailer(signing(inner)) as mailer:
        await mailer.send(Message("Hello", ["bob@example.org"], sender=ADA))
    content = bytes(memory.messages[0].content)
    assert verifies(content, "rsa-sha256", 0)
    assert verifies(content, "ed25519-sha256", 1)


def test_a_long_domain_is_not_torn() -> None:
    domain = ".".join(["x" * 60, "y" * 60, "example.com"])
    wrapper = DKIMSigned(MemoryTransport(), domain=domain, selector=SELECTOR, key=pem(ED25519))
    assert f" d={domain};\r\n" in bytes(wrapper.signed(hello())).decode()


@given(st.lists(st.text(alphabet="a \t.", max_size=5), max_size=12), st.data())
def test_a_body_is_hashed_alike_however_it_is_cut(lines: list[str], data: st.DataObject) -> None:
    octets = "".join([f"{line}\r\n" for line in lines]).encode()
    canonical = Relaxed.canonicalize_body(octets) if octets else b""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(octets)), max_size=4)))
    body = RelaxedBody()
    for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
        body.update(octets[start:end])
    assert body.digest() == hashlib.sha256(canonical).digest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_large_attachment_is_signed_without_ever_being_in_memory(
    musts: Musts, tmp_path: Path, algorithm: str
) -> None:
    path = tmp_path / "large.bin"
    with musts.not_counting(), path.open("wb") as file:
        file.truncate(8 * 1024 * 1024)
    memory = MemoryTransport()
    message = Message("Hello", ["bob@example.org"], "Hi", sender=ADA)
    message.attach_file(path)
    async with Mailer(signing(memory, KEYS[algorithm])) as mailer:
        tracemalloc.start()
        try:
            await mailer.send(message)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2 * 1024 * 1024
    with musts.not_counting():
        assert verifies(bytes(memory.messages[0].content), algorithm)


async def test_a_file_that_changed_before_it_was_signed_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"x" * 200_000)
    memory = MemoryTransport()
    message = Message("Hello", ["bob@example.org"], "Hi", sender=ADA)
    message.attach_file(path)
    async with Mailer(signing(memory)) as mailer:
        sending = mailer.send(message)
        path.write_bytes(b"y" * 200_001)
        with pytest.raises(InvalidAttachment, match="changed"):
            await sending
    assert memory.messages == []


async def test_signing_ends_with_the_deadline_and_nothing_is_sent() -> None:
    go_on = threading.Event()

    class Slow:
        def __len__(self) -> int:
            return 100_000

        def chunks(self) -> Iterator[bytes]:
            assert go_on.wait(10)
            yield b"x" * 100_000

    memory = MemoryTransport()
    content = Content([b"From: a@b.c\r\n\r\n", Slow()], message_id="<a@b.c>")
    try:
        with pytest.raises(SendTimeout, match="signed") as caught:
            await signing(memory).send(
                Envelope(ADA, ("bob@example.org",)), content, deadline=time.monotonic() + 0.05
            )
    finally:
        go_on.set()
    assert (caught.value.message_id, caught.value.retryable) == ("<a@b.c>", True)
    assert caught.value.recipients == ("bob@example.org",)
    assert memory.messages == []


def test_content_that_is_no_message_is_refused() -> None:
    for octets in (b"no field\r\n\r\nx\r\n", b" no field\r\n"):
        with pytest.raises(InvalidHeader, match="header fields"):
            signing().signed(Content([octets], message_id="<a@b.c>"))


def test_content_without_a_body_is_signed() -> None:
    content = Content([b"From: ada@example.com\r\nSubject: s\r\n"], message_id="<a@b.c>")
    assert verifies(bytes(signing().signed(content)), "ed25519-sha256")


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (pem(RSA, PrivateFormat.TraditionalOpenSSL), "rsa-sha256"),
        (pem(RSA).replace("\n", "\r\n"), "rsa-sha256"),
        (f"\n{pem(ED25519)}\n", "ed25519-sha256"),
        (f"{seed(ED25519)}\n", "ed25519-sha256"),
    ],
    ids=["PKCS #1", "CRLF", "Ed25519 as PEM", "Ed25519 as base64"],
)
def test_a_key_is_read_however_it_is_written(key: str, algorithm: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(key)
    for given_key in (key, path, str(path)):
        signed = bytes(signing(key=given_key).signed(hello()))
        assert verifies(signed, algorithm)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "not str"),
        (None, "not NoneType"),
        (b"-----BEGIN", "not bytes"),
        ("canary-key", "No such file"),
        ("canary\0key", "cannot be read"),
        ("-----BEGIN PRIVATE KEY-----\ncanary-key\n-----END PRIVATE KEY-----", "RSA as PEM"),
        ("-----BEGIN PRIVATE KEY-----\nY2FuYXJ5\n-----END PRIVATE KEY-----", "RSA as PEM"),
        ("-----BEGIN PRIVATE KEY-----", "RSA as PEM"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "RSA as PEM"),
        (pem(rsa.generate_private_key(65537, 1024)).replace("M", "N", 1), "RSA as PEM"),
        (
            RSA.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
            ).decode(),
            "encrypted",
        ),
    ],
)
def test_a_key_that_cannot_work_is_a_config_error_that_does_not_show_it(
    key: t.Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=f"key: .*{says}") as caught:
        signing(key=key)
    text = "".join(traceback.format_exception(caught.value))
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None, text


def test_a_folder_or_binary_file_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "key.der").write_bytes(b"\xff\x00")
    for path in (tmp_path, tmp_path / "key.der"):
        with pytest.raises(ConfigError, match=r"key: .*cannot be read") as caught:
            signing(key=path)
        assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "name", ["", "a b", "a\r\nb", "x..y", "a;b", "a@b", "[127.0.0.1]", None, "=?x?q?y?="]
)
def test_a_domain_or_selector_that_dns_cannot_have_is_a_config_error(name: t.Any) -> None:
    with pytest.raises(ConfigError, match="domain: "):
        DKIMSigned(MemoryTransport(), domain=name, selector="s", key=KEYS["ed25519-sha256"])
    with pytest.raises(ConfigError, match="selector: "):
        DKIMSigned(MemoryTransport(), domain="x.org", selector=name, key=KEYS["ed25519-sha256"])


def test_an_internationalised_domain_is_written_as_dns_has_it() -> None:
    key = KEYS["ed25519-sha256"]
    wrapper = DKIMSigned(MemoryTransport(), domain="münchen.de", selector="a.b", key=key)
    assert b"d=xn--mnchen-3ya.de; s=a.b;" in bytes(wrapper.signed(hello()))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_shows_the_key(algorithm: str) -> None:
    wrapper = signing(key=KEYS[algorithm])
    shown = repr(wrapper) + repr(vars(wrapper))
    numbers = RSA.private_numbers()
    secrets = [seed(ED25519), ED25519.private_bytes_raw().hex(), str(numbers.d), str(numbers.p)]
    assert [secret for secret in secrets if secret in shown] == []
    assert repr(wrapper).startswith(f"<DKIMSigned for example.com (s1, {algorithm}) over <")


async def test_closing_it_closes_the_transport_below_and_stats_are_those_below() -> None:
    async with FaultServer() as server:
        below = SMTPTransport(SMTPSettings.from_url(server.url))
        wrapper = signing(below)
        assert isinstance(wrapper, Transport)
        await wrapper.send(Envelope(ADA, ("b@x.org",)), hello())
        assert wrapper.stats() == below.stats() == PoolStats(open=1, idle=1, accepted=1)
        await wrapper.aclose()
        assert below.stats() == PoolStats(accepted=1)
        await server.all_closed()
    assert signing(NullTransport()).stats() == PoolStats()


def test_without_dkimpy_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['dkim'] = None; import amail; import amail.transports.dkim"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert 'pip install "amail-asyncio[dkim]"' in last
