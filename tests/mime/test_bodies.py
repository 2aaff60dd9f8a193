"""Transfer encodings keep their lines short and give back what went in."""

from __future__ import annotations

import quopri

from hypothesis import given, settings
from hypothesis import strategies as st

from amail.mime import bodies

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


def test_a_blank_that_no_longer_fits_goes_to_a_line_of_its_own() -> None:
    text = "one line of " * 200 + "\n"
    encoded = bodies.encode_text(text, "utf-8", "body").octets
    assert max(map(len, encoded.split(b"\r\n"))) == 76
    assert quopri.decodestring(encoded).decode() == text.replace("\n", "\r\n")
