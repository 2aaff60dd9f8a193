"""At most so many sessions, lent to one task at a time. Knows no SMTP.

    async with pool.slot() as slot:                  # in order of asking
        session = slot.take_idle() or await slot.open(open_one)
        ...                                          # a session found clean goes back by itself

The state is a number of free slots, a queue of those who wait for one, and a stack of idle
sessions. Invariant: open sessions never outnumber the slots, and a slot belongs to a scope, so that
cancelling a task anywhere gives it back.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import typing as t
from collections import deque

from amail.errors import MailerClosed, PoolTimeout

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


class Pooled(t.Protocol):
    """What can be pooled."""

    @property
    def reusable(self) -> bool:
        """True only when proven clean and neither spent nor too old."""
        ...

    @property
    def usable(self) -> bool:
        """True while it can be spoken with, be it to say goodbye."""
        ...

    @property
    def unsettled(self) -> asyncio.Future[None] | None:
        """Done when it has what its last user did not wait for; None if there is nothing."""
        ...

    def settle(self) -> Iterable[object]:
        """Take what its last users did not wait for, and return it."""
        ...

    def quit(self) -> Awaitable[None]:
        """End politely, within seconds."""
        ...

    def abort(self) -> None:
        """End at once."""
        ...

    def forget(self) -> None:
        """Let go without an octet, for the loop or the process that had it is gone."""
        ...


S = t.TypeVar("S", bound=Pooled)


class Pool(t.Generic[S]):
    """Slots and idle sessions of one loop in one process.

    ``size`` slots; sessions idle for ``idle_timeout`` seconds are ended; who waits for a slot while
    none was given back for ``pool_timeout`` seconds gets PoolTimeout. At most half of the slots are
    kept by sessions that wait for what their last user did not wait for; ``settled`` is given that
    when it is there.
    """

    def __init__(
        self,
        size: int,
        *,
        idle_timeout: float,
        pool_timeout: float,
        settled: Callable[[t.Any], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self._size = size
        self._idle_timeout = idle_timeout
        self._pool_timeout = pool_timeout
        self._tell_settled = settled
        self._free = size
        self._withheld = 0
        # Who waits, since when, and whether for a slot that is shared too.
        self._waiting: deque[tuple[asyncio.Future[_Stay[S] | None], float, bool]] = deque()
        self._offered: list[Slot[S]] = []
        self._waiters = 0
        self._given_back_at = self.loop.time()
        # What outlives its caller runs in a context of its own, or it would keep alive whatever the
        # first caller's holds: a web request, say.
        self._context = contextvars.Context()
        self._patience: asyncio.TimerHandle | None = None
        self._idle: list[tuple[S, float]] = []
        # Who has a slot and would take the session of another one, in the order of asking.
        self._seeking: dict[Slot[S], asyncio.Future[None]] = {}
        self._reaper: asyncio.TimerHandle | None = None
        self._allowing: set[asyncio.TimerHandle] = set()
        self._openings: set[asyncio.Timeout] = set()
        self._held: set[S] = set()
        self._unsettled: list[S] = []  # in the order in which they were left
        self._farewells: dict[asyncio.Task[None], S] = {}
        self._leaving: list[S] = []  # those of them that hold no slot
        self._closed = False
        self._ended = False
        self._all_free: asyncio.Future[None] | None = None

    @property
    def idle(self) -> int:
        """Sessions open and unused."""
        return sum(session.usable for session, _ in self._idle)

    @property
    def leased(self) -> int:
        """Slots taken."""
        return self._size - self._free - self._withheld

    @property
    def waiting(self) -> int:
        """Tasks that wait for a slot."""
        return self._waiters

    @property
    def open(self) -> int:
        """Sessions open, used or not."""
        return self.idle + len(self._unsettled) + sum(session.usable for session in self._held)

    @property
    def belongs_here(self) -> bool:
        """True in the process that made this pool."""
        return self.pid == os.getpid()

    def slot(self, deadline: float | None = None, *, shares: bool = False) -> Slot[S]:
        """Return the scope in which one session may be used, by one who ``shares`` maybe soon.

        Waiting for it is not an error. Entering raises PoolTimeout when nothing moves, or at
        ``deadline`` (a reading of the loop's clock), and MailerClosed when the pool is closed.
        """
        return Slot(self, deadline, shares=shares)

    async def aclose(self, seconds: float) -> None:
        """Refuse who waits, let those finish that are under way, then end every session.

        What is under way after that many seconds is aborted, what nobody waits for at once.
        """
        self._closed = True
        self._refuse_waiting()
        for session in list(self._unsettled):
            session.abort()
        if self.leased:
            self._all_free = self.loop.create_future()
            await asyncio.wait({self._all_free}, timeout=seconds)
        self._end_openings()
        for session in list(self._held):
            session.abort()
        while self._idle:
            self._say_farewell(self._idle.pop()[0], holds_slot=False)
        if self._farewells:
            await asyncio.wait(self._farewells)
        self._stop_timers()

    def drop(self) -> None:
        """Abort every session and refuse who waits; nothing is awaited."""
        self._closed = True
        self._refuse_waiting()
        self._end_openings()
        for session in self._all_sessions():
            session.abort()
        self._idle.clear()
        self._stop_timers()

    def forget(self) -> None:
        """Let go of every session without an octet and without touching the loop."""
        self._closed = self._ended = True
        for session in self._all_sessions():
            session.forget()
        self._held.clear()
        self._unsettled.clear()
        self._idle.clear()
        self._farewells.clear()
        self._waiting.clear()
        self._offered.clear()

    # For Slot

    async def take_slot(
        self, deadline: float | None, *, first: bool = False, shares: bool = False
    ) -> _Stay[S] | None:
        """Wait for a slot, behind all others or before them.

        Who ``shares`` may get that of one who only waits for the end, and follows it: returned is
        who is ahead.
        """
        if self._closed:
            raise _closed_error()
        if deadline is not None and self.loop.time() >= deadline:
            raise _late_error()
        if shares and self._offered and not self._idle and not self._waiters:
            return self._offered.pop(0).hand_on()
        if self._free:
            self._free -= 1
            return None
        return await self._wait_for_slot(deadline, first=first, shares=shares)

    async def _wait_for_slot(
        self, deadline: float | None, *, first: bool, shares: bool
    ) -> _Stay[S] | None:
        waiter: asyncio.Future[_Stay[S] | None] = self.loop.create_future()
        place = (waiter, self.loop.time(), shares)
        if first:
            self._waiting.appendleft(place)
        else:
            self._waiting.append(place)
        self._waiters += 1
        self._be_patient()
        try:
            if deadline is None:
                return await waiter
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was handed a slot and cancelled before it could run.
                shared = waiter.result()
                if shared is None:
                    self.give_slot_back()
                else:
                    shared.take_again(self)
            if isinstance(error, TimeoutError) and not isinstance(error, PoolTimeout):
                raise _late_error() from error
            raise
        finally:
            self._waiters -= 1

    def give_slot_back(self) -> None:
        """Hand the slot to the one who waits longest."""
        self._given_back_at = self.loop.time()
        while self._waiting:
            waiter, _, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
        if self._all_free is not None and not self.leased and not self._all_free.done():
            self._all_free.set_result(None)

    def offer(self, slot: Slot[S]) -> None:
        """Let another one follow in a slot whose holder only waits for the end."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        if self._waiting and self._waiting[0][2]:
            waiter, _, _ = self._waiting.popleft()
            waiter.set_result(slot.hand_on())
        else:
            self._offered.append(slot)

    def withdraw(self, slot: Slot[S]) -> None:
        """Offer it no longer."""
        if slot in self._offered:
            self._offered.remove(slot)

    def take_idle(self) -> S | None:
        """Take the session that was used last, if one is reusable."""
        while self._idle:
            session, _ = self._idle.pop()
            if session.reusable:
                self._held.add(session)
                return session
            self._end(session)
        return None

    async def seek(self, slot: Slot[S], until: asyncio.Future[None], seconds: float) -> None:
        """Wait at most that long for a session that another one gives back, the slot being held.

        Raises MailerClosed when the pool ends meanwhile.
        """
        if self._ended:
            raise _closed_error()
        come = self._seeking[slot] = self.loop.create_future()
        try:
            await asyncio.wait({come, until}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._seeking.pop(slot, None)
        if self._ended:
            raise _closed_error()

    def _is_sought(self, session: S) -> bool:
        """Give a session to the slot that seeks one for longest, if there is one."""
        if not self._seeking:
            return False
        slot = next(iter(self._seeking))
        self._held.add(session)
        slot.session = session
        self._seeking.pop(slot).set_result(None)
        return True

    async def open_session(self, opener: Callable[[], Awaitable[S]]) -> S:
        """Open a session for a slot. Raises MailerClosed when the pool ends before it is open."""
        if self._ended:
            raise _closed_error()
        self._make_room()
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._openings.add(limit)
                session = await opener()
        except TimeoutError:
            if limit.expired():
                raise _closed_error() from None
            raise
        finally:
            self._openings.discard(limit)
        if limit.when() is not None:  # it ended just when the session was open
            session.abort()
            raise _closed_error()
        self._held.add(session)
        return session

    def _make_room(self) -> None:
        """Abort sessions nobody uses where another one would be one too many."""
        while self.leased + len(self._idle) + len(self._leaving) > self._size:
            if self._leaving:
                self._leaving.pop(0).abort()
            elif self._idle:
                self._idle.pop(0)[0].abort()
            else:
                return

    def be_patient_until(self, moment: float) -> None:
        """Count no wait before that moment for ``pool_timeout``."""
        self._given_back_at = max(self._given_back_at, moment)

    def take_back(self, session: S) -> None:
        """Keep a clean session for the next one, end any other; the slot comes back with it."""
        self._held.discard(session)
        unsettled = session.unsettled
        if unsettled is not None and (self._size > 1 or unsettled.done()) and not self._closed:
            self._keep_unsettled(session, unsettled)
            return
        if session.unsettled is None and session.reusable and not self._closed:
            if not self._is_sought(session):
                self._idle.append((session, self.loop.time()))
                self._watch_idle()
        elif session.usable:
            # The slot is free when the server has let go: it may count its connections.
            self._say_farewell(session, holds_slot=True)
            return
        else:
            session.abort()
        self.give_slot_back()

    def _keep_unsettled(self, session: S, settled: asyncio.Future[None]) -> None:
        """Keep a session, and its slot, until it has what its user did not wait for."""
        self._unsettled.append(session)
        settled.add_done_callback(lambda _: self._settled(session), context=self._context)
        too_many = max(0, len(self._unsettled) - self._size // 2)
        for oldest in self._unsettled[:too_many]:  # copied: one that is aborted may leave at once
            oldest.abort()

    def _settled(self, session: S) -> None:
        if session not in self._unsettled:  # the pool was forgotten meanwhile
            return
        self._unsettled.remove(session)
        try:
            for late in session.settle():
                if self._tell_settled is not None:
                    self._tell_settled(late)
        finally:
            self.take_back(session)

    def lose(self, session: S) -> None:
        """Abort a session whose slot stays taken."""
        self._held.discard(session)
        session.abort()

    def withhold_slot(self, seconds: float) -> bool:
        """Take a slot out of use for a while; False where no other session is open."""
        others = self._idle or self._held or self._openings
        if self._withheld + 1 >= self._size or not others:
            return False
        self._withheld += 1

        def allow() -> None:
            self._allowing.discard(timer)
            self._withheld -= 1
            self.give_slot_back()

        timer = self.loop.call_later(seconds, allow, context=self._context)
        self._allowing.add(timer)
        return True

    # Inside

    def _end(self, session: S) -> None:
        if session.usable:
            self._say_farewell(session, holds_slot=False)
        else:
            session.abort()

    def _say_farewell(self, session: S, *, holds_slot: bool) -> None:
        async def farewell() -> None:
            await session.quit()

        def parted(task: asyncio.Task[None]) -> None:
            self._farewells.pop(task, None)
            if task.cancelled():  # maybe before it began
                session.abort()
            if holds_slot:
                self.give_slot_back()
            elif session in self._leaving:
                self._leaving.remove(session)

        if not holds_slot:
            self._leaving.append(session)
        task = self.loop.create_task(farewell(), context=self._context.copy())
        self._farewells[task] = session
        # Not in the task: one that is cancelled before it began runs nothing at all.
        task.add_done_callback(parted)

    def _all_sessions(self) -> list[S]:
        idle = [session for session, _ in self._idle]
        return [*self._held, *idle, *self._unsettled, *self._farewells.values()]

    def _end_openings(self) -> None:
        self._ended = True
        while self._openings:
            self._openings.pop().reschedule(self.loop.time())
        while self._seeking:
            self._seeking.popitem()[1].set_result(None)

    def _refuse_waiting(self) -> None:
        while self._waiting:
            waiter, _, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(_closed_error())

    def _stop_timers(self) -> None:
        for timer in (self._patience, self._reaper, *self._allowing):
            if timer is not None:
                timer.cancel()
        self._patience = self._reaper = None
        self._allowing.clear()

    def _be_patient(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(
                self._pool_timeout, self._lose_patience, context=self._context
            )

    def _lose_patience(self) -> None:
        """Refuse those who waited for ``pool_timeout`` in which no slot was given back."""
        self._patience = None
        now = self.loop.time()
        while self._waiting:
            waiter, since, _ = self._waiting[0]
            if not waiter.done():
                due = max(since, self._given_back_at) + self._pool_timeout
                if due > now:
                    self._patience = self.loop.call_at(
                        due, self._lose_patience, context=self._context
                    )
                    return
                waiter.set_exception(_stuck_error(self._pool_timeout))
            self._waiting.popleft()

    def _watch_idle(self) -> None:
        if self._reaper is None:
            self._reaper = self.loop.call_later(
                self._idle_timeout, self._reap, context=self._context
            )

    def _reap(self) -> None:
        """End the sessions that were not used for ``idle_timeout``. The oldest lie lowest."""
        self._reaper = None
        now = self.loop.time()
        while self._idle:
            session, since = self._idle[0]
            if session.usable and since + self._idle_timeout > now:
                self._reaper = self.loop.call_at(
                    since + self._idle_timeout, self._reap, context=self._context
                )
                return
            del self._idle[0]
            self._end(session)


class _Stay(t.Generic[S]):
    """One time in a slot, as the one who follows in it sees it; ``ahead`` is whom it follows.

    Not the Slot itself: whoever is in that may have left, and be in another slot since.
    """

    __slots__ = ("_slot", "ahead", "is_over", "session")

    def __init__(self, slot: Slot[S], ahead: _Stay[S] | None) -> None:
        self._slot = slot
        self.ahead = ahead
        self.is_over = False
        self.session: S | None = None  # when it was handed on

    def forget_who_left(self) -> None:
        """Let go of those ahead that are none any more, or each stay would keep all before it."""
        while self.ahead is not None and self.ahead.is_over:
            self.ahead = self.ahead.ahead

    def give_back(self, pool: Pool[S], session: S | None) -> None:
        """Give the slot to who is ahead, or back to the pool with its session."""
        self.forget_who_left()
        if self.ahead is not None:
            self.ahead.take_again(pool)
        elif session is None:
            pool.give_slot_back()
        else:
            pool.take_back(session)

    def take_again(self, pool: Pool[S]) -> None:
        """Have the slot again, for the one who followed has left."""
        if self.is_over:
            self.give_back(pool, self.session)
        else:
            self._slot.take_again()


class Slot(t.Generic[S]):
    """The right to one session, for the length of an ``async with``.

    ``session`` is the one it has, and afterwards the one it had. ``deadline`` is that of the wait.
    It may be shared by those who only wait for the end of what they do (``offer``) and the one who
    follows them, and is its holder from then on. If that one leaves first, it is the one's before.
    """

    __slots__ = ("_is_taken", "_pool", "_shares", "_stay", "deadline", "session")

    def __init__(self, pool: Pool[S], deadline: float | None, *, shares: bool = False) -> None:
        self._pool = pool
        self._shares = shares
        self._stay: _Stay[S] = _Stay(self, None)
        self._is_taken = False
        self.deadline = deadline
        self.session: S | None = None

    async def __aenter__(self) -> t.Self:
        ahead = await self._pool.take_slot(self.deadline, shares=self._shares)
        self._stay, self._is_taken = _Stay(self, ahead), True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stay.is_over = True
        self._pool.withdraw(self)
        self._let_go()
        self._stay.forget_who_left()

    def _let_go(self) -> None:
        if self._is_taken:
            self._is_taken = False
            self._stay.give_back(self._pool, self.session)

    @property
    def is_shared(self) -> bool:
        """True while the session is another one's too."""
        if self.session is None:
            return False
        self._stay.forget_who_left()
        return self._stay.ahead is not None or self.session.unsettled is not None

    def offer(self) -> None:
        """Let another one follow: what is left to do here is to wait."""
        if self._is_taken:
            self._pool.offer(self)

    def hand_on(self) -> _Stay[S]:
        """Be the holder no longer; return what the next one has ahead."""
        self._is_taken = False
        self._stay.session = self.session
        return self._stay

    def take_again(self) -> None:
        """Be the holder again, for the one who followed has left."""
        self._is_taken = True

    def recall(self) -> None:
        """Offer it no longer; where another one follows already, leave the session to that one."""
        self._pool.withdraw(self)
        if not self._is_taken:
            self._stay.is_over = True
            self._stay.forget_who_left()
            self.session = None

    async def exchange(self, seconds: float) -> bool:
        """Put this slot out of use for a while and wait for another one, before all others.

        For a server that takes no further connection. Returns False, at once, where no other
        session is open; then the slot stays.
        """
        if not self._is_taken or not self._pool.withhold_slot(seconds):
            return False
        self._is_taken = False
        await self._take()
        return True

    async def hold(self) -> None:
        """Have a slot, where it was left to one who follows: wait for one before all others."""
        if not self._is_taken:
            await self._take()

    async def _take(self) -> None:
        await self._pool.take_slot(self.deadline, first=True)
        self._stay, self._is_taken = _Stay(self, None), True

    @property
    def holds_reusable(self) -> bool:
        """True with a session that can be used again."""
        return self.session is not None and self.session.reusable

    @property
    def others_wait(self) -> bool:
        """True while there are others who wait for a slot."""
        return self._pool.waiting > 0

    def be_patient_until(self, moment: float) -> None:
        """Have nobody lose patience because this one waits until then, on the loop's clock."""
        self._pool.be_patient_until(moment)

    def drop(self) -> None:
        """Let go of a session that is no good, to open another one in its place."""
        self.recall()
        if self.is_shared:
            self._stay.is_over = True
            self._let_go()
            self.session = None
            return
        session, self.session = self.session, None
        if session is not None:
            self._pool.lose(session)

    def take_idle(self) -> S | None:
        """Take an idle session, or the one that is shared, if there is one."""
        ahead = self._stay.ahead
        if ahead is not None:
            self.session = ahead.session
        else:
            self.session = self._pool.take_idle()
        return self.session

    async def seek(self, until: asyncio.Future[None], seconds: float) -> bool:
        """Wait for an idle session in place of a new one, until that is done or so many seconds.

        True if there is one now, in ``session``. Raises MailerClosed when the pool ends meanwhile.
        """
        if not self._is_taken:
            await asyncio.wait({until}, timeout=seconds)
            return False
        if self.take_idle() is None:
            await self._pool.seek(self, until, seconds)
        return self.session is not None

    async def open(self, opener: Callable[[], Awaitable[S]]) -> S:
        """Open a session and keep it. Raises MailerClosed when the pool ends before it is open."""
        await self.hold()
        self.session = await self._pool.open_session(opener)
        return self.session


def _closed_error() -> MailerClosed:
    return MailerClosed("the mailer is closed; nothing was sent", stage="pool")


def _late_error() -> PoolTimeout:
    text = "the deadline passed before a session was free; nothing was sent"
    return PoolTimeout(text, stage="pool", retryable=True)


def _stuck_error(seconds: float) -> PoolTimeout:
    text = f"no session became free within {seconds:g} s (pool_timeout); nothing was sent"
    return PoolTimeout(text, stage="pool", retryable=True)
