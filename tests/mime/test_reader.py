"""Content read back: what other programs write, what is refused, and that nothing hangs."""

from __future__ import annotations

import datetime as dt
import re
import typing as t
from email.message import EmailMessage
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amail.address import Address
from amail.errors import InvalidAddress, InvalidHeader, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.mime.dates import read_date
from amail.mime.decoding import decode
from amail.mime.flowed import unflow
from amail.mime.mailboxes import read_mailboxes
from amail.mime.reader import Reading, read_content
from amail.mime.tokens import tokens
from amail.mime.words import decode_words, parameterized
from tests.strategies import EXAMPLES, nasty_text

PNG = b"\x89PNG\r\n\x1a\n"
HEAD = "From: ada@example.com\r\nTo: bob@example.org\r\nSubject: s\r\n"


def read(text: str | bytes, **options: t.Any) -> Reading:
    return read_content(text if isinstance(text, bytes) else text.encode(), **options)


def body_of(fields: str, body: bytes = b"x") -> str | None:
    return read((HEAD + fields + "\r\n").encode() + body).body


def header_of(field: str) -> Reading:
    return read(f"{field}\r\n\r\n")


# What other programs write


def test_apple_mail_text_beside_html_and_the_image_it_shows() -> None:
    reading = read(
        "From: =?utf-8?Q?J=C3=B6rg_M=C3=BCller?= <joerg@example.de>\n"
        "Content-Type: multipart/alternative;\n"
        '\tboundary="Apple-Mail=_1F2E"\n'
        "Mime-Version: 1.0 (Mac OS X Mail 16.0 \\(3774.600.62\\))\n"
        "Subject: =?utf-8?Q?Bilder_aus_?=\n =?utf-8?Q?K=C3=B6ln?=\n"
        "Date: Tue, 24 Nov 2026 09:05:00 +0100\n"
        "Message-Id: <8A3F@example.de>\n"
        'To: "Doe, Jane" <jane@example.org>,\n Bob <bob@example.org>\n'
        "X-Mailer: Apple Mail (2.3774.600.62)\n"
        "\n"
        "\n--Apple-Mail=_1F2E\n"
        "Content-Transfer-Encoding: quoted-printable\n"
        "Content-Type: text/plain;\n\tcharset=utf-8\n"
        "\n"
        "Gr=C3=BC=C3=9Fe\n"
        "\n--Apple-Mail=_1F2E\n"
        'Content-Type: multipart/related;\n\ttype="text/html";\n\tboundary="Apple-Mail=_1F2E-2"\n'
        "\n"
        "\n--Apple-Mail=_1F2E-2\n"
        "Content-Transfer-Encoding: 7bit\n"
        "Content-Type: text/html;\n\tcharset=us-ascii\n"
        "\n"
        '<img src="cid:B0@example.de">\n'
        "--Apple-Mail=_1F2E-2\n"
        "Content-Transfer-Encoding: base64\n"
        "Content-Disposition: inline;\n\tfilename*=utf-8''K%C3%B6ln.png\n"
        'Content-Type: image/png;\n\tx-unix-mode=0644;\n\tname="=?utf-8?Q?K=C3=B6ln=2Epng?="\n'
        "Content-Id: <B0@example.de>\n"
        "\n"
        "iVBORw0KGgo=\n"
        "\n--Apple-Mail=_1F2E-2--\n"
        "\n--Apple-Mail=_1F2E--\n"
    )
    assert reading.subject == "Bilder aus Köln"
    assert reading.sender == Address("joerg@example.de", name="Jörg Müller")
    assert reading.recipients == [
        Address("jane@example.org", name="Doe, Jane"),
        Address("bob@example.org", name="Bob"),
    ]
    assert reading.date == dt.datetime(2026, 11, 24, 8, 5, tzinfo=dt.UTC)
    assert reading.message_id == "<8A3F@example.de>"
    assert reading.extra_headers == {"X-Mailer": "Apple Mail (2.3774.600.62)"}
    assert (reading.body, reading.alts) == (
        "Grüße\n",
        {"html": '<img src="cid:B0@example.de">'},
    )
    [image] = reading.attachments
    assert image == (
        "Köln.png",
        "image/png; x-unix-mode=0644",
        PNG,
        "inline",
        {"Content-Id": "<B0@example.de>"},
    )


def test_outlook_with_its_related_around_the_alternatives_and_its_priority() -> None:
    reading = read(
        "Received: from mx.example.com ([192.0.2.1]) by x; Tue, 24 Nov 2026 09:05:00 +0000\r\n"
        "Received: from y by mx.example.com; Tue, 24 Nov 2026 09:04:59 +0000\r\n"
        'From: "Miller, Ann" <ann@example.com>\r\n'
        'To: "Bob" <bob@example.org>\r\n'
        "Subject: Offer\r\n"
        "Date: Tue, 24 Nov 2026 09:05:00 +0000\r\n"
        "Message-ID: <000001db$0a@example.com>\r\n"
        "Accept-Language: en-US\r\nContent-Language: en-US\r\n"
        "X-Priority: 1 (Highest)\r\nImportance: High\r\nX-MSMail-Priority: High\r\n"
        "MIME-Version: 1.0\r\n"
        'Content-Type: multipart/related; boundary="----=_NextPart_000"; '
        'type="multipart/alternative"\r\n'
        "\r\n"
        "This is a multipart message in MIME format.\r\n\r\n"
        "------=_NextPart_000\r\n"
        'Content-Type: multipart/alternative; boundary="----=_NextPart_001"\r\n\r\n'
        "------=_NextPart_001\r\n"
        'Content-Type: text/plain; charset="iso-8859-1"\r\n'
        "Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        "It=92s 5 =80\r\n"
        "------=_NextPart_001\r\n"
        'Content-Type: text/html; charset="iso-8859-1"\r\n\r\n'
        "<p><img src=cid:image001.png@01DB></p>\r\n"
        "------=_NextPart_001--\r\n\r\n"
        "------=_NextPart_000\r\n"
        'Content-Type: image/png; name="image001.png"\r\n'
        "Content-Transfer-Encoding: base64\r\n"
        "Content-ID: <image001.png@01DB>\r\n\r\n"
        "iVBORw0KGgo=\r\n\r\n"
        "------=_NextPart_000--\r\n"
    )
    assert reading.sender == Address("ann@example.com", name="Miller, Ann")
    assert reading.priority == 1
    assert reading.extra_headers == {"Accept-Language": "en-US", "X-MSMail-Priority": "High"}
    assert reading.body == "It\u2019s 5 \u20ac"
    assert reading.alts == {"html": "<p><img src=cid:image001.png@01DB></p>"}
    [image] = reading.attachments
    assert image == (
        *("image001.png", "image/png", PNG, "inline"),
        {"Content-ID": "<image001.png@01DB>"},
    )


def test_gmail_flowed_text_becomes_paragraphs() -> None:
    reading = read(
        HEAD + "In-Reply-To: <a@mail.gmail.com>\r\n"
        "References: <0@mail.gmail.com> <a@mail.gmail.com>\r\n"
        'Content-Type: text/plain; charset="UTF-8"; format=flowed; delsp=yes\r\n\r\n'
        "A paragraph that goes  \r\non here.\r\n  indented\r\n> a quote that  \r\n> goes on\r\n"
        ">> deeper\r\n-- \r\nAda\r\n"
    )
    assert reading.body == (
        "A paragraph that goes on here.\n indented\n> a quote that goes on\n>> deeper\n-- \nAda\n"
    )
    assert reading.in_reply_to == "<a@mail.gmail.com>"
    assert reading.references == ["<0@mail.gmail.com>", "<a@mail.gmail.com>"]


def test_a_list_keeps_its_fields_and_its_footer() -> None:
    reading = read(
        HEAD + "Sender: News <news-bounces@lists.example.org>\r\n"
        "Reply-To: a@x.org, B <b@x.org>\r\n"
        "List-Id: News <news.lists.example.org>\r\n"
        "List-Unsubscribe: <https://lists.example.org/u/1>,\r\n\t<mailto:u@lists.example.org>\r\n"
        "Precedence: list\r\n"
        "DKIM-Signature: v=1; a=rsa-sha256\r\nARC-Seal: i=1\r\nReturn-Path: <b@x.org>\r\n"
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        "--b\r\n\r\ntext\r\n--b\r\nContent-Disposition: inline\r\n\r\nfooter\r\n--b--\r\n"
    )
    assert reading.extra_headers == {
        "Sender": "News <news-bounces@lists.example.org>",
        "List-Id": "News <news.lists.example.org>",
        "List-Unsubscribe": "<https://lists.example.org/u/1>, <mailto:u@lists.example.org>",
        "Precedence": "list",
    }
    assert reading.reply_to == [Address("a@x.org"), Address("b@x.org", name="B")]
    assert reading.body == "text"
    assert reading.attachments == [(None, "text/plain", b"footer", "inline", {})]


def test_uuencoded_text_is_text() -> None:
    text = "begin 644 a.txt\n#86)C\n`\nend\n"
    assert body_of("", text.encode()) == text


def test_octets_without_a_charset_are_utf8_or_windows_1252() -> None:
    assert body_of("", "Grüße".encode()) == "Grüße"
    assert body_of("", "Grüße \u2019".encode("cp1252")) == "Grüße \u2019"
    assert read(b"Subject: Gr\xfc\xdfe\r\n\r\n").subject == "Grüße"
    assert read("Subject: Grüße\r\n\r\n").subject == "Grüße"


def test_a_file_of_an_mbox_begins_with_a_line_of_its_own() -> None:
    assert read("From ada@x.org Tue Nov 24 09:05:00 2026\nSubject: s\n\nx").subject == "s"


def test_what_the_standard_library_writes_is_read() -> None:
    theirs = EmailMessage()
    theirs["Subject"] = "Grüße " * 20
    theirs["From"] = "Jörg Müller <joerg@example.de>"
    theirs["To"] = "a@x.org, Zoë <zoe@x.org>"
    theirs["Cc"] = "undisclosed-recipients:;"
    theirs["Date"] = dt.datetime(2026, 11, 24, 9, 5, tzinfo=dt.timezone(dt.timedelta(hours=-7)))
    theirs.set_content("Grüße\n" * 50)
    theirs.add_alternative("<p>é</p><img src='cid:i@x.org'>", subtype="html")
    parts = t.cast("list[EmailMessage]", theirs.get_payload())
    parts[1].add_related(PNG, "image", "png", cid="<i@x.org>")
    theirs.add_attachment(
        b"\0\1", "application", "pdf", filename="Übersicht \u2013 lang" * 9 + ".pdf"
    )
    theirs.add_attachment("text é\n", filename="a.txt")
    inner = EmailMessage()
    inner["Subject"] = "inner"
    inner.set_content("inside\n")
    theirs.add_attachment(inner)
    reading = read(theirs.as_bytes())
    assert reading.subject == ("Grüße " * 20).rstrip()
    assert reading.sender == Address("joerg@example.de", name="Jörg Müller")
    assert reading.recipients == [Address("a@x.org"), Address("zoe@x.org", name="Zoë")]
    assert reading.cc == []
    assert reading.date == theirs["Date"].datetime
    assert reading.body == "Grüße\n" * 50
    assert reading.alts == {"html": "<p>é</p><img src='cid:i@x.org'>\n"}
    image, pdf, text, message = reading.attachments
    assert (image.data, image.disposition, image.headers) == (
        PNG,
        "inline",
        {"Content-ID": "<i@x.org>"},
    )
    assert (pdf.filename, pdf.data) == ("Übersicht \u2013 lang" * 9 + ".pdf", b"\0\1")
    assert (text.filename, text.data) == ("a.txt", "text é\n".encode())
    assert message.content_type == "message/rfc822"
    assert message.data == inner.as_bytes()


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("Ada", "Ada <a@x.org>"),
        ("", "a@x.org"),
        ("", "<a@x.org>"),
        ("Ada B. C", "Ada B. C <a@x.org>"),
        ("Doe, J", '"Doe, J" <a@x.org>'),
        ("Doe, J", "=?utf-8?q?Doe=2C_J?= <a@x.org>"),
        ("a@x.org", "a@x.org <a@x.org>"),
        ("b@y.org", '"b@y.org" <a@x.org>'),
        ("Ada", "a@x.org (Ada)"),
        ("A (b (c)) d", "A (b (c)) d <a@x.org>"),
        ("Ada", "Ada <a@x.org> (at work)"),
        ("=?utf-8?q?x?=", '"=?utf-8?q?x?=" <a@x.org>'),
        ("日本語", "=?iso-2022-jp?B?GyRCRnxLXDhsGyhC?= <a@x.org>"),
    ],
)
def test_a_mailbox_is_read_whole(name: str, raw: str) -> None:
    assert read_mailboxes(raw, "To") == [Address("a@x.org", name=name)]
    both = read_mailboxes(f"{raw}, (nobody), other@x.org", "To")
    assert both == [Address("a@x.org", name=name), Address("other@x.org")]


@pytest.mark.parametrize(
    "raw", ["undisclosed-recipients:;", "g:;, a@x.org", " , a@x.org,", "g: , ;"]
)
def test_an_empty_group_and_an_empty_entry_are_nobody(raw: str) -> None:
    assert read_mailboxes(raw, "To") == ([Address("a@x.org")] if "@" in raw else [])


@pytest.mark.parametrize(
    "raw",
    [
        "Doe, J <a@x.org>",
        "a@x.org; b@x.org",
        "Friends: a@x.org, b@x.org;",
        "Friends: a@x.org",
        ": a@x.org;",
        "a: b: c;",
        "a@x.org b@x.org",
        "<a@x.org> <b@x.org>",
        "<a@x.org>b@x.org",
        "<a@x.org, b@x.org>",
        "<a@x.org",
        "a@x.org>",
        "b@y.org <a@x.org>",
        '"a@x.org',
        "(a@x.org",
        "[a@x.org",
        "Ada <>",
        "Ada",
        "<@route.org:a@x.org>",
        '"a,b"@x.org',
        "a@b@c.org",
        "=?utf-8?q?a=40x.org?=",
    ],
)
def test_what_is_no_mailbox_for_certain_names_its_field(raw: str) -> None:
    with pytest.raises(InvalidAddress, match=r"^Cc: "):
        header_of(f"Cc: {raw}")


def test_an_address_with_a_control_character_in_its_name_names_its_field() -> None:
    with pytest.raises(InvalidHeader, match=r"^To "):
        header_of("To: =?utf-8?q?a=0D=0ABcc=3A_x?= <a@x.org>")


@pytest.mark.parametrize("name", ["From", "Sender", "Disposition-Notification-To"])
def test_one_person_is_one(name: str) -> None:
    with pytest.raises(InvalidHeader, match=f"^{name}: 2 mailboxes"):
        header_of(f"{name}: a@x.org, b@x.org")


@pytest.mark.parametrize(
    "name", ["From", "to", "Subject", "Date", "Message-ID", "Content-Type", "Sender", "References"]
)
def test_a_field_that_stands_twice_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(InvalidHeader, match=f"(?i)^{name}: the field stands 2 times"):
        read(f"{name}: a@x.org\r\n{name.upper()}: a@x.org\r\n\r\n")


def test_of_other_fields_the_lowest_is_read_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reading = read(
        "X-Spam: relay\r\nX-Own: 1\r\n" + HEAD + "X-OWN: 2\r\nx-own: 3\r\nX-Spam: author\r\n"
        "Received: a\r\nReceived: b\r\nDKIM-Signature: a\r\nDKIM-Signature: b\r\n"
        + multipart("mixed", TEXT, f"X-A: 1\r\nx-a: 2\r\n{PDF}")
    )
    assert reading.extra_headers == {"X-Spam": "author", "x-own": "3"}
    assert [file.headers for file in reading.attachments] == [{"x-a": "2"}]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        *("x-a", "x-own", "X-Spam")
    ]


def test_bcc_is_who_else_gets_it() -> None:
    assert header_of("Bcc: a@x.org").bcc == [Address("a@x.org")]


@pytest.mark.parametrize(
    ("fields", "priority", "kept"),
    [
        ("X-Priority: 5", 5, {}),
        ("X-Priority: 2 (High)\r\nImportance: high", 2, {}),
        ("Importance: High", 2, {}),
        ("Importance: normal", 3, {}),
        ("Importance: LOW", 4, {}),
        ("Importance: urgent", None, {"Importance": "urgent"}),
        ("X-Priority: 3\r\nImportance: high", None, {"X-Priority": "3", "Importance": "high"}),
        ("X-Priority: 7", None, {"X-Priority": "7"}),
        ("X-Priority: 1 ", 1, {}),
        ("Subject: s", None, {}),
    ],
)
def test_a_priority_is_read_and_two_that_differ_are_kept(
    fields: str, priority: int | None, kept: dict[str, str]
) -> None:
    reading = header_of(fields)
    assert (reading.priority, reading.extra_headers) == (priority, kept)


# Ids of other programs


@pytest.mark.parametrize(
    ("raw", "message_id"),
    [
        ("<a.b$c@x.org>", "<a.b$c@x.org>"),
        ("<a@[192.0.2.1]> (added)", "<a@[192.0.2.1]>"),
        ("", None),
        ("(nothing)", None),
    ],
)
def test_a_message_id_is_read_as_it_is(raw: str, message_id: str | None) -> None:
    assert header_of(f"Message-ID: {raw}").message_id == message_id


@pytest.mark.parametrize("raw", ["<a>", "<a@b@c>", "a@x.org", "<a..b@x.org>", "<é@x.org>", "<>"])
def test_of_a_message_id_that_is_none_another_is_made_always_the_same(
    raw: str, caplog: pytest.LogCaptureFixture
) -> None:
    eml = f"From: ada@bücher.example\r\nMessage-ID: {raw}\r\n\r\n"
    made = read(eml).message_id
    assert made is not None
    assert re.fullmatch(r"<[0-9a-f]{32}@xn--bcher-kva\.example>", made)
    assert read(eml).message_id == made
    assert read(eml.replace(raw, f"{raw}2")).message_id != made
    assert "Message-ID" in caplog.text
    assert header_of(f"Message-ID: {raw}").message_id == made.partition("@")[0] + "@localhost>"


def image(content_id: str, octets: str = "p") -> str:
    return f"Content-Type: image/png\r\nContent-Id: {content_id}\r\n\r\n{octets}"


def shown(html: str, *parts: str) -> tuple[str, list[str]]:
    """Read html with images, and return it and their ids."""
    root = f"Content-Type: text/html\r\n\r\n{html}"
    reading = read(multipart("related", root, *parts))
    return reading.alts["html"], [file.headers["Content-Id"] for file in reading.attachments]


def test_content_ids_that_can_be_written_stay_and_html_stays_as_it_is() -> None:
    html = '<img src="cid:a%40x.org"><img src=cid:other><a href="acid:x">'
    assert shown(html, image("<a@x.org>"), image(" b@x.org")) == (html, ["<a@x.org>", "b@x.org"])


@pytest.mark.parametrize(
    "written", ["<ii_abc>", "ii_abc", "<a b>", "<a%b@>", "<é@x>", "<=?a?b?c@d>"]
)
def test_gmails_content_id_becomes_one_and_html_shows_the_same_image(written: str) -> None:
    url = quote(written.removeprefix("<").removesuffix(">"))
    html, [content_id] = shown(f"<img src='cid:{url}'> cid:x", image(written))
    assert re.fullmatch("<[0-9a-f]{32}@inline>", content_id)
    assert html == f"<img src='cid:{content_id[1:-1]}'> cid:x"


def test_of_content_ids_that_are_alike_html_shows_the_first() -> None:
    for content_id in ("a@x.org", "ii_abc"):
        html, ids = shown(f"cid:{content_id}", *[image(f"<{content_id}>")] * 3)
        assert len(set(ids)) == 3
        assert html == f"cid:{ids[0][1:-1]}"


@pytest.mark.parametrize(
    ("charsets", "charset"),
    [
        (["ISO-8859-1"], "iso-8859-1"),
        (["latin-1", "iso-8859-1"], "iso-8859-1"),
        (["koi8-r", "koi8-r"], "koi8-r"),
        (["koi8-r", "utf-8"], None),
        (["iso-8859-1", "us-ascii"], None),
        (["utf-8"], None),
        (["us-ascii"], None),
        (["utf-16"], None),
        (['""'], None),
    ],
)
def test_a_charset_is_kept_where_all_texts_have_it(
    charsets: list[str], charset: str | None
) -> None:
    texts = [
        f"Content-Type: text/{subtype}; charset={each}\r\n\r\nx\0"
        for subtype, each in zip(("plain", "html"), charsets, strict=False)
    ]
    csv = "Content-Type: text/csv; charset=big5; name=a.csv\r\n\r\nx"
    alternatives = multipart("alternative", *texts, boundary="c")
    assert read(multipart("mixed", alternatives, csv)).charset == charset


# Dates, words, parameters, text


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("Tue, 24 Nov 2026 09:05:07 +0100", "2026-11-24T09:05:07+01:00"),
        ("24 Nov 2026 09:05 GMT", "2026-11-24T09:05:00+00:00"),
        ("tue, 4 nov 26 9:05:00 est (gone (home))", "2026-11-04T09:05:00-05:00"),
        ("Sat, 31 Dec 2016 23:59:60 +0000", "2017-01-01T00:00:00+00:00"),
        ("Fri,  1 Jan 1999 00:00:00 -0000", "1999-01-01T00:00:00+00:00"),
        ("1 Jan 70 00:00:00 Z", "1970-01-01T00:00:00+00:00"),
    ],
)
def test_dates_are_read_with_their_zone(text: str, iso: str) -> None:
    assert read_date(text, "Date").isoformat() == iso


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "24 Nov 2026 09:05",
        "24 Nov 2026 09:05 CET",
        "32 Nov 2026 09:05 GMT",
        "24 Nov 2026 25:05 GMT",
        "24 Nov 2026 09:05 +2400",
        "31 Dec 9999 23:59:60 GMT",
        "24 Nov 0000 09:05 GMT",
    ],
)
def test_a_date_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidHeader, match=r"^Date: "):
        header_of(f"Date: {text}")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("=?utf-8?q?a_b=3D?=", "a b="),
        ("=?UTF-8*en?B?w6k=?= x", "é x"),
        ("a =?utf-8?b?w6k?= =?utf-8?q?b?=\t=?latin1?q?=E9?= c", "a ébé c"),
        ("=?utf-8?b?w6?= =?utf-8?b?qQ==?=", "é"),
        ("=?utf-8?b?w6?= =?utf-8?q?b?=", "=?utf-8?b?w6?= =?utf-8?q?b?="),
        ("=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é"),
        ("=?utf-8?q?=FF?=", "=?utf-8?q?=FF?="),
        ("=?rot13?q?x?=", "=?rot13?q?x?="),
        ("=?utf-8?x?x?=", "=?utf-8?x?x?="),
        ("=?utf-8?b?***?=", "=?utf-8?b?***?="),
        ("=?utf-8?b?é?=", "=?utf-8?b?é?="),
        ("=?utf-8?q?=3D=3Futf-8=3Fq=3Fx=3F=3D?=", "=?utf-8?q?x?="),
    ],
)
def test_encoded_words_are_decoded_once_or_stay_as_written(raw: str, text: str) -> None:
    assert decode_words(raw) == text


@pytest.mark.parametrize(
    ("raw", "filename"),
    [
        ("attachment; filename=a.txt", "a.txt"),
        ("attachment; filename=a (1).txt; size=3", "a (1).txt"),
        ('attachment; filename="a;\\"b\\".txt"', 'a;"b".txt'),
        ("attachment; filename*=utf-8'en'%C3%A9.txt", "é.txt"),
        ("attachment; filename*=iso-8859-1''%E9.txt; filename=e.txt", "é.txt"),
        ("attachment; filename*1=b.txt; filename*0=a", "ab.txt"),
        ("attachment; filename*0*=utf-8''%C3; filename*1*=%A9; filename*2=.txt", "é.txt"),
        ('attachment; filename="=?utf-8?q?=C3=A9=2Etxt?="', "é.txt"),
        ("attachment; filename*=nonsense''%C3%A9.txt", "é.txt"),
        ('attachment; filename="a.txt', "a.txt"),
        ("filename=a.txt", "a.txt"),
        ("attachment; filename", None),
        ("attachment; =x; *=y; filename=a", "a"),
    ],
)
def test_parameters_are_read_as_they_are_meant(raw: str, filename: str | None) -> None:
    assert parameterized(raw, "f").parameters.get("filename") == filename


def test_a_parameter_given_twice_is_refused() -> None:
    for raw in ("attachment; filename=a; FILENAME=b", "x; a*0=1; a*0*=2"):
        with pytest.raises(InvalidHeader, match="twice"):
            parameterized(raw, "f")


@pytest.mark.parametrize(
    ("charset", "octets", "text"),
    [
        ("UTF-8", b"\xc3\xa9", "é"),
        ("iso-8859-1", b"\x93\xe9\x81", "\x93é\x81"),
        ("iso-8859-1", b"\x93\xe9", "\u201cé"),
        ("windows-1251", b"\xcf", "П"),
        ("ks_c_5601-1987", b"\xb0\xa1", "가"),
        ("gb2312", "镕".encode("gbk"), "镕"),
        ("us-ascii", b"\xe9", "é"),
        ("utf-8", b"\xe9", None),
        ("utf-7", b"+AOk-", None),
        ("unicode_escape", b"\\x41", None),
        ("rot13", b"a", None),
        ("idna", b"xn--mnchen-3ya", None),
        ("x" * 100_000, b"a", None),
        ("é", b"a", None),
        ("../utf-8", b"a", "a"),
    ],
)
def test_a_charset_is_known_and_fits_or_there_is_no_text(
    charset: str, octets: bytes, text: str | None
) -> None:
    assert decode(octets, charset) == text


@pytest.mark.parametrize(
    ("fields", "body", "text"),
    [
        ("Content-Transfer-Encoding: base64\r\n", b"w6\r\n kK\r\n", "é\n"),
        ("Content-Transfer-Encoding: Base64 (sic)\r\n", b"w6k", "é"),
        ("Content-Transfer-Encoding: quoted-printable\r\n", b"a=\r\nb=zz=C3=A9\r\n", "ab=zzé\n"),
        ("Content-Transfer-Encoding: binary\r\n", b"a\r\rb\n", "a\r\rb\n"),
        ("Content-Type: nonsense\r\n", b"x", "x"),
        ("Content-Type: text/plain; charset=\r\n", b"x", "x"),
        ("Content-Type: TEXT/PLAIN; CHARSET=UTF-16LE\r\n", b"x\0", "x"),
        ("Content-Disposition: inline\r\n", b"x", "x"),
    ],
)
def test_texts_are_decoded(fields: str, body: bytes, text: str) -> None:
    fields = fields if "Content-Type" in fields else f"{fields}Content-Type: text/plain\r\n"
    assert body_of(fields, body) == text


def test_flowed_text_ends_where_its_quoting_does() -> None:
    assert unflow("> a \nb", delete_space=False) == "> a \nb"
    assert unflow("a \n\n>\n>  b", delete_space=False) == "a \n>\n>  b"
    assert unflow("a \n-- \nb \n", delete_space=False) == "a \n-- \nb "


@EXAMPLES
@given(nasty_text)
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(token.raw for token in tokens(text)) == text


# What a Message cannot hold, or nobody can read with certainty


def multipart(subtype: str, *parts: str, boundary: str = "b") -> str:
    inner = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts)
    return f"Content-Type: multipart/{subtype}; boundary={boundary}\r\n\r\n{inner}--{boundary}--"


TEXT, HTML = "Content-Type: text/plain\r\n\r\nt", "Content-Type: text/html\r\n\r\nh"
PDF = "Content-Type: application/pdf\r\n\r\np"
NAMED = "Content-Type: text/plain\r\nContent-Disposition: inline; filename=a.txt\r\n\r\nn"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (multipart("signed", TEXT, PDF), "multipart/signed"),
        (multipart("encrypted", PDF, PDF), "multipart/encrypted"),
        (multipart("report", TEXT, PDF), "multipart/report"),
        (multipart("digest", "\r\nSubject: x\r\n\r\n"), "multipart/digest"),
        (multipart("mixed", TEXT, multipart("signed", TEXT, PDF, boundary="c")), "signed"),
        ("Content-Type: application/pkcs7-mime; name=smime.p7m\r\n\r\nx", "pkcs7-mime"),
        ("Content-Type: message/partial; number=1; id=x\r\n\r\nx", "message/partial"),
        ("Content-Type: message/external-body; access-type=URL\r\n\r\nx", "external-body"),
        (multipart("alternative", TEXT, PDF), "an alternative that is no text"),
        (multipart("alternative", TEXT, HTML, HTML), "two alternatives"),
        (
            multipart("mixed", TEXT, multipart("alternative", TEXT, HTML, boundary="c")),
            "multipart/alternative",
        ),
        ("Content-Type: text/plain; charset=x-unknown\r\n\r\nx", "text/plain: its octets"),
        ("Content-Transfer-Encoding: base64\r\n\r\nw6k=x", "base64 is broken"),
        ("Content-Transfer-Encoding: base64\r\n\r\n\xe9", "base64 is broken"),
        ("Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin", "transfer encoding is not known"),
        ("Content-Type: multipart/mixed\r\n\r\nx", "no boundary"),
        ("Content-Type: multipart/mixed; boundary=é\r\n\r\nx", "no boundary"),
        ("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b--", "no parts"),
        ("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx", "does not end"),
        ("Content-Type: text/plain; a=1; a=2\r\n\r\nx", "parameter a is given twice"),
        ("Subject: a\x07b\r\n\r\n", r"^Subject: U\+0007 at position 1"),
        ("Subject: =?utf-8?q?a=0D=0Ab?=\r\n\r\n", r"^Subject: U\+000D"),
        ("X-A: a\rb\r\n\r\n", "^X-A: "),
        ("", "no header field"),
        ("\r\nSubject: x", "no header field"),
        ("Just some text\r\n", "line 1 of a header is no field"),
        ("Subject: x\r\nand: more\r\nthen text\r\n\r\n", "line 3 of a header"),
        (" Subject: x\r\n\r\n", "line 1 of a header"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_or_read_says_what_it_is(message: str, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        read(message)


def test_alternatives_keep_their_order_and_their_parameters() -> None:
    calendar = 'Content-Type: text/calendar; method=REQUEST; x="a b"; charset=utf-8\r\n\r\nc'
    reading = read(multipart("alternative", HTML, TEXT, calendar))
    assert reading.body is None
    assert list(reading.alts.items()) == [
        ("html", "h"),
        ("plain", "t"),
        ('calendar; method=REQUEST; x="a b"', "c"),
    ]


def test_a_calendar_beside_the_text_is_an_alternative_though_outlook_names_it() -> None:
    calendar = 'Content-Type: text/calendar; method=REQUEST; name="meeting.ics"\r\n\r\nc'
    reading = read(multipart("alternative", TEXT, calendar))
    assert (reading.body, reading.alts) == ("t", {"calendar; method=REQUEST": "c"})


def test_fields_that_say_nothing_are_left_out() -> None:
    fields = "Sender: \r\nX-A:\r\nX-B: =?utf-8?q??=\r\nErrors-To: nobody:;\r\nX-C: c"
    assert header_of(fields).extra_headers == {"X-C": "c"}


def test_a_text_with_a_name_is_a_file_and_what_stands_behind_the_text_is_one_too() -> None:
    reading = read(multipart("mixed", NAMED, PDF, TEXT, HTML))
    assert (reading.body, reading.alts) == ("t", {})
    assert [(file.content_type, file.data, file.disposition) for file in reading.attachments] == [
        ("text/plain", b"n", "inline"),
        ("application/pdf", b"p", "attachment"),
        ("text/html", b"h", "inline"),
    ]


def test_apple_mails_html_among_files_is_an_alternative_and_the_files_are_kept() -> None:
    mixed = multipart("mixed", HTML, PDF, HTML, boundary="c")
    reading = read(multipart("alternative", TEXT, mixed))
    assert (reading.body, reading.alts) == ("t", {"html": "h"})
    assert [file.content_type for file in reading.attachments] == ["application/pdf", "text/html"]


def test_the_root_of_related_parts_is_the_one_that_start_names() -> None:
    root = "Content-Type: text/html\r\nContent-ID: <r@x>\r\n\r\nh"
    text = multipart("related", PDF, root).replace("boundary=b", 'boundary=b; start="<r@x>"')
    reading = read(text)
    assert reading.alts == {"html": "h"}
    assert [file.data for file in reading.attachments] == [b"p"]


def test_a_message_that_is_a_file_has_no_text() -> None:
    reading = read("Content-Type: application/pdf\r\nContent-Description: é\r\n\r\np")
    assert (reading.body, reading.alts) == (None, {})
    assert reading.attachments == [
        (None, "application/pdf", b"p", "attachment", {"Content-Description": "é"})
    ]


def test_the_outer_boundary_ends_what_the_inner_one_left_open() -> None:
    inner = "Content-Type: multipart/mixed; boundary=b-2\r\n\r\n--b-2\r\n\r\nx"
    with pytest.raises(MessageError, match="does not end"):
        read(multipart("mixed", TEXT, inner))
    closed = read(multipart("mixed", f"{inner}\r\n--b-2--", TEXT))
    assert closed.body == "x"
    assert [file.data for file in closed.attachments] == [b"t"]


def test_a_boundary_is_a_whole_line() -> None:
    reading = read(multipart("mixed", "\r\n--bb\r\n --b\r\n--b-\r\n--b x", PDF))
    assert reading.body == "--bb\n --b\n--b-\n--b x"


# Bounds


def test_no_more_octets_are_read_than_the_limit_allows() -> None:
    octets = HEAD.encode() + b"\r\n" + b"x" * 100
    assert read(octets, limits=Limits(message_size=len(octets))).body == "x" * 100
    with pytest.raises(MessageTooLarge, match="message_size"):
        read(octets, limits=Limits(message_size=len(octets) - 1))


def nested(depth: int) -> str:
    text = TEXT
    for level in range(depth):
        text = multipart("mixed", text, boundary=f"b{level}.")
    return text


def test_twenty_levels_are_read_and_a_thousand_are_refused() -> None:
    assert read(nested(20)).body == "t"
    for depth in (21, 1000):
        with pytest.raises(MessageError, match="nested more than 20 deep"):
            read(nested(depth))


def test_a_thousand_parts_are_read_and_more_are_refused() -> None:
    assert len(read(multipart("mixed", *[TEXT] * 1000)).attachments) == 999
    for count in (1001, 100_000):
        with pytest.raises(MessageError, match="more than 1000 parts"):
            read(multipart("mixed", *[TEXT] * count))


def test_a_header_is_bounded() -> None:
    for head in ("X-{0}: x\r\n" * 1001, "X: " + "x" * 256 * 1024 + "\r\n"):
        with pytest.raises(MessageError, match="are read"):
            read(head.format("1") + "\r\n")
    part = "".join(f"X-{number}: x\r\n" for number in range(101)) + "\r\n"
    with pytest.raises(MessageError, match="101 fields; 100 are read"):
        read(multipart("mixed", part))


@pytest.mark.timeout(30)
def test_a_thousand_parts_of_a_hundred_fields_are_read_at_once() -> None:
    part = PDF.split("\r\n", maxsplit=1)[0]
    part += "".join(f"\r\nX-{number}: x" for number in range(99)) + "\r\n\r\np"
    reading = read(multipart("mixed", *[part] * 1000))
    assert {len(file.headers) for file in reading.attachments} == {99}


@pytest.mark.timeout(30)
def test_boundaries_that_begin_alike_are_looked_for_at_once_on_every_level() -> None:
    text = "x\r\n" + "--bbbbbbbbbbbbbbbbbbbbb x\r\n" * 200_000
    for level in range(20):
        text = multipart(
            "mixed", f"\r\n{text}" if level == 0 else text, boundary="b" * (20 - level)
        )
    assert str(read(text).body).count("\n") == 200_001


def outcome(octets: bytes) -> str:
    """Read octets and say what came of it. No other exception than MessageError may get out."""
    try:
        read_content(octets)
    except MessageError as error:
        return str(error)
    return "read"


# So many of something that what is not linear would take minutes.
LONG = 240_000  # fits into a header
MILLION = 1_000_000


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "field",
    [
        "To: " + "(" * LONG,
        "To: " + '"' * LONG,
        "To: " + '"\\' * (LONG // 2),
        "To: " + "<" * LONG,
        "To: " + "," * LONG,
        "To: " + "g:;" * (LONG // 3),
        "To: " + "a " * (LONG // 2),
        "To: " + "a@x.org," * (LONG // 8),
        "Subject: " + "=?a?q?" * (LONG // 6),
        "Subject: " + "=?a?q?x?= " * (LONG // 10),
        "Subject: " + "=?utf-8?q?x?=" + " " * LONG,
        "Subject: " + "=?" * (LONG // 2),
        "Date: " + "1 " * (LONG // 2),
        "Date: " + "()" * (LONG // 2),
        "References: " + "<a@b>" * (LONG // 5),
        "Content-Type: " + "; a" * (LONG // 3),
        "Content-Type: " + ";" + " " * LONG,
        "Content-Type: ; " + "a" * LONG,
        "Content-Type: ; a=" + '"' * LONG,
        "Content-Type: " + ';a="\\"' * (LONG // 6),
        "Content-Type: text/plain" + ";a*0=b" * (LONG // 6),
        "Content-Transfer-Encoding: " + "(" * LONG,
        "Content-Type: text/plain; format=flowed\r\n\r\n" + "a \r\n" * MILLION,
        "Content-Type: text/plain; format=flowed\r\n\r\n" + ">" * MILLION,
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + "--\r\n" * MILLION,
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b" + " " * MILLION + "x",
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + "--b\r\n" * MILLION,
        "\r\n" * MILLION,
        "X\r\n" * (MILLION // 3),
    ],
    ids=lambda field: repr(field[:24]),
)
def test_very_much_of_anything_is_read_or_refused_at_once(field: str) -> None:
    assert len(outcome((field + "\r\n\r\n").encode())) < 400


@EXAMPLES
@given(octets=st.binary(max_size=300))
@example(b":")
@example(b"A:\r\n B")
@example(b'Content-Type: multipart/x; boundary="\xff"\n\n--\xff\n\n--\xff--')
def test_any_octets_are_read_or_are_a_message_error(octets: bytes) -> None:
    assert outcome(octets)


@EXAMPLES
@given(
    name=st.sampled_from(
        (
            *("From", "To", "Sender", "Subject", "Date", "Message-ID", "References", "X-Priority"),
            *("X-A", "Content-Type", "Content-Disposition", "Content-Transfer-Encoding"),
        )
    ),
    value=nasty_text,
)
def test_any_text_in_a_field_is_read_or_is_a_message_error(name: str, value: str) -> None:
    octets = f"{name}: {value}\r\n\r\nbody\r\n".encode(errors="surrogatepass")
    assert outcome(octets)
