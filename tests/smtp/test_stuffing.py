"""Dots are doubled at the beginning of lines, wherever the content was cut (RFC 5321, 4.5.2)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amail.smtp.commands import DOT
from amail.smtp.stuffing import dot_stuffed
from amail.testing.content import ContentReader
from tests.strategies import EXAMPLES

_chunks = st.lists(
    st.one_of(
        st.lists(st.sampled_from([b"\r", b"\n", b".", b"x", b"\r\n", b"\r\n."]), max_size=6).map(
            b"".join
        ),
        st.binary(max_size=4),
    ),
    max_size=12,
)


def unstuffed(octets: bytes) -> bytes:
    """Take out the dots as RFC 5321 tells a server to, line by line."""
    lines = octets.split(b"\r\n")
    return b"\r\n".join([line[1:] if line.startswith(b".") else line for line in lines])


@EXAMPLES
@given(_chunks)
@example([b"\r", b"\n", b"."])
@example([b"", b".", b"", b"."])
def test_what_a_server_takes_out_is_what_was_put_in(chunks: list[bytes]) -> None:
    assert unstuffed(b"".join(dot_stuffed(chunks))) == b"".join(chunks)


@EXAMPLES
@given(_chunks)
def test_it_makes_no_difference_where_the_octets_are_cut(chunks: list[bytes]) -> None:
    joined = b"".join(chunks)
    assert b"".join(dot_stuffed(chunks)) == b"".join(dot_stuffed([joined]))
    single = [joined[at : at + 1] for at in range(len(joined))]
    assert b"".join(dot_stuffed(single)) == b"".join(dot_stuffed([joined]))


@EXAMPLES
@given(_chunks)
def test_the_only_end_of_content_on_the_wire_is_the_last(chunks: list[bytes]) -> None:
    content = [*chunks, b"\r\n"]
    wire = b"DATA\r\n" + b"".join(dot_stuffed(content)) + DOT
    assert wire.count(b"\r\n.\r\n") == 1
    assert wire.endswith(b"\r\n.\r\n")
    reader = ContentReader()
    assert reader.feed(wire.removeprefix(b"DATA\r\n")) == b""
    assert reader.content == b"".join(content)
    assert "line that begins with a single dot in the content" not in reader.objections


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b""),
        (b".", b".."),
        (b".\r\n", b"..\r\n"),
        (b"..\r\n", b"...\r\n"),
        (b"a.b\r\n.c\r\n\r\n.\r\n", b"a.b\r\n..c\r\n\r\n..\r\n"),
        (b"a\n.b", b"a\n.b"),
        (b"a\r.b", b"a\r.b"),
    ],
)
def test_a_dot_is_doubled_at_the_beginning_of_a_line_and_nowhere_else(
    content: bytes, wire: bytes
) -> None:
    assert b"".join(dot_stuffed([content])) == wire


def test_chunks_without_such_dots_are_handed_on_uncopied() -> None:
    chunk = bytes(100_000)
    assert next(dot_stuffed([chunk])) is chunk
