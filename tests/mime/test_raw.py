"""What was composed elsewhere: sent untouched, changed where it has to be, or refused."""

from __future__ import annotations

import base64
import contextlib
import email.policy
import logging
import re
import typing as t
from email.message import EmailMessage
from email.mime.text import MIMEText

import dkim
import nacl.signing
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from amail.address import Address
from amail.errors import InvalidAddress, InvalidHeader, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.mime import Content, compose, compose_raw
from amail.transports.dkim import DKIMSigned
from amail.transports.memory import MemoryTransport
from tests import corpus, oracle
from tests.strategies import EXAMPLES, MANY_EXAMPLES, nasty_text
from tests.test_round_trip import messages

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.message import Message

WHOLE = (
    b"Received: from a by b; Tue, 24 Nov 2026 09:05:00 +0000\r\n"
    b"Received: from c by a; Tue, 24 Nov 2026 09:04:00 +0000\r\n"
    b"From: Ada <ada@example.com>\r\n"
    b"To: bob@example.org,\r\n\tcarl@example.org\r\n"
    b"Subject:\tHello\r\n"
    b"Date: Tue, 24 Nov 2026 09:05:00 +0000\r\n"
    b"Message-ID: <own@example.com>\r\n"
)
BODY = b"\r\n.a dot\r\n\r\nlast \x0b\x1b\r\n"


def composed(content: t.Any, **options: t.Any) -> tuple[Envelope, Content]:
    usual = {"sender": "bounces@example.com", "recipients": ["bob@example.org"]}
    return compose_raw(content, **{**usual, **options})


def raw(content: t.Any, **options: t.Any) -> bytes:
    """Compose and judge."""
    _, made = composed(content, **options)
    octets = bytes(made)
    judge(octets, made)
    return octets


def judge(octets: bytes, content: Content) -> None:
    """Check W1, W2, W3 and W7 of what goes on the wire. It need not be the composer's style."""
    assert len(content) == len(octets)
    oracle._check_lines(octets)
    text = octets.partition(b"\r\n\r\n")[0].decode("utf-8" if content.needs_utf8 else "ascii")
    assert not re.search("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text), "W2"
    names = []
    for line in text.removesuffix("\r\n").split("\r\n"):
        assert line.strip(" \t"), "W2"
        if line[0] not in " \t":
            found = re.match("([!-9;-~]+):", line)
            assert found, "W2"
            names.append(found[1].lower())
    assert {"bcc", "resent-bcc"}.isdisjoint(names), "W7"
    for name in ("from", "date", "message-id"):
        assert names.count(name) == 1, "W4"
    assert content.needs_8bit or octets.isascii()
    assert f"message-id: {content.message_id}".lower() in re.sub(r"\s+", " ", text).lower()


# Untouched, or changed where it has to be


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_octets_that_can_be_sent_go_out_untouched(kind: t.Callable[[bytes], t.Any]) -> None:
    envelope, content = composed(kind(WHOLE + BODY))
    assert bytes(content) == WHOLE + BODY
    assert content.message_id == "<own@example.com>"
    assert (content.needs_utf8, content.needs_8bit) == (False, False)
    assert (envelope.reverse_path, envelope.forward_paths) == (
        "bounces@example.com",
        ("bob@example.org",),
    )


def test_later_changes_of_a_buffer_do_not_reach_what_is_sent() -> None:
    buffer = bytearray(WHOLE + BODY)
    _, content = composed(buffer)
    buffer[:] = b"x" * len(buffer)
    assert bytes(content) == WHOLE + BODY


@EXAMPLES
@given(written=messages)
def test_whatever_the_composer_writes_passes_unchanged(written: Message) -> None:
    envelope, content = compose(written)
    _, again = composed(bytes(content), recipients=envelope.forward_paths)
    assert bytes(again) == bytes(content)
    assert again.message_id == content.message_id
    assert again.needs_8bit == (not bytes(content).isascii())


def test_the_corpus_passes_unchanged() -> None:
    for written in corpus.corpus():
        octets = written.message.as_bytes()
        assert raw(octets) == octets


def test_b98_lf_at_every_line_end_becomes_crlf() -> None:
    octets = WHOLE + BODY
    assert raw(octets.replace(b"\r\n", b"\n")) == octets


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (WHOLE + b"\r\na\nb\r\n", rf"a bare LF at octet {len(WHOLE) + 3}"),
        (WHOLE + b"\r\na\rb\r\n", rf"a bare CR at octet {len(WHOLE) + 3}"),
        (WHOLE + b"\r\n.\n.\r\n", "a bare LF"),
        (WHOLE.replace(b"\r\n", b"\n") + b"\n\na\rb\n", "a bare CR"),
        (WHOLE.replace(b"\r\n", b"\r") + b"\r", "a bare CR"),
        (WHOLE + b"\r\na\r", "a bare CR"),
        (WHOLE + b"\r\n\r\r\n", "a bare CR"),
        (WHOLE + b"X: a\nBcc: eve@example.net\r\n\r\n", "a bare LF"),
    ],
)
def test_b98_a_bare_line_end_beside_crlf_is_refused_with_its_place(
    content: bytes, said: str
) -> None:
    with pytest.raises(MessageError, match=f"^content: {said}"):
        composed(content)


def test_the_last_line_is_ended() -> None:
    assert raw(WHOLE + b"\r\nlast") == WHOLE + b"\r\nlast\r\n"
    assert raw(WHOLE.removesuffix(b"\r\n")) == WHOLE


def test_b98_bcc_is_taken_out_with_a_warning_that_names_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hidden = b"bcc: eve@example.net,\r\n\t eve2@example.net\r\nResent-Bcc: eve3@example.net\r\n"
    with caplog.at_level(logging.WARNING, "amail"):
        assert raw(hidden + WHOLE + BODY) == WHOLE + BODY
        assert raw(WHOLE + hidden + BODY) == WHOLE + BODY
        assert raw(WHOLE + hidden) == WHOLE
    assert [record.getMessage() for record in caplog.records] == [
        "<own@example.com>: the content had a Bcc field; it was taken out"
    ] * 3


def test_what_only_looks_like_bcc_stays() -> None:
    octets = WHOLE + b"X-Bcc: x\r\nX: a\r\n Bcc: x\r\n" + b"\r\nBcc: in the text\r\n"
    assert raw(octets) == octets


def test_a_missing_date_and_message_id_are_added_below_the_other_fields() -> None:
    octets = raw(b"From: ada@example.com\nBcc: x\n\nHi\n", sender="Ada <ada@bücher.example>")
    assert re.fullmatch(
        rb"From: ada@example\.com\r\n"
        rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \+0000\r\n"
        rb"Message-ID: <[0-9a-f]{32}@xn--bcher-kva\.example>\r\n\r\nHi\r\n",
        octets,
    )
    assert raw(b"From: ada@example.com") != raw(b"From: ada@example.com")


def test_without_a_sender_the_id_has_the_domain_of_the_author() -> None:
    octets = raw(b"From: A <a@one.example>, b@two.example\r\n\r\n", sender="")
    assert re.search(rb"Message-ID: <\w+@one\.example>\r\n", octets)
    for author in (b"nobody:;", b"Doe, J <a@x.org>"):
        with pytest.raises(MessageError, match=r"^(From|Message-ID): "):
            composed(b"From: " + author + b"\r\n\r\n", sender="")


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_a_signature_still_verifies(line_end: bytes) -> None:
    private = nacl.signing.SigningKey(bytes(range(32)))
    public = base64.b64encode(bytes(private.verify_key))
    key = base64.b64encode(bytes(private)).decode()
    signer = DKIMSigned(MemoryTransport(), domain="example.com", selector="s", key=key)
    _, content = composed(WHOLE + BODY)
    signed = bytes(signer.signed(content))
    sent = raw(
        b"Bcc: eve@example.net\r\n".replace(b"\r\n", line_end) + signed.replace(b"\r\n", line_end)
    )
    assert sent == signed
    record = b"v=DKIM1; k=ed25519; p=" + public
    assert dkim.verify(sent, dnsfunc=lambda *_, **__: record)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (WHOLE + b"Bcc: x@y.org\r\n", "^Bcc: would have to be taken out"),
        (WHOLE + b"Resent-Bcc: x@y.org\r\n", "^Resent-Bcc: would have to be taken out"),
        (WHOLE.replace(b"Date", b"X"), "^Date: would have to be added"),
        (WHOLE.replace(b"Message-ID", b"X"), "^Message-ID: would have to be added"),
    ],
)
@pytest.mark.parametrize("name", [b"DKIM-Signature", b"arc-message-signature"])
def test_a_change_that_breaks_a_signature_is_refused(fields: bytes, said: str, name: bytes) -> None:
    tags = (
        b": v=1; a=rsa-sha256; h=From : to:\r\n\tDATE:message-id:BCC :resent-bcc;\r\n bh=x; b=y\r\n"
    )
    with pytest.raises(InvalidHeader, match=said):
        composed(fields + name + tags + BODY)
    raw(fields + name + b": v=1; h=from:to; b=y\r\n" + BODY)


# Refused


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", MessageError, "does not begin with a header field"),
        (b"\r\n" + WHOLE, MessageError, "does not begin with a header field"),
        (b"\n", MessageError, "does not begin with a header field"),
        (b"Just text\r\n", MessageError, "line 1 of a header is no field"),
        (b"From ada Tue Nov 24\n" + b"From: a@x.org\n", MessageError, "line 1 of a header"),
        (b" From: a@x.org\r\n", MessageError, "line 1 of a header is no field"),
        (WHOLE + b"no field\r\n\r\n", MessageError, "line 9 of a header is no field"),
        ("X-É: x\r\n".encode() + WHOLE, MessageError, "line 1 of a header is no field"),
        (WHOLE + b"X A: b\r\n", MessageError, "line 9 of a header is no field"),
        (WHOLE.replace(b"From: ", b"From : "), InvalidHeader, "^From: .*blank"),
        (WHOLE + b"Bcc\t: x\r\n", InvalidHeader, "^Bcc: .*blank"),
        (WHOLE + b"X: a\r\n  \t\r\n b\r\n", InvalidHeader, "^X: one of its lines is blank"),
        (WHOLE.replace(b"From: ", b"X: "), InvalidHeader, "^From: is missing"),
        (b"From: \r\nTo: b@x.org\r\n", InvalidHeader, "^From: is empty"),
        (WHOLE.replace(b"<own@example.com>", b""), InvalidHeader, "^Message-ID: is empty"),
        (WHOLE.replace(b"<own@example.com>", b"own"), InvalidHeader, "^Message-ID: must be one"),
        (WHOLE.replace(b"<own@", b"<o wn@"), InvalidHeader, "^Message-ID: must be one"),
        (WHOLE.replace(b"<own@", b"<a@b> <c@"), InvalidHeader, "^Message-ID: must be one"),
        (WHOLE + b"Date:\r\n", InvalidHeader, "^Date: the field stands twice"),
        (WHOLE + b"FROM: eve@x.org\r\n", InvalidHeader, "^FROM: the field stands twice"),
        (WHOLE + b"subject: x\r\n", InvalidHeader, "^subject: the field stands twice"),
        (WHOLE + b"To: x@y.org\r\n", InvalidHeader, "^To: the field stands twice"),
        (WHOLE + b"X: a\0\r\n", MessageError, f"^content: NUL at octet {len(WHOLE) + 4}"),
        (WHOLE + b"\r\n\0", MessageError, f"^content: NUL at octet {len(WHOLE) + 2}"),
        (WHOLE + b"X: a\x07b\r\n", InvalidHeader, r"^X: U\+0007 at position 1"),
        (WHOLE + b"X: a\x0bb\r\n", InvalidHeader, r"^X: U\+000B at position 1"),
        (WHOLE + b"X: ab\x7f\r\n", InvalidHeader, r"^X: U\+007F at position 2"),
        (WHOLE + b"X: \xe9\r\n", InvalidHeader, "^X: the octet E9 at position 0 is no UTF-8"),
        (WHOLE + b"X: a\r\n \xc3\r\n", InvalidHeader, "^X: the octet C3 at position 2 is no UTF-8"),
        (WHOLE + "X: \x85\r\n".encode(), InvalidHeader, r"^X: U\+0085 at position 0"),
        (WHOLE + "X: a\u2028\r\n".encode(), InvalidHeader, r"^X: U\+2028 at position 1"),
        (WHOLE + b"X: " + b"x" * 996, MessageError, "^content: line 9 has more than 998"),
        (WHOLE + b"\r\n" + b"x" * 999 + b"\r\n", MessageError, "^content: line 10 has more"),
        (WHOLE + b"\r\na\r\n" + b"x" * 10**6, MessageError, "^content: line 11 has more"),
        (b"X: x\r\n" * 1001, MessageError, "1001 fields; 1000 are read"),
        ("From: a@x.org\r\n", MessageError, 'not str; open the file with mode "rb"'),
        (None, MessageError, "not NoneType"),
        (7, MessageError, "not int"),
    ],
)
def test_b98_what_cannot_be_sent_as_it_is_says_where(
    content: t.Any, kind: type[MessageError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        composed(content)


def test_lines_of_998_octets_pass() -> None:
    raw(WHOLE + b"X: " + b"x" * 995 + b"\r\n\r\n" + b"x" * 998 + b"\r\n" + b"y" * 998)


def test_b98_octets_beyond_ascii_in_the_body_need_8bitmime() -> None:
    _, content = composed(WHOLE + b"\r\n\xe9\r\n")
    assert (content.needs_8bit, content.needs_utf8) == (True, False)
    assert bytes(content) == WHOLE + b"\r\n\xe9\r\n"


def test_utf8_in_the_header_needs_smtputf8() -> None:
    octets = WHOLE + "X: é\r\n\r\n".encode()
    _, content = composed(octets)
    assert content.needs_utf8
    assert raw(octets) == octets


@pytest.mark.parametrize(
    "options", [{"sender": "jörg@x.org"}, {"recipients": ["a@x.org", "jörg@bücher.example"]}]
)
def test_b51_an_address_of_the_envelope_may_need_smtputf8(options: dict[str, t.Any]) -> None:
    _, content = composed(WHOLE, **options)
    assert content.needs_utf8
    assert bytes(content) == WHOLE


def test_a_foreign_message_id_is_taken_as_it_is() -> None:
    for written, read in ((b"<x>", "<x>"), (b"<a..b@@c> (added)", "<a..b@@c>")):
        octets = WHOLE.replace(b"<own@example.com>", written)
        _, content = composed(octets)
        assert (content.message_id, bytes(content)) == (read, octets)


def test_more_than_the_limits_is_refused() -> None:
    size = len(WHOLE)
    assert raw(WHOLE, limits=Limits(message_size=size)) == WHOLE
    for octets, limit in ((WHOLE, size - 1), (WHOLE.replace(b"\r\n", b"\n"), size - 1)):
        with pytest.raises(MessageTooLarge, match=f"{size - 1} are allowed"):
            composed(octets, limits=Limits(message_size=limit))
    with pytest.raises(MessageError, match=r"^recipients: 2; 1 are allowed"):
        composed(WHOLE, recipients=["a@x.org", "b@x.org"], limits=Limits(recipients=1))


@pytest.mark.timeout(20)
def test_50_mib_are_looked_through_at_once() -> None:
    octets = WHOLE + b"\r\n" + b"x\r\n" * (50 * 1024 * 1024 // 3 - 1000)
    _, content = composed(octets)
    assert len(content) == len(octets)


# The envelope


def test_b56_there_is_no_reverse_path_only_where_it_says_so() -> None:
    envelope, _ = composed(WHOLE, sender="")
    assert envelope.reverse_path == ""
    for sender in (None, " ", "<>", "ada", ["a@x.org"], b""):
        with pytest.raises(MessageError, match=r"^sender: "):
            composed(WHOLE, sender=sender)


def test_b52_people_are_written_as_everywhere_and_each_mailbox_is_one() -> None:
    envelope, _ = composed(
        WHOLE,
        sender=("Ada", "ada@example.com"),
        recipients=["B <b@X.org>", ("B", "b@x.org"), Address("c@x.org"), None, ""],
    )
    assert envelope.reverse_path == "ada@example.com"
    assert envelope.forward_paths == ("b@X.org", "c@x.org")
    assert composed(WHOLE, recipients="b@x.org")[0].forward_paths == ("b@x.org",)


@pytest.mark.parametrize("recipients", [[], None, "", [None], ["a@x.org,b@x.org"], 7])
def test_b53_without_a_recipient_nothing_is_sent(recipients: t.Any) -> None:
    with pytest.raises(MessageError, match=r"^recipients: "):
        composed(WHOLE, recipients=recipients)
    with pytest.raises(InvalidAddress, match=r"write \[\('Bob', 'b@x.org'\)\]"):
        composed(WHOLE, recipients=("Bob", "b@x.org"))


# EmailMessage


def theirs(**fields: str) -> EmailMessage:
    message = EmailMessage()
    for name, text in {"From": "ada@example.com", "To": "bob@example.org", **fields}.items():
        message[name] = text
    message.set_content("Grüße\n.\n")
    message.add_alternative("<p>Grüße</p>", subtype="html")
    message.add_attachment(b"\0\1", "application", "pdf", filename="ü.pdf")
    return message


def test_an_email_message_is_rendered_and_says_what_it_said() -> None:
    message = theirs(
        Subject="Grüße " * 20, Bcc="eve@example.net", Date="Tue, 24 Nov 2026 09:05:00 +0000"
    )
    message["Message-ID"] = "<own@example.com>"
    octets = raw(message)
    again = email.message_from_bytes(octets, policy=email.policy.default)
    del message["Bcc"]
    assert again.items() == message.items()
    assert octets == message.as_bytes(policy=email.policy.SMTP)


def test_a_message_of_the_older_kind_is_rendered_too() -> None:
    message = MIMEText("Grüße\nFrom here\n")
    message["From"] = "ada@example.com"
    message["Subject"] = "Grüße"
    octets = raw(message)
    again = email.message_from_bytes(octets)
    # In base64 or not, as other packages have told the email package of this process.
    text = again.get_payload(decode=True)
    assert isinstance(text, bytes)
    assert text.replace(b"\r\n", b"\n") == "Grüße\nFrom here\n".encode()


def test_an_email_message_with_an_address_beyond_ascii_is_internationalised() -> None:
    message = theirs(Subject="Grüße")
    assert not composed(message)[1].needs_utf8
    message["Cc"] = "Jörg <jörg@x.org>"
    _, content = composed(message)
    assert content.needs_utf8
    assert "Cc: Jörg <jörg@x.org>\r\n".encode() in bytes(content)


LOOKS_LIKE = "=?utf-8?q?a=0D=0AX-Injected:_yes?="
LOOKS_LIKE_AN_END = "=?utf-8?q?a=0D=0A=0D=0Athe_body?="


def refused_or_harmless(message: EmailMessage) -> None:
    """On some versions the package injects, on others it does not; nothing is sent of the first."""
    parts = [part.keys() for part in message.walk()]
    try:
        octets = raw(message)
    except InvalidHeader as error:
        assert re.match("(Subject|To|Content-Disposition|X-A.*): ", str(error))  # noqa: PT017
        return
    again = email.message_from_bytes(octets, policy=email.policy.default)
    names = [part.keys() for part in again.walk()]
    assert [name for name in names[0] if name not in {"Date", "Message-ID"}] == parts[0]
    assert names[1:] == parts[1:]


@pytest.mark.parametrize("text", [LOOKS_LIKE, LOOKS_LIKE_AN_END, "a\x1cX-Injected: yes"])
def test_what_the_standard_library_injects_is_not_sent(text: str) -> None:
    for field in ("Subject", "To", "X-A"):
        message = theirs()
        del message[field]
        with contextlib.suppress(ValueError):  # some of it the package refuses itself
            message[field] = text
        refused_or_harmless(message)
    message = theirs()
    with contextlib.suppress(ValueError):
        message.add_attachment(b"x", "image", "png", filename=text)
    refused_or_harmless(message)
    inner = theirs()
    with contextlib.suppress(ValueError):
        inner["Subject"] = text
    message.add_attachment(inner)
    refused_or_harmless(message)


def test_a_policy_that_injects_is_seen_in_every_part_and_behind_the_last_field() -> None:
    class Injecting(email.policy.EmailPolicy):
        """As the package did before its fix, in any version."""

        def fold_binary(self, name: str, value: t.Any) -> bytes:
            folded = super().fold_binary(name, value)
            return folded.replace(b"CRLF", b"\r\n")

    for text in ("aCRLFX: y", "aCRLFCRLFbody", "aCRLF", "CRLF", "a\nb"):
        for where in ("top", "part"):
            message = EmailMessage(
                Injecting(verify_generated_headers=False)
                if hasattr(email.policy.default, "verify_generated_headers")
                else Injecting()
            )
            message["From"] = "ada@example.com"
            message.set_content("x")
            if where == "part":
                message.add_attachment(b"x", "image", "png")
            target = message if where == "top" else list(message.walk())[-1]
            target._headers.append(("X-A", text))  # type: ignore[attr-defined]
            with pytest.raises(InvalidHeader, match=r"^X-A: comes out as more than one field"):
                composed(message)


def test_an_email_message_that_cannot_be_rendered_is_a_message_error() -> None:
    message = theirs()
    message.set_payload("x\udcff \ud800")
    with pytest.raises(MessageError, match="cannot render it"):
        composed(message)


# Anything


@MANY_EXAMPLES
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=40),
            nasty_text.map(lambda text: text.encode(errors="surrogatepass")),
            st.sampled_from(
                [
                    *(WHOLE, b"From: a@x.org", b"\r\n", b"\n", b"\r\n\r\n", b"\n\n", b"\r", b": "),
                    *(b"Bcc: b@x.org", b"\r\nBcc: b@x.org\r\n", b"Message-ID: <a@x.org>", b"\r\n "),
                    *(b"Date: x", b"DKIM-Signature: h=bcc:date; b=", b"\r\n.\r\n", b"x" * 990),
                ]
            ),
        ),
        max_size=8,
    ),
    line_end=st.sampled_from([None, b"\n"]),
)
@example([WHOLE, BODY], None)
@example([b"From: a@x.org\n", b"\n.\n"], None)
def test_b118_any_octets_are_refused_or_are_fit_for_the_wire(
    pieces: list[bytes], line_end: bytes | None
) -> None:
    octets = b"".join(pieces)
    if line_end is not None:
        octets = octets.replace(b"\r\n", line_end)
    try:
        _, content = composed(octets)
    except MessageError as error:
        event(type(error).__name__)
        return
    event("sent")
    judge(bytes(content), content)


@EXAMPLES
@given(
    name=st.sampled_from(["Subject", "To", "From", "X-A", "Reply-To", "Content-Description"]),
    text=nasty_text,
    filename=nasty_text,
)
def test_b118_an_email_message_of_any_text_is_refused_or_is_fit_for_the_wire(
    name: str, text: str, filename: str
) -> None:
    try:
        message = EmailMessage()
        message["From"] = "ada@example.com"
        message.set_content("x")
        message.add_attachment(b"x", "image", "png", filename=filename)
        del message[name]
        message[name] = text
    except Exception as error:
        event(f"the package: {type(error).__name__}")
        return
    try:
        _, content = composed(message)
    except MessageError as error:
        event(type(error).__name__)
        return
    event("sent")
    octets = bytes(content)
    judge(octets, content)
    block = octets.partition(b"\r\n\r\n")[0]
    written = re.findall(rb"^([!-9;-~]+):", block, re.MULTILINE)
    assert [
        each.decode() for each in written if each not in {b"Date", b"Message-ID"}
    ] == message.keys()
