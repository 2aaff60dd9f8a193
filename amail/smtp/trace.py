"""Trace: what both sides of one session say, line by line, for the log. Pure; no sockets, no clock.

It reads the octets as they go by and keeps nothing of them. Invariant: no line holds credentials,
nor an octet of the content, however the octets are split; nor an address in full, unless that is
asked for.
"""

from __future__ import annotations

import re
import typing as t

from amail.text import masked, printable

if t.TYPE_CHECKING:
    from collections.abc import Callable

_END = b"\r\n.\r\n"
_BDAT = re.compile(rb"BDAT ([0-9]+)", re.IGNORECASE)
_AUTH = re.compile(rb"AUTH +[^ ]+", re.IGNORECASE)
_ADDRESS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s<>:,;"]+)@[^\s<>:,;]+')
_STATUS = re.compile(rb"[0-9]{3}(?:[ -][0-9]\.[0-9]{1,3}\.[0-9]{1,3})?")
_LONGEST = 1000
"""Octets of a line that are shown: far more than either side may say in one (RFC 5321, 4.5.3.1)."""


class Trace:
    """``log`` is called with each line: "C: NOOP" is the client's, "S: 250 ok" the server's.

    Of content its length is said. ``show_addresses`` has them shown in full.
    """

    def __init__(self, log: Callable[[str], object], *, show_addresses: bool = False) -> None:
        self._log = log
        self._show_addresses = show_addresses
        self._command = b""
        self._reply = b""
        self._in_auth = False
        self._is_asked_for_content = False
        self._left_of_chunk = 0  # octets that still follow a BDAT
        self._octets = 0  # of the content so far
        self._tail: bytes | None = None  # the last octets of content that a dot ends

    def sent(self, octets: bytes) -> None:
        """Take what was written."""
        while octets:
            if self._left_of_chunk:
                octets = self._chunk(octets)
            elif self._is_asked_for_content or self._tail is not None:
                octets = self._content(octets)
            else:
                octets = self._commands(octets)

    def received(self, octets: bytes) -> None:
        """Take what was read."""
        *lines, self._reply = (self._reply + octets).split(b"\n")
        for line in lines:
            self._on_reply(line.removesuffix(b"\r"))

    def heard(self, code: int, text: str) -> None:
        """Take a reply that was read elsewhere: its lines, joined by LF."""
        *before, last = text.encode("utf-8", "surrogateescape").split(b"\n")
        lines = [*(b"%d-%s" % (code, line) for line in before), b"%d %s" % (code, last)]
        self.received(b"".join(line + b"\r\n" for line in lines))

    def _commands(self, octets: bytes) -> bytes:
        """Take the next line; return what follows it."""
        line, end, rest = (self._command + octets).partition(b"\r\n")
        if not end:
            self._command = line
            return b""
        self._command = b""
        if self._in_auth:
            self._log("C: ***")
            return rest
        if match := _AUTH.match(line):
            self._in_auth = True
            self._log(f"C: {self._shown(match[0])}{' ***' * (match.end() < len(line))}")
            return rest
        self._log(f"C: {self._shown(line)}")
        if match := _BDAT.match(line):
            self._left_of_chunk = self._octets = int(match[1])
            self._say_octets(when=not self._left_of_chunk)
        return rest

    def _chunk(self, octets: bytes) -> bytes:
        """Take octets of a chunk (RFC 3030); return what follows it."""
        rest = octets[self._left_of_chunk :]
        self._left_of_chunk -= len(octets) - len(rest)
        self._say_octets(when=not self._left_of_chunk)
        return rest

    def _content(self, octets: bytes) -> bytes:
        """Take octets up to the dot that ends the content; return what follows that."""
        if self._tail is None:
            self._is_asked_for_content = False
            self._tail, self._octets = b"\r\n", 0
        known = len(self._tail)
        seen = self._tail + octets
        end = seen.find(_END)
        if end < 0:
            self._octets += len(octets)
            self._tail = seen[-(len(_END) - 1) :]
            return b""
        taken = end + len(_END) - known
        self._octets += taken - len(b".\r\n")
        self._tail = None
        self._say_octets(when=True)
        return octets[taken:]

    def _say_octets(self, *, when: bool) -> None:
        if when:
            self._log(f"C: ({self._octets} octets of content)")

    def _on_reply(self, line: bytes) -> None:
        status = _STATUS.match(line)
        if self._in_auth and status is not None:
            self._log(f"S: {status[0].decode()} ***")  # servers have quoted what they refuse
        else:
            self._log(f"S: {self._shown(line)}")
        if line[3:4] != b"-":
            self._in_auth = self._in_auth and line[:3] == b"334"
            self._is_asked_for_content = line[:3] == b"354"

    def _shown(self, line: bytes) -> str:
        text = printable(line[:_LONGEST].decode("utf-8", "backslashreplace"))
        if self._show_addresses:
            return text
        return _ADDRESS.sub(lambda match: masked(match[0]), text)
