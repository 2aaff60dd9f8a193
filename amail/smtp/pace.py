"""Pace: how many transactions at once, and when, while a server asks to slow down. Knows no SMTP.

    free ── refused twice in a row ──► a pause, then half as many ── accepted in a row ──► one more

A server that takes so many messages in so much time refuses the next ones for the time being, and
each of them would be taken a moment later. So they wait here, and what was refused goes first. But
a refusal may also be about the message, and belong to its sender: where others that ask right after
it are accepted, and where nothing is sent that could be too much.

Invariant: no more turns are taken at once than the width says, none during a pause, and cancelling
a task anywhere gives its turn back.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque

from amail.errors import MailerClosed

_LATELY_SECONDS = 60.0
_PATIENCE_SECONDS = 10.0
_GROWS_AFTER = 4
_MOMENT = 0.1  # seconds in which others ask
_STRIKES = 3


class Pace:
    """Shared by the senders of one loop: ``width`` turns at once while nobody objects.

    The first pause has ``seconds``. One behind which nothing was accepted is followed by one twice
    as long, up to ``longest``; with each turn more at once they become half as long. They are
    jittered, so that many processes do not come back together.
    """

    def __init__(self, width: int, *, seconds: float = 1.0, longest: float = 60.0) -> None:
        self._full = width
        self._shortest = seconds
        self._longest = longest
        self._accepted_at = float("-inf")
        self.leave_loop()

    def leave_loop(self) -> None:
        """Forget who waits and what was asked, for their loop is gone."""
        self.width = self._full
        self.is_slow = False
        self.until = float("-inf")
        self._inside = 0
        self._seconds = self._shortest
        self._refused_at = float("-inf")
        self._paused_at = float("-inf")
        self._row = 0
        # In the order of asking, those who were refused before all others.
        self._waiting: deque[tuple[asyncio.Future[None], bool]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def turn(self) -> Turn:
        """Return what takes one message through, however often it has to ask."""
        return Turn(self)

    def end(self) -> None:
        """Refuse who waits, for the mailer is closed."""
        while self._waiting:
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                text = "the mailer is closed; nothing was sent"
                waiter.set_exception(MailerClosed(text, stage="pool"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # For Turn

    async def take(self, deadline: float, *, first: bool) -> None:
        """Wait for a turn, behind all others or before them. Raises TimeoutError."""
        if not self._waiting and self._is_open(asyncio.get_running_loop().time()):
            self._inside += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft((waiter, True))
        else:
            self._waiting.append((waiter, False))
        self._admit()
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back()  # it was given a turn and cancelled before it could run
            raise

    def give_back(self) -> None:
        """Hand the turn to the next one."""
        self._inside -= 1
        self._admit()

    @property
    def is_alone(self) -> bool:
        """True while nobody else asks, or waits to."""
        return self._inside <= 1 and not self._waiting

    def may_be_too_fast(self) -> bool:
        """Tell whether anything is sent, or was lately, that could be too much."""
        now = asyncio.get_running_loop().time()
        return self._inside > 1 or self._accepted_at > now - _LATELY_SECONDS

    def is_open_to_others(self, moment: float) -> bool:
        """Tell whether one that asked since was accepted, and not because of a pause."""
        return self._accepted_at > moment > self._paused_at

    def has_paused_in_vain(self, moment: float) -> bool:
        """Tell whether there was a pause since, and nothing accepted behind it."""
        return self._paused_at >= max(moment, self._accepted_at)

    def refused(self, asked_at: float) -> None:
        """Note that the server says no for now. Where it says so again, or to the only one, pause.

        ``asked_at`` tells news from what was asked before the last refusal was heard.
        """
        if asked_at <= self._refused_at:
            return
        is_again = self._refused_at > self._accepted_at
        self._refused_at = asyncio.get_running_loop().time()
        if is_again or self.is_alone:
            self._begin_pause(self._refused_at)

    def _begin_pause(self, now: float) -> None:
        if self.is_slow and self._accepted_at <= self._paused_at:
            self._seconds = min(self._seconds * 2, self._longest)
        self._paused_at = now
        self.until = now + self._seconds * random.uniform(1.0, 1.2)  # noqa: S311
        self.width = max(1, self.width // 2)
        self.is_slow = True
        self._row = 0

    def accepted(self, asked_at: float) -> None:
        """Note that the server takes messages, and widen after some in a row."""
        self._accepted_at = asked_at
        if not self.is_slow:
            return
        self._row += 1
        if self._row < _GROWS_AFTER * self.width:
            return
        self._row = 0
        self.width += 1
        self._seconds = max(self._seconds / 2, self._shortest)
        if self.width >= self._full:
            self.width, self._seconds, self.is_slow = self._full, self._shortest, False
        self._admit()

    # Inside

    def _is_open(self, now: float) -> bool:
        return self._inside < self.width and now >= self.until

    def _admit(self) -> None:
        """Give turns to those who wait longest, now or when the pause is over."""
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        while self._waiting and self._is_open(loop.time()):
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                self._inside += 1
                waiter.set_result(None)
        if self._waiting and loop.time() < self.until and self._timer is None:
            # In an empty context: the caller's may hold a web request.
            context = contextvars.Context()
            self._timer = loop.call_at(self.until, self._pause_is_over, context=context)

    def _pause_is_over(self) -> None:
        self._timer = None
        self._let_a_fresh_one_ask()
        self._admit()

    def _let_a_fresh_one_ask(self) -> None:
        """Put one that was never refused before those who were: it may be about them."""
        fresh = next((place for place in self._waiting if not place[1]), None)
        if fresh is not None:
            self._waiting.remove(fresh)
            self._waiting.appendleft(fresh)


class Turn:
    """One message at the server's pace: ``await enter()``, ask, hear, ``leave()``; maybe again."""

    __slots__ = ("_asked_at", "_pace", "_refused_at", "_since", "_strikes")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._asked_at = 0.0
        self._since: float | None = None  # the first refusal
        self._refused_at = 0.0
        self._strikes = 0

    async def enter(self, deadline: float) -> None:
        """Wait until the server may be asked. Raises TimeoutError at ``deadline``, MailerClosed."""
        loop = asyncio.get_running_loop()
        was_refused = self._since is not None
        if was_refused and loop.time() >= self._pace.until:
            # What others hear meanwhile tells whether it was about the pace.
            await asyncio.sleep(_MOMENT * random.uniform(0.5, 1))  # noqa: S311
        await self._pace.take(deadline, first=was_refused)
        self._asked_at = loop.time()

    def leave(self) -> None:
        """Let the next one ask."""
        self._pace.give_back()

    def was_accepted(self) -> None:
        """Note that this one was accepted."""
        self._pace.accepted(self._asked_at)

    def was_told_to_slow_down(self, deadline: float) -> bool:
        """Slow all down. False where that is not what is wrong, or asking again makes no sense.

        For a refusal, before ``leave()``. ``deadline`` is when asking ends, on the loop's clock.
        """
        pace, now = self._pace, asyncio.get_running_loop().time()
        if not pace.may_be_too_fast():
            return False
        if self._since is None:
            self._since = now
        elif pace.is_open_to_others(self._refused_at) or (
            self._strikes and pace.has_paused_in_vain(self._refused_at)
        ):
            # Once may be by chance: just then the server began to count anew.
            self._strikes += 1
            if self._strikes == _STRIKES:
                return False
        self._refused_at = now
        pace.refused(self._asked_at)
        opens_at = max(pace.until, now + _MOMENT)
        return opens_at < min(deadline, self._since + _PATIENCE_SECONDS)
