"""Header values -> text: encoded-words (RFC 2047) and parameters (RFC 2045, 2231).

Invariant: what cannot be decoded stays as it is written; nothing is dropped.
"""

from __future__ import annotations

import binascii
import re
import typing as t
from urllib.parse import unquote_to_bytes

from amail.errors import InvalidHeader
from amail.mime.decoding import decode, guess
from amail.text import printable

# A run of encoded-words with nothing but white space between them is one text (section 6.2).
_WORD = r"=\?[^?\s]{1,60}\?[BbQq]\?[^?\s]*+\?="
_RUN = re.compile(rf"{_WORD}(?:[ \t\r\n]*{_WORD})*")
_PARTS = re.compile(r"=\?([^?\s]{1,60})\?([BbQq])\?([^?\s]*+)\?=")
_PARAMETER = re.compile(
    r';[ \t\r\n]*([^\s=;"]+)[ \t\r\n]*=[ \t\r\n]*("(?:[^"\\]|\\.)*+"|[^;]*)', re.S
)
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_SECTION = re.compile(r"([^*]+)(?:\*([0-9]{1,4}))?(\*)?")
_WHOLE = -1  # the number of a parameter that is not of RFC 2231


def decode_words(text: str) -> str:
    """Decode the encoded-words in a text."""
    if "=?" not in text:
        return text
    return _RUN.sub(lambda run: _decode_run(run[0]), text)


def _decode_run(run: str) -> str:
    """Decode words in a row, those of one charset together: some writers cut inside a character."""
    pieces: list[tuple[str, bytes]] = []
    for charset, encoding, payload in _PARTS.findall(run):
        octets = _payload(payload, encoding)
        if octets is None:
            return run
        name = charset.partition("*")[0].lower()  # a language may follow (RFC 2231, section 5)
        if pieces and pieces[-1][0] == name:
            octets = pieces.pop()[1] + octets
        pieces.append((name, octets))
    texts = [decode(octets, name) for name, octets in pieces]
    return run if None in texts else "".join(filter(None, texts))


def _payload(payload: str, encoding: str) -> bytes | None:
    if not payload.isascii():
        return None
    if encoding in "Qq":
        return binascii.a2b_qp(payload, header=True)
    try:
        padded = payload.rstrip("=")
        return binascii.a2b_base64(padded + "=" * (-len(padded) % 4), strict_mode=True)
    except binascii.Error:
        return None


class Parameterized(t.NamedTuple):
    """A value in lower case, and its parameters by their names in lower case."""

    value: str
    parameters: dict[str, str]


def parameterized(text: str, field: str) -> Parameterized:
    """Read ``value; name=text``. Raises InvalidHeader for a parameter that is given twice."""
    value, semicolon, rest = text.partition(";")
    if "=" in value:  # a writer forgot the value
        value, semicolon, rest = "", ";", text
    known: dict[str, dict[int, tuple[str, bool]]] = {}
    for name, raw in _PARAMETER.findall(semicolon + rest):
        found = _SECTION.fullmatch(name.lower())
        if found is None:
            continue
        key, number, star = found.groups()
        place = _WHOLE if number is None and star is None else int(number or 0)
        sections = known.setdefault(key, {})
        if place in sections:
            raise InvalidHeader(f"{field}: the parameter {printable(key, 40)} is given twice")
        sections[place] = _unquoted(raw.strip()), star is not None
    return Parameterized(value.strip().lower(), {key: _text(known[key]) for key in known})


def _text(sections: dict[int, tuple[str, bool]]) -> str:
    """Return a parameter's text: RFC 2231's where there is some, for the other is for the old."""
    whole = sections.pop(_WHOLE, None)
    return _joined(sections) if sections or whole is None else decode_words(whole[0])


def _unquoted(raw: str) -> str:
    if len(raw) > 1 and raw[0] == raw[-1] == '"':
        return _PAIR.sub(r"\1", raw[1:-1])
    return raw.removeprefix('"')


def _joined(sections: dict[int, tuple[str, bool]]) -> str:
    """Join the sections of one parameter; the first names the charset (RFC 2231, section 4.1)."""
    charset = ""
    octets = b""
    for place, number in enumerate(sorted(sections)):
        text, is_encoded = sections[number]
        if is_encoded and place == 0 and text.count("'") >= 2:
            charset, _, text = text.split("'", 2)
        octets += unquote_to_bytes(text) if is_encoded else text.encode(errors="replace")
    decoded = decode(octets, charset)
    return guess(octets) if decoded is None else decoded
