"""Reads the content of a message off the wire, strictly. Octets in, content and objections out."""

from __future__ import annotations

import io

_END = b"\r\n.\r\n"
_LONGEST_LINE = 998


class ContentReader:
    """Takes octets after a 354 until the final dot (RFC 5321, section 4.1.1.4).

    The work is done piece by piece as octets come, so that large contents never hold up the loop.
    """

    def __init__(self) -> None:
        # The line end of the DATA command belongs to the sequence that ends an empty content.
        self._held = b"\r\n"
        self._first = len(self._held)
        self._kept = io.BytesIO()  # its value is not copied in the end
        self._received = 0
        self._line_length = 0
        self._line_begins = b""
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
        """The content with dot-stuffing taken out. Complete once ``feed`` has returned octets."""
        return self._kept.getvalue()

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
        at_line_begin = self._line_length == 0
        self._line_length = len(others[-1]) if others else longest
        # What begins a line may come in two pieces.
        begins = [(self._line_begins + first)[:2], *[line[:2] for line in others]]
        self._line_begins = begins.pop()
        if any(each.startswith(b".") and each != b".." for each in begins):
            self._objections.add("line that begins with a single dot in the content")
        piece = piece[1:] if at_line_begin and piece.startswith(b".") else piece
        self._kept.write(piece.replace(b"\r\n.", b"\r\n"))
