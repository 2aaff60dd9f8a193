"""A message in several transactions, where a server takes fewer recipients at once. Pure.

A server that has enough recipients refuses the next ones with 452 4.5.3 (RFC 5321, section
4.5.3.1.10; RFC 3463, section 3.6). They are not refused but due in a next transaction, with the
same octets.

Invariant: each forward-path ends in exactly one of accepted, refused and unknown.
"""

from __future__ import annotations

import typing as t
from dataclasses import replace

from amail.errors import DeliveryUnknown, RecipientsRejected, SendError
from amail.receipt import Reply

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.errors import MailError
    from amail.receipt import Receipt

_NOT_SENT = "4.4.5"  # "system congestion" of RFC 3463, section 3.5, comes nearest


def is_due_later(reply: Reply) -> bool:
    """Tell whether a refused recipient is one too many for this transaction."""
    return reply.enhanced is not None and reply.enhanced.endswith(".5.3")


class Parts:
    """What became of the recipients so far, and who is due next.

    ``first`` is the receipt of the first transaction, which was given the whole ``envelope``.
    """

    def __init__(self, envelope: Envelope, first: Receipt) -> None:
        self._envelope = envelope
        self._first = first
        self._accepted: list[str] = []
        self._refused: dict[str, Reply] = {}
        self._due: list[str] = []
        self._limit = 1
        self._attempts = 1
        self._transactions = 0
        self.took(first)

    def next(self) -> Envelope | None:
        """Return the envelope of the next transaction; None when there is nobody left."""
        part = tuple(self._due[: self._limit])
        return replace(self._envelope, forward_paths=part) if part else None

    def took(self, receipt: Receipt) -> None:
        """Note what was accepted. Who was one too many is due again, before the others."""
        beyond = [path for path, reply in receipt.refused.items() if is_due_later(reply)]
        self._settle(receipt.envelope)
        self._accepted += receipt.accepted
        for path, reply in receipt.refused.items():
            if not is_due_later(reply):
                self._refused[path] = reply
        self._attempts += receipt.attempts - 1
        if beyond:
            # As many as it took, and not all of them again each time.
            self._limit = len(receipt.accepted)
            self._due = beyond + self._due

    def failed(self, part: Envelope, error: MailError) -> None:
        """Note that a part was rejected or not sent: its recipients count as refused.

        Raises DeliveryUnknown where that is what became of the part.
        """
        self._settle(part)
        if isinstance(error, DeliveryUnknown):
            raise self._unknown(error) from error
        replies = error.refused if isinstance(error, RecipientsRejected) else {}
        local = _local_reply(error)
        self._refused |= {path: replies.get(path, local) for path in part.forward_paths}

    def receipt(self) -> Receipt:
        """Return one receipt for all of them."""
        return replace(
            self._first,
            envelope=self._envelope,
            accepted=tuple(self._accepted),
            refused=self._refused,
            attempts=self._attempts,
            transactions=self._transactions,
        )

    def __str__(self) -> str:
        """Say how far it got, for a note on what ended it."""
        count = len(self._envelope.forward_paths)
        return f"it had been accepted for {len(self._accepted)} of {count} recipients"

    def _settle(self, part: Envelope) -> None:
        self._transactions += 1
        self._due = self._due[len(part.forward_paths) :]

    def _unknown(self, error: DeliveryUnknown) -> DeliveryUnknown:
        never = Reply(451, _NOT_SENT, "not sent: what became of an earlier part is unknown")
        refused = {**self._refused, **error.refused, **dict.fromkeys(self._due, never)}
        return DeliveryUnknown(
            f"{error}; {self}",
            accepted=tuple(self._accepted),
            refused=refused,
            recipients=error.recipients,
            stage=error.stage,
            reply=error.reply,
            message_id=error.message_id,
            relay=error.relay,
        )


def _local_reply(error: MailError) -> Reply:
    """Return the server's reply to a part, or one of ours where there was none."""
    reply = error.reply if isinstance(error, SendError) else None
    return reply or Reply(451, _NOT_SENT, f"not sent: {error}")
