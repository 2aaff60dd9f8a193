"""Circuit: whether a server that failed again and again is worth another try. Knows no SMTP.

    closed ── so many failures in a row ──► open ── its time is over ──► one probe ──► closed, open

While it is open nobody asks the server. When its time is over one sender tries, and what comes of
that holds for all; the time doubles with each probe that fails. A probe that ends in something else
says nothing, and another one follows a moment later. In the first seconds of an outage, which may
be a restart, senders wait for the probe; later they get the failure at once.

Invariant: while it is open never more than one sender asks at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import typing as t

from amail.errors import SendError

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Wait: t.TypeAlias = Callable[[asyncio.Future[None], float], Awaitable[bool]]
    """Waits for a future or so many seconds; True when the caller has what it needs meanwhile."""

_logger = logging.getLogger("amail.smtp")

_MOMENT = 1.0


async def _only_wait(changed: asyncio.Future[None], seconds: float) -> bool:
    await asyncio.wait({changed}, timeout=seconds)
    return False


def _never() -> bool:
    return False


class Circuit:
    """Opens after ``failures`` in a row, for ``seconds`` and then up to ``longest``.

    ``patience``: how long from then on senders wait, if the failure may pass. The times are
    jittered, so that many processes do not come back together.
    """

    def __init__(
        self, *, failures: int, seconds: float, longest: float, patience: float = 0.0
    ) -> None:
        self._limit = failures
        self._shortest = seconds
        self._longest = longest
        self._patience = patience
        self._failures = 0
        self._since = 0.0  # when it was opened
        self._seconds = seconds
        self._until = 0.0
        self._last = SendError()
        self._probing = False
        self._changed: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """True while the server is not asked, or by one sender only."""
        return self._failures >= self._limit

    @contextlib.asynccontextmanager
    async def attempt(
        self,
        deadline: float,
        counts: Callable[[SendError], bool],
        *,
        wait: Wait = _only_wait,
        has_news: Callable[[], bool] = _never,
    ) -> AsyncIterator[bool]:
        """Ask the server inside this. What is raised there and ``counts`` is a failure.

        ``deadline`` is a reading of the loop's clock. Entering may wait until then, by ``wait``; if
        that returns True this is False, and the server is not to be asked. Who ``has_news`` need
        not wait until the time is over, but for its turn. Raises an error like the last failure
        where asking makes no sense now.
        """
        part = await self._enter(deadline, wait, has_news)
        if part == "none":
            yield False
            return
        is_probe = part == "probe"
        try:
            yield True
        except SendError as error:
            if counts(error):
                self._failed(error, is_probe)
            elif is_probe and asyncio.get_running_loop().time() < deadline:
                self._until = max(self._until, self._after(min(self._seconds, _MOMENT)))
            raise
        else:
            self.close()
        finally:
            if is_probe:  # or it was cancelled, or failed for a reason of its own: another may try
                self._settle()

    def close(self) -> None:
        """Note that the server can be had."""
        if self.is_open:
            _logger.info("the server is back")
        self._failures = 0
        self._seconds = self._shortest
        self._settle()

    def leave_loop(self) -> None:
        """Forget who waits or probes, for their loop is gone."""
        self._probing = False
        self._changed = None

    async def _enter(
        self, deadline: float, wait: Wait, has_news: Callable[[], bool]
    ) -> t.Literal["one of all", "probe", "none"]:
        """Return when the caller may ask the server, or need not, and what it is by that."""
        while self.is_open:
            now, is_due = time.monotonic(), has_news()
            if not self._probing and (is_due or now >= self._until):
                self._probing = True
                return "probe"
            left = deadline - asyncio.get_running_loop().time()
            may_pass = self._last.retryable and now < self._since + self._patience
            if left <= 0 or not (is_due or may_pass):
                text = f"{self._last}; not asked again within {max(1, self._until - now):.0f} s"
                raise _like(self._last, text)
            seconds = left if self._probing else min(left, self._until - now)
            if await wait(self._next_change(), max(0.0, seconds)):
                return "none"
        return "one of all"

    def _failed(self, error: SendError, is_probe: bool) -> None:
        now = time.monotonic()
        was_open = self.is_open
        self._failures += 1
        if self.is_open and not was_open:
            self._since = now
        # Not the error itself, whose frames hold a message.
        self._last = _like(error, str(error))
        if is_probe:
            self._seconds = min(self._seconds * 2, self._longest)
        if is_probe or (self.is_open and not was_open):
            self._until = self._after(self._seconds)
            _logger.warning("not asked again for %.0f s: %s", self._until - now, error)

    def _settle(self) -> None:
        """Have those who wait look again."""
        self._probing = False
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)

    def _next_change(self) -> asyncio.Future[None]:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def _after(self, seconds: float) -> float:
        return time.monotonic() + seconds * random.uniform(1.0, 1.2)  # noqa: S311


def _like(error: SendError, text: str) -> SendError:
    """Return an error of the same kind: what it says of the server, nothing of a message."""
    return type(error)(
        text,
        stage=error.stage,
        reply=error.reply,
        retryable=error.retryable,
        relay=error.relay,
    )
