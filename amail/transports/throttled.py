"""Throttled: so many messages in so much time, and no more.

Invariant: of the messages let through, however they come, no more than ``limit`` begin within any
``seconds`` of time.
"""

from __future__ import annotations

import asyncio
import re
import time
import typing as t
from array import array
from collections.abc import Iterable

from amail.errors import ConfigError, PoolTimeout
from amail.transports.base import Wrapper

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.mime import Content
    from amail.receipt import Receipt
    from amail.transports.base import Transport

_RATE = re.compile(r"\s*([0-9]{1,7})\s*/\s*(s|sec|second|m|min|minute|h|hour|d|day)\s*")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST = 1_000_000


class Window:
    """At most ``limit`` within any ``seconds``. Pure arithmetic on readings of a clock.

    It is kept by when each of the last ``limit`` began: eight octets each. A bucket that is filled
    steadily would need less and let twice as many through in the first window.
    """

    __slots__ = ("_began", "_limit", "_oldest", "_seconds")

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._began = array("d")
        self._oldest = 0

    def opens_at(self) -> float:
        """Return when the next one may begin; it may be past."""
        if len(self._began) < self._limit:
            return float("-inf")
        return self._began[self._oldest] + self._seconds

    def take(self, now: float) -> None:
        """Note that one begins now."""
        if len(self._began) < self._limit:
            self._began.append(now)
        else:
            self._began[self._oldest] = now
            self._oldest = (self._oldest + 1) % self._limit


class Windows:
    """One window for each of several rates, of which each holds. Raises ConfigError."""

    def __init__(self, rate: str | Iterable[str]) -> None:
        rates = [rate] if isinstance(rate, str) else _listed(rate)
        self._text = ", ".join(rates)
        self._windows = [Window(*parse_rate(each)) for each in rates]

    def __str__(self) -> str:
        return self._text

    def opens_at(self) -> float:
        """Return when the next one may begin; it may be past."""
        return max(window.opens_at() for window in self._windows)

    def take(self, now: float) -> None:
        """Note in each that one begins now."""
        for window in self._windows:
            window.take(now)


class Throttled(Wrapper):
    """Lets messages through to ``transport`` at a rate: "14/s", "100/min", "500/h", "10000/d".

    Of several rates (a list) each holds. They are kept by this object, in this process, for all who
    send through it, in the order in which they came; a burst goes through at once until a rate is
    used up. What is counted is messages as they begin, not recipients, not the tries made below.

    Waiting is no error; with a deadline it ends there with PoolTimeout, nothing sent. Closing this
    closes ``transport``. Raises ConfigError.
    """

    def __init__(self, transport: Transport, rate: str | Iterable[str]) -> None:
        super().__init__(transport)
        self._windows = Windows(rate)
        self._turn: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    def __repr__(self) -> str:
        return f"<Throttled to {self._windows} over {self._transport!r}>"

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Wait for the turn of this message, then hand it on; see Transport."""
        left = None if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(left), self._queue():
                await self._wait()
        except TimeoutError as error:
            raise PoolTimeout(
                f"the deadline passed while the message was throttled to {self._windows}; "
                "nothing was sent",
                stage="pool",
                retryable=True,
                message_id=content.message_id,
                recipients=envelope.forward_paths,
            ) from error
        return await self._transport.send(envelope, content, deadline=deadline)

    def _queue(self) -> asyncio.Lock:
        """Return what those who wait in the running loop stand in line for."""
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = (loop, asyncio.Lock())
        return self._turn[1]

    async def _wait(self) -> None:
        """Wait until every window is open, and take one place in each."""
        while True:
            now = time.monotonic()
            opens_at = self._windows.opens_at()
            if now >= opens_at:
                break
            await asyncio.sleep(opens_at - now)
        self._windows.take(now)


def parse_rate(rate: object) -> tuple[int, float]:
    """Read "14/s": so many, within so many seconds. Raises ConfigError."""
    found = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    if found is None:
        raise ConfigError(
            f'rate: {rate!r} is none; write "14/s", "100/min", "500/h" or "10000/d", or a list'
        )
    limit = int(found[1])
    if not 1 <= limit <= _MOST:
        raise ConfigError(f"rate: {rate!r} must be from 1 to {_MOST}")
    return limit, _SECONDS[found[2][0]]


def _listed(rates: object) -> list[str]:
    if not isinstance(rates, Iterable):
        raise ConfigError(f'rate: must be "14/s" or a list, not {type(rates).__name__}')
    listed = list(rates)
    if not listed:
        raise ConfigError('rate: the list is empty; write "14/s" or the like')
    return [each if isinstance(each, str) else repr(each) for each in listed]
