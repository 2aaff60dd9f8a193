"""Reads the content of a message off the wire, strictly. Octets in, content and objections out."""

from __future__ import annotations

_END = b"\r\n.\r\n"
_LONGEST_LINE = 998


class ContentReader:
    """Takes octets after a 354 until the final dot (RFC 5321, section 4.1.1.4).

    The work is done piece by piece as octets come, so that large contents never hold up the loop.
    """

    def __init__(self) -> None:
        # The line end of the DATA command belongs to the sequence that ends an empty content.
        self._octets = bytearray(b"\r\n")
        self._searched = 0
        self._checked = 2
        self._line_length = 0
        self._objections: set[str] = set()
        self.eight_bit = False

    @property
    def received(self) -> int:
        """Octets taken so far, as they were on the wire."""
        return len(self._octets) - 2

    @property
    def objections(self) -> list[str]:
        """What RFC 5321 forbids and was seen: bare CR or LF, lines over 998 octets."""
        return sorted(self._objections)

    @property
    def content(self) -> bytes:
        """The content with dot-stuffing taken out. Complete once ``feed`` has returned octets."""
        content = bytes(self._octets)
        if b"\r\n." in content:
            content = content.replace(b"\r\n.", b"\r\n")
        return content[2:]

    def feed(self, octets: bytes) -> bytes | None:
        """Take octets. Returns those that came behind the final dot, or None before it came."""
        self._octets += octets
        end = self._octets.find(_END, self._searched)
        if end < 0:
            self._searched = max(0, len(self._octets) - len(_END) + 1)
            # A CR that came last may be half of a CRLF.
            self._check(len(self._octets) - self._octets.endswith(b"\r"))
            return None
        rest = bytes(self._octets[end + len(_END) :])
        del self._octets[end + 2 :]
        self._check(len(self._octets))
        if self._octets.count(b"\r\n.") != self._octets.count(b"\r\n.."):
            self._objections.add("line that begins with a single dot in the content")
        return rest

    def _check(self, until: int) -> None:
        """Look at the octets that were not looked at yet."""
        piece = bytes(self._octets[self._checked : until])
        self._checked = until
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
