"""Retrying: tries later what may succeed later, within the call.

Invariant: a recipient whose fate is accepted, or unknown, is never in another try, unless a policy
says so of the unknown. Every try has the same octets, so the same Message-ID.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import typing as t
from collections import Counter
from dataclasses import dataclass, replace

from amail.errors import (
    ConfigError,
    DeliveryUnknown,
    MailError,
    RecipientsRejected,
    Rejected,
    SendError,
)
from amail.receipt import Reply
from amail.smtp.settings import check_seconds
from amail.transports.base import PoolStats, Wrapper

if t.TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from amail.envelope import Envelope
    from amail.errors import Outcome
    from amail.mime import Content
    from amail.receipt import Receipt
    from amail.transports.base import Transport

_logger = logging.getLogger("amail.smtp")

_MOST_DOUBLINGS = 62


def is_retryable(error: BaseException) -> bool:
    """Tell whether the same message, with the same octets, may be sent again later.

    For stamina (``@stamina.retry(on=is_retryable)``) and tenacity
    (``retry_if_exception(is_retryable)``). False for what is unknown: that may be a second copy.
    """
    return isinstance(error, SendError) and error.retryable and error.outcome != "unknown"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and when.

    At most ``attempts`` tries, the first one among them. Before the next one a pause of anything
    between 0 and ``first`` seconds, twice as much each time up to ``longest`` (exponential back-off
    with full jitter). None begins later than ``total`` seconds after the first.
    ``on_unknown="retry"`` also tries again where nobody can tell whether the server took the
    message: better twice than never.

    Raises ConfigError.
    """

    attempts: int = 5
    first: float = 1.0
    longest: float = 60.0
    total: float = 300.0
    on_unknown: t.Literal["raise", "retry"] = "raise"

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigError("attempts: must be a whole number from 1")
        for name in ("first", "longest", "total"):
            check_seconds(name, getattr(self, name))
        if self.on_unknown not in {"raise", "retry"}:
            raise ConfigError('on_unknown: must be "raise" or "retry"')

    def longest_pause(self, tries: int) -> float:
        """Return how many seconds the pause after so many tries may have."""
        return min(self.longest, self.first * 2.0 ** min(tries - 1, _MOST_DOUBLINGS))


class Retrying(Wrapper):
    """Tries later what ``transport`` could not do now, as ``policy`` says.

    Tried again is what certainly was not taken or was refused for the time being (4yz). Of several
    recipients only those are in the next try that were refused for the time being (greylisting);
    the receipt is one for all, and those that no try was left for stand in ``refused`` with the
    server's last reply. ``attempts`` and ``transactions`` of the receipt are those of all tries.

    The caller waits meanwhile: a deadline ends that, and where the next pause would not end before
    it the last error is raised at once. What shall survive the process belongs in a queue.
    Closing this closes ``transport``.
    """

    def __init__(self, transport: Transport, policy: RetryPolicy = RetryPolicy()) -> None:
        super().__init__(transport)
        self._policy = policy
        self._superseded: Counter[Outcome] = Counter()

    def __repr__(self) -> str:
        return f"<Retrying over {self._transport!r}>"

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Send, later once more where that may help; see Transport."""
        delivery = _Delivery(envelope)
        last = time.monotonic() + self._policy.total
        if deadline is not None:
            last = min(last, deadline)
        tries = 1
        ended = result = None
        try:
            while True:
                ended = await self._try(delivery, content, deadline)
                pause = self._pause(tries, last) if self._may_help(delivery, ended) else None
                if pause is None:
                    result = delivery.result(ended)
                    if isinstance(result, MailError):
                        raise result
                    return result
                outcome: Outcome = getattr(ended, "outcome", "accepted")
                _logger.info("%s: tried again in %.1f s", content.message_id, pause)
                await asyncio.sleep(pause)
                self._superseded[outcome] += 1
                tries += 1
        except MailError:
            raise
        except BaseException as error:
            if delivery.accepted:
                error.add_note(f"{content.message_id}: {delivery}")
            raise
        finally:
            del delivery, ended, result  # or a cycle would keep the content: errors know us

    def stats(self) -> PoolStats:
        """Return the numbers of the transport below; of outcomes, one a message."""
        return super().stats().without(self._superseded)

    async def _try(
        self, delivery: _Delivery, content: Content, deadline: float | None
    ) -> MailError | None:
        """Send to those who are due, and note what came of it."""
        try:
            receipt = await self._transport.send(delivery.due, content, deadline=deadline)
        except MailError as error:
            delivery.failed(error)
            return error
        delivery.took(receipt)
        return None

    def _may_help(self, delivery: _Delivery, error: MailError | None) -> bool:
        match error:
            case DeliveryUnknown():
                return self._policy.on_unknown == "retry"
            case None | RecipientsRejected():
                return delivery.is_deferred
        return is_retryable(error)

    def _pause(self, tries: int, last: float) -> float | None:
        """Return how long to wait before another try; None if there is none."""
        if tries >= self._policy.attempts:
            return None
        pause = random.uniform(0, self._policy.longest_pause(tries))  # noqa: S311
        return pause if time.monotonic() + pause < last else None


class _Delivery:
    """What is known of each recipient, of all tries together. Pure.

    Invariant: who was accepted, or kept from it, is never due, and whose fate is unknown stays so
    until accepted.
    """

    def __init__(self, envelope: Envelope) -> None:
        self.accepted: set[str] = set()
        self._envelope = envelope
        self._refused: dict[str, Reply] = {}
        self._unknown: set[str] = set()
        self._suppressed: set[str] = set()
        self._lost: DeliveryUnknown | None = None
        self._first: Receipt | None = None
        self._attempts = 0
        self._transactions = 0

    @property
    def due(self) -> Envelope:
        """The envelope of the next try: nobody in it was accepted, or refused for good."""
        if not self.accepted and not self._refused:
            return self._envelope
        paths = tuple(path for path in self._envelope.forward_paths if self._is_due(path))
        return replace(self._envelope, forward_paths=paths)

    @property
    def is_deferred(self) -> bool:
        """True while somebody was refused, and for the time being only."""
        replies = self._refused.values()
        if self._envelope.all_recipients:
            return bool(replies) and all(reply.transient for reply in replies)
        return any(reply.transient for reply in replies)

    def took(self, receipt: Receipt) -> None:
        """Note whom a receipt is for."""
        self._first = self._first or receipt
        self._attempts += receipt.attempts
        self._transactions += receipt.transactions
        self._suppressed.update(receipt.suppressed)
        self._settle(receipt.accepted, receipt.refused)

    def failed(self, error: MailError) -> None:
        """Note what an error says of the recipients of a try."""
        self._attempts += 1
        due = self.due.forward_paths
        match error:
            case DeliveryUnknown():
                self._lost = error
                settled = {*error.accepted, *error.refused}
                self._unknown.update(path for path in due if path not in settled)
                self._settle(error.accepted, error.refused)
            case RecipientsRejected() if self._envelope.all_recipients:
                self._refused = dict(error.refused)  # of who is not named nothing is known
            case RecipientsRejected():
                self._settle((), error.refused)
            case Rejected(reply=Reply() as reply):
                self._settle((), dict.fromkeys(due, reply))

    def result(self, error: MailError | None) -> Receipt | MailError:
        """Return one receipt for all tries, or what ended the last one, completed."""
        if self._lost is not None and self._unknown:
            self._lost.accepted = self._in_order(self.accepted)
            self._lost.recipients = self._in_order(self._unknown)
            self._lost.refused = self._refused
            return self._lost
        if self._first is None:
            if error is None:
                raise AssertionError("a try ended without an outcome")
            if isinstance(error, RecipientsRejected):
                error.refused = self._refused
            return error
        return replace(
            self._first,
            envelope=self._envelope,
            accepted=self._in_order(self.accepted),
            refused=self._refused,
            attempts=self._attempts,
            transactions=self._transactions,
        )

    def __str__(self) -> str:
        """Say how far it got, for a note on what ended it."""
        count = len(self._envelope.forward_paths)
        return f"it had been accepted for {len(self.accepted)} of {count} recipients"

    def _is_due(self, path: str) -> bool:
        if path in self.accepted or path in self._suppressed:
            return False
        reply = self._refused.get(path)
        return reply is None or reply.transient

    def _settle(self, accepted: Iterable[str], refused: Mapping[str, Reply]) -> None:
        self.accepted.update(accepted)
        self._unknown.difference_update(accepted)
        self._refused.update(refused)
        for path in (*self.accepted, *self._unknown):
            self._refused.pop(path, None)

    def _in_order(self, paths: Collection[str]) -> tuple[str, ...]:
        """Put them in the order of the envelope; behind it those who got it instead of others."""
        known = self._envelope.forward_paths
        others = [path for path in paths if path not in known]
        return (*(path for path in known if path in paths), *others)
