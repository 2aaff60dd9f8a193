"""The one header writer: every octet of every header field is written here (RFC 5322, 2047, 2231).

Invariant: a field that comes out of here ends in CRLF, holds no other line break than folds and,
unless the message is internationalised (RFC 6532), only printable ASCII.
"""

from __future__ import annotations

import binascii
import re
import typing as t
from functools import lru_cache
from urllib.parse import quote

from amail.errors import InvalidHeader
from amail.mime.charsets import encoded

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from amail.address import Address
    from amail.errors import MessageError

_WIDTH = 76  # RFC 2047, section 2: no line that holds an encoded-word is longer
_LONGEST_LINE = 998
_LARGEST_FIELD = 64 * 1024
_LONGEST_WORD = 75
_LONGEST_QUOTED = 70

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$%&'*+.^_`|~-]{0,75}")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9]++(?: [A-Za-z0-9]++)*+")
_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,127}"
_MEDIA_TYPE = re.compile(rf"({_WORD})/({_WORD})")
_PARAMETER = re.compile(
    r'[ \t]*;[ \t]*([A-Za-z0-9!#$&+.^_`|~-]{1,60})=(?:"((?:[^"\\]|\\.){0,500}+)"'
    r"|([A-Za-z0-9!#$%&'*+.^_`{|}~/:-]{1,500}))"
)
_ATTRIBUTE_CHARS = "!#$&+^`|{}"  # RFC 2231's attribute-char, beyond what quote() leaves alone
# Letters that may stand for themselves in a Q-encoded word wherever it is (RFC 2047, 5 (3)).
_Q_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/ "
_Q_SAFE_LETTERS = frozenset(_Q_SAFE.decode("ascii"))
_Q = tuple(
    "_" if octet == 32 else chr(octet) if octet in _Q_SAFE else f"={octet:02X}"
    for octet in range(256)
)


class HeaderWriter:
    """Writes header fields, folded and complete with CRLF.

    ``charset`` is what encoded-words are in where it can hold the text (else UTF-8). With ``utf8``
    the message is internationalised and text is written as UTF-8 (RFC 6532). Text given here went
    through ``amail.text.header_text`` before. Each method raises InvalidHeader for what cannot be
    written within 998 octets a line and 64 KiB a field.
    """

    __slots__ = ("_charset", "_utf8")

    def __init__(self, charset: str = "utf-8", *, utf8: bool = False) -> None:
        self._charset = charset
        self._utf8 = utf8

    def unstructured(self, name: str, text: str) -> str:
        """Write free text, such as a subject. Any text is read back exactly."""
        if self._may_stand(text) and "  " not in text and text[0] != " " != text[-1]:
            if len(name) + len(text) + 2 <= _WIDTH and text.isascii():
                return f"{name}: {text}\r\n"
            words = text.split(" ")
            if max(map(_octets, words)) + len(name) + 2 <= _LONGEST_LINE:
                return fold(name, words)
        return fold(name, self._encoded(text, _WIDTH - len(name) - 2))

    def structured(self, name: str, text: str) -> str:
        """Write ASCII text that machines read. It is folded at spaces and never encoded."""
        if not self._may_stand(text):
            raise InvalidHeader(
                f"{name}: holds non-ASCII text or an encoded-word, which nothing may decode there; "
                "percent-encode it"
            )
        return fold(name, text.split())

    def mailboxes(self, name: str, addresses: Sequence[Address]) -> str:
        """Write an address list (RFC 5322, section 3.4)."""
        first = addresses[0]
        if len(addresses) == 1:
            if not first.name:
                return f"{name}: {first.addr_spec}\r\n"
            line = f"{name}: {first.name} <{first.addr_spec}>"
            if len(line) <= _WIDTH and _PLAIN_NAME.fullmatch(first.name) and line.isascii():
                return f"{line}\r\n"
        tokens: list[str] = []
        for address in addresses:
            if address.name:
                tokens += self._phrase(address.name)
                tokens.append(f"<{address.addr_spec}>,")
            else:
                tokens.append(address.addr_spec + ",")
        tokens[-1] = tokens[-1][:-1]
        return fold(name, tokens)

    def identified(self, name: str, phrase: str, identifier: str) -> str:
        """Write an identifier in angle brackets behind a phrase, which may be "" (RFC 2919)."""
        return fold(name, [*(self._phrase(phrase) if phrase else ()), f"<{identifier}>"])

    def with_parameters(self, name: str, value: str, parameters: Iterable[tuple[str, str]]) -> str:
        """Write a value and its parameters (RFC 2045, section 5.1; RFC 2231)."""
        return _with_parameters(name, value, tuple(parameters))

    def _may_stand(self, text: str) -> bool:
        """Tell whether text can be written as it is and no reader will decode it."""
        return text.isprintable() and (self._utf8 or text.isascii()) and "=?" not in text

    def _phrase(self, name: str) -> list[str]:
        """Write a display name: as atoms, as one quoted-string or as encoded-words."""
        if not self._may_stand(name) or "  " in name or _octets(name) > _LONGEST_QUOTED:
            return self._encoded(name, _LONGEST_WORD)
        if _ATOMS.fullmatch(name):
            return name.split(" ")
        return [_quoted(name)]

    def _encoded(self, text: str, first: int) -> list[str]:
        charset = self._charset
        if charset != "utf-8" and encoded(text, charset) is None:
            charset = "utf-8"
        return encoded_words(text, charset, first)


def check_name(name: object) -> str:
    """Return a header field name, or raise InvalidHeader (RFC 5322, section 2.2)."""
    if not isinstance(name, str):
        raise InvalidHeader(f"extra_headers: a field name is a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise InvalidHeader(
            "extra_headers: a field name has 1 to 76 ASCII letters, digits and inner hyphens"
        )
    return name


def fold(name: str, tokens: Sequence[str]) -> str:
    """Write ``name: tokens`` with a fold wherever the line would grow too long."""
    line = f"{name}: {tokens[0]}"
    lines = []
    if len(line) > _WIDTH and tokens[0].startswith("=?"):
        lines.append(f"{name}:")
        line = f" {tokens[0]}"
    for token in tokens[1:]:
        if len(line) + len(token) + 1 > _WIDTH:
            lines.append(line)
            line = f" {token}"
        else:
            line = f"{line} {token}"
    lines.append(line)
    lines.append("")
    field = "\r\n".join(lines)
    if len(field) > _LONGEST_LINE // 4:
        _check_size(name, lines, field)
    return field


def _check_size(name: str, lines: list[str], field: str) -> None:
    longest = max(map(_octets, lines))
    if longest > _LONGEST_LINE:
        raise InvalidHeader(
            f"{name}: {longest} octets without a place to break the line; "
            f"{_LONGEST_LINE} are allowed (RFC 5322)"
        )
    if _octets(field) > _LARGEST_FIELD:
        raise InvalidHeader(f"{name}: {_octets(field)} octets; {_LARGEST_FIELD} are allowed")


def encoded_words(text: str, charset: str, first: int) -> list[str]:
    """Write text as encoded-words (RFC 2047), each a whole number of characters.

    ``first`` is how long the first word may be where it shares its line with the field name.
    """
    raw = text.encode(charset)
    specials = len(raw.translate(None, _Q_SAFE))
    use_q = len(raw) + 2 * specials <= (len(raw) + 2) // 3 * 4
    start = f"=?{charset}?{'q' if use_q else 'b'}?"
    room = _LONGEST_WORD - len(start) - 2
    first = max(first - len(start) - 2, 0)
    # A first line with place for less than a few characters is left to the field name.
    first = min(first, room) if first >= 12 else room
    words = []
    for piece in _pieces(text, charset, first, room, use_q=use_q):
        octets = piece.encode(charset)
        if use_q:
            payload = "".join([_Q[octet] for octet in octets])
        else:
            payload = binascii.b2a_base64(octets, newline=False).decode("ascii")
        words.append(f"{start}{payload}?=")
    return words


def _pieces(text: str, charset: str, first: int, room: int, *, use_q: bool) -> Iterable[str]:
    """Cut text so that each piece, encoded by itself, fits into its word."""
    left = _payload(first, use_q=use_q)
    start = used = 0
    for position, character in enumerate(text):
        if character in _Q_SAFE_LETTERS:
            size = 1
        else:
            size = len(character.encode(charset)) * (3 if use_q else 1)
        if used + size > left:
            yield text[start:position]
            start, used, left = position, 0, _payload(room, use_q=use_q)
        used += size
    yield text[start:]


def _payload(room: int, *, use_q: bool) -> int:
    return room if use_q else room // 4 * 3


@lru_cache(maxsize=256)  # the same file goes to many readers
def _with_parameters(name: str, value: str, parameters: tuple[tuple[str, str], ...]) -> str:
    tokens = [value]
    for key, text in parameters:
        tokens[-1] += ";"
        tokens += _parameter(key, text)
    return fold(name, tokens)


def _parameter(key: str, text: str) -> list[str]:
    """Write one parameter. What is not plain ASCII goes into RFC 2231 pieces alone."""
    if text.isascii() and text.isprintable() and "=?" not in text:
        return [f"{key}={_quoted(text)}"]
    pieces = [""]
    room = _WIDTH - len(f" {key}*00*=utf-8'';")
    for character in text:
        unit = quote(character, safe=_ATTRIBUTE_CHARS)
        if len(pieces[-1]) + len(unit) > room:
            pieces.append("")
        pieces[-1] += unit
    pieces[0] = "utf-8''" + pieces[0]
    if len(pieces) == 1:
        return [f"{key}*={pieces[0]}"]
    last = len(pieces) - 1
    return [
        f"{key}*{number}*={piece}{';' if number < last else ''}"
        for number, piece in enumerate(pieces)
    ]


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


class MediaType(t.NamedTuple):
    """A media type, in lower case, and its parameters (RFC 2045, section 5.1)."""

    type: str
    subtype: str
    parameters: tuple[tuple[str, str], ...]

    @property
    def full(self) -> str:
        """``type/subtype``."""
        return f"{self.type}/{self.subtype}"

    def parameter(self, name: str) -> str | None:
        """Return the value of a parameter, or None."""
        return dict(self.parameters).get(name)


@lru_cache(maxsize=256)
def media_type(text: str, field: str, error: type[MessageError]) -> MediaType:
    """Read ``type/subtype; parameter=value``. Raises ``error`` for anything else."""
    match = _MEDIA_TYPE.match(text)
    if match is None:
        raise error(f'{field}: write it as type/subtype, such as "image/png"')
    parameters: dict[str, str] = {}
    position = match.end()
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            raise error(f"{field}: what follows type/subtype is no ; name=value (RFC 2045)")
        name = parameter[1].lower()
        value = parameter[3] or re.sub(r"\\(.)", r"\1", parameter[2] or "")
        if name in parameters:
            raise error(f"{field}: the parameter {name} is given twice")
        if not (value.isascii() and value.isprintable()):
            raise error(f"{field}: the parameter {name} holds more than printable ASCII")
        parameters[name] = value
        position = parameter.end()
    return MediaType(match[1].lower(), match[2].lower(), tuple(parameters.items()))
