"""Reads the content of a message off the wire, strictly. Octets in, content and objections out.

``ContentReader`` reads up to a dot, ``ChunkReader`` counts.
"""

from __future__ import annotations

import io

_END = b"\r\n.\r\n"
_LONGEST_LINE = 998


class _Reader:
    """What was read, and what is wrong with it.

    The work is done piece by piece as octets come, so that large contents never hold up the loop.
    """

    def __init__(self) -> None:
        self._kept = io.BytesIO()  # its value is not copied in the end
        self._received = 0
        self._line_length = 0
        self._objections: set[str] = set()
        self.eight_bit = False

    @property
    def received(self) -> int:
        """Octets taken so far, as they were on the wire; in the end without the final dot."""
        return self._received

    @property
    def objections(self) -> list[str]:
        """What RFC 5321 forbids and was seen: bare CR or LF, lines over 998 octets."""
        return sorted(self._objections)

    @property
    def content(self) -> bytes:
        """The content as it was meant. Complete once ``feed`` has returned octets."""
        return self._kept.getvalue()

    def _look_at(self, piece: bytes) -> list[bytes]:
        """Object to what lines must not be; return what was between the line ends."""
        self.eight_bit = self.eight_bit or not piece.isascii()
        pairs = piece.count(b"\r\n")
        if piece.count(b"\r") != pairs:
            self._objections.add("bare CR in the content")
        if piece.count(b"\n") != pairs:
            self._objections.add("bare LF in the content")
        first, *others = piece.split(b"\r\n")
        longest = max([self._line_length + len(first), *map(len, others)])
        if longest > _LONGEST_LINE:
            self._objections.add("line over 998 octets in the content")
        self._line_length = len(others[-1]) if others else longest
        return [first, *others]


class ChunkReader(_Reader):
    """Takes so many octets after a BDAT (RFC 3030, section 2), chunk after chunk.

    ``expect`` says how long the next chunk is, and whether it is the last one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left = 0
        self._is_last = False
        self._held = b""

    @property
    def due(self) -> int:
        """Octets of the chunk that did not come yet."""
        return self._left

    def expect(self, size: int, *, last: bool) -> None:
        """Begin a chunk."""
        self._left, self._is_last = size, last

    def feed(self, octets: bytes) -> bytes | None:
        """Take octets. Returns those that came behind the chunk, or None before its end."""
        piece, rest = octets[: self._left], octets[self._left :]
        self._left -= len(piece)
        self._received += len(piece)
        is_end = self._is_last and not self._left
        piece, self._held = self._held + piece, b""
        if piece.endswith(b"\r") and not is_end:
            piece, self._held = piece[:-1], b"\r"  # its LF may be in the next one
        if piece:
            self._look_at(piece)
            self._kept.write(piece)
        if is_end and self._line_length:
            self._objections.add("last line of the content without CRLF")
        return None if self._left else rest


class ContentReader(_Reader):
    """Takes octets after a 354 until the final dot (RFC 5321, section 4.1.1.4)."""

    def __init__(self) -> None:
        super().__init__()
        # The line end of the DATA command belongs to the sequence that ends an empty content.
        self._held = b"\r\n"
        self._first = len(self._held)
        self._line_begins = b""

    def feed(self, octets: bytes) -> bytes | None:
        """Take octets. Returns those that came behind the final dot, or None before it came."""
        self._received += len(octets)
        octets = self._held + octets
        end = octets.find(_END)
        if end < 0:
            # What may be the beginning of the end waits, and a CR for its LF.
            cut = max(0, len(octets) - len(_END) + 1)
            cut -= octets.endswith(b"\r", 0, cut)
            self._held = octets[cut:]
            self._take(octets[:cut])
            return None
        rest = octets[end + len(_END) :]
        self._received -= len(octets) - end - 2
        self._take(octets[: end + 2])
        return rest

    def _take(self, piece: bytes) -> None:
        """Look at the next octets of the content and keep them."""
        if not piece:
            return
        piece, self._first = piece[self._first :], 0
        at_line_begin = self._line_length == 0
        first, *others = self._look_at(piece)
        # What begins a line may come in two pieces.
        begins = [(self._line_begins + first)[:2], *[line[:2] for line in others]]
        self._line_begins = begins.pop()
        if any(each.startswith(b".") and each != b".." for each in begins):
            self._objections.add("line that begins with a single dot in the content")
        piece = piece[1:] if at_line_begin and piece.startswith(b".") else piece
        self._kept.write(piece.replace(b"\r\n.", b"\r\n"))
