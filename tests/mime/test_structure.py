"""Bodies and which part nests in which (rows B82 to B94, facts 34 to 44)."""

from __future__ import annotations

import logging
import re
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.errors import InvalidHeader, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.mime import compose
from amail.mime.multipart import boundary
from tests import oracle
from tests.mime.reading import judged, message, read
from tests.strategies import EXAMPLES

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def test_f41_text_alone_is_text_and_html_alone_gets_no_invented_text() -> None:
    assert read(body="hi").tree == [("text/plain",)]
    assert read(html="<p>hi</p>").tree == [("text/html",)]
    assert read(html="<p>hi</p>", body="").tree == [("text/html",)]


def test_f41_text_and_html_are_alternatives() -> None:
    assert read(body="hi", html="<p>hi</p>").tree == [
        ("alternative", "text/plain"),
        ("alternative", "text/html"),
    ]


def test_b92_alternatives_keep_their_order_and_take_full_types() -> None:
    reading = read(body="b", alts={"calendar; method=REQUEST": "c", "html": "h", "text/x-amp": "a"})
    assert [leaf.content_type for leaf in reading.leaves] == [
        "text/plain",
        "text/calendar",
        "text/html",
        "text/x-amp",
    ]


@pytest.mark.parametrize(
    "key", ["html\r\nX: y", "a/b/c", "", "multipart/mixed", "message/rfc822", "ä"]
)
def test_b92_what_is_no_type_of_an_alternative_is_refused(key: str) -> None:
    with pytest.raises(InvalidHeader, match="alts"):
        compose(message(alts={key: "x"}))


def test_f41_f42_an_attachment_is_in_mixed_and_no_text_is_invented_for_it() -> None:
    written = message(body="hi", html="<p>hi</p>")
    written.attach("a.pdf", data=b"x")
    assert judged(written).tree == [
        ("mixed", "alternative", "text/plain"),
        ("mixed", "alternative", "text/html"),
        ("mixed", "application/pdf"),
    ]
    written.body = written.html = None
    assert judged(written).tree == [("mixed", "application/pdf")]


def test_f43_an_image_the_html_shows_is_in_related_inside_alternative() -> None:
    written = message(body="hi")
    cid = written.embed(PNG, "logo.png")
    written.html = f'<img src="cid:{cid}">'
    written.attach("a.pdf", data=b"x")
    reading = judged(written)
    assert reading.tree == [
        ("mixed", "alternative", "text/plain"),
        ("mixed", "alternative", "related", "text/html"),
        ("mixed", "alternative", "related", "image/png"),
        ("mixed", "application/pdf"),
    ]
    image = reading.leaves[2]
    assert (image.content_id, image.disposition, image.filename) == (
        f"<{cid}>",
        "inline",
        "logo.png",
    )
    assert image.octets == PNG


def test_f55_an_image_with_a_content_id_given_by_hand_is_shown_and_gets_no_name() -> None:
    written = message(html='<img src="cid:logo@x.org">')
    written.attach(None, "image/png", PNG, "inline", {"Content-ID": "<logo@x.org>"})
    reading = judged(written)
    assert reading.tree == [("related", "text/html"), ("related", "image/png")]
    assert reading.leaves[1].filename is None


def test_an_attachment_whose_content_id_the_html_shows_is_related_too() -> None:
    written = message(html="<img src=cid:logo@x.org>")
    written.attach("logo.png", None, PNG, headers={"content-id": "logo@x.org"})
    written.attach("other.png", None, PNG, headers={"content-id": "other@x.org"})
    assert judged(written).tree == [
        ("mixed", "related", "text/html"),
        ("mixed", "related", "image/png"),
        ("mixed", "image/png"),
    ]


def test_an_inline_image_without_html_is_attached() -> None:
    written = message(body="see below")
    written.embed(PNG)
    assert judged(written).tree == [("mixed", "text/plain"), ("mixed", "image/png")]


def test_b77_an_image_that_html_shows_and_nobody_attached_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "amail"):
        written = message(html='<img src="cid:secret@x.org">')
        written.attach("a.pdf", data=b"x")
        judged(written)
        judged(message(html='<img src="cid:secret@x.org">'))
        judged(message(body="x", html='<img src="cid:secret@x.org">'))
    assert len(caplog.records) == 3
    assert "secret" not in caplog.text


def test_b82_f34_nothing_at_all_is_an_empty_text() -> None:
    reading = read()
    assert reading.tree == [("text/plain",)]
    assert reading.text_of("text/plain") == ""


@pytest.mark.parametrize("field", ["body", "html"])
def test_b83_half_a_character_in_a_body_is_refused_with_its_position(field: str) -> None:
    with pytest.raises(MessageError, match=rf"{field}: U\+D83D at position 7") as caught:
        compose(message(**{field: "secret \ud83d"}))
    # Nothing that hangs on the exception may quote the body.
    assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(MessageError, match="bytes"):
        compose(message(body=b"bytes"))


@pytest.mark.parametrize(
    "control", ["\0", "\x0b", "\x0c", "\x1b", "\x1c", "\x7f", "\x85", "\u2028"]
)
def test_b84_b86_controls_in_a_body_are_encoded_and_kept(control: str) -> None:
    body = f"a{control}b\nc\n"
    assert read(body=body).text_of("text/plain") == f"a{control}b\r\nc\r\n"


@pytest.mark.parametrize(
    "body", [".", "..", "\n.\n", "a\r\n.\r\nb", ".\r.\r", "." * 999, "\n." * 9]
)
def test_b85_dots_at_the_start_of_lines_are_content(body: str) -> None:
    for html in (None, "<p>x</p>"):
        text = read(body=body, html=html).text_of("text/plain") or ""
        assert (
            text.split("\r\n")[: body.count("\n") + 1][0] == body.replace("\r", "\n").split("\n")[0]
        )


def test_b86_line_ends_of_every_kind_become_crlf() -> None:
    text = read(body="a\nb\rc\r\nd", html="<p>").text_of("text/plain")
    assert text == "a\r\nb\r\nc\r\nd"


@pytest.mark.parametrize("size", [997, 998, 999, 10**6])
@pytest.mark.parametrize("unit", ["x", "é", "日", "👩‍👩‍👧", " ", "="])
def test_b87_f37_lines_of_any_length_arrive(size: int, unit: str) -> None:
    body = (unit * size)[:size]
    assert (read(body=body, html="<p>").text_of("text/plain")) == body


def test_b88_f38_a_line_that_begins_with_from_is_left_alone() -> None:
    assert read(body="From me\nFrom you\n").text_of("text/plain") == "From me\r\nFrom you\r\n"


def test_b89_a_body_over_the_limit_is_refused() -> None:
    for field in ("body", "html"):
        with pytest.raises(MessageTooLarge, match=r"limits\.message_size"):
            compose(message(**{field: "x" * 2000}), limits=Limits(message_size=1000))
    with pytest.raises(MessageTooLarge) as caught:
        compose(message(body="é" * 600), limits=Limits(message_size=1000))
    assert caught.value.outcome == "rejected"


def encoding_of(content: bytes) -> bytes:
    return content.partition(b"Content-Transfer-Encoding: ")[2].partition(b"\r\n")[0]


def test_f35_f36_the_encoding_suits_the_text() -> None:
    assert encoding_of(message(body="plain").as_bytes()) == b"7bit"
    assert encoding_of(message(body="Grüße aus München, bis bald und alles Gute").as_bytes()) == (
        b"quoted-printable"
    )
    assert encoding_of(message(body="日本語のテキスト").as_bytes()) == b"base64"
    # Plain ASCII is never base64, however odd.
    assert encoding_of(message(body="\0" * 10 + "x" * 2000).as_bytes()) == b"quoted-printable"


@pytest.mark.parametrize(
    "charset", ["iso-8859-1", "windows-1252", "koi8-r", "shift_jis", "gb18030"]
)
def test_f40_the_charset_of_the_message_holds_for_text_and_html(charset: str) -> None:
    text = {"koi8-r": "Привет", "shift_jis": "日本", "gb18030": "主题"}.get(charset, "Grüße")
    reading = read(body=text, html=f"<p>{text}</p>", charset=charset)
    assert reading.text_of("text/plain") == text
    content = message(body=text, html=text, charset=charset).as_bytes()
    assert content.count(f'charset="{charset}"'.encode()) == 2


def test_text_that_does_not_fit_the_charset_goes_as_utf_8() -> None:
    for charset in ("iso-8859-1", "us-ascii", "shift_jis"):
        assert read(body="日本 🎉", charset=charset).text_of("text/plain") == "日本 🎉"
    assert read(body="\x1b(B\n", charset="iso-2022-jp").text_of("text/plain") == "\x1b(B\r\n"


def boundaries_of(content: bytes) -> list[bytes]:
    return [piece.partition(b'"')[0] for piece in content.split(b'boundary="')[1:]]


@pytest.mark.parametrize("body", [None, "x"])
def test_the_charset_that_is_asked_for_is_named_though_the_text_is_ascii(body: str | None) -> None:
    octets = message(body=body, html="y", charset="iso-8859-1").as_bytes()
    assert octets.count(b'charset="iso-8859-1"') == (2 if body else 1)
    assert b"utf-8" not in octets


def test_b94_a_body_that_holds_the_boundary_gets_another_one() -> None:
    first = message(body="x", html="y", message_id="<id@x.org>", date=0)
    [boundary] = boundaries_of(first.as_bytes())
    evil = message(body=f"--{boundary.decode()}--\n", html="y", message_id="<id@x.org>", date=0)
    reading = judged(evil)
    assert reading.text_of("text/plain") == f"--{boundary.decode()}--\r\n"
    assert boundaries_of(evil.as_bytes()) != [boundary]


@EXAMPLES
@given(message_id=st.from_regex(r"\A<[!#-;=?A-~]{1,40}@[a-z.]{1,9}>\Z"), number=st.integers(1, 999))
def test_any_message_id_gives_boundaries_that_may_stand_in_a_header(
    message_id: str, number: int
) -> None:
    name = boundary(message_id, number)
    assert re.fullmatch(r"=_[0-9]{1,3}\.[A-Za-z0-9]{32}", name)
    assert name == boundary(message_id, number)
    assert not boundary(message_id, number + 1).startswith(name)


def test_boundaries_come_from_the_message_id_alone() -> None:
    one, same, other = (
        message(body="x", html="y", message_id=f"<{name}@x.org>", date=0).as_bytes()
        for name in ("id", "id", "other")
    )
    assert one == same
    assert boundaries_of(one) != boundaries_of(other)


def test_no_boundary_is_the_beginning_of_another() -> None:
    written = message(body="x", html="<img src=cid:a@b>")
    written.attach("a.png", data=PNG, headers={"Content-ID": "<a@b>"})
    written.attach("a.pdf", data=b"x")
    boundaries = boundaries_of(written.as_bytes())
    assert len(set(boundaries)) == len(boundaries) == 3
    for one in boundaries:
        assert [other for other in boundaries if other.startswith(one)] == [one]


def test_the_judges_read_a_message_in_many_scripts() -> None:
    written = message(
        subject="会议纪要 議事録 محضر الاجتماع 🎉",
        recipients=[("李雷", "li@example.cn"), ("عمر", "omar@example.com")],
        body="您好\nこんにちは\nمرحبا\n🎉",  # noqa: RUF001 - this is Arabic
        html="<p>您好 こんにちは مرحبا 🎉</p>",
    )
    written.attach("报告 تقرير 🎉.pdf", "application/pdf", b"%PDF")
    reading = judged(written)
    assert reading.subject == written.subject
    assert reading.mailboxes["To"] == [("李雷", "li@example.cn"), ("عمر", "omar@example.com")]
    assert reading.text_of("text/html") == written.html
    assert [leaf.filename for leaf in reading.attachments] == ["报告 تقرير 🎉.pdf"]


def test_the_judge_refuses_what_it_is_there_to_refuse() -> None:
    good = message(body="x", html="y").as_bytes()
    oracle.read(good)
    faults: list[t.Callable[[bytes], bytes]] = [
        lambda c: c.replace(b"Subject: s", b"Subject: s\nBcc: x@y.org"),
        lambda c: c.replace(b"Subject: s", b"Subject: s\r\nBcc: x@y.org"),
        lambda c: c.replace(b"Subject: s", b"Subject: s\r\nSubject: t"),
        lambda c: c.replace(b"Subject: s", b"Subject: \xc3\xa9"),
        lambda c: c.replace(b"Subject: s", b"Subject: " + b"s" * 990),
        lambda c: c.replace(b"Subject: s", b"Subject: " + b"s " * 45),
        lambda c: c.replace(b"Subject: s", b"Subject: =?utf-8?q?=C3?= =?utf-8?q?=A9_x?="),
        lambda c: c.replace(b"To: ", b"To: Doe, John <j@x.org>, "),
        lambda c: c.replace(b"--\r\n", b"\r\n"),
        lambda c: c.replace(b"\r\n\r\ny", b"\r\n\r\n" + b"y" * 1000),
        lambda c: c[:-2],
    ]
    for number, fault in enumerate(faults):
        with pytest.raises((AssertionError, UnicodeError)):
            assert oracle.read(fault(good)) is None, f"fault {number} went unseen"
