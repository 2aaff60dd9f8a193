"""Transfer encodings keep their lines short and give back what went in."""

from __future__ import annotations

import base64
import quopri
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amail.errors import MessageError
from amail.mime import bodies
from tests.strategies import EXAMPLES, nasty_text

# Words that bring the end of a line to where it matters, and what quoted-printable has to encode.
_pieces = st.one_of(
    st.sampled_from([" ", "\t", "\n", "=", ".", "é", " \n", "\t\n", "=20\n"]),
    st.integers(60, 78).map(lambda size: "x" * size),
    st.integers(1, 8).map(lambda size: "y" * size),
)


@settings(max_examples=1000)
@given(st.lists(_pieces, max_size=12).map("".join))
def test_quoted_printable_text_has_lines_of_at_most_76_and_decodes_to_itself(text: str) -> None:
    encoded = bodies.quoted_printable(text.encode(), text=True)
    lines = encoded.split(b"\r\n")
    assert max(map(len, lines)) <= 76
    assert not any(line.endswith((b" ", b"\t")) for line in lines)
    assert quopri.decodestring(encoded) == text.replace("\n", "\r\n").encode()


@settings(max_examples=1000)
@given(st.lists(st.one_of(_pieces, st.sampled_from(["\r", "\r\n", "\0"])), max_size=12))
def test_quoted_printable_octets_keep_every_line_end(pieces: list[str]) -> None:
    octets = "".join(pieces).encode()
    encoded = bodies.quoted_printable(octets, text=False)
    assert max(map(len, encoded.split(b"\r\n"))) <= 76
    assert quopri.decodestring(encoded) == octets


_lines = st.lists(st.sampled_from(["", "x", "y" * 997, "z" * 998, "w" * 999]), max_size=6)


@EXAMPLES
@given(_lines.map("\n".join))
def test_lines_are_short_if_the_longest_is(text: str) -> None:
    raw = text.encode()
    assert bodies.has_short_lines(raw) == (max(map(len, raw.split(b"\n"))) <= 998)


@EXAMPLES
@given(st.one_of(nasty_text, st.text("ab \t\n", max_size=20), _lines.map("\n".join)))
def test_the_glance_and_the_careful_look_encode_a_text_the_same(text: str) -> None:
    def encoded(encode: t.Callable[[str, str, str], bodies.EncodedText]) -> object:
        try:
            return encode(text, "utf-8", "body")
        except MessageError as error:
            return str(error)

    assert encoded(bodies.encode_text) == encoded(bodies.encode_carefully)


@pytest.mark.parametrize("lines", [0, 1, 63, 64, 65, 511, 512, 513, 600, 1024, 1025])
@pytest.mark.parametrize("more", [0, 1, 56])
def test_base64_has_lines_of_76_and_decodes_to_itself(lines: int, more: int) -> None:
    raw = bytes(range(256)) * (57 * lines // 256 + 1)
    raw = raw[: 57 * lines + more]
    encoded = bodies.base64(raw)
    assert encoded == base64.encodebytes(raw).replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    assert b"".join(bodies.Base64Octets(raw).chunks()) == encoded


def test_a_blank_that_no_longer_fits_goes_to_a_line_of_its_own() -> None:
    text = "one line of " * 200 + "\n"
    encoded = bodies.encode_text(text, "utf-8", "body").octets
    assert max(map(len, encoded.split(b"\r\n"))) == 76
    assert quopri.decodestring(encoded).decode() == text.replace("\n", "\r\n")
