"""A reply says what the server said, and shows it where nothing in it can do harm."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import Envelope, Receipt, Reply
from tests.strategies import EXAMPLES, nasty_text


@pytest.mark.parametrize(
    ("code", "lines", "enhanced", "text"),
    [
        (250, ["2.1.0 ok"], "2.1.0", "ok"),
        (250, ["ok"], None, "ok"),
        (250, [""], None, ""),
        (250, ["2.0.0"], "2.0.0", ""),
        (550, ["5.1.1\tno such user"], "5.1.1", "no such user"),
        (550, ["5.7.1 one", "5.7.1 two"], "5.7.1", "one\ntwo"),
        (550, ["one", "5.7.1 two"], "5.7.1", "one\ntwo"),
        (550, ["5.7.1 one", "two"], None, "5.7.1 one\ntwo"),
        (550, ["5.7.10 one", "5.7.1 two"], "5.7.1", "5.7.10 one\ntwo"),
        (421, ["4.123.123 x"], "4.123.123", "x"),
        (250, ["2.1.0 2.1.0 ok"], "2.1.0", "2.1.0 ok"),
        (250, ["2.1 ok"], None, "2.1 ok"),
        (250, ["2.1.0ok"], None, "2.1.0ok"),
        (250, ["2.1.0000 ok"], None, "2.1.0000 ok"),
        (354, ["3.0.0 go"], None, "3.0.0 go"),
        (550, ["\u0665.1.1 no"], None, "\u0665.1.1 no"),
    ],
)
def test_the_enhanced_code_is_taken_out_of_the_text(
    code: int, lines: list[str], enhanced: str | None, text: str
) -> None:
    assert Reply.from_lines(code, lines) == Reply(code, enhanced, text)


@pytest.mark.parametrize(("code", "line"), [(450, "5.1.1 x"), (550, "4.2.1 x"), (550, "2.0.0 x")])
def test_an_enhanced_code_of_another_class_is_ignored(code: int, line: str) -> None:
    assert Reply.from_lines(code, [line]) == Reply(code, None, line)


def test_the_first_digit_says_what_a_reply_means() -> None:
    meanings = {
        code: (reply.positive, reply.transient, reply.permanent)
        for code in (200, 299, 300, 399, 400, 499, 500, 599)
        for reply in [Reply(code, None, "")]
    }
    assert meanings == {
        200: (True, False, False),
        299: (True, False, False),
        300: (False, False, False),
        399: (False, False, False),
        400: (False, True, False),
        499: (False, True, False),
        500: (False, False, True),
        599: (False, False, True),
    }


def test_a_reply_is_shown_on_one_line() -> None:
    assert str(Reply(550, "5.1.1", "no\nsuch user")) == "550 5.1.1 no / such user"
    assert str(Reply(250, None, "ok")) == "250 ok"
    assert str(Reply(250, None, "")) == "250"


def test_control_characters_are_shown_escaped() -> None:
    text = "a\r\x1b[31mb\0\x85\u2028\u202ec\ud800é"
    assert str(Reply(550, None, text)) == (r"550 a\r\x1b[31mb\x00\x85\u2028\u202ec\ud800" + "é")


def test_a_long_text_is_cut() -> None:
    shown = str(Reply(550, "5.0.0", "x" * 30_000))
    assert shown == "550 5.0.0 " + "x" * 500 + "..."
    assert str(Reply(550, None, "x" * 500)) == "550 " + "x" * 500


@EXAMPLES
@given(st.integers(200, 599), st.lists(nasty_text, min_size=1, max_size=3))
def test_whatever_a_server_says_is_shown_on_one_printable_line(code: int, lines: list[str]) -> None:
    reply = Reply.from_lines(code, lines)
    shown = str(reply)
    assert shown.isprintable()
    assert shown.startswith(str(code))
    assert len(shown) <= len("599 5.999.999 ") + 500 * len(r"\U0010ffff") + len("...")
    assert reply.enhanced is None or reply.enhanced[0] == str(code)[0]


@pytest.mark.parametrize(
    ("text", "queue_id"),
    [
        ("Ok: queued as 4F1A2B3C4D", "4F1A2B3C4D"),  # Postfix
        ("Ok: 17164 bytes queued as 4F1A2B3C4D", "4F1A2B3C4D"),  # and to BDAT
        ("OK id=1rAbCd-0001Ab-2X", "1rAbCd-0001Ab-2X"),  # Exim
        ("ok 1700000000 a1-2b3c.45 - gsmtp", "1700000000"),  # Gmail
        ("ok, queued as F00001", "F00001"),
        ("Ok 0100018f-5ad2-000000", "0100018f-5ad2-000000"),  # Amazon SES
        ("Message accepted for delivery", None),
        ("OK delivered", None),
        ("<a@x.com> [InternalId=12345, Hostname=x] Queued mail for delivery", None),  # Exchange
        ("ok", None),
        ("queued as <abc@example.org>", "abc@example.org"),
        ("Queued mail for delivery", None),
        ("queued as x", None),
    ],
)
def test_the_queue_id_is_read_where_common_servers_say_one(text: str, queue_id: str | None) -> None:
    assert Reply(250, "2.0.0", text).queue_id == queue_id


@EXAMPLES
@given(nasty_text)
def test_a_queue_id_is_one_plain_word(text: str) -> None:
    queue_id = Reply(250, None, f"queued as {text}").queue_id
    assert queue_id is None or (queue_id.isascii() and queue_id.isprintable())
    assert queue_id is None or not set(queue_id) & set(" <>\r\n")


def test_a_receipt_is_a_value_that_says_accepted() -> None:
    envelope = Envelope("ada@example.com", ("bob@example.org",))
    receipt = Receipt("<1@example.com>", envelope, Reply(250, None, "ok"), envelope.forward_paths)
    assert receipt.outcome == "accepted"
    assert (receipt.attempts, receipt.transactions) == (1, 1)
    assert (receipt.relay, receipt.queue_id) == (None, None)
    assert receipt.refused == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        receipt.message_id = "<2@example.com>"  # type: ignore[misc]
    # What one does to its mapping is not seen in another's.
    t.cast("dict[str, Reply]", receipt.refused)["x"] = Reply(550, None, "no")
    other = Receipt("<1@example.com>", envelope, Reply(250, None, "ok"), envelope.forward_paths)
    assert other.refused == {}
