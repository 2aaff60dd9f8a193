"""send_raw: what was composed elsewhere, from the call to what a server holds."""

from __future__ import annotations

import time
import typing as t
from email.message import EmailMessage

import pytest

from amail import (
    ConfigError,
    InvalidAddress,
    InvalidHeader,
    Limits,
    Mailer,
    MailerClosed,
    MemoryTransport,
    MessageError,
    MessageTooLarge,
    NotSent,
    Receipt,
    RecipientsRejected,
    SyncMailer,
    UsageError,
    UTF8Required,
)
from amail.testing import OK, FaultServer
from amail.transports.base import PoolStats
from tests.messages import ADA, tokened
from tests.musts import BODY

if t.TYPE_CHECKING:
    from tests.musts import Musts

BOB = "bob@example.org"
EIGHT_BIT = ("PIPELINING", "8BITMIME")


def eml(token: str, fields: bytes = b"", body: bytes = b"") -> bytes:
    """A message that somebody else composed, with the token that tells it from others."""
    return (
        b"Received: from a by b; Tue, 24 Nov 2026 09:05:00 +0000\r\n"
        b"From: Eve <eve@example.net>\r\nTo: somebody@example.net\r\n" + fields + b""
        b"Date: Tue, 24 Nov 2026 09:05:00 +0000\r\nMessage-ID: <own@example.net>\r\n\r\n"
        + f"{token}\r\n{BODY}\r\n.a dot\r\n.\r\n".encode()
        + body
    )


async def test_what_was_composed_elsewhere_arrives_octet_for_octet(musts: Musts) -> None:
    async with FaultServer(extensions=EIGHT_BIT) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        token = musts.token()
        octets = eml(token, body=b"\xe9\r\n")
        sending = mailer.send_raw(octets, sender=ADA, recipients=[f"{token}+1@example.org"])
        receipt = await musts.outcome_of(sending, token=token)
    assert isinstance(receipt, Receipt)
    assert receipt.message_id == "<own@example.net>"
    [stored] = server.messages
    assert stored.content == octets
    assert (stored.reverse_path, stored.forward_paths) == (ADA, (f"{token}+1@example.org",))
    assert "BODY=8BITMIME" in stored.mail_options


async def test_b98_8_bit_octets_are_not_sent_without_8bitmime(musts: Musts) -> None:
    async with FaultServer(extensions=("PIPELINING",)) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        token = musts.token()
        sending = mailer.send_raw(
            eml(token, body=b"\xe9\r\n"), sender=ADA, recipients=f"{token}+1@example.org"
        )
        error = await musts.outcome_of(sending, token=token)
    assert isinstance(error, NotSent)
    assert "8BITMIME" in str(error)
    assert error.message_id == "<own@example.net>"


async def test_b51_an_address_beyond_ascii_is_not_sent_without_smtputf8(musts: Musts) -> None:
    async with FaultServer(extensions=EIGHT_BIT) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        token = musts.token()
        sending = mailer.send_raw(eml(token), sender=ADA, recipients=f"{token}+jörg@example.org")
        assert isinstance(await musts.outcome_of(sending, token=token), UTF8Required)


async def test_b98_no_server_sees_a_bcc(musts: Musts) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        token = musts.token()
        sending = mailer.send_raw(
            eml(token, b"Bcc: hidden@example.net\r\n"),
            sender="",
            recipients=[f"{token}+1@example.org", f"{token}+2@example.org"],
        )
        await musts.outcome_of(sending, token=token)
    [stored] = server.messages
    assert stored.content == eml(token)
    assert stored.reverse_path == ""
    assert len(stored.forward_paths) == 2


async def test_an_email_message_is_sent_to_the_recipients_given(musts: Musts) -> None:
    async with FaultServer(extensions=EIGHT_BIT) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        token = musts.token()
        message = EmailMessage()
        message["From"] = "Eve <eve@example.net>"
        message["To"] = "somebody@example.net"
        message["Bcc"] = "hidden@example.net"
        message.set_content(f"{token}\n{BODY}\nGrüße\n.\n")
        sending = mailer.send_raw(message, sender=ADA, recipients=f"{token}+1@example.org")
        message.set_content("changed since")
        receipt = await musts.outcome_of(sending, token=token)
    assert isinstance(receipt, Receipt)
    [stored] = server.messages
    assert stored.forward_paths == (f"{token}+1@example.org",)
    assert f"{token}\r\n{BODY}\r\nGrüße\r\n.\r\n".encode() in stored.content
    assert f"Message-ID: {receipt.message_id}\r\n".encode() in stored.content
    assert b"hidden" not in stored.content


@pytest.mark.parametrize(
    ("content", "options", "kind"),
    [
        (b"Subject: x\r\n\r\n", {}, InvalidHeader),
        (b"\r\nFrom: a@x.org\r\n", {}, MessageError),
        (b"From: a@x.org\r\n\r\na\nb", {}, MessageError),
        (b"From: a@x.org\r\n\r\n\0", {}, MessageError),
        (b"From: a@x.org\r\n\r\n" + b"x" * 999, {}, MessageError),
        (b"From: a@x.org\r\n\r\n" + b"x\r\n" * 1000, {}, MessageTooLarge),
        (eml(""), {"sender": None}, MessageError),
        (eml(""), {"sender": "eve"}, InvalidAddress),
        (eml(""), {"recipients": []}, MessageError),
        (eml(""), {"recipients": [f"{n}@x.org" for n in range(4)]}, MessageError),
    ],
)
async def test_b98_what_cannot_be_sent_is_refused_at_the_call_before_any_io(
    musts: Musts, content: bytes, options: dict[str, t.Any], kind: type[MessageError]
) -> None:
    limits = Limits(message_size=2000, recipients=3)
    async with FaultServer() as server, Mailer(server.url, limits=limits) as mailer:
        musts.watch(server)
        with pytest.raises(kind):
            _ = mailer.send_raw(content, **{"sender": ADA, "recipients": BOB, **options})
        assert server.connections == 0
        assert mailer.stats() == PoolStats()


async def test_what_is_sent_is_the_content_as_it_was_at_the_call() -> None:
    async with Mailer("memory://") as mailer:
        buffer = bytearray(eml("x"))
        sending = mailer.send_raw(t.cast("bytes", buffer), sender=ADA, recipients=BOB)
        buffer[:] = b"y" * len(buffer)
        await sending
    assert isinstance(mailer.transport, MemoryTransport)
    assert bytes(mailer.transport.messages[0].content) == eml("x")


async def test_prepare_and_the_default_sender_are_for_messages_alone() -> None:
    def prepare(message: t.Any) -> t.NoReturn:
        raise AssertionError(message)

    async with Mailer("memory://", default_sender=ADA, prepare=prepare) as mailer:
        await mailer.send_raw(eml("x"), sender="eve@example.net", recipients=BOB)
        with pytest.raises(MessageError, match=r"^sender: "):
            _ = mailer.send_raw(eml("x"), sender=t.cast("t.Any", None), recipients=BOB)


async def test_all_recipients_of_the_mailer_holds_for_it_too(musts: Musts) -> None:
    async with (
        FaultServer(rcpt=[OK, "550 5.1.1 no"]) as server,
        Mailer(server.url, all_recipients=True) as mailer,
    ):
        musts.watch(server)
        token = musts.token()
        paths = [f"{token}+1@example.org", f"{token}+2@example.org"]
        sending = mailer.send_raw(eml(token), sender=ADA, recipients=paths)
        assert isinstance(await musts.outcome_of(sending, token=token), RecipientsRejected)
    assert server.messages == []


async def test_the_timeout_of_a_call_is_its_deadline_and_is_checked() -> None:
    deadlines: list[float | None] = []

    class Recorder(MemoryTransport):
        async def send(self, *args: t.Any, deadline: float | None = None) -> Receipt:
            deadlines.append(deadline)
            return await super().send(*args)

    async with Mailer(Recorder()) as mailer:
        before = time.monotonic()
        await mailer.send_raw(eml("x"), sender=ADA, recipients=BOB, timeout=60)
        await mailer.send_raw(eml("x"), sender=ADA, recipients=BOB)
        with pytest.raises(ConfigError, match=r"^timeout: "):
            _ = mailer.send_raw(eml("x"), sender=ADA, recipients=BOB, timeout=-1)
    assert deadlines[1] is None
    assert deadlines[0] is not None
    assert before + 60 <= deadlines[0] <= time.monotonic() + 60


async def test_a_message_is_no_raw_content() -> None:
    with pytest.raises(UsageError, match=r"send\(message\)"):
        _ = Mailer("memory://").send_raw(t.cast("t.Any", tokened("x")), sender=ADA, recipients=BOB)


async def test_a_closed_mailer_sends_nothing() -> None:
    mailer = Mailer("memory://")
    await mailer.aclose()
    with pytest.raises(MailerClosed) as caught:
        await mailer.send_raw(eml("x"), sender=ADA, recipients=BOB)
    assert caught.value.message_id == "<own@example.net>"


def test_a_sync_mailer_sends_it_without_a_loop() -> None:
    with SyncMailer("memory://") as mailer:
        receipt = mailer.send_raw(eml("x"), sender=ADA, recipients=BOB, timeout=5)
        with pytest.raises(InvalidHeader):
            mailer.send_raw(b"X: y\r\n", sender=ADA, recipients=BOB)
    assert (receipt.accepted, receipt.message_id) == ((BOB,), "<own@example.net>")


async def test_a_sync_mailer_in_a_running_loop_says_to_await() -> None:
    with pytest.raises(UsageError, match=r"SyncMailer\.send_raw would block"):
        SyncMailer("memory://").send_raw(eml("x"), sender=ADA, recipients=BOB)
