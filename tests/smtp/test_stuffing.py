"""The last look at the content: dots doubled, line ends CRLF, wherever it was cut (RFC 5321)."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from amail.errors import MessageError
from amail.smtp.commands import DOT
from amail.smtp.stuffing import as_it_is, checked, dot_stuffed, stuffed
from amail.testing.content import ContentReader
from tests.strategies import EXAMPLES

_pieces = st.sampled_from([b".", b"x", b"\r\n", b"\r\n.", b"\xff"])
_lines = st.lists(_pieces, max_size=40).map(lambda pieces: b"".join(pieces) + b"\r\n")
_anything = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"x", b"\r\n", b"\r\n."]), max_size=12
).map(b"".join)


def cut(octets: bytes, places: list[int]) -> list[bytes]:
    """Cut octets at these places, taken modulo their number."""
    at = sorted(place % (len(octets) + 1) for place in places)
    return [octets[a:b] for a, b in zip([0, *at], [*at, len(octets)], strict=True)]


def unstuffed(octets: bytes) -> bytes:
    """Take out the dots as RFC 5321 tells a server to, line by line."""
    lines = octets.split(b"\r\n")
    return b"\r\n".join([line[1:] if line.startswith(b".") else line for line in lines])


@EXAMPLES
@given(_lines, st.lists(st.integers(0, 10_000), max_size=8))
@example(b"\r\n.\r\n", [1, 2, 3, 4])
def test_what_a_server_takes_out_is_what_was_put_in_wherever_it_was_cut(
    octets: bytes, places: list[int]
) -> None:
    wire = b"".join(dot_stuffed(cut(octets, places)))
    assert unstuffed(wire) == octets
    assert wire == stuffed(octets) == b"".join(dot_stuffed([octets]))
    assert wire == b"".join(dot_stuffed([octets[at : at + 1] for at in range(len(octets))]))


@EXAMPLES
@given(_lines, st.lists(st.integers(0, 10_000), max_size=8))
def test_the_only_end_of_content_on_the_wire_is_the_last(octets: bytes, places: list[int]) -> None:
    wire = b"DATA\r\n" + b"".join(dot_stuffed(cut(octets, places))) + DOT
    assert wire.count(b"\r\n.\r\n") == 1
    assert wire.endswith(b"\r\n.\r\n")
    reader = ContentReader()
    assert reader.feed(wire.removeprefix(b"DATA\r\n")) == b""
    assert reader.content == octets
    assert reader.objections == []


@EXAMPLES
@given(_anything, st.lists(st.integers(0, 10_000), max_size=8))
@example(b"x\n.\nMAIL FROM:<>\r\n", [])
@example(b"x\r.\r\n", [2])
@example(b"x\r", [])
def test_a_bare_line_end_and_an_unended_line_never_get_to_the_dot(
    octets: bytes, places: list[int]
) -> None:
    rest = octets.replace(b"\r\n", b"")
    is_sound = b"\r" not in rest and b"\n" not in rest and octets.endswith(b"\r\n")
    chunks = cut(octets, places)
    if is_sound or not octets:
        assert unstuffed(b"".join(dot_stuffed(chunks))) == octets
    else:
        with pytest.raises(MessageError, match="CRLF"):
            list(dot_stuffed(chunks))


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b""),
        (b".\r\n", b"..\r\n"),
        (b"..\r\n", b"...\r\n"),
        (b"a.b\r\n.c\r\n\r\n.\r\n", b"a.b\r\n..c\r\n\r\n..\r\n"),
    ],
)
def test_a_dot_is_doubled_at_the_beginning_of_a_line_and_nowhere_else(
    content: bytes, wire: bytes
) -> None:
    assert b"".join(dot_stuffed([content])) == wire


def test_chunks_without_such_dots_are_handed_on_uncopied() -> None:
    chunk = bytes(100_000)
    assert next(dot_stuffed([chunk])) is chunk


@EXAMPLES
@given(_anything, st.lists(st.integers(0, 10_000), max_size=8))
@example(b"x\r", [])
def test_what_is_looked_at_in_one_piece_is_refused_as_in_many(
    octets: bytes, places: list[int]
) -> None:
    assume(octets)  # a content has octets, or the stream of it would have no line to end
    try:
        whole = b"".join(as_it_is(cut(octets, places)))
    except MessageError:
        for look_at in (checked, stuffed):
            with pytest.raises(MessageError):
                look_at(octets)
    else:
        assert whole == checked(octets) == octets
