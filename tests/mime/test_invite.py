"""Invitations: a calendar object as an alternative and as a file (row B93, fact 44)."""

from __future__ import annotations

import copy
import pickle
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.errors import InvalidHeader, MessageError
from amail.mime import compose
from tests.mime.reading import judged, message
from tests.strategies import EXAMPLES, nasty_text


def calendar(method: str = "METHOD:REQUEST", summary: str = "Tea", end: str = "\r\n") -> str:
    lines = [
        *("BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//x//y//EN", method, "BEGIN:VEVENT"),
        *("UID:1@x.org", "DTSTAMP:20260101T120000Z", "DTSTART:20260102T120000Z"),
        *(f"SUMMARY:{summary}", "END:VEVENT", "END:VCALENDAR", ""),
    ]
    return end.join([line for line in lines[:-1] if line] + [""])


def test_f44_an_invite_is_the_last_alternative_and_a_file() -> None:
    written = message(body="Tea?", html="<p>Tea?</p>")
    written.add_invite(calendar(summary="Tee für zwei"))
    reading = judged(written)
    assert reading.tree == [
        ("mixed", "alternative", "text/plain"),
        ("mixed", "alternative", "text/html"),
        ("mixed", "alternative", "text/calendar"),
        ("mixed", "application/ics"),
    ]
    assert reading.text_of("text/calendar") == calendar(summary="Tee für zwei")
    [file] = reading.attachments
    assert (file.filename, file.disposition) == ("invite.ics", "attachment")
    assert file.octets.decode() == calendar(summary="Tee für zwei")
    content = written.as_bytes()
    assert b'Content-Type: text/calendar; method="REQUEST"; charset="utf-8"' in content


def test_an_invite_stays_the_last_alternative_when_html_is_set_later() -> None:
    written = message(body="Tea?")
    written.add_invite(calendar())
    written.html = "<p>Tea?</p>"
    written.attach("menu.pdf", data=b"%PDF")
    for other in (written, copy.deepcopy(written), pickle.loads(pickle.dumps(written))):
        types = [leaf.content_type for leaf in judged(other).leaves]
        assert types == [
            *("text/plain", "text/html", "text/calendar", "application/ics", "application/pdf"),
        ]


def test_an_invite_replaces_the_one_before_and_nothing_else() -> None:
    written = message(body="x", alts={"calendar": "another"})
    written.attach("invite.ics", "text/calendar", "mine")
    written.add_invite(calendar())
    written.add_invite(calendar("METHOD:CANCEL", summary="No tea"), "cancel")
    reading = judged(written)
    assert [leaf.content_type for leaf in reading.leaves] == [
        *("text/plain", "text/calendar", "text/calendar", "text/calendar", "application/ics"),
    ]
    assert b"REQUEST" not in written.as_bytes()
    assert reading.texts[-1].text == calendar("METHOD:CANCEL", summary="No tea")


@pytest.mark.parametrize(
    "ics",
    [
        calendar(end="\n"),
        calendar("method:request"),
        calendar("METHOD;X-A=b:REQUEST"),
        calendar("MET\r\n HOD:REQ\r\n\tUEST"),
        "\ufeff" + calendar(),
        calendar(summary="Grüße").encode(),
        b"\xef\xbb\xbf" + calendar().encode(),
        # Folded within a character, as RFC 5545, section 3.1, warns of.
        calendar(summary="Gr\xfc\xdfe").encode().replace(b"\xc3\xbc", b"\xc3\r\n \xbc"),
    ],
)
def test_a_calendar_object_is_taken_however_its_lines_are_written(ics: str | bytes) -> None:
    written = message(body="Tea?")
    written.add_invite(ics, "Request")
    reading = judged(written)
    text = reading.text_of("text/calendar") or ""
    assert text.startswith("BEGIN:VCALENDAR\r\n")
    assert text.encode() == reading.attachments[0].octets
    assert "\n" not in text.replace("\r\n", "")
    assert text.count("UID:1@x.org\r\n") == 1


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("REQUEST", "METHOD:CANCEL"),
        ("CANCEL", "METHOD:REQUEST"),
        ("REQUEST", ""),
        ("REQUEST", "METHOD:REQUEST\r\nMETHOD:CANCEL"),
        ("REQUEST", "X-METHOD:REQUEST"),
        ("REQUEST", "DESCRIPTION:x\r\n METHOD:REQUEST"),
        ("REQUEST", "METHOD:"),
    ],
)
def test_b93_a_method_that_is_not_the_one_in_the_object_is_refused(method: str, line: str) -> None:
    written = message(body="Tea?")
    with pytest.raises(InvalidHeader, match=r"add_invite: method: .*RFC 6047"):
        written.add_invite(calendar(line), method)
    assert (written.alts, written.attachments) == ({}, [])


@pytest.mark.parametrize(
    "method",
    [
        *("", " ", "REQUEST\r\nX: y", "REQUEST; x=y", "RÉQUEST", "REQUEST\n", '"', "=?a?q?b?="),
        *(None, 7, b"REQUEST", "R" * 41),
    ],
)
def test_b93_a_method_is_a_token(method: t.Any) -> None:
    with pytest.raises(InvalidHeader, match="add_invite: method: must be a word"):
        message().add_invite(calendar(), method)


@pytest.mark.parametrize(
    "key", ["calendar; method=REQUEST\r\nX: y", "calendar; method=é", "calendar; method="]
)
def test_b93_a_method_given_as_an_alternative_is_checked_too(key: str) -> None:
    with pytest.raises(InvalidHeader, match="alts"):
        compose(message(alts={key: calendar()}))
    with pytest.raises(InvalidHeader, match=r"alts: method: .* must agree"):
        compose(message(alts={"calendar; method=REPLY": calendar()}))
    assert judged(message(alts={"calendar; method=request": calendar()})).leaves


@pytest.mark.parametrize(
    "ics",
    [
        *("", "Tea?", "BEGIN:VEVENT\r\nEND:VEVENT\r\n", calendar() + "more", "x" + calendar()),
        *(calendar()[:-20], None, 7, calendar().encode("utf-16"), b"\xff" + calendar().encode()),
        *(bytearray(calendar().encode()), "invite.ics"),
    ],
)
def test_what_is_no_calendar_object_is_refused_and_not_quoted(ics: t.Any) -> None:
    with pytest.raises(MessageError, match="add_invite: ics: ") as caught:
        message().add_invite(ics)
    assert "Tea" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@EXAMPLES
@given(summary=nasty_text, method=st.sampled_from(["REQUEST", "CANCEL"]) | nasty_text)
def test_any_invite_is_refused_or_arrives_twice_with_one_method(summary: str, method: str) -> None:
    written = message(body="Tea?")
    try:
        written.add_invite(calendar(summary=summary), method)
        _, content = compose(written)
    except MessageError:
        return
    assert method.upper() == "REQUEST"
    assert bytes(content).count(b"method=") == 1
    reading = judged(written)
    file = reading.attachments[0].octets.decode()
    text = reading.text_of("text/calendar") or ""
    assert text == file.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
