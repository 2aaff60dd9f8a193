"""Header fields: what may stand in them and how it is read back (rows B1 to B66)."""

from __future__ import annotations

import datetime as dt
import time
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.address import Address
from amail.errors import InvalidAddress, InvalidHeader, MessageError
from amail.limits import Limits
from amail.mime import compose
from amail.mime.fields import format_date
from amail.mime.headers import HeaderWriter, fold
from tests.mime.reading import judged, message, read
from tests.strategies import EXAMPLES

CONTROLS = [
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "\r\n ",
    "\0",
    "\x7f",
    "\x0b",
    "\x0c",
    "\x1b",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x80",
    "\x9b",
]
UTC = dt.UTC


@pytest.mark.parametrize("control", CONTROLS)
def test_b1_to_b14_a_subject_with_a_control_character_is_refused(control: str) -> None:
    with pytest.raises(InvalidHeader, match=r"subject: U\+00[0-9A-F]{2} at position 5 "):
        compose(message(subject=f"Hello{control}"))


def test_b5_a_fold_as_rfc_5322_has_it_is_unfolded() -> None:
    assert read(subject="Hello\r\n world\r\n\t again").subject == "Hello world again"


@pytest.mark.parametrize("separator", ["\t", "\x85", "\u2028", "\u2029"])
def test_b13_separators_that_come_with_pasted_text_become_one_space(separator: str) -> None:
    assert read(subject=f"Hello{separator}world").subject == "Hello world"


@pytest.mark.parametrize("half", [chr(0xD800), chr(0xDFFF), chr(0xDC80)])
def test_b15_a_subject_with_half_a_character_is_refused(half: str) -> None:
    with pytest.raises(InvalidHeader, match=f"U\\+{ord(half):04X} at position 2"):
        compose(message(subject=f"ab{half}"))


@pytest.mark.parametrize(
    "subject",
    [
        "=?utf-8?q?a=0D=0ABcc:_x?=",  # B16
        "=?utf-8?b?aGFybWxlc3M=?=",  # B17
        "see =?utf-8?q?x?= there",
        "=?utf-8?q?never closed",
        "a=?b?=c",
    ],
)
def test_b16_b17_text_that_looks_like_an_encoded_word_is_sent_literally(subject: str) -> None:
    reading = read(subject=subject)
    assert reading.subject == subject
    assert subject not in reading.headers["Subject"]


@pytest.mark.parametrize(
    "subject", ["x" * 1000, "é" * 1000, "wörter und " * 90, "word " * 199 + "w"]
)
def test_b18_long_subjects_are_folded_and_read_back(subject: str) -> None:
    assert read(subject=subject).subject == subject


def test_b18_a_subject_beyond_the_limit_is_refused_at_once() -> None:
    begun = time.thread_time()
    for size in (1001, 4096, 1024 * 1024):
        with pytest.raises(InvalidHeader, match="1000 are allowed"):
            compose(message(subject="é" * size))
    assert time.thread_time() - begun < 0.1


@pytest.mark.parametrize("subject", [" leading", "trailing ", "two  spaces", "   ", " a  b "])
def test_b19_spaces_of_a_subject_are_kept(subject: str) -> None:
    assert read(subject=subject).subject == subject


def test_b20_bidirectional_overrides_in_a_subject_are_its_authors_business() -> None:
    subject = "a\u202eb\u202c \u2066c\u2069"
    assert read(subject=subject).subject == subject


def test_b21_a_subject_of_none_is_left_out_and_a_lazy_one_is_resolved() -> None:
    class Lazy:
        def __str__(self) -> str:
            return "Später"

    assert read(subject=None).subject is None
    assert read(subject="").subject is None
    assert read(subject=Lazy()).subject == "Später"
    with pytest.raises(InvalidHeader, match="bytes"):
        compose(message(subject=b"bytes"))
    with pytest.raises(InvalidHeader, match="int"):
        compose(message(subject=42))


@pytest.mark.parametrize("padding", range(0, 60, 7))
@pytest.mark.parametrize("unit", ["👩‍👩‍👧", "e\u0301", "日", "é", "\U0010ffff"])
def test_b22_no_encoded_word_ends_within_a_character(padding: int, unit: str) -> None:
    subject = "x" * padding + unit * 40
    assert read(subject=subject).subject == subject


def test_an_ascii_subject_is_folded_at_spaces_and_never_encoded() -> None:
    subject = "Nineteen plain words that would not fit into one line of any header " * 2 + "end"
    reading = read(subject=subject)
    assert reading.headers["Subject"] == subject


@pytest.mark.parametrize("charset", ["iso-8859-1", "windows-1252", "utf-8"])
def test_a_subject_is_written_in_the_charset_of_the_message_where_that_can_hold_it(
    charset: str,
) -> None:
    assert f"=?{charset}?" in read(subject="Grüße", charset=charset).headers["Subject"]
    assert "=?utf-8?" in read(subject="主题", charset="iso-8859-1").headers["Subject"]


@pytest.mark.parametrize("charset", ["iso-2022-jp", "shift_jis", "euc-jp", "gb18030", "big5"])
def test_long_subjects_in_the_charsets_of_asia_are_read_back(charset: str) -> None:
    assert read(subject="日本" * 60, charset=charset).subject == "日本" * 60


def test_b28_b29_a_long_name_with_a_comma_is_one_mailbox() -> None:
    for name in ("Lovelace, Ada " * 9, "Sürname, Firstname " * 9, 'a "b" \\ (c), <d@e>; ' * 5):
        reading = read(recipients=[(name, "bob@x.org"), "eve@x.org"])
        assert reading.mailboxes["To"] == [(name.strip(), "bob@x.org"), ("", "eve@x.org")]


def test_b30_b31_a_name_that_is_an_address_or_an_encoded_word_stays_a_name() -> None:
    for name in ("ceo@bank.com", "=?utf-8?q?a=0D=0ABcc:_x?=", "=?utf-8?b?Q0VP?= x"):
        assert read(recipients=[(name, "x@evil.org")]).mailboxes["To"] == [(name, "x@evil.org")]


def test_f1_to_is_one_field_in_the_given_order_without_duplicates() -> None:
    reading = read(recipients=["c@x.org", "a@x.org", "B@X.org", "B@x.ORG", "b@x.org", "a@x.org"])
    assert [spec for _, spec in reading.mailboxes["To"]] == [
        "c@x.org",
        "a@x.org",
        "B@X.org",
        "b@x.org",
    ]


def test_f2_without_to_there_is_no_to_and_with_bcc_alone_nobody_is_named() -> None:
    assert "To" not in read(recipients=None, cc="c@x.org").headers
    reading = read(recipients=None, bcc=["hidden@x.org"])
    assert reading.headers["To"] == "undisclosed-recipients:;"
    assert "hidden" not in str(reading.headers)


def test_f3_empty_entries_are_dropped_from_headers_and_envelope() -> None:
    written = message(recipients=["", "b@x.org", None, "  "], cc=["", None, "c@x.org"])
    written.reply_to = ["", "r@x.org"]
    envelope, _ = compose(written)
    assert envelope.forward_paths == ("b@x.org", "c@x.org")
    assert judged(written).mailboxes["Reply-To"] == [("", "r@x.org")]


@pytest.mark.parametrize("recipients", ["", " ", [""], [None, ""]])
def test_b34_nothing_but_empty_recipients_are_refused(recipients: t.Any) -> None:
    with pytest.raises(InvalidAddress, match="recipients"):
        compose(message(recipients=recipients))


def test_f4_the_envelope_is_to_cc_and_bcc_in_that_order_each_mailbox_once() -> None:
    envelope, content = compose(
        message(recipients=["a@x.org"], cc=["c@x.org", "a@x.org"], bcc=["b@x.org", "A <a@X.org>"])
    )
    assert envelope.forward_paths == ("a@x.org", "c@x.org", "b@x.org")
    assert b"b@x.org" not in bytes(content)


def test_f5_a_recipient_given_as_one_string_is_one_recipient() -> None:
    assert compose(message(recipients="Bob <bob@x.org>"))[0].forward_paths == ("bob@x.org",)


def test_f6_b58_date_and_message_id_in_extra_headers_set_the_field_once() -> None:
    reading = read(
        extra_headers={
            "DATE": "Tue, 24 Nov 2026 12:00:00 +0100",
            "message-Id": "<own@x.org>",
            "Sender": "Jürgen <j@x.org>",
            "reply-to": "r@x.org",
            "In-Reply-To": "<q@x.org>",
            "References": "<p@x.org> <q@x.org>",
        }
    )
    assert reading.headers["Date"] == "Tue, 24 Nov 2026 12:00:00 +0100"
    assert reading.headers["Message-ID"] == "<own@x.org>"
    assert reading.mailboxes["Sender"] == [("Jürgen", "j@x.org")]
    assert reading.mailboxes["Reply-To"] == [("", "r@x.org")]
    assert reading.headers["References"] == "<p@x.org> <q@x.org>"
    assert reading.headers["In-Reply-To"] == "<q@x.org>"


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("Message-ID", "<own@x.org>", {"message_id": "<other@x.org>"}),
        ("Date", "Tue, 24 Nov 2026 12:00:00 +0100", {"date": 0}),
        ("Reply-To", "r@x.org", {"reply_to": "s@x.org"}),
        ("References", "<r@x.org>", {"references": "<s@x.org>"}),
        ("Importance", "high", {"priority": 1}),
    ],
)
def test_b59_a_field_given_here_and_there_is_refused(
    name: str, value: str, field: dict[str, t.Any]
) -> None:
    with pytest.raises(InvalidHeader, match="given twice"):
        compose(message(extra_headers={name: value}, **field))


def test_b59_a_field_in_two_letter_cases_is_refused() -> None:
    with pytest.raises(InvalidHeader, match="given twice"):
        compose(message(extra_headers={"X-A": "1", "x-a": "2"}))


def test_f7_envelope_from_is_the_reverse_path_and_not_the_author() -> None:
    written = message(envelope_from="Bounces <bounce@x.org>")
    assert compose(written)[0].reverse_path == "bounce@x.org"
    assert judged(written).mailboxes["From"] == [("", "ada@example.com")]


def test_b56_the_null_reverse_path_is_asked_for_with_an_empty_string() -> None:
    assert compose(message(envelope_from=""))[0].reverse_path == ""
    for wrong in ("<>", " ", "bounce"):
        with pytest.raises(InvalidAddress, match="envelope_from"):
            compose(message(envelope_from=wrong))


@pytest.mark.parametrize(
    "name",
    [
        *("From", "to", "CC", "Bcc", "Subject", "MIME-Version", "Received", "Return-Path"),
        *("DKIM-Signature", "Content-Type", "content-anything", "Resent-Bcc"),
    ],
)
def test_b58_f8_fields_that_are_not_extra_are_refused(name: str) -> None:
    with pytest.raises(InvalidHeader, match=name):
        compose(message(extra_headers={name: "x@y.org"}))


@pytest.mark.parametrize(
    "name",
    ["", " ", "X Y", "X:", "X\r\nY", "Ä", "X" * 77, "X\0", "-X", ":", "X\n", " X", "X:\r\n Y"],
)
def test_b57_f28_what_is_no_field_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidHeader):
        compose(message(extra_headers={name: "v"}))


@pytest.mark.parametrize("control", [*CONTROLS, "\x85", "\u2028", "\u2029", "\ud800"])
def test_b60_a_field_with_a_control_character_or_separator_is_refused(control: str) -> None:
    with pytest.raises(InvalidHeader, match="X-Note"):
        compose(message(extra_headers={"X-Note": f"a{control}"}))


def test_f14_text_beyond_ascii_in_any_other_field_is_encoded() -> None:
    reading = read(extra_headers={"Comments": "Grüße 主题"})
    assert reading.headers["Comments"].startswith("=?utf-8?")


def test_f29_fields_without_a_value_are_left_out() -> None:
    empty: dict[str, t.Any] = {"X-A": "", "X-B": None, "X-C": [], "X-D": "  "}
    assert not [name for name in read(extra_headers=empty).headers if name.startswith("X-")]


def test_b61_a_long_url_stands_unbroken_up_to_the_longest_line() -> None:
    url = "https://x.org/" + "u" * 960
    written = read(extra_headers={"List-Unsubscribe": f"<{url}>"})
    assert written.headers["List-Unsubscribe"] == f"<{url}>"
    with pytest.raises(InvalidHeader, match="998"):
        compose(message(extra_headers={"List-Unsubscribe": f"<{url}{'u' * 30}>"}))


def test_several_urls_of_a_list_field_are_folded_between_them() -> None:
    urls = ", ".join(f"<https://lists.example.org/unsubscribe/{i}/{'u' * 30}>" for i in range(3))
    assert read(extra_headers={"List-Unsubscribe": urls}).headers["List-Unsubscribe"] == urls


@pytest.mark.parametrize("value", ["<https://x.org/é>", "<https://x.org/=?utf-8?q?x?=>"])
def test_a_list_field_is_never_encoded(value: str) -> None:
    with pytest.raises(InvalidHeader, match="percent-encode"):
        compose(message(extra_headers={"List-Unsubscribe": value}))


def test_b62_values_that_are_no_text_and_bombs_are_refused() -> None:
    for value in (1, b"x", ["x"], {"a": 1}, 0.5):
        with pytest.raises(InvalidHeader, match="X-A"):
            compose(message(extra_headers={"X-A": value}))
    with pytest.raises(InvalidHeader, match="200 are allowed"):
        compose(message(extra_headers={f"X-{i}": "v" for i in range(100_000)}))
    with pytest.raises(InvalidHeader, match="4096"):
        compose(message(extra_headers={"X-A": "word " * 1_000_000}))
    with pytest.raises(InvalidHeader, match="dict"):
        compose(message(extra_headers=7))


@pytest.mark.parametrize(
    "message_id",
    [
        *("id@x.org", "<a b@x.org>", "<a@x.org>\r\n", "<a\r\nX: y@x.org>", "<a@b@x.org>", "<a>"),
        *("<" + "a" * 900 + "@x.org>", "<é@x.org>", "<>", "<@>", "<a\0@x>", "<=?a?q?b?=@x.org>", 7),
    ],
)
def test_b63_what_is_no_message_id_is_refused(message_id: t.Any) -> None:
    with pytest.raises(InvalidHeader, match="message_id"):
        compose(message(message_id=message_id))


def test_b64_references_are_folded_between_ids_and_never_encoded() -> None:
    ids = [f"<{'i' * 40}.{number}@mail.example.org>" for number in range(200)]
    ids.append(f"<{'l' * 300}@example.org>")
    assert read(references=ids).headers["References"] == " ".join(ids)


@pytest.mark.parametrize(
    "bad", ["<a@b", "a>b", "<é@x>", "<a@b>\n", "=?utf-8?q?x?=", "<a\0>", b"<a@b>"]
)
def test_b64_what_is_no_id_is_refused_in_references(bad: t.Any) -> None:
    for field in ("references", "in_reply_to"):
        with pytest.raises(InvalidHeader, match=field):
            compose(message(**{field: bad}))


@pytest.mark.parametrize(
    "given", ["abc def", ["abc", "<def>"], "<abc>\t<def>", "<abc><def>", ("abc def",)]
)
def test_f30_ids_get_their_brackets_and_stay_apart(given: t.Any) -> None:
    assert read(references=given).headers["References"] == "<abc> <def>"
    assert read(references=iter(["abc", "def"])).headers["References"] == "<abc> <def>"


@pytest.mark.parametrize(
    ("date", "written"),
    [
        (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
        (1795694400.9, "Thu, 26 Nov 2026 12:00:00 +0000"),
        (-1, "Wed, 31 Dec 1969 23:59:59 +0000"),
        (dt.datetime(2026, 11, 24, 12, 0, 5, tzinfo=UTC), "Tue, 24 Nov 2026 12:00:05 +0000"),
        (
            dt.datetime(2026, 11, 24, 12, tzinfo=dt.timezone(-dt.timedelta(hours=3, minutes=30))),
            "Tue, 24 Nov 2026 12:00:00 -0330",
        ),
        (
            dt.datetime(2026, 11, 24, 12, tzinfo=dt.timezone(dt.timedelta(seconds=3601))),
            "Tue, 24 Nov 2026 10:59:59 +0000",
        ),
    ],
)
def test_b65_dates_are_written_as_rfc_5322_has_them(date: t.Any, written: str) -> None:
    assert read(date=date).headers["Date"] == written


@pytest.mark.parametrize(
    "date",
    [
        dt.datetime(2026, 11, 24, 12),  # noqa: DTZ001 - naive on purpose
        *("Tue, 24 Nov 2026", "now", float("nan"), float("inf"), 10**12, 10**20, -(10**12), True),
        *(10**400, -(10**400)),
        *(b"x", dt.datetime(1899, 1, 1, tzinfo=UTC)),
    ],
)
def test_b65_what_is_no_moment_is_refused(date: t.Any) -> None:
    with pytest.raises(InvalidHeader, match="date"):
        compose(message(date=date))


@pytest.mark.parametrize("date", ["2026-11-24", "Tue, 32 Foo 2026 12:00:00 +0000", "x\r\nBcc: y"])
def test_b65_a_date_in_extra_headers_is_one(date: str) -> None:
    with pytest.raises(InvalidHeader, match="Date"):
        compose(message(extra_headers={"Date": date}))


@pytest.mark.parametrize(
    ("priority", "number", "importance"),
    [("high", "2 (High)", "high"), (1, "1 (Highest)", "high"), ("LOW", "4 (Low)", "low")],
)
def test_priority_is_written_as_clients_read_it(
    priority: t.Any, number: str, importance: str
) -> None:
    headers = read(priority=priority).headers
    assert (headers["X-Priority"], headers["Importance"]) == (number, importance)


@pytest.mark.parametrize("priority", [0, 6, "urgent", "", True, 1.0, b"high"])
def test_b117_a_priority_outside_its_values_is_refused(priority: t.Any) -> None:
    with pytest.raises(InvalidHeader, match="priority"):
        compose(message(priority=priority))


@pytest.mark.parametrize(
    "charset", ["utf-7", "rot13", "idna", "utf-8\r\nX: y", "nonsense", "utf-16"]
)
def test_b91_a_charset_that_mail_is_not_written_in_is_refused(charset: str) -> None:
    with pytest.raises(MessageError, match="charset"):
        compose(message(charset=charset))


def test_b52_recipients_are_capped_and_a_generator_is_read_once() -> None:
    written = message(recipients=(f"user{i}@x.org" for i in range(3)))
    assert compose(written)[0].forward_paths == compose(written)[0].forward_paths
    assert len(compose(written)[0].forward_paths) == 3
    written.recipients = [f"user{i}@x.org" for i in range(501)]
    with pytest.raises(MessageError, match="500 are allowed"):
        compose(written)
    assert len(compose(written, limits=Limits(recipients=501))[0].forward_paths) == 501


def test_a_pair_given_for_a_list_says_what_to_write() -> None:
    with pytest.raises(InvalidAddress, match=r"write \[\('Bob', 'b@x.org'\)\]"):
        compose(message(recipients=("Bob", "bob@x.org")))


def test_b53_a_message_without_recipients_or_sender_is_refused() -> None:
    with pytest.raises(MessageError, match="recipients"):
        compose(message(recipients=None))
    with pytest.raises(MessageError, match="sender"):
        compose(message(sender=None))
    with pytest.raises(MessageError, match="one person"):
        compose(message(sender=["a@x.org", "b@x.org"]))
    with pytest.raises(InvalidAddress, match="sender"):
        compose(message(sender=""))
    envelope, _ = compose(message(sender=None), default_sender=("Ada", "ada@x.org"))
    assert envelope.reverse_path == "ada@x.org"


def test_reply_to_may_be_one_person_or_several() -> None:
    for one in ("Ada <r@x.org>", ("Ada", "r@x.org"), Address("Ada <r@x.org>")):
        assert read(reply_to=one).mailboxes["Reply-To"] == [("Ada", "r@x.org")]
    several = read(reply_to=["r@x.org", ("Ä", "s@x.org")]).mailboxes["Reply-To"]
    assert several == [("", "r@x.org"), ("Ä", "s@x.org")]
    assert "Reply-To" not in read(reply_to=[]).headers


def test_f17_an_internationalised_domain_is_ascii_in_header_and_envelope() -> None:
    written = message(sender="a@éxample.com", recipients="b@éxample.com", bcc="c@faß.de")
    envelope, content = compose(written)
    assert envelope.reverse_path == "a@xn--xample-9ua.com"
    assert envelope.forward_paths == ("b@xn--xample-9ua.com", "c@xn--fa-hia.de")
    assert not content.needs_utf8
    assert judged(written).headers["From"] == "a@xn--xample-9ua.com"
    assert "@xn--xample-9ua.com>" in content.message_id


@pytest.mark.parametrize(
    "field", ["sender", "recipients", "cc", "bcc", "reply_to", "envelope_from"]
)
def test_b51_f25_one_local_part_beyond_ascii_makes_the_whole_message_utf8(field: str) -> None:
    written = message(subject="Grüße", **{field: "Jörg <jörg@münchen.de>"})
    envelope, content = compose(written)
    assert content.needs_utf8
    assert content.needs_8bit
    reading = judged(written)
    assert reading.subject == "Grüße"
    assert reading.headers["Subject"] == "Grüße"
    assert "=?" not in str(reading.headers)
    if field not in {"reply_to"}:
        assert "jörg@münchen.de" in (envelope.reverse_path, *envelope.forward_paths)


@pytest.mark.parametrize(
    "options",
    [
        ["A B"],
        ["A\r\nRCPT"],
        ["A=b=c"],
        ["É"],
        ["=x"],
        ["A="],
        ["A", "a=1"],
        "RET=HDRS",
        [7],
        ["-A"],
    ],
)
def test_b115_what_is_no_esmtp_parameter_is_refused(options: t.Any) -> None:
    for field in ("mail_options", "rcpt_options"):
        with pytest.raises(MessageError, match=field):
            compose(message(**{field: options}))


def test_b115_esmtp_parameters_go_into_the_envelope_but_those_the_content_decides() -> None:
    envelope, _ = compose(
        message(
            mail_options=["RET=HDRS", "ENVID=a+2Bb", "body=8BITMIME", "SIZE=1", "SMTPUTF8"],
            rcpt_options=("NOTIFY=NEVER",),
        )
    )
    assert envelope.mail_options == ("RET=HDRS", "ENVID=a+2Bb")
    assert envelope.rcpt_options == ("NOTIFY=NEVER",)
    assert envelope.all_recipients is False
    assert compose(message(), all_recipients=True)[0].all_recipients is True


class Careful(float):
    """A float that is not taken at a glance."""


@EXAMPLES
@given(st.floats())
def test_the_glance_and_the_careful_look_write_the_same_date(seconds: float) -> None:
    def written(value: float) -> str:
        try:
            return format_date(value)
        except InvalidHeader as error:
            return str(error)

    # The careful path names the type that it was given.
    assert written(seconds) == written(Careful(seconds))


@EXAMPLES
@given(st.text("aB ", max_size=40).map(str.strip), st.integers(1, 60))
def test_a_name_on_one_line_is_written_as_folding_would_write_it(name: str, size: int) -> None:
    address = Address.of((name, f"{'x' * size}@x.org"))
    field = HeaderWriter().mailboxes("To", [address])
    if "  " in name:
        assert "=?" in field  # folded, it would lose a blank
    elif name:
        words = [*address.name.split(" "), f"<{address.addr_spec}>"]
        assert field == fold("To", words)


@EXAMPLES
@given(st.text("aB.: ", min_size=1, max_size=90))
def test_a_subject_on_one_line_is_written_as_folding_would_write_it(text: str) -> None:
    if "  " not in text and text == text.strip():
        assert HeaderWriter().unstructured("Subject", text) == fold("Subject", text.split(" "))
