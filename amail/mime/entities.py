"""Octets -> a tree of MIME entities: fields, boundaries and nothing of what they mean.

Invariant: each octet is looked at once a level, levels and parts are bounded, and what has not
the form of RFC 5322 and RFC 2046 raises MessageError.
"""

from __future__ import annotations

import re
import typing as t

from amail.errors import InvalidHeader, MessageError
from amail.mime.decoding import guess
from amail.mime.words import parameterized

_DEEPEST = 20
_MOST_PARTS = 1000
_MOST_FIELDS = 1000
_MOST_FIELDS_OF_A_PART = 100
_LARGEST_HEAD = 256 * 1024

_BLANK = re.compile(rb"^\r?\n", re.MULTILINE)
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
_MBOX = re.compile(rb">?From [^\n]*\n")
_BCC = re.compile(rb"^(?:Resent-)?Bcc[ \t]*:.*(?:\r\n[ \t].*)*\r\n", re.IGNORECASE | re.MULTILINE)
_MEDIA_TYPE = re.compile(r"([a-z0-9!#$&+.^_-]{1,127})/([a-z0-9!#$&+.^_-]{1,127})")


class Field(t.NamedTuple):
    """A header field, unfolded, as it is written but for octets that are no UTF-8."""

    name: str
    text: str


class Head(t.NamedTuple):
    """The header fields of some octets as they are: (name, lines of the value without line ends).

    The fields end at ``end``. The body begins at ``body``, behind the blank line if there is one.
    """

    fields: list[tuple[bytes, list[bytes]]]
    end: int
    body: int


class Entity(t.NamedTuple):
    """A header and either a body, still encoded, or the parts of a multipart."""

    fields: tuple[Field, ...]
    type: str
    subtype: str
    parameters: dict[str, str]
    body: bytes
    parts: tuple[Entity, ...]

    @property
    def media_type(self) -> str:
        """``type/subtype``, in lower case."""
        return f"{self.type}/{self.subtype}"

    def one(self, name: str) -> str:
        """Return the text of a field, "" without it. Raises InvalidHeader if it stands twice."""
        return only(self.fields, name)


def only(fields: tuple[Field, ...], name: str) -> str:
    """Return the text of a field, "" without it. Raises InvalidHeader if it stands twice."""
    lower = name.lower()
    found = [field.text for field in fields if field.name.lower() == lower]
    if len(found) > 1:
        raise InvalidHeader(f"{name}: the field stands {len(found)} times")
    return found[0] if found else ""


def read_entities(octets: bytes) -> Entity:
    """Take a message apart. Raises MessageError."""
    mbox = _MBOX.match(octets)
    entity = _Reader(octets).entity(mbox.end() if mbox else 0, len(octets), "text/plain", 0)
    if not entity.fields:
        raise MessageError("the message has no header field")
    return entity


def read_head(octets: bytes, start: int, end: int, most: int = _MOST_FIELDS) -> Head:
    """Cut a header into its fields. A line that begins with white space goes on with the field.

    Raises MessageError for a line that is no field, and for more than ``most`` fields or 256 KiB.
    """
    blank = _BLANK.search(octets, start, end)
    stop, body = blank.span() if blank else (end, end)
    if stop - start > _LARGEST_HEAD:
        raise MessageError(f"a header has {stop - start} octets; {_LARGEST_HEAD} are read")
    fields: list[tuple[bytes, list[bytes]]] = []
    block = octets[start:stop].removesuffix(b"\n")
    for number, raw in enumerate(block.split(b"\n") if block else (), 1):
        line = raw.removesuffix(b"\r")
        if line[:1] in {b" ", b"\t"} and fields:
            fields[-1][1].append(line)
            continue
        found = _FIELD.fullmatch(line)
        if found is None:
            raise MessageError(f"line {number} of a header is no field (RFC 5322)")
        fields.append((found[1], [found[2]]))
    if len(fields) > most:
        raise MessageError(f"a header has {len(fields)} fields; {most} are read")
    return Head(fields, stop, body)


def without_bcc(header: bytes) -> tuple[bytes, int]:
    """Return a header, lines ending in CRLF, without its Bcc fields, and how many there were."""
    return _BCC.subn(b"", header)


class _Reader:
    """Reads entities between two places of the same octets, which are copied for leaves alone."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._parts = 0

    def entity(self, start: int, end: int, usual: str, depth: int) -> Entity:
        most = _MOST_FIELDS_OF_A_PART if depth else _MOST_FIELDS
        head = read_head(self._octets, start, end, most)
        fields = tuple(
            Field(name.decode("ascii"), guess(b"".join(lines)).strip(" \t"))
            for name, lines in head.fields
        )
        start = head.body
        value, parameters = parameterized(only(fields, "Content-Type"), "Content-Type")
        found = _MEDIA_TYPE.fullmatch(value or usual)
        # RFC 2045, section 5.2: what cannot be read is plain text.
        main, subtype = found.groups() if found else ("text", "plain")
        if main != "multipart":
            return Entity(fields, main, subtype, parameters, self._octets[start:end], ())
        if depth == _DEEPEST:
            raise MessageError(f"multiparts are nested more than {_DEEPEST} deep")
        usual = "message/rfc822" if subtype == "digest" else "text/plain"
        places = self._places(start, end, parameters.get("boundary", ""))
        parts = tuple([self.entity(*place, usual, depth + 1) for place in places])
        return Entity(fields, main, subtype, parameters, b"", parts)

    def _places(self, start: int, end: int, boundary: str) -> list[tuple[int, int]]:
        """Find where the parts of a multipart begin and end (RFC 2046, section 5.1.1)."""
        if not boundary or not boundary.isascii():
            raise MessageError("a multipart has no boundary")
        name = re.escape(boundary.rstrip(" ").encode("ascii"))
        delimiter = re.compile(rb"^--" + name + rb"(--)?[ \t]*+\r?$\n?", re.MULTILINE)
        places: list[tuple[int, int]] = []
        begins: int | None = None
        for found in delimiter.finditer(self._octets, start, end):
            if begins is not None:
                places.append((begins, max(begins, self._line_end(found.start()))))
                self._parts += 1
            if self._parts > _MOST_PARTS:
                raise MessageError(f"the message has more than {_MOST_PARTS} parts")
            if found[1]:
                if not places:
                    raise MessageError("a multipart has no parts")
                return places
            begins = found.end()
        raise MessageError("a multipart does not end: its closing boundary is missing")

    def _line_end(self, position: int) -> int:
        """Return where the line before ends: the line break belongs to the boundary."""
        position -= self._octets[position - 1 : position] == b"\n"
        return position - (self._octets[position - 1 : position] == b"\r")
