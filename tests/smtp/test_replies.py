"""However a server's octets are cut into segments, the same replies come out."""

from __future__ import annotations

import itertools
import typing as t

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amail.receipt import Reply
from amail.smtp.replies import (
    MAX_LINE,
    MAX_LINES,
    MAX_REPLY,
    MalformedReply,
    ReplyReader,
    decode_reply,
)
from tests.strategies import EXAMPLES

if t.TYPE_CHECKING:
    from collections.abc import Iterable


def read(segments: Iterable[bytes]) -> tuple[list[tuple[int, bytes]], bool, bytes]:
    """Replies that came out, whether it ended in what is no reply, and what is left over."""
    reader, replies = ReplyReader(), []
    for segment in segments:
        try:
            replies += reader.feed(segment)
        except MalformedReply as error:
            return replies + error.replies, True, b""
    return replies, False, reader.pending


def cut(octets: bytes, places: Iterable[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(octets) + 1) for place in places), len(octets)]
    return [octets[a:b] for a, b in itertools.pairwise(marks)]


_texts = st.binary(max_size=30).map(lambda octets: octets.replace(b"\n", b""))
_ends = st.sampled_from([b"\r\n", b"\r\n", b"\n"])


@st.composite
def replies(draw: st.DrawFn) -> tuple[int, bytes]:
    code = draw(st.integers(200, 599))
    lines = [b"%d-%b%b" % (code, draw(_texts), draw(_ends)) for _ in range(draw(st.integers(0, 3)))]
    last = draw(st.sampled_from([b"%d %b", b"%d%.0b"])) % (code, draw(_texts))
    return code, b"".join(lines) + last + draw(_ends)


@EXAMPLES
@given(st.lists(replies(), max_size=6), st.lists(st.integers(0, 500), max_size=10), st.binary())
def test_replies_come_out_whole_wherever_they_are_cut(
    written: list[tuple[int, bytes]], places: list[int], begun: bytes
) -> None:
    begun = begun.replace(b"\n", b"")
    octets = b"".join(raw for _, raw in written) + begun
    assert read(cut(octets, places)) == (written, False, begun)


_pieces = st.sampled_from(
    [
        *(b"250 ok\r\n", b"250-more\r\n", b"550 5.1.1 no\n", b"\r\n", b"\n", b"\r", b"250", b"-"),
        *(b"199 x\n", b"600 x\n", b"25\n", b"2 50\n", b"\xff\xfe", b"\0", b"HTTP/1.1 400 Bad\r\n"),
        *(b"250-" + b"x" * 8187, b"250-" + b"x" * 4000 + b"\n", b"250-\n" * 60),
    ]
)


@EXAMPLES
@given(
    st.lists(st.one_of(_pieces, st.binary(max_size=6)), max_size=12).map(b"".join),
    st.lists(st.integers(0, 50_000), max_size=12),
)
@example((b"250-" + b"x" * 1000 + b"\n") * 40 + b"250 ok\n", [1004 * 30])
@example(b"250 ok\r\nHTTP/1.1 400 Bad\r\n", [8])
def test_any_octets_come_to_the_same_wherever_they_are_cut(
    octets: bytes, places: list[int]
) -> None:
    assert read(cut(octets, places)) == read([octets])


def test_one_octet_at_a_time_is_enough() -> None:
    octets = b"220 hi\r\n250-a\r\n250-b\r\n250 c\r\n"
    found, malformed, pending = read(octets[at : at + 1] for at in range(len(octets)))
    assert found == [(220, b"220 hi\r\n"), (250, b"250-a\r\n250-b\r\n250 c\r\n")]
    assert not malformed
    assert not pending


def test_f48_bare_line_feeds_and_a_missing_space_are_understood() -> None:
    assert read([b"250ok\n250-a\n250 b\n250\n"])[0] == [
        (250, b"250ok\n"),
        (250, b"250-a\n250 b\n"),
        (250, b"250\n"),
    ]


@pytest.mark.parametrize(
    ("octets", "untidy"),
    [
        (b"250 ok\r\n", False),
        (b"250-a\r\n250 b\r\n", False),
        (b"250\r\n", False),
        (b"250ok\r\n", True),
        (b"250 ok\n", True),
        (b"250-a\n250 b\r\n", True),
        (b"250\n", True),
    ],
)
def test_f48_what_is_untidy_is_noted(octets: bytes, untidy: bool) -> None:
    reader = ReplyReader()
    assert len(reader.feed(octets)) == 1
    assert reader.untidy is untidy


def test_f47_in_mixed_codes_that_of_the_last_line_counts() -> None:
    assert read([b"250-a\r\n550 b\r\n"])[0] == [(550, b"250-a\r\n550 b\r\n")]


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\r", b"25", b"25\r", b"ok", b"hello world", b"2x0 ok", b" 250 ok", b"-250 ok"),
        *(b"000 x", b"100 x", b"199 x", b"600 x", b"999 x", b"\xb2\xb5\xb0 x", b"+25 x"),
        *(b"HTTP/1.1 400 Bad Request\r", b"SSH-2.0-OpenSSH_9.2\r", b"\x15\x03\x01\0\x02\x02\x16"),
    ],
)
def test_f47_what_does_not_begin_with_a_code_from_200_to_599_is_no_reply(line: bytes) -> None:
    with pytest.raises(MalformedReply, match="code from 200 to 599") as caught:
        ReplyReader().feed(line + b"\n")
    assert caught.value.replies == []
    with pytest.raises(MalformedReply, match="code"):
        ReplyReader().feed(b"250-begun\r\n" + line + b"\n")


@pytest.mark.parametrize("line", [b"25250 2.0.0 ok\r\n", b"25554 5.5.1 no\n", b"2500\r\n"])
def test_f47_the_beginning_of_a_reply_and_the_next_one_behind_it_are_no_reply(line: bytes) -> None:
    """One would count for the other from then on."""
    with pytest.raises(MalformedReply, match="three digits"):
        ReplyReader().feed(line)


def test_f47_the_first_and_the_last_code_are_understood() -> None:
    assert read([b"200 x\r\n599 x\r\n"])[0] == [(200, b"200 x\r\n"), (599, b"599 x\r\n")]


def test_what_was_complete_before_the_garbage_is_handed_on() -> None:
    with pytest.raises(MalformedReply) as caught:
        ReplyReader().feed(b"250 ok\r\nnonsense\r\n250 later\r\n")
    assert caught.value.replies == [(250, b"250 ok\r\n")]


def test_the_reason_does_not_quote_the_octets() -> None:
    with pytest.raises(MalformedReply) as caught:
        ReplyReader().feed(b"canary\r\n")
    assert "canary" not in str(caught.value)


def test_f17_a_line_may_have_8_kib_and_no_more() -> None:
    line = b"250 " + b"x" * (MAX_LINE - 5) + b"\r"
    assert MAX_LINE == len(line) == 8192
    assert read([line + b"\n"])[0] == [(250, line + b"\n")]
    for too_long in (line + b"x\n", line + b"x"):
        with pytest.raises(MalformedReply, match="8192"):
            ReplyReader().feed(too_long)


def test_f18_a_reply_may_have_128_lines_and_no_more() -> None:
    lines = b"220-\r\n" * (MAX_LINES - 1)
    assert MAX_LINES == 128
    assert read([lines + b"220 x\r\n"])[0] == [(220, lines + b"220 x\r\n")]
    with pytest.raises(MalformedReply, match="128 lines"):
        ReplyReader().feed(lines + b"220-\r\n")


def test_f18_a_reply_may_have_32_kib_and_no_more_however_it_comes() -> None:
    line = b"220-" + b"x" * 1018 + b"\r\n"
    most = line * 31 + b"220 " + b"x" * (MAX_REPLY - 31 * 1024 - 4)
    assert MAX_REPLY == len(most) == 32 * 1024
    assert read([most + b"\n"])[0] == [(220, most + b"\n")]
    with pytest.raises(MalformedReply, match="32768 octets"):
        ReplyReader().feed(most + b"x\n")
    reader = ReplyReader()
    assert reader.feed(most) == []
    with pytest.raises(MalformedReply, match="32768 octets"):
        reader.feed(b"x")


def test_the_limits_are_those_of_one_reply_not_of_a_session() -> None:
    reader = ReplyReader()
    for _ in range(20):
        assert len(reader.feed(b"250 " + b"x" * 4000 + b"\r\n")) == 1
    assert len(reader.feed((b"250 " + b"x" * 4000 + b"\r\n") * 20)) == 20


def test_a_reply_is_decoded_without_its_codes() -> None:
    assert decode_reply(250, b"250-2.1.0 one\r\n250-2.1.0 two\r\n250 2.1.0 three\r\n") == Reply(
        250, "2.1.0", "one\ntwo\nthree"
    )
    assert decode_reply(250, b"250\r\n") == Reply(250, None, "")
    assert decode_reply(250, b"250 ok \t\n") == Reply(250, None, "ok")


def test_text_is_utf8_and_other_octets_are_shown() -> None:
    assert decode_reply(550, "550 Empfänger unbekannt\r\n".encode()).text == "Empfänger unbekannt"
    assert decode_reply(550, b"550 Empf\xe4nger\r\n").text == "Empf\\xe4nger"


@pytest.mark.parametrize("odd", ["\v", "\f", "\x1c", "\x1e", "\x85", "\u2028", "\r", "\0"])
def test_only_a_line_feed_ends_a_line(odd: str) -> None:
    assert decode_reply(550, f"550 5.1.1 no{odd}such user\r\n".encode()) == Reply(
        550, "5.1.1", f"no{odd}such user"
    )


@EXAMPLES
@given(replies())
def test_any_reply_can_be_decoded_and_shown_on_one_line(reply: tuple[int, bytes]) -> None:
    decoded = decode_reply(*reply)
    assert decoded.code == reply[0]
    assert decoded.text.count("\n") == reply[1].count(b"\n") - 1
    assert str(decoded).startswith(str(reply[0]))
    assert str(decoded).isprintable()
