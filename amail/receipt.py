"""What came of a message: the server's replies and the receipt for what it accepted."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from amail.text import printable

if t.TYPE_CHECKING:
    from collections.abc import Mapping

    from amail.envelope import Envelope
    from amail.errors import MailError, Outcome
    from amail.message import Message

_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:[ \t]|$)")
# How common servers say under which id they queued a message. Best effort, for support tickets.
_QUEUE_ID = re.compile(
    r"(?:queued(?: mail)? (?:as|for delivery as)|id=|message-id:"
    r"|(?i:^ok)[: ]+(?=\S*[0-9])(?![0-9]+ (?:bytes|octets)))"  # which Postfix counts in BDAT
    r"[ <]*([A-Za-z0-9._@+-]{5,100})"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One complete reply of the server (RFC 5321, section 4.2).

    ``enhanced`` is the enhanced status code (RFC 3463) if there is one whose class agrees with
    ``code``. ``text`` is without codes, its lines joined by a line feed.
    """

    code: int
    enhanced: str | None
    text: str

    @classmethod
    def from_lines(cls, code: int, lines: t.Sequence[str]) -> Reply:
        """Build a reply from the texts behind its codes, taking out the enhanced status code."""
        match = _ENHANCED.match(lines[-1])
        if match is None or match[1][0] != str(code)[0]:
            return cls(code, None, "\n".join(lines))
        enhanced = match[1]
        if len(lines) == 1:
            return cls(code, enhanced, lines[0][match.end() :].lstrip(" \t"))
        return cls(code, enhanced, "\n".join([_without(enhanced, line) for line in lines]))

    @property
    def positive(self) -> bool:
        """True for 2yz."""
        return 200 <= self.code < 300

    @property
    def transient(self) -> bool:
        """True for 4yz: the same command may succeed later."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """True for 5yz: the same command will fail again."""
        return 500 <= self.code < 600

    @property
    def queue_id(self) -> str | None:
        """The id under which the server queued the message, if its text says so."""
        match = _QUEUE_ID.search(self.text)
        return match[1] if match else None

    def __str__(self) -> str:
        """Write the reply on one line: code, enhanced code, text; control characters escaped."""
        text = printable(self.text.replace("\n", " / "))
        return " ".join(filter(None, (str(self.code), self.enhanced, text)))


def _without(enhanced: str, line: str) -> str:
    match = _ENHANCED.match(line)
    return line[match.end() :].lstrip(" \t") if match and match[1] == enhanced else line


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server took responsibility for a message (RFC 5321, section 4.2.5).

    ``accepted`` are the forward-paths it took, ``refused`` maps those it did not take to its
    replies. ``relay`` is the server as "host:port". ``queue_id`` is the id it gave, if its reply
    says one. ``attempts`` counts tries over the wire, ``transactions`` the transactions it took:
    more than one where the server takes fewer recipients at once; ``reply`` and ``queue_id`` are
    those of the first. ``suppressed`` are forward-paths of the envelope that our own settings kept
    it from, so that no server was asked; ``relay`` is "suppressed" where that was everybody.
    """

    message_id: str
    envelope: Envelope
    reply: Reply
    accepted: tuple[str, ...]
    refused: Mapping[str, Reply] = field(default_factory=dict, hash=False)
    relay: str | None = None
    queue_id: str | None = None
    attempts: int = 1
    transactions: int = 1
    outcome: Outcome = "accepted"
    suppressed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one of many messages: a receipt or an error, never both."""

    message: Message
    receipt: Receipt | None = None
    error: MailError | None = None

    @property
    def outcome(self) -> Outcome:
        """What became of the message."""
        if self.receipt is not None:
            return self.receipt.outcome
        outcome: Outcome = getattr(self.error, "outcome", "not_sent")  # a MessageError has none
        return outcome
