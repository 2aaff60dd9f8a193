"""Failover and RoundRobin: several relays, of which one will do.

Invariant: a message is given to the next relay only where it certainly was not taken, for a reason
that lies with the relay. So no fault on the way makes a second copy, and what one server refuses is
not tried on another.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import random
import time
import typing as t
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from amail.errors import (
    ConfigError,
    MailerClosed,
    MessageError,
    MessageRejected,
    NotSent,
    PoolTimeout,
    QueueFull,
    SenderRejected,
    SendError,
    Vetoed,
)
from amail.secret import hides_arguments
from amail.smtp.settings import check_seconds
from amail.transports.base import (
    PoolStats,
    Transport,
    listening,
    reply_until,
    stats_of,
    time_for_all,
    verified,
)
from amail.transports.resolve import resolve

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from amail.envelope import Envelope
    from amail.errors import Outcome
    from amail.mime import Content
    from amail.receipt import Receipt
    from amail.smtp.settings import SMTPOptions
    from amail.transports.base import OnResolved
    from amail.transports.resolve import Where
    from amail.transports.server_info import ServerInfo

_logger = logging.getLogger("amail.smtp")

_COOLDOWN_SECONDS = 60.0
_JITTER = 0.2
_FAIR_SECONDS = 5.0  # a relay that had them, in all, and did not send failed
_FULL = frozenset({"4.3.1", "4.3.2"})  # of the server's storage, of the server (RFC 3463, 3.4)


class _Relay:
    """A transport, and until when it is left in peace."""

    def __init__(self, transport: Transport, cooldown: float) -> None:
        self.transport = transport
        self.cools_until = 0.0
        self._cooldown = cooldown
        self._in_vain = 0.0  # seconds it was asked since it last answered, those of many once
        self._in_vain_until = 0.0

    def __repr__(self) -> str:
        return repr(self.transport)

    async def send(
        self,
        envelope: Envelope,
        content: Content,
        *,
        deadline: float | None,
        reply_deadline: float | None,
        begin: Callable[[], tuple[float, float]] | None = None,
    ) -> Receipt:
        """Send over it, and note what that says about it. ``begin``: see ``time_for_all``."""
        began = time.monotonic()
        before = mark = self.cools_until
        if before:
            # One message finds out whether it is back; the others go on as if it were not.
            self.cools_until = mark = began + self._cooldown
        token = reply_until.set(reply_deadline)
        until = time_for_all.set(begin or time_for_all.get())
        try:
            receipt = await self.transport.send(envelope, content, deadline=deadline)
        except BaseException as error:
            if self.cools_until == mark:  # or others have learnt something meanwhile
                self.cools_until = before
            if isinstance(error, SendError):
                self._learn(error, began, deadline)
            raise
        finally:
            reply_until.reset(token)
            time_for_all.reset(until)
        self._answered()
        return receipt

    def _learn(self, error: SendError, began: float, deadline: float | None) -> None:
        now = time.monotonic()
        if not is_the_relays_fault(error):
            if error.outcome == "rejected":
                self._answered()
            return
        if type(error) is NotSent and not error.retryable:
            return  # it lacks an extension that this message needs, which another one may have
        is_late = deadline is not None and now >= deadline
        if is_late and isinstance(error, PoolTimeout):
            return  # a long queue says nothing about the relay
        if is_late and self._seconds_in_vain(began, now) < _FAIR_SECONDS:
            return  # nor does a sender in a hurry, but many of them in a row do
        seconds = self._cooldown * random.uniform(1, 1 + _JITTER)  # noqa: S311
        self.cools_until = now + seconds
        text = str(error)  # a record that held the error would hold the content
        _logger.warning("%r is left out for %.0f s: %s", self.transport, seconds, text)

    def _answered(self) -> None:
        self.cools_until = self._in_vain = 0.0

    def _seconds_in_vain(self, began: float, now: float) -> float:
        """Count those of one more that it let wait, and return all since it last answered."""
        self._in_vain += now - max(began, self._in_vain_until)
        self._in_vain_until = now
        return self._in_vain


class _Clock:
    """So many seconds for all relays together, from when the first of them begins."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.ends: float | None = None

    def begin(self, among: int) -> tuple[float, float]:
        """Return until when one among so many may take; see ``time_for_all``."""
        if self.ends is None:
            self.ends = time.monotonic() + self._seconds
        return _share(self.ends, among), self.ends


class Failover:
    """Sends over the first of several relays that can be had.

    ``relays``: each as ``Mailer`` takes it, a URL, SMTPSettings or a Transport; ``timeout`` and
    ``smtp_options`` are for those that are made here. To the next one goes what certainly was not
    taken because of the relay: it cannot be reached, is busy or out of storage, breaks off, fails
    in TLS or AUTH, does not speak SMTP. Never what is unknown, nor what was refused. A relay that
    failed is left out for ``cooldown`` seconds, up to a fifth more, and then tried by one message;
    where all of them are, the one whose time is over first is tried. ``timeout_for_all``: seconds
    for a message without a deadline, over all relays and with the last reply, from the moment the
    first of them has a session for it; each has a fair share of them.

    Errors are those of the last relay, with a note on each of the others. Closing this closes all.
    Raises ConfigError.
    """

    @hides_arguments
    def __init__(
        self,
        relays: Iterable[Where],
        *,
        timeout: float = 60.0,
        timeout_for_all: float | None = None,
        cooldown: float = _COOLDOWN_SECONDS,
        **smtp_options: t.Unpack[SMTPOptions],
    ) -> None:
        check_seconds("cooldown", cooldown)
        if timeout_for_all is not None:
            check_seconds("timeout_for_all", timeout_for_all)
        self._timeout_for_all = timeout_for_all
        self._relays = [_Relay(each, cooldown) for each in _made(relays, timeout, smtp_options)]
        self._failures = 0
        self._superseded: Counter[Outcome] = Counter()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._relays!r}>"

    @property
    def transports(self) -> tuple[Transport, ...]:
        """The relays, in the order they were given."""
        return tuple(relay.transport for relay in self._relays)

    @property
    def concurrency(self) -> int:
        """The most that one of the relays has: most of the time one of them does all the work."""
        return max(_concurrencies(self.transports))

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Send over the first relay that can be had; see Transport.

        ``deadline`` is one for all of them: each but the last has a fair share of what is left, so
        that one that hangs leaves time for the next. A share is over with the last octet; the reply
        to that has all the time. ``attempts`` of the receipt counts those that failed.
        """
        failed: list[SendError] = []
        final: SendError | None = None
        clock = _Clock(self._timeout_for_all or math.inf)
        try:
            relays = self._candidates()
            for left, relay in zip(range(len(relays), 0, -1), relays, strict=True):
                until = clock.ends if deadline is None else deadline
                if failed and until is not None and time.monotonic() >= until:
                    break
                is_counted = until is None and self._timeout_for_all is not None
                try:
                    receipt = await relay.send(
                        envelope,
                        content,
                        deadline=None if until is None else _share(until, left),
                        reply_deadline=reply_until.get() or until,
                        begin=functools.partial(clock.begin, left) if is_counted else None,
                    )
                except SendError as error:
                    if not is_the_relays_fault(error):
                        raise
                    failed.append(error)
                else:
                    return replace(receipt, attempts=receipt.attempts + len(failed))
            final = _with_notes(failed)
            self._superseded[final.outcome] -= 1  # it is the end of this message
            raise final
        finally:
            self._superseded.update(error.outcome for error in failed)
            failed = []  # or a cycle would keep the content: these errors know this frame
            final = None

    def stats(self) -> PoolStats:
        """Return the numbers of all relays together; of outcomes, one a message."""
        return sum(map(stats_of, self.transports), PoolStats()).without(self._superseded)

    def listen(self, on_resolved: OnResolved) -> bool:
        """Have it told of late replies of every relay; False where none has any."""
        heard = [listening(transport, on_resolved) for transport in self.transports]
        return any(heard)

    async def verify(self) -> ServerInfo:
        """Verify every relay, and return what the first says of itself.

        One that cannot be had is an error though another would do: it is found out here, and not
        when it is needed.
        """
        first, *_ = [await verified(transport) for transport in self.transports]
        return first

    async def aclose(self) -> None:
        """Close every relay, also when one of them fails to."""
        closing = (transport.aclose() for transport in self.transports)
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if outcome is not None:
                raise outcome

    def _order(self, relays: list[_Relay]) -> list[_Relay]:
        return relays

    def _candidates(self) -> list[_Relay]:
        """Return whom to ask: those that are not cooling, then the one that is done with it first.

        No more of those, or a message would wait for all of them while all are down.
        """
        now = time.monotonic()
        cooling = [relay for relay in self._relays if relay.cools_until > now]
        others = [relay for relay in self._relays if relay.cools_until <= now]
        soonest = sorted(cooling, key=lambda relay: relay.cools_until)[:1]
        return self._order(others) + soonest


class RoundRobin(Failover):
    """Shares messages out over several relays in turn; otherwise as Failover.

    ``RoundRobin(["smtp://one.example.com", "smtp://two.example.com"])`` is what ``Mailer`` takes.
    The share of a relay that is left out goes to all the others.
    """

    @hides_arguments
    def __init__(
        self,
        relays: Iterable[Where],
        *,
        timeout: float = 60.0,
        cooldown: float = _COOLDOWN_SECONDS,
        **smtp_options: t.Unpack[SMTPOptions],
    ) -> None:
        super().__init__(relays, timeout=timeout, cooldown=cooldown, **smtp_options)
        self._turn = itertools.count()

    @property
    def concurrency(self) -> int:
        """That of all relays together."""
        return sum(_concurrencies(self.transports))

    def _order(self, relays: list[_Relay]) -> list[_Relay]:
        first = next(self._turn) % max(1, len(relays))
        return relays[first:] + relays[:first]


def resolve_all(
    where: Where | Sequence[Where] | None, *, timeout: float, options: SMTPOptions
) -> Transport:
    """Make a Transport, of a list one that tries them in that order. Raises ConfigError."""
    if isinstance(where, Sequence) and not isinstance(where, str | bytes):
        return Failover(where, timeout=timeout, **options)
    return resolve(where, timeout=timeout, options=options)


def is_the_relays_fault(error: SendError) -> bool:
    """Tell whether a message certainly was not taken, and another relay may well take it."""
    match error:
        case MessageError() | MailerClosed() | QueueFull() | Vetoed():
            return False
        case SenderRejected() | MessageRejected():
            reply = error.reply
            return reply is not None and reply.transient and reply.enhanced in _FULL
    return isinstance(error, NotSent)


def _made(relays: Iterable[Where], timeout: float, options: SMTPOptions) -> Iterator[Transport]:
    if isinstance(relays, str) or not isinstance(relays, Iterable):
        raise ConfigError(f"where: must be a list of URLs, not {type(relays).__name__}")
    number = 0
    for number, where in enumerate(relays, 1):
        try:
            if where is None:
                raise ConfigError("where: must be a URL, SMTPSettings or a Transport, not None")
            # While another one may do, nobody waits for a relay to come back.
            yield resolve(where, timeout=timeout, options=options, patience=0.0)
        except ConfigError as error:
            text = str(error).removeprefix("where: ")
            raise ConfigError(f"where: relay {number}: {text}") from None
    if not number:
        raise ConfigError("where: there is no relay in the list")


def _share(deadline: float, among: int) -> float:
    """Return the deadline of the first among so many that share the time."""
    if among == 1:
        return deadline
    now = time.monotonic()
    return now + (deadline - now) / among


def _concurrencies(transports: Iterable[Transport]) -> Iterator[int]:
    return (getattr(transport, "concurrency", 1) for transport in transports)


def _with_notes(errors: list[SendError]) -> SendError:
    """Return the last error after which trying later may help, else the last; it notes the rest."""
    final = ([error for error in errors if error.retryable] or errors)[-1]
    for error in errors:
        if error is not final:
            final.add_note(f"another relay: {type(error).__name__}: {error}")
    return final
