"""The last look at the content before the wire (RFC 5321, sections 2.3.8 and 4.5.2). Pure.

Invariant: what is yielded has no line end but CRLF and no line that is a single dot, and it ends a
line. A server that takes a bare LF for a line end would otherwise see the end of the content, and
commands behind it, inside of it.
"""

from __future__ import annotations

import typing as t

from amail.errors import MessageError

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BARE = "the content has a bare CR or LF; lines end in CRLF"
_NOT_ENDED = "the last line of the content does not end in CRLF"
_LINE_ENDS = (b"\r\n", b"\r", b"")


def dot_stuffed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Double the dot at the beginning of each line, wherever the chunks were cut.

    Raises MessageError at a bare CR or LF, and at the end where the last line is not ended.
    """
    return _looked_at(chunks, stuffs=True)


def as_it_is(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same octets, for BDAT, which counts them (RFC 3030). Raises what the other does."""
    return _looked_at(chunks, stuffs=False)


def stuffed(octets: bytes) -> bytes:
    """Do what ``dot_stuffed`` does, for all of the content in one piece."""
    checked(octets)
    if octets.startswith(b"."):
        octets = b"." + octets
    return octets.replace(b"\r\n.", b"\r\n..") if b"\r\n." in octets else octets


def checked(octets: bytes) -> bytes:
    """Do what ``as_it_is`` does, for all of the content in one piece."""
    pairs = octets.count(b"\r\n")
    if octets.count(b"\n") != pairs or octets.count(b"\r") != pairs:
        raise MessageError(_BARE)
    if not octets.endswith(b"\r\n"):
        raise MessageError(_NOT_ENDED)
    return octets


def _looked_at(chunks: Iterable[bytes], *, stuffs: bool) -> Iterator[bytes]:
    before = b"\r\n"
    for chunk in chunks:
        joined = before + chunk
        ends_within = joined.endswith(b"\r")
        pairs = joined.count(b"\r\n")
        if joined.count(b"\n") != pairs or joined.count(b"\r") - ends_within != pairs:
            raise MessageError(_BARE)
        if stuffs and b"\r\n." in joined:
            yield joined.replace(b"\r\n.", b"\r\n..")[len(before) :]
        else:
            yield chunk
        before = next(end for end in _LINE_ENDS if joined.endswith(end))
    if before != b"\r\n":
        raise MessageError(_NOT_ENDED)
