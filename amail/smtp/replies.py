"""Server octets in, complete replies out (RFC 5321, section 4.2). Pure: no I/O, no clock.

A reply is handed on as its code and its raw octets; most replies are only looked at for their
code, so the text is decoded when somebody wants it.
"""

from __future__ import annotations

from amail.receipt import Reply

MAX_LINE = 8 * 1024
MAX_REPLY = 32 * 1024
MAX_LINES = 128

_HYPHEN, _SPACE, _CR, _ZERO, _NINE = b"- \r09"

_TOO_LONG = f"a reply has more than {MAX_REPLY} octets, or more than {MAX_LINE} in a line"


class MalformedReply(ValueError):
    """What came is no SMTP reply. The text says why, without the octets.

    ``replies`` are those that were complete before it.
    """

    def __init__(self, reason: str, replies: list[tuple[int, bytes]]) -> None:
        super().__init__(reason)
        self.replies = replies


class ReplyReader:
    """Cuts a stream of octets into replies, however they were cut into segments.

    ``untidy`` says that a line had no CR at its end or no space behind its code, which is taken.
    """

    __slots__ = ("_pending", "untidy")

    def __init__(self) -> None:
        self._pending = b""
        self.untidy = False

    @property
    def pending(self) -> bytes:
        """Octets of a reply that is not complete yet."""
        return self._pending

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take a segment, return the replies that are complete now as (code, raw octets).

        Raises MalformedReply for anything that is not a reply, and past the limits above.
        """
        if self._pending:
            data = self._pending + data
        replies: list[tuple[int, bytes]] = []
        start = position = lines = 0
        while (end := data.find(b"\n", position)) >= 0:
            code = data[position : position + 3]
            if end - position > MAX_LINE or end - start > MAX_REPLY:
                raise MalformedReply(_TOO_LONG, replies)
            if not code.isdigit() or not b"200" <= code <= b"599" or end - position < 3:
                reason = "a reply line does not begin with a code from 200 to 599"
                raise MalformedReply(reason, replies)
            lines += 1
            mark = data[position + 3]
            more = mark == _HYPHEN
            if data[end - 1] != _CR or (mark != _SPACE and not more and mark != _CR):
                if _ZERO <= mark <= _NINE:  # the beginning of one reply, and another one behind it
                    raise MalformedReply("a code has more than three digits", replies)
                self.untidy = True
            position = end + 1
            if not more:
                replies.append((int(code), data[start:position]))
                start, lines = position, 0
            elif lines >= MAX_LINES:
                raise MalformedReply(f"a reply has more than {MAX_LINES} lines", replies)
        self._pending = data[start:]
        if len(data) - position > MAX_LINE or len(self._pending) > MAX_REPLY:
            raise MalformedReply(_TOO_LONG, replies)
        return replies


def decode_reply(code: int, raw: bytes) -> Reply:
    """Make a Reply of a code and the raw octets that ``ReplyReader.feed`` returned with it.

    The text is UTF-8 (RFC 6531, section 3.7.4); other octets are shown as backslash escapes.
    """
    # Not splitlines(), to which a form feed ends a line too.
    lines = raw.decode("utf-8", "backslashreplace").removesuffix("\n").split("\n")
    return Reply.from_lines(code, [line[4:].strip(" \t\r") for line in lines])
