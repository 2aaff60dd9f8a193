"""Pace: how many transactions at once, and when, while a server asks to slow down. Knows no SMTP.

    free ── refused twice in a row ──► a pause, then half as many ── accepted in a row ──► one more

A server that takes so many messages in so much time refuses the next ones for the time being, and
each of them would be taken a moment later. So they wait here, and what was refused goes first. But
a refusal may also be about the message, and belong to its sender: where others that ask right after
it are accepted, and where nothing is sent that could be too much. So one message that is refused
again and again slows nobody down, while there are others that could ask.

Invariant: no more may ask at once than the width says, none during a pause, and cancelling a task
anywhere lets the next one ask.
"""

from __future__ import annotations

import asyncio
import bisect
import contextvars
import random
import typing as t
from operator import itemgetter

from amail.errors import MailerClosed

_LATELY_SECONDS = 60.0
_PATIENCE_SECONDS = 10.0
_GROWS_AFTER = 4
_ENOUGH = 4  # of others who are accepted tell that it is not the pace
_NEVER = float("inf")
_MOMENT = 0.1  # seconds in which others ask, the first time
_LONGEST_MOMENT = 1.0
_STRIKES = 3
_FRESH_IN_ROW = 2  # messages refused in a row, each for the first time, mean the pace
_IN_ROW = 3  # and so do so many different ones, be they asked about again, or one less when paused


class Pace:
    """Shared by the senders of one loop: ``width`` ask at once while nobody objects.

    The first pause has ``seconds``. One behind which nothing was accepted is followed by one twice
    as long, up to ``longest``; with each one more at once they become half as long. They are
    jittered, so that many processes do not come back together.
    """

    def __init__(self, width: int, *, seconds: float = 1.0, longest: float = 60.0) -> None:
        self._full = width
        self._shortest = seconds
        self._longest = longest
        self._accepted_at = float("-inf")
        self.width = self._full
        self.is_slow = False
        self.until = float("-inf")
        self._inside = 0
        self._turns = 0  # of messages that ask, wait to, or think about it
        self._refused = 0  # those of them that were refused
        self._seconds = self._shortest
        self._paused_at = float("-inf")
        self._row = 0
        self._is_in_vain = False
        # Refused since one was accepted.
        self._in_row: set[Turn] = set()
        self._fresh_in_row = 0
        self._listeners: list[_Listener] = []
        # By the first refusal, and behind those who had one in the order of asking.
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def turn(self) -> Turn:
        """Return what takes one message through, however often it has to ask."""
        return Turn(self)

    def end(self) -> None:
        """Refuse who waits, for the mailer is closed."""
        while self._waiting:
            _, waiter = self._waiting.pop(0)
            if not waiter.done():
                text = "the mailer is closed; nothing was sent"
                waiter.set_exception(MailerClosed(text, stage="pool"))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # For Turn

    async def take(self, deadline: float, refused_at: float = _NEVER) -> None:
        """Wait until one may ask, who was first refused then. Raises TimeoutError."""
        if self.take_at_once():
            return
        waiter = asyncio.get_running_loop().create_future()
        bisect.insort(self._waiting, (refused_at, waiter), key=itemgetter(0))
        self._admit()
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give_back()  # it was given a turn and cancelled before it could run
            raise

    def take_at_once(self) -> bool:
        """Take a turn if one may ask now, and nobody waits to."""
        if self._waiting or not self._is_open(asyncio.get_running_loop().time()):
            return False
        self._inside += 1
        return True

    def give_back(self) -> None:
        """Hand the turn to the next one."""
        self._inside -= 1
        self._admit()

    def begin(self) -> None:
        """Count a turn."""
        self._turns += 1

    def end_turn(self, *, was_refused: bool) -> None:
        """Count it no longer."""
        self._turns -= 1
        self._refused -= was_refused

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

    async def listen(self, since: float, seconds: float) -> None:
        """Wait until enough others that asked since were accepted, and at most that long."""
        listener = _Listener(since, asyncio.get_running_loop().create_future())
        self._listeners.append(listener)
        try:
            async with asyncio.timeout(seconds):
                await listener.heard_enough
        except TimeoutError:
            pass
        finally:
            self._listeners.remove(listener)

    def refused(self, turn: Turn, asked_at: float, *, again: bool, others_wait: bool) -> None:
        """Note that the server says no for now. Where it says so to one after another, pause.

        ``asked_at`` tells news from what was asked before the last pause; ``again`` that it is this
        message's second refusal, at least; ``others_wait`` for a session.
        """
        self._refused += not again
        if asked_at <= self._paused_at:
            return
        self._fresh_in_row += not again
        self._in_row.add(turn)
        others = self._turns > self._refused or (others_wait and self._refused < self._full)
        enough = _IN_ROW - (self._accepted_at <= self._paused_at)
        if not others or self._fresh_in_row >= _FRESH_IN_ROW or len(self._in_row) >= enough:
            self._begin_pause(asyncio.get_running_loop().time())

    def _begin_pause(self, now: float) -> None:
        self._is_in_vain = self.is_slow and self._accepted_at <= self._paused_at
        if self._is_in_vain:
            self._seconds = min(self._seconds * 2, self._longest)
        self._paused_at = now
        self.until = now + self._seconds * random.uniform(1.0, 1.2)  # noqa: S311
        self.width = max(1, self.width // 2)
        self.is_slow = True
        self._row = 0
        self._break_row()

    def _break_row(self) -> None:
        self._in_row.clear()
        self._fresh_in_row = 0

    def accepted(self, asked_at: float) -> None:
        """Note that the server takes messages, and widen after some in a row."""
        self._accepted_at = asked_at
        self._break_row()
        for listener in self._listeners:
            listener.hear(asked_at)
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
            _, waiter = self._waiting.pop(0)
            if not waiter.done():
                self._inside += 1
                waiter.set_result(None)
        if self._waiting and loop.time() < self.until and self._timer is None:
            # In an empty context: the caller's may hold a web request.
            context = contextvars.Context()
            self._timer = loop.call_at(self.until, self._pause_is_over, context=context)

    def _pause_is_over(self) -> None:
        self._timer = None
        if self._is_in_vain:
            self._let_a_fresh_one_ask()
        self._admit()

    def _let_a_fresh_one_ask(self) -> None:
        """Put one that was never refused before those who were: it may be about them."""
        fresh = next((place for place in self._waiting if place[0] == _NEVER), None)
        if fresh is not None:
            self._waiting.remove(fresh)
            self._waiting.insert(0, fresh)


class _Listener:
    """One that was refused, and hears what others are told."""

    __slots__ = ("_left", "_since", "heard_enough")

    def __init__(self, since: float, heard_enough: asyncio.Future[None]) -> None:
        self._since = since
        self._left = _ENOUGH
        self.heard_enough = heard_enough

    def hear(self, asked_at: float) -> None:
        self._left -= asked_at > self._since
        if not self._left and not self.heard_enough.done():
            self.heard_enough.set_result(None)


class Turn:
    """One message at the server's pace.

    with pace.turn() as turn:
        await turn.enter(deadline)
        ...  # ask, and hear
        turn.leave()  # and maybe again
    """

    __slots__ = ("_asked_at", "_is_inside", "_moment", "_pace", "_refused_at", "_since", "_strikes")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._asked_at = 0.0
        self._is_inside = False
        self._since = _NEVER  # the first refusal
        self._refused_at = 0.0
        self._moment = _MOMENT
        self._strikes = 0

    def __enter__(self) -> t.Self:
        self._pace.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._pace.end_turn(was_refused=self._since != _NEVER)

    def enter_at_once(self) -> bool:
        """Ask without waiting, if one may: as nearly always."""
        if self._since != _NEVER or not self._pace.take_at_once():
            return False
        self._is_inside = True
        self._asked_at = asyncio.get_running_loop().time()
        return True

    async def enter(self, deadline: float) -> None:
        """Wait until the server may be asked. Raises TimeoutError at ``deadline``, MailerClosed."""
        loop = asyncio.get_running_loop()
        was_refused = self._since != _NEVER
        if was_refused and loop.time() >= self._pace.until:
            # What others hear meanwhile tells whether it was about the pace.
            await self._pace.listen(self._refused_at, self._moment * random.uniform(0.5, 1))  # noqa: S311
            self._moment = min(2 * self._moment, _LONGEST_MOMENT)
        await self._pace.take(deadline, self._since)
        self._is_inside = True
        self._asked_at = loop.time()

    def leave(self) -> None:
        """Let the next one ask, if that was not done."""
        if self._is_inside:
            self._is_inside = False
            self._pace.give_back()

    def was_accepted(self) -> None:
        """Note that this one was accepted."""
        self._pace.accepted(self._asked_at)

    def was_told_to_slow_down(self, deadline: float, *, others_wait: bool = False) -> bool:
        """Slow all down. False where that is not what is wrong, or asking again makes no sense.

        For a refusal, before ``leave()``. ``deadline`` is when asking ends, on the loop's clock;
        ``others_wait`` for what one needs to ask at all.
        """
        pace, now = self._pace, asyncio.get_running_loop().time()
        if not pace.may_be_too_fast():
            return False
        again = self._since != _NEVER
        if not again:
            self._since = now
        elif pace.is_open_to_others(self._refused_at) or (
            self._strikes and pace.has_paused_in_vain(self._refused_at)
        ):
            # Once may be by chance: just then the server began to count anew.
            self._strikes += 1
            if self._strikes == _STRIKES:
                return False
        self._refused_at = now
        pace.refused(self, self._asked_at, again=again, others_wait=others_wait)
        opens_at = max(pace.until, now + self._moment)
        return opens_at < min(deadline, self._since + _PATIENCE_SECONDS)
