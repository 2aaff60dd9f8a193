"""Any str in any field gives a MessageError or octets that no parser misreads."""

from __future__ import annotations

import re
import typing as t

from hypothesis import event, given
from hypothesis import strategies as st

from amail.errors import MessageError
from amail.limits import Limits
from amail.message import Attachment, Message
from amail.mime import compose
from amail.mime.attachments import safe_filename
from tests import oracle
from tests.strategies import EXAMPLES, MANY_EXAMPLES, mailbox, nasty_text, utf8_mailbox


def as_one_line(text: str) -> str:
    """What a header says that was given this text, where that is allowed at all."""
    text = re.sub(r"\r\n[ \t]+(?=[^ \t\r\n])", " ", text)
    return re.sub("[\t\x85\u2028\u2029]", " ", text)


def as_lines(text: str | None) -> list[str]:
    """The lines of a body, however they were ended; a last empty one does not count."""
    lines = (text or "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def composed(message: Message, **options: t.Any) -> tuple[oracle.Reading, tuple[str, ...]] | None:
    """Compose and judge, or None where the message was refused."""
    try:
        envelope, content = compose(message, **options)
    except MessageError as error:
        event(type(error).__name__)
        return None
    octets = bytes(content)
    assert len(octets) == len(content)
    assert octets.isascii() or content.needs_8bit
    return oracle.read(octets, utf8=content.needs_utf8), envelope.forward_paths


class Careful(str):
    """A str that nothing takes at a glance: only a plain str can be plainly fine."""

    __slots__ = ()


_person = st.one_of(
    nasty_text,
    mailbox,
    utf8_mailbox,
    st.builds("{} <{}>".format, st.sampled_from(["Ada", "Ada  B", "A" * 60, "Öa"]), mailbox),
)
_plain = st.text("abc=_-. :\n\t", max_size=30)
_bodies = st.one_of(st.none(), _plain, nasty_text, st.sampled_from(["x" * 999, "=_1.", "cid:a@b"]))


@MANY_EXAMPLES
@given(
    subject=st.one_of(_plain, nasty_text),
    sender=_person,
    recipient=_person,
    body=_bodies,
    html=_bodies,
    limit=st.sampled_from([10, 40, 10**6]),
)
def test_the_glance_and_the_careful_look_compose_the_same(
    *, subject: str, sender: str, recipient: str, body: str | None, html: str | None, limit: int
) -> None:
    usual = Message(subject, [recipient], body, html, sender=sender)
    odd = Message(
        Careful(subject),
        [Careful(recipient)],
        body and Careful(body),
        html and Careful(html),
        sender=Careful(sender),
        reply_to=[],
    )
    usual.identity.draw_date()
    odd.identity.drawn = usual.identity.drawn

    def outcome(message: Message) -> object:
        try:
            envelope, content = compose(message, limits=Limits(message_size=limit))
        except MessageError as error:
            event(type(error).__name__)
            return type(error), str(error)
        return envelope, bytes(content), content.needs_utf8, content.needs_8bit

    assert outcome(usual) == outcome(odd)


@EXAMPLES
@given(st.one_of(nasty_text, st.text('ab. _-/"<>', max_size=12)), st.integers(1, 20))
def test_the_glance_and_the_careful_look_give_a_file_the_same_name(name: str, limit: int) -> None:
    assert safe_filename(name, limit, "a", ascii_only=False) == safe_filename(
        Careful(name), limit, "a", ascii_only=False
    )


@EXAMPLES
@given(subject=nasty_text, author=st.one_of(mailbox, utf8_mailbox))
def test_any_subject_is_refused_or_read_back_exactly(subject: str, author: str) -> None:
    read = composed(Message(subject, "b@x.org", sender=author))
    if read:
        assert (read[0].subject or "") == as_one_line(subject)


@EXAMPLES
@given(names=st.lists(nasty_text, min_size=1, max_size=4), utf8=st.booleans(), author=utf8_mailbox)
def test_any_display_names_are_refused_or_give_exactly_the_mailboxes_meant(
    names: list[str], utf8: bool, author: str
) -> None:
    people = [(name, f"user{number}@example.org") for number, name in enumerate(names)]
    sender = author if utf8 else "a@x.org"
    read = composed(Message("s", people, sender=sender, cc=people[0][1]))
    if read:
        expected = [(as_one_line(name).strip(" "), spec) for name, spec in people]
        assert read[0].mailboxes["To"] == expected
        assert read[1] == tuple(spec for _, spec in people)


@EXAMPLES
@given(person=nasty_text, kind=st.sampled_from(["bare", "angle", "pair", "bcc", "sender"]))
def test_any_text_as_a_person_is_refused_or_is_one_mailbox_everywhere(
    person: str, kind: str
) -> None:
    message = Message("s", "ok@x.org", sender="a@x.org")
    match kind:
        case "bare":
            message.recipients = [person + "@x.org"]
        case "angle":
            message.recipients = [person + " <a@x.org>"]
        case "pair":
            message.recipients = [("", person)]
        case "bcc":
            message.bcc = person
        case _:
            message.sender = person
    read = composed(message)
    if read is None:
        return
    reading, paths = read
    assert len(reading.mailboxes["From"]) == 1
    assert len(reading.mailboxes["To"]) == 1
    assert len(paths) == (2 if kind == "bcc" and person.strip(" \t") else 1)
    for path in paths:
        assert not re.search(r"[\x00-\x20\x7f<>,;()]", path)


@EXAMPLES
@given(
    body=st.none() | nasty_text,
    html=st.none() | nasty_text,
    alt=st.none() | nasty_text,
    attached=st.booleans(),
)
def test_any_bodies_are_refused_or_read_back_line_for_line(
    body: str | None, html: str | None, alt: str | None, attached: bool
) -> None:
    message = Message("s", "b@x.org", body, html, sender="a@x.org")
    if alt is not None:
        message.alts["calendar"] = alt
    if attached:
        message.attach("a.bin", data=b"x")
    read = composed(message)
    if read:
        assert as_lines(read[0].text_of("text/plain")) == as_lines(body)
        assert as_lines(read[0].text_of("text/html")) == as_lines(html)
        assert as_lines(read[0].text_of("text/calendar")) == as_lines(alt)


@EXAMPLES
@given(filename=nasty_text, ascii_names=st.booleans())
def test_any_file_name_becomes_one_harmless_name(filename: str, ascii_names: bool) -> None:
    message = Message("s", "b@x.org", sender="a@x.org")
    message.attachments.append(Attachment(filename, "image/png", b"x"))
    read = composed(message, ascii_attachments=ascii_names)
    assert read is not None
    [leaf] = read[0].attachments
    name = leaf.filename or ""
    assert not re.search("[/\\\\\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", name)
    assert len(name.encode()) <= 200
    assert name.isascii() or not ascii_names
    if filename.isascii() and filename.replace(" ", "").isalnum() and len(filename) < 200:
        assert name == filename.strip()


@EXAMPLES
@given(
    name=st.one_of(st.just("X-Note"), nasty_text),
    value=nasty_text,
    author=st.one_of(mailbox, utf8_mailbox),
)
def test_any_extra_header_is_refused_or_stands_once_and_reads_back(
    name: str, value: str, author: str
) -> None:
    read = composed(Message("s", "b@x.org", sender=author, extra_headers={name: value}))
    if read and value.strip(" \t"):
        raw = {key.lower(): text for key, text in read[0].headers.items()}[name.lower()]
        text = oracle.decoded(raw) if oracle.ENCODED_WORD.search(raw) else raw
        assert text == as_one_line(value)


_field = st.integers(0, 26)


@MANY_EXAMPLES
@given(
    # Where all of them have any text hardly a message is ever composed.
    any_text_in=st.one_of(
        st.dictionaries(_field, nasty_text, max_size=3), st.dictionaries(_field, nasty_text)
    ),
    choices=st.binary(min_size=27, max_size=27),
)
def test_b118_any_text_in_all_fields_at_once_never_breaks_out_of_its_field(
    any_text_in: dict[int, str], choices: bytes
) -> None:
    numbered = enumerate(choices)

    def draw(*usual: str) -> str:
        number, choice = next(numbered)
        return any_text_in.get(number, usual[choice % len(usual)])

    message = Message(
        draw("Hello"),
        [draw("Ada <ada@x.org>", "b@x.org")],
        draw("text"),
        draw("<p>html</p>"),
        {draw("html", "calendar", "text/amp"): draw("alternative")},
        (draw("Ada"), draw("ada@x.org")),
        cc=[(draw("Bob"), draw("bob@x.org"))],
        bcc=draw("secret@hidden.example"),
        reply_to=draw("r@x.org"),
        charset=draw("utf-8", "iso-8859-1", "shift_jis", "iso-2022-jp", "gb18030"),
        extra_headers={draw("X-A", "List-Unsubscribe"): draw("x")},
        mail_options=[draw("RET=HDRS")],
        rcpt_options=[draw("NOTIFY=NEVER")],
        envelope_from=draw("bounce@x.org", ""),
        message_id=draw("<id@x.org>"),
        in_reply_to=draw("<id@x.org>"),
        references=[draw("<id@x.org>")],
    )
    try:
        message.attach(
            draw("a.txt"),
            draw("text/plain", "image/png"),
            draw("data").encode(errors="replace"),
            draw("inline", "attachment"),
            {draw("X-B", "Content-ID"): draw("<c@d>")},
        )
    except MessageError:
        event("refused to be attached")
        return
    assert next(numbered, None) is None
    read = composed(message)
    if read:
        event("composed")
        lower = {name.lower() for name in read[0].headers}
        assert not lower & {"bcc", "x-injected"}
