"""Content: the octets after DATA, sized before they exist and readable any number of times.

Invariant: ``len(content)`` is the number of octets that ``chunks()`` yields, lines end in CRLF and
the last one does too. Nothing an author does to a message later changes its content.
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CHUNK = 64 * 1024


@t.runtime_checkable
class Stream(t.Protocol):
    """Octets that are made while they are being sent. Every call of ``chunks`` makes the same."""

    def __len__(self) -> int:
        """Octets in all, known beforehand."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield the octets. Raises InvalidAttachment when their source fails or has changed."""
        ...


class Content:
    """The content of one message (RFC 5321, section 2.3.1). Immutable.

    ``len(content)`` is its size in octets before dot-stuffing (RFC 1870). ``message_id`` is with
    angle brackets, ``needs_utf8`` says that SMTPUTF8 is needed, ``needs_8bit`` 8BITMIME.
    """

    __slots__ = ("_pieces", "_size", "message_id", "needs_8bit", "needs_utf8")

    message_id: str
    needs_utf8: bool
    needs_8bit: bool
    _pieces: tuple[bytes | Stream, ...]
    _size: int

    def __init__(
        self,
        parts: Sequence[bytes | Stream],
        *,
        message_id: str,
        needs_utf8: bool = False,
        needs_8bit: bool = False,
    ) -> None:
        pieces = _joined(parts)
        size = 0
        for piece in pieces:
            size += len(piece)
        set_field = object.__setattr__
        set_field(self, "_pieces", pieces)
        set_field(self, "_size", size)
        set_field(self, "message_id", message_id)
        set_field(self, "needs_utf8", needs_utf8)
        set_field(self, "needs_8bit", needs_8bit)

    def __setattr__(self, name: str, value: object) -> t.NoReturn:
        raise AttributeError("content is immutable")

    def __delattr__(self, name: str) -> t.NoReturn:
        raise AttributeError("content is immutable")

    def __len__(self) -> int:
        return self._size

    def chunks(self) -> Iterator[bytes]:
        """Yield the octets; content up to 64 KiB without streams is exactly one chunk.

        Raises InvalidAttachment when a file that is streamed cannot be read or has changed since
        the message was composed.
        """
        for piece in self._pieces:
            if not isinstance(piece, bytes):
                yield from piece.chunks()
            elif len(piece) <= _CHUNK:
                yield piece
            else:
                for start in range(0, len(piece), _CHUNK):
                    yield piece[start : start + _CHUNK]

    def with_field(self, field: bytes) -> Content:
        """Return this content with one more header field, complete with CRLF, on top of it."""
        return Content(
            [field, *self._pieces],
            message_id=self.message_id,
            needs_utf8=self.needs_utf8,
            needs_8bit=self.needs_8bit,
        )

    def __bytes__(self) -> bytes:
        octets: list[bytes] = []
        for piece in self._pieces:
            octets += (piece,) if isinstance(piece, bytes) else piece.chunks()
        return b"".join(octets)

    def __repr__(self) -> str:
        return f"<Content {self.message_id} {self._size} octets>"


def _joined(parts: Sequence[bytes | Stream]) -> tuple[bytes | Stream, ...]:
    """Join octets that lie next to each other, and end the last line."""
    pieces: list[bytes | Stream] = []
    run: list[bytes] = []
    for part in parts:
        if isinstance(part, bytes):
            run.append(part)
        elif len(part):
            if octets := b"".join(run):
                pieces.append(octets)
            pieces.append(part)
            run = []
    octets = b"".join(run)
    pieces.append(octets if octets.endswith(b"\r\n") else octets + b"\r\n")
    return tuple(pieces)
