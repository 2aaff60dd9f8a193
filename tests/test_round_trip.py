"""A message written down and read back: to_dict, from_dict, from_bytes."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import re
import tempfile
import typing as t
from email.message import EmailMessage
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from amail.address import Address
from amail.envelope import Envelope
from amail.errors import InvalidAttachment, InvalidHeader, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.message import Attachment, Message
from amail.mime import compose
from tests import oracle
from tests.mime.reading import message
from tests.mime.test_any_text import as_lines, as_one_line
from tests.strategies import EXAMPLES, mailbox, nasty_text, utf8_mailbox

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
ICS = "BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nEND:VCALENDAR\r\n"


# Messages of every kind that can be composed

line = nasty_text.map(
    lambda text: re.sub("[\0-\x08\x0a-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]", "", text)[:300]
)
field_text = line.map(lambda text: re.sub("[\x85\u2028\u2029]", "", text))
body_text = nasty_text.map(lambda text: re.sub("[\ud800-\udfff]", "", text))
address = st.one_of(mailbox, mailbox, mailbox, utf8_mailbox)
person = st.one_of(
    address,
    address.map("Ada <{}>".format),
    st.tuples(line, address),
    st.builds(lambda spec, name: Address(spec, name=name), address, line),
)
people = st.lists(person, max_size=3)
message_id = st.sampled_from(["<a@x.org>", "<b.c$d@[192.0.2.1]>", "<" + "x" * 200 + "@y.org>"])
moment = st.one_of(
    st.integers(0, 4_000_000_000),
    st.floats(0, 4e9),
    st.datetimes(
        dt.datetime(1950, 1, 1),  # noqa: DTZ001 - the zone is the next argument
        dt.datetime(2100, 1, 1),  # noqa: DTZ001
        timezones=st.sampled_from(
            [dt.UTC, dt.timezone(dt.timedelta(hours=-7, minutes=-30)), ZoneInfo("Europe/Berlin")]
        ),
    ),
)
charset = st.sampled_from(
    [None, None, "utf-8", "iso-8859-1", "shift_jis", "iso-2022-jp", "koi8-r", "gb18030", "us-ascii"]
)
alternatives = st.lists(
    st.tuples(
        st.sampled_from(
            ["html", "calendar", "calendar; method=REQUEST", 'x-amp; a="b c"', "text/vcard"]
        ),
        body_text,
    ),
    max_size=4,
    unique_by=lambda pair: pair[0].partition(";")[0],
)


def kept_file(name: str, octets: bytes) -> Path:
    path = Path(_FOLDER.name, name)
    path.write_bytes(octets)
    return path


_FOLDER = tempfile.TemporaryDirectory(prefix="amail-round-trip-")
PATHS = [
    kept_file("small.txt", "Grüße\n".encode()),
    kept_file("ü.png", PNG),
    kept_file("large.bin", PNG * 400),
]
INNER = EmailMessage()
INNER["Subject"] = "inner"
INNER.set_content("inside é\n", cte="quoted-printable")


_kinds = st.sampled_from(["bytes", "text", "file", "path", "message", "invite"])
_octets = st.binary(max_size=200) | st.just(PNG * 300)
_types = st.sampled_from(
    [None, "image/png", "text/csv; charset=koi8-r", "text/plain", "x/y; a=b"],
)
_paths = st.sampled_from(PATHS)
_names = st.one_of(st.none(), st.sampled_from(["a.txt", "ü.pdf", "a.eml"]), nasty_text)
_dispositions = st.sampled_from(["attachment", "inline"])


@st.composite
def attachments(draw: st.DrawFn) -> list[Attachment]:
    made = []
    for number in range(draw(st.integers(0, 3))):
        kind = draw(_kinds)
        data: t.Any = None
        content_type = draw(_types)
        match kind:
            case "bytes":
                data = draw(_octets)
            case "text":
                data = draw(body_text)
            case "file":
                data = io.BytesIO(draw(_octets))
            case "path":
                data = draw(_paths)
            case "message":
                data, content_type = INNER, None
            case "invite":
                data, content_type = ICS, "application/ics"
        filename = None if kind == "message" else draw(_names)
        if filename is not None and filename.endswith(".eml"):
            content_type = content_type or "application/octet-stream"
        headers = {"Content-Description": draw(field_text)}
        if draw(st.booleans()):
            headers["Content-ID"] = f"<{number}@x.org>"
        made.append(Attachment(filename, content_type, data, draw(_dispositions), headers))
    return made


_EXTRA = {
    "X-Note": field_text,
    "Sender": st.just("Doe <doe@x.org>"),
    "List-Unsubscribe": st.just("<https://x.org/u>, <mailto:u@x.org>"),
    "Disposition-Notification-To": st.just('"Doe, J" <read@x.org>'),
    "Comments": field_text,
}

# A strategy is expensive to make: once here, and not again for each message.
messages = st.builds(
    Message,
    line,
    people,
    st.none() | body_text,
    alts=alternatives,
    sender=person,
    cc=people,
    bcc=st.lists(person, min_size=1, max_size=2),
    attachments=attachments(),
    reply_to=st.none() | person | st.lists(person, max_size=2),
    date=st.none() | moment,
    charset=charset,
    extra_headers=st.fixed_dictionaries({}, optional=_EXTRA).map(lambda extra: extra or None),
    mail_options=st.sampled_from([None, ["RET=HDRS", "ENVID=x"]]),
    rcpt_options=st.sampled_from([None, ["NOTIFY=NEVER"]]),
    envelope_from=st.none() | st.just("") | person,
    message_id=st.none() | message_id,
    in_reply_to=st.none() | message_id,
    references=st.none() | message_id | st.lists(message_id, max_size=4),
    priority=st.sampled_from([None, 1, 5, "high", "normal", "lowest"]),
)


def through_json(written: Message, *, allow_paths: bool = False, **options: t.Any) -> Message:
    # Some stores sort the keys.
    text = json.dumps(written.to_dict(**options), sort_keys=True, allow_nan=False)
    return Message.from_dict(json.loads(text), allow_paths=allow_paths)


def moment_of(date: object) -> object:
    """What a date means. Python holds one in an hour that occurs twice equal to no other zone's."""
    return date.timestamp() if isinstance(date, dt.datetime) else date


def set_by_the_author(written: Message) -> dict[str, t.Any]:
    """Everything about a message that is an author's, but for the data of attachments."""
    fields = {
        name: value
        for name, value in vars(written).items()
        if name not in {"attachments", "identity"}
    }
    fields["alts"] = list(written.alts.items())
    fields["given"] = written.identity.given_message_id, written.identity.given_date
    fields["attachments"] = [
        {
            name: value
            for name, value in vars(attachment).items()
            if name not in {"data", "prepared", "filename"}
        }
        | {"filename": attachment.filename and re.sub("[\ud800-\udfff]", "_", attachment.filename)}
        for attachment in written.attachments
    ]
    return fields


@EXAMPLES
@given(written=messages, inline_files=st.booleans(), is_composed=st.booleans())
def test_a_message_through_json_is_the_same_in_content_envelope_and_every_field(
    written: Message, inline_files: bool, is_composed: bool
) -> None:
    if is_composed:
        written.as_bytes()
    again = through_json(written, inline_files=inline_files, allow_paths=not inline_files)
    envelope, content = compose(written)
    envelope_again, content_again = compose(again)
    assert bytes(content_again) == bytes(content)
    assert envelope_again == envelope
    assert set_by_the_author(again) == set_by_the_author(written)
    assert moment_of(again.date) == moment_of(written.date)
    assert again.message_id == written.message_id


@EXAMPLES
@given(data=st.data())
def test_any_text_in_every_field_is_refused_by_to_dict_or_composes_to_the_same(
    data: st.DataObject,
) -> None:
    def draw() -> str:
        return data.draw(nasty_text)

    written = Message(
        draw(), [draw()], draw(), draw(), {draw(): draw()}, (draw(), draw()),
        cc=draw(), reply_to=[draw()], charset=draw(), extra_headers={draw(): draw()},
        mail_options=[draw()], envelope_from=draw(), message_id=draw(), references=draw(),
        priority=t.cast("t.Any", draw()),
    )  # fmt: skip
    try:
        again = through_json(written)
    except MessageError:
        with pytest.raises(MessageError):
            written.as_bytes()
        return
    assert set_by_the_author(again) == set_by_the_author(written)


# The octets of a message read back


class Said(t.NamedTuple):
    """What the judges read in content, so that it can be compared."""

    subject: str | None
    mailboxes: dict[str, list[tuple[str, str]]]
    fields: dict[str, str]
    texts: list[tuple[str, list[str]]]
    files: list[tuple[t.Any, ...]]


def said(content: bytes, *, utf8: bool) -> Said:
    reading = oracle.read(content, utf8=utf8)
    own = {"subject", "from", "sender", "to", "cc", "reply-to"}
    return Said(
        reading.subject,
        reading.mailboxes,
        {
            name: oracle.decoded(raw) if oracle.ENCODED_WORD.search(raw) else raw
            for name, raw in reading.headers.items()
            if name.lower() not in own and not name.lower().startswith("content-")
        },
        [(leaf.content_type, as_lines(leaf.text)) for leaf in reading.texts],
        [
            (
                *(leaf.path, leaf.content_type, leaf.disposition),
                *(leaf.filename, leaf.content_id, leaf.octets),
            )
            for leaf in reading.attachments
        ],
    )


def texts_of(written: Message) -> list[tuple[str, list[str]]]:
    """The body and its alternatives in order, those that are empty left out."""
    texts = [("text/plain", written.body), *written.alts.items()]
    return [(full_type(key), as_lines(text)) for key, text in texts if text]


def full_type(key: str) -> str:
    name = key.partition(";")[0]
    return name if "/" in name else f"text/{name}"


@EXAMPLES
@given(written=messages)
def test_content_read_back_says_the_same_and_composes_to_what_says_the_same(
    written: Message,
) -> None:
    if not texts_of(written):
        # Unnamed text that is shown inline is what a body is, where there is no other.
        for attachment in written.attachments:
            attachment.disposition = "attachment"
    envelope, content = compose(written)
    first = bytes(content)
    again = Message.from_bytes(first)

    heard = said(first, utf8=content.needs_utf8)
    assert again.subject == as_one_line(written.subject)
    assert again.sender == Address.of(written.sender or "")
    for name, read in (("To", again.recipients), ("Cc", again.cc)):
        pairs = [(Address.of(one).name, Address.of(one).addr_spec) for one in read if one]
        assert pairs == heard.mailboxes.get(name, [])
    assert texts_of(again) == texts_of(written)
    assert again.message_id == content.message_id
    assert isinstance(again.date, dt.datetime)
    assert [
        (file.disposition, file.headers.get("Content-ID"), file.filename, file.data)
        for file in again.attachments
        if file.content_type != "message/rfc822"
    ] == [
        (disposition, content_id, filename, octets)
        for _, kind, disposition, filename, content_id, octets in heard.files
        if kind != "message/rfc822"
    ]
    assert again.bcc == []

    _, content = compose(again, envelope=envelope)
    second = bytes(content)
    assert said(second, utf8=content.needs_utf8) == heard
    if again.charset == (None if written.charset == "utf-8" else written.charset):
        event("the same octets")
        assert second == first


@pytest.mark.parametrize("charset", ["iso-8859-1", "koi8-r", "iso-2022-jp", "shift_jis", "big5"])
def test_a_charset_that_holds_the_texts_is_kept(charset: str) -> None:
    text = {"koi8-r": "Привет", "iso-8859-1": "Grüße"}.get(charset, "日本")
    written = message(subject=text, body=text, html=f"<p>{text}</p>", charset=charset)
    read = Message.from_bytes(written.as_bytes())
    assert (read.charset, read.body) == (charset, text)
    assert read.as_bytes() == written.as_bytes()


def test_what_other_programs_wrote_can_be_sent_again() -> None:
    eml = (
        b"X-Relay: 2\r\nX-Relay: 1\r\nReceived: b\r\nReceived: a\r\nFrom: ada@example.com\r\n"
        b"To: bob@example.org\r\nMessage-ID: <no-at-sign>\r\nDate: Tue, 24 Nov 2026 09:05 GMT\r\n"
        b"Content-Type: multipart/related; boundary=b\r\n\r\n"
        b'--b\r\nContent-Type: text/html\r\n\r\n<img src="cid:ii_abc">\r\n'
        b"--b\r\nContent-Type: image/png\r\nContent-ID: <ii_abc>\r\n\r\np\r\n--b--\r\n"
    )
    reading = oracle.read(Message.from_bytes(eml).as_bytes())
    [image] = reading.attachments
    assert reading.text_of("text/html") == f'<img src="cid:{str(image.content_id)[1:-1]}">'
    assert image.path == ("related",)
    assert reading.headers["X-Relay"] == "1"
    assert re.fullmatch("<[0-9a-f]{32}@example.com>", reading.headers["Message-ID"])


@EXAMPLES
@given(written=messages, data=st.data())
def test_octets_changed_on_the_way_are_read_or_are_a_message_error(
    written: Message, data: st.DataObject
) -> None:
    octets = written.as_bytes()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(octets)))
        end = data.draw(st.integers(start, min(len(octets), start + 200)))
        inserted = data.draw(
            st.one_of(
                st.binary(max_size=8),
                nasty_text.map(lambda text: text.encode(errors="surrogatepass")),
                st.just(octets[start:end] * 2),
            )
        )
        octets = octets[:start] + inserted + octets[end:]
    try:
        read = Message.from_bytes(octets)
        again = through_json(read)
        content = bytes(compose(again, envelope=Envelope("", ("b@x.org",)))[1])
    except MessageError as error:
        event(type(error).__name__)
        return
    assert content.endswith(b"\r\n")
    assert b"\r\nBcc:" not in content.partition(b"\r\n\r\n")[0]


def test_what_a_message_read_back_says_by_name() -> None:
    written = message(
        subject="Grüße",
        recipients=[("Doe, J", "j@x.org")],
        body="hi\n",
        html="<p>hi</p>",
        cc="c@x.org",
        reply_to=["r@x.org", "s@x.org"],
        date=dt.datetime(2026, 11, 24, 9, 5, tzinfo=dt.timezone(dt.timedelta(hours=1))),
        extra_headers={"X-A": "é", "Sender": "Desk <desk@x.org>"},
        message_id="<own@x.org>",
        in_reply_to="<a@x.org>",
        references="<0@x.org> <a@x.org>",
        priority="high",
    )
    written.attach("ü.pdf", data=b"pdf", headers={"Content-Description": "é"})
    read = Message.from_bytes(written.as_bytes())
    assert (read.subject, read.body, read.html) == ("Grüße", "hi\n", "<p>hi</p>")
    assert read.sender == Address("ada@example.com")
    assert read.recipients == [Address("j@x.org", name="Doe, J")]
    assert read.cc == [Address("c@x.org")]
    assert read.reply_to == [Address("r@x.org"), Address("s@x.org")]
    assert (read.date, read.message_id) == (written.date, "<own@x.org>")
    assert (read.in_reply_to, read.references) == ("<a@x.org>", ["<0@x.org>", "<a@x.org>"])
    assert read.priority == 2
    assert read.extra_headers == {"X-A": "é", "Sender": "Desk <desk@x.org>"}
    [file] = read.attachments
    assert (file.filename, file.content_type, file.data) == ("ü.pdf", "application/pdf", b"pdf")
    assert (file.disposition, file.headers) == ("attachment", {"Content-Description": "é"})
    assert read.as_bytes() == written.as_bytes()


def test_an_invite_and_an_image_are_still_what_they_were() -> None:
    written = message(body="come")
    written.html = f'<img src="cid:{written.embed(PNG)}">'
    written.add_invite(ICS)
    read = Message.from_bytes(written.as_bytes())
    assert list(read.alts) == ["html", "calendar; method=REQUEST"]
    assert read.as_bytes() == written.as_bytes()
    read.add_invite(ICS.replace("REQUEST", "CANCEL"), "CANCEL")
    assert list(read.alts) == ["html", "calendar; method=CANCEL"]
    assert [file.content_type for file in read.attachments] == ["image/png", "application/ics"]


@pytest.mark.parametrize("charset", [None, "iso-8859-1"])
def test_an_alternative_of_another_type_is_text_as_it_was(charset: str | None) -> None:
    written = message(alts={"application/json": '{"é": 1}'}, charset=charset)
    for body in (None, "text"):
        written.body = body
        read = Message.from_bytes(written.as_bytes())
        assert (read.body, {key: text.rstrip("\n") for key, text in read.alts.items()}) == (
            body,
            written.alts,
        )


def test_a_draft_keeps_its_bcc_and_sends_it_to_no_reader() -> None:
    read = Message.from_bytes(b"From: a@x.org\r\nBcc: reader@x.org\r\n\r\nx")
    assert read.bcc == [Address("reader@x.org")]
    envelope, content = compose(read)
    assert envelope.forward_paths == ("reader@x.org",)
    assert b"reader@x.org" not in bytes(content)


@pytest.mark.parametrize("eml", ["Subject: s\r\n\r\n", None, 7, io.BytesIO(b"Subject: s\r\n\r\n")])
def test_an_eml_is_bytes(eml: t.Any) -> None:
    with pytest.raises(MessageError, match="from_bytes: must be bytes"):
        Message.from_bytes(eml)
    assert Message.from_bytes(t.cast("bytes", memoryview(b"Subject: s\r\n\r\n"))).subject == "s"


def test_from_bytes_reads_no_more_than_its_limits() -> None:
    with pytest.raises(MessageTooLarge):
        Message.from_bytes(b"Subject: s\r\n\r\n" + b"x" * 100, limits=Limits(message_size=50))


# Records


def record(**changes: t.Any) -> dict[str, t.Any]:
    written = message(body="x", cc=[("C", "c@x.org"), Address("d@x.org", name="D")], html="y")
    written.attach("a.txt", data="text")
    written.attach("b.bin", data=b"\0\1", headers={"Content-ID": "<b@x.org>"})
    made: dict[str, t.Any] = json.loads(json.dumps(written.to_dict()))
    return {**made, **changes}


def test_a_record_is_json_and_says_its_version() -> None:
    made = record()
    assert made["version"] == 1
    assert made["cc"] == [{"pair": ["C", "c@x.org"]}, {"name": "D", "address": "d@x.org"}]
    assert [one["data"] for one in made["attachments"]] == [{"text": "text"}, {"base64": "AAE="}]
    assert Message.from_dict(made).to_dict() == made


@pytest.mark.parametrize("key", sorted({*Message().to_dict()} - {"version"}))
def test_what_stands_under_a_key_is_as_to_dict_writes_it_or_names_the_key(key: str) -> None:
    wrongs: list[t.Any] = [{"x": 1}, 1e300, True, [[[]]], "\ud800", [None, None, 7]]
    for wrong in wrongs:
        with pytest.raises(MessageError, match=rf"^{key}\b"):
            Message.from_dict(record(**{key: wrong}))
    made = record()
    del made[key]
    with pytest.raises(MessageError, match=rf"^{key}: is missing"):
        Message.from_dict(made)


@pytest.mark.parametrize("version", [2, 0, "1", True, None, 1.0, [1]])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(MessageError, match=r"^version: is not 1"):
        Message.from_dict(record(version=version, news="x"))


def test_an_unknown_key_is_refused_by_its_name() -> None:
    with pytest.raises(MessageError, match=r"^news: there is no such key"):
        Message.from_dict(record(news=1))
    with pytest.raises(MessageError, match=r"^a\\r\\nb"):
        Message.from_dict(record(**{"a\r\nb": 1}))
    with pytest.raises(MessageError, match=r"^drawn\.x: "):
        Message.from_dict(record(drawn={**record()["drawn"], "x": 1}))


@pytest.mark.parametrize("wrong", [None, [], "{}", 7, [record()]])
def test_a_record_is_a_dict(wrong: t.Any) -> None:
    with pytest.raises(MessageError, match=r"^record: must be a dict"):
        Message.from_dict(wrong)


@pytest.mark.parametrize(
    "date",
    ["", "yesterday", "2026-11-24T09:05:00", "2026-11-24 09:05:00+00:00", "20261124T090500Z"],
)
def test_a_date_in_a_record_is_as_isoformat_writes_it(date: str) -> None:
    assert Message.from_dict(record(date="2026-11-24T09:05:00+00:00")).date == dt.datetime(
        2026, 11, 24, 9, 5, tzinfo=dt.UTC
    )
    with pytest.raises(MessageError, match=r"^date: "):
        Message.from_dict(record(date=date))


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        ({"unique": "x" * 32}, r"drawn\.unique"),
        ({"unique": "A" * 32}, r"drawn\.unique"),
        ({"message_id": "<other@x.org>"}, r"drawn\.message_id"),
        ({"message_id": "<{unique}@x.org>\r\nBcc: v@x.org"}, "message_id"),
        ({"message_id": " <{unique}@x.org>"}, r"drawn\.message_id"),
        ({"date": "2026-11-24T00:00:00+00:00"}, r"drawn\.date"),
        ({"date": float("nan")}, r"drawn\.date"),
        ({"date": 10**400}, r"drawn\.date"),
    ],
)
def test_what_was_drawn_is_as_it_is_drawn(drawn: dict[str, t.Any], said: str) -> None:
    made = record()
    filled = {
        key: value.format(**made["drawn"]) if isinstance(value, str) else value
        for key, value in drawn.items()
    }
    with pytest.raises(MessageError, match=said):
        Message.from_dict({**made, "drawn": {**made["drawn"], **filled}})


@pytest.mark.parametrize(
    ("attachment", "said"),
    [
        ({"data": {"text": 7}}, r"^attachments\[0\]\.data\.text: "),
        ({"data": {"base64": "AAE"}}, r"^attachments\[0\]\.data\.base64: "),
        ({"data": {"base64": "AA==AA=="}}, r"^attachments\[0\]\.data\.base64: "),
        ({"data": {"base64": "é"}}, r"^attachments\[0\]\.data\.base64: "),
        ({"data": {"text": "a", "path": "b"}}, r"^attachments\[0\]\.data: "),
        ({"data": {"url": "http://x.org"}}, r"^attachments\[0\]\.data: "),
        ({"data": "text"}, r"^attachments\[0\]\.data: "),
        ({"content_type": "a\r\nb"}, r"^attachments\[0\]: attachment\.content_type"),
        ({"content_type": "multipart/mixed"}, r"^attachments\[0\]: attachment\.content_type"),
        ({"disposition": "form-data"}, r"^attachments\[0\]: attachment\.disposition"),
        ({"headers": [["X-A", "a\nb"]]}, r"^attachments\[0\]: attachment\.headers"),
        ({"headers": [["X-A"]]}, r"^attachments\[0\]\.headers: "),
        ({"headers": [["X-A", "1"], ["X-A", "2"]]}, r"^attachments\[0\]\.headers: "),
        ({"has_explicit_type": 1}, r"^attachments\[0\]\.has_explicit_type: "),
        ({"prepared": None}, r"^attachments\[0\]\.prepared: there is no such key"),
    ],
)
def test_an_attachment_is_as_to_dict_writes_it_or_names_the_key(
    attachment: dict[str, t.Any], said: str
) -> None:
    made = record()
    made["attachments"][0] |= attachment
    with pytest.raises(MessageError, match=said):
        Message.from_dict(made)


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | nasty_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(nasty_text, inner, max_size=3),
    max_leaves=8,
)


@EXAMPLES
@given(value=json_value)
def test_any_json_as_a_record_is_a_message_error(value: t.Any) -> None:
    with pytest.raises(MessageError):
        Message.from_dict(value)


@EXAMPLES
@given(data=st.data(), value=json_value)
def test_any_json_in_any_place_of_a_record_is_refused_or_harmless(
    data: st.DataObject, value: t.Any
) -> None:
    made = place = record()
    while True:
        keys: list[t.Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    try:
        content = Message.from_dict(made).as_bytes()
    except MessageError as error:
        event(type(error).__name__)
        return
    assert re.match(rb"From: ", content)


# Files, and what has to be written down differently


def test_a_file_is_inlined_and_the_message_needs_it_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(PNG)
    written = message()
    written.attach_file(path)
    content = written.as_bytes()
    made = written.to_dict()
    path.unlink()
    assert Message.from_dict(made).as_bytes() == content


LARGE = "Grüße\n".encode() * 200_000


@pytest.mark.parametrize("octets", [LARGE, b"plain\n" * 200_000, b"\xe9\n" * 600_000])
@pytest.mark.parametrize("size", [57 * 1024 + 1, 100_000, 1024 * 1024, 1024 * 1024 + 1])
@pytest.mark.parametrize("content_type", [None, "text/csv", "text/plain; charset=iso-8859-1"])
def test_a_text_file_composes_to_the_same_by_its_path_inlined_and_open(
    octets: bytes, size: int, content_type: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(octets[:size])
    written = message(attachments=[Attachment("a.txt", content_type, path)])
    content = written.as_bytes()
    assert through_json(written).as_bytes() == content
    with path.open("rb") as file:
        opened = through_json(written)
        opened.attachments[0].data = file
        assert opened.as_bytes() == content
    assert [leaf.octets for leaf in oracle.read(content).attachments] == [octets[:size]]


def test_a_record_names_a_file_only_where_both_sides_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.bin").write_bytes(PNG)
    written = message()
    written.attach_file("a.bin")
    made = written.to_dict(inline_files=False)
    [attachment] = made["attachments"]
    assert attachment["data"] == {"path": str(tmp_path / "a.bin")}
    monkeypatch.chdir("/")
    with pytest.raises(MessageError, match=r"^attachments\[0\]\.data\.path: .*allow_paths"):
        Message.from_dict(made)
    assert Message.from_dict(made, allow_paths=True).as_bytes() == written_in(tmp_path, written)


def written_in(folder: Path, written: Message) -> bytes:
    here = Path.cwd()
    os.chdir(folder)
    try:
        return written.as_bytes()
    finally:
        os.chdir(here)


def test_a_file_that_is_none_names_its_attachment(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/dev/zero")):
        written = message(attachments=[Attachment("a", data=path)])
        with pytest.raises(InvalidAttachment, match=r"^attachments\[0\]\.data: "):
            written.to_dict()


@pytest.mark.parametrize("size", [10, 100_000, 1_500_000])
@pytest.mark.parametrize("is_on_disk", [False, True])
def test_a_file_object_is_read_once_for_the_record_and_for_sending(
    size: int, is_on_disk: bool, tmp_path: Path
) -> None:
    octets = (b"a\0b\r\n" * size)[:size]
    (tmp_path / "a").write_bytes(octets)
    with (tmp_path / "a").open("rb") if is_on_disk else io.BytesIO(octets) as file:
        written = message(attachments=[Attachment("a.txt", data=file)])
        made = written.to_dict()
        assert made == written.to_dict()
        content = written.as_bytes()
    again = Message.from_dict(made)
    assert again.attachments[0].data == octets
    assert again.as_bytes() == content


def test_a_file_object_that_is_read_to_its_end_was_sent_before() -> None:
    written = message(attachments=[Attachment("a.bin", data=io.BytesIO(b"x" * 100))])
    content = written.as_bytes()
    assert Message.from_dict(written.to_dict()).as_bytes() == content


def test_an_attached_message_is_kept_by_its_octets() -> None:
    inner = message(subject="inner")
    written = message(attachments=[Attachment("a.eml", "message/rfc822", t.cast("t.Any", inner))])
    again = through_json(written)
    assert again.attachments[0].data == inner.as_bytes()
    assert again.as_bytes() == written.as_bytes()


def test_a_guessed_type_is_the_writers_guess_and_still_a_guess() -> None:
    written = message(attachments=[Attachment("a.txt", data=b"\xff")])
    made = written.to_dict()
    made["attachments"][0]["filename"] = "a.pdf"
    again = Message.from_dict(made)
    assert again.attachments[0].content_type == "text/plain"
    assert b"application/octet-stream" in again.as_bytes()


def test_the_date_is_drawn_when_a_record_is_made_and_stays() -> None:
    written = message()
    made = written.to_dict()
    assert written.date == made["drawn"]["date"]
    one, other = Message.from_dict(made), Message.from_dict(made)
    assert one.as_bytes() == other.as_bytes() == written.as_bytes()
    given = message(date=7)
    assert given.to_dict()["drawn"]["date"] is None


def test_a_message_id_that_waits_for_its_author_waits_on() -> None:
    written = message(sender=None)
    again = through_json(written)
    assert again.identity.message_id is None
    ids = {compose(one, default_sender="d@late.org")[1].message_id for one in (written, again)}
    assert len(ids) == 1


def test_renew_makes_another_message_of_what_was_read_from_a_record() -> None:
    again = Message.from_dict(record())
    before = again.as_bytes()
    again.renew()
    assert again.as_bytes() != before


def test_the_class_that_reads_is_the_one_that_is_made() -> None:
    class Letter(Message):
        pass

    assert type(Letter.from_dict(record())) is Letter
    assert type(Letter.from_bytes(message().as_bytes())) is Letter


class Lazy:
    def __str__(self) -> str:
        return "lazy"


def test_lazy_text_is_resolved() -> None:
    assert message(subject=Lazy(), body=Lazy()).to_dict()["subject"] == "lazy"


def test_half_a_character_is_refused_but_in_a_file_name_where_composing_writes_a_line() -> None:
    with pytest.raises(MessageError, match=r"^body: U\+D800 at position 1"):
        message(body="a\ud800").to_dict()
    written = message(attachments=[Attachment("a\udcff.bin", data=b"x")])
    again = through_json(written)
    assert again.attachments[0].filename == "a_.bin"
    assert again.as_bytes() == written.as_bytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subject", b"x"),
        ("body", 7),
        ("references", iter(["<a@x.org>"])),
        ("references", b"<a@x.org>"),
        ("reply_to", 7),
        ("recipients", [("a", "b", "c")]),
        ("cc", [7]),
        ("sender", ["a@x.org"]),
        ("date", dt.datetime(2026, 11, 24)),  # noqa: DTZ001 - that is the fault
        ("date", "2026-11-24"),
        ("date", True),
        ("date", float("inf")),
        ("date", 10**400),
        ("priority", 6),
        ("priority", 2.0),
        ("extra_headers", [1]),
        ("extra_headers", {"X-A": 7}),
        ("mail_options", "RET=HDRS"),
        ("charset", b"utf-8"),
    ],
)
def test_what_no_message_can_be_composed_of_is_refused_by_its_name(
    field: str, value: t.Any
) -> None:
    with pytest.raises(MessageError, match=f"^{field}"):
        message(**{field: value}).to_dict()


def test_what_is_no_attachment_is_refused() -> None:
    for wrong in ("a.txt", b"x", None):
        with pytest.raises(InvalidAttachment, match=r"^attachments\[0\]"):
            message(attachments=[wrong]).to_dict()
    written = message(attachments=[Attachment("a", data=b"x")])
    written.attachments[0].data = t.cast("t.Any", 7)
    with pytest.raises(InvalidAttachment, match=r"^attachments\[0\]\.data"):
        written.to_dict()


def test_values_that_composing_leaves_out_are_none() -> None:
    written = message(extra_headers={"X-A": None, "X-B": [], "X-C": "", "X-D": "d"})
    again = through_json(written)
    assert again.extra_headers == {"X-A": None, "X-B": None, "X-C": "", "X-D": "d"}
    assert again.as_bytes() == written.as_bytes()


def test_no_error_shows_what_the_message_says() -> None:
    secret = "s3cret"
    records = [
        record(body=[secret]), record(version=secret), record(sender={"name": secret}),
        record(date=secret), record(references={secret: secret}),
    ]  # fmt: skip
    for made in records[:4]:
        with pytest.raises(MessageError) as refused:
            Message.from_dict(made)
        assert secret not in str(refused.value)
    octets = f"Subject: {secret}\r\nContent-Transfer-Encoding: base64\r\n\r\n{secret}!".encode()
    with pytest.raises(MessageError) as refused:
        Message.from_bytes(octets)
    assert secret not in str(refused.value)


def test_a_bad_part_of_an_eml_is_named() -> None:
    eml = b"Content-Type: application/pdf; x=\xc3\xa9\r\n\r\nx"
    with pytest.raises(InvalidAttachment, match=r"^from_bytes: attachment\.content_type"):
        Message.from_bytes(eml)
    with pytest.raises(InvalidHeader, match=r"^Subject: "):
        Message.from_bytes(b"Subject: a\r\nSubject: b\r\n\r\n")
