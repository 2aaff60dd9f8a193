"""The pool alone, lending fake sessions that count themselves. Time goes on only when told to."""

from __future__ import annotations

import asyncio
import random
import typing as t
from collections import Counter

import pytest

from amail.errors import MailerClosed, PoolTimeout
from amail.smtp.pool import Pool, Slot

if t.TYPE_CHECKING:
    from collections.abc import Callable

IDLE_TIMEOUT, POOL_TIMEOUT = 30.0, 20.0


class House:
    """Opens fake sessions, and knows how many there are."""

    def __init__(self) -> None:
        self.sessions: list[Fake] = []
        self.open = 0
        self.peak = 0
        self.answers_quit = True

    async def opened(self) -> Fake:
        """Open a session."""
        self.open += 1
        self.peak = max(self.peak, self.open)
        self.sessions.append(Fake(self, len(self.sessions) + 1))
        return self.sessions[-1]

    def answer_quit(self) -> None:
        """Hang up on those that have said goodbye."""
        for session in self.sessions:
            if session.end.endswith("quit"):
                session.hang_up()

    def ends(self) -> list[str]:
        """How each session ended so far, in the order of opening."""
        return [session.end for session in self.sessions]


class Fake:
    """A session with nobody at the other end."""

    def __init__(self, house: House, number: int) -> None:
        self.reusable = True
        self.end = "open"
        self.user: object = None
        self.gone = asyncio.Event()
        self.unsettled: asyncio.Future[None] | None = None
        self._house = house
        self._number = number

    def __repr__(self) -> str:
        return f"<session {self._number}, {self.end}>"

    @property
    def usable(self) -> bool:
        return self.end == "open" and self.unsettled is None

    def settle(self) -> list[object]:
        self.unsettled = None
        return [f"what {self._number} was asked for"]

    async def quit(self) -> None:
        assert self.usable
        self.end = self.end + ", quit"
        self.reusable = False
        try:
            if self._house.answers_quit:
                await asyncio.sleep(0)
            else:
                await self.gone.wait()
        except BaseException:
            self.abort()
            raise
        self.hang_up()

    def abort(self) -> None:
        if not self.gone.is_set():
            self.end = self.end + ", aborted"
        self.hang_up()

    def forget(self) -> None:
        self.end = self.end + ", forgotten"
        self.hang_up()

    def hang_up(self) -> None:
        if not self.gone.is_set():
            self._house.open -= 1
            self.gone.set()
            self.reusable = False
            if self.unsettled is not None and not self.unsettled.done():
                self.unsettled.set_result(None)


class Clock:
    """The loop's clock, which can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        loop = asyncio.get_running_loop()
        self._time = loop.time
        monkeypatch.setattr(loop, "time", self.time)

    def time(self) -> float:
        return self._time() + self._ahead

    async def advance(self, seconds: float) -> None:
        await settle()
        self._ahead += seconds
        await settle()


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def house() -> House:
    return House()


def make_pool(size: int, settled: Callable[[t.Any], None] | None = None) -> Pool[Fake]:
    return Pool(size, idle_timeout=IDLE_TIMEOUT, pool_timeout=POOL_TIMEOUT, settled=settled)


async def take(slot: Slot[Fake], house: House) -> Fake:
    """Take an idle session or open one, as the transport does."""
    return slot.take_idle() or await slot.open(house.opened)


class User:
    """A task that has a slot and a session until it is told to leave."""

    def __init__(self, pool: Pool[Fake], house: House, deadline: float | None = None) -> None:
        self.session: Fake | None = None
        self.leave = asyncio.Event()
        self.slot = pool.slot(deadline)
        self.task = asyncio.create_task(self._use(house))

    async def _use(self, house: House) -> None:
        async with self.slot:
            self.session = await take(self.slot, house)
            await self.leave.wait()

    @property
    def served(self) -> bool:
        return self.session is not None

    @property
    def the_session(self) -> Fake:
        assert self.session is not None
        return self.session

    async def done(self) -> None:
        """Leave, and wait until the slot is given back."""
        self.leave.set()
        await self.task

    async def spent(self) -> None:
        """Leave a session that answers and is not to be used again."""
        self.the_session.reusable = False
        await self.done()

    async def gone_early(self) -> asyncio.Future[None]:
        """Leave a session whose answer is still to come."""
        unsettled = self.the_session.unsettled = asyncio.get_running_loop().create_future()
        await self.done()
        return unsettled

    async def broken(self) -> None:
        """Leave a session that cannot even be said goodbye to."""
        self.the_session.abort()
        await self.done()


async def users(number: int, pool: Pool[Fake], house: House) -> list[User]:
    made = [User(pool, house) for _ in range(number)]
    await settle()
    return made


def numbers(pool: Pool[Fake]) -> tuple[int, int, int, int]:
    return pool.open, pool.idle, pool.leased, pool.waiting


async def assert_every_slot_is_there(pool: Pool[Fake], size: int, house: House) -> None:
    """As many as the pool's size get in at once, and one more does not."""
    crowd = await users(size + 1, pool, house)
    assert [user.served for user in crowd] == [True] * size + [False]
    for user in crowd:
        await user.done()
    assert pool.leased == 0


# Lending


async def test_no_more_sessions_are_open_than_the_pool_is_large(house: House) -> None:
    pool = make_pool(3)
    crowd = await users(10, pool, house)
    assert [user.served for user in crowd] == [True] * 3 + [False] * 7
    assert numbers(pool) == (3, 0, 3, 7)
    for user in crowd:
        await user.done()
    assert (house.peak, len(house.sessions)) == (3, 3)
    assert numbers(pool) == (3, 3, 0, 0)
    await pool.aclose(1)


async def test_the_session_that_was_used_last_is_lent_first(house: House) -> None:
    pool = make_pool(3)
    first, second, third = await users(3, pool, house)
    for user in (third, first, second):
        await user.done()
    lent = [user.session for user in await users(3, pool, house)]
    assert lent == [second.session, first.session, third.session]


async def test_slots_are_given_in_the_order_of_asking(house: House) -> None:
    pool = make_pool(2)
    crowd = await users(12, pool, house)
    served = []
    for user in crowd:
        assert user.served
        served.append(sum(each.served for each in crowd))
        await user.done()
    assert served == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12]


async def test_who_asks_while_others_wait_is_behind_them_also_where_a_slot_is_free_just_now(
    house: House,
) -> None:
    pool = make_pool(1)
    holder, waiter = await users(2, pool, house)
    holder.leave.set()
    await holder.task
    late = User(pool, house)
    await settle()
    assert (waiter.served, late.served) == (True, False)
    await waiter.done()
    await late.done()


async def test_a_session_is_lent_again_only_while_it_is_reusable(house: House) -> None:
    pool = make_pool(1)
    for _ in range(3):
        await (await users(1, pool, house))[0].done()
    assert len(house.sessions) == 1
    house.sessions[0].reusable = False
    (user,) = await users(1, pool, house)
    assert user.session is house.sessions[1]
    await user.done()
    assert house.peak == 1


async def test_a_failure_gives_the_slot_back(house: House) -> None:
    pool = make_pool(1)
    with pytest.raises(ConnectionError):
        async with pool.slot():
            raise ConnectionError
    with pytest.raises(ConnectionError):
        async with pool.slot() as slot:
            (await take(slot, house)).abort()
            raise ConnectionError
    assert numbers(pool) == (0, 0, 0, 0)
    await assert_every_slot_is_there(pool, 1, house)


async def test_a_dropped_session_leaves_the_slot_to_open_another_one(house: House) -> None:
    pool = make_pool(1)
    async with pool.slot() as slot:
        first = await take(slot, house)
        slot.drop()
        assert (first.end, slot.session, pool.leased) == ("open, aborted", None, 1)
        assert await take(slot, house) is not first
        assert numbers(pool) == (1, 0, 1, 0)
    assert (house.peak, pool.idle) == (1, 1)
    slot.drop()
    await pool.aclose(1)


async def test_a_session_opened_in_place_of_a_stale_one_makes_room_among_the_idle(
    house: House,
) -> None:
    pool = make_pool(2)
    for user in await users(2, pool, house):
        await user.done()
    async with pool.slot() as slot:
        await take(slot, house)
        slot.drop()
        other = await users(1, pool, house)
        # Idle again: with the one that is about to be opened there are two, and no more.
        await other[0].done()
        await slot.open(house.opened)
        assert (pool.open, house.open) == (2, 2)
    assert house.peak == 2


# Cancelling


async def test_a_cancelled_waiter_leaves_the_queue_and_costs_nobody_a_slot(house: House) -> None:
    pool = make_pool(1)
    holder, waiter, next_one = await users(3, pool, house)
    waiter.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter.task
    assert numbers(pool) == (1, 0, 1, 1)
    await holder.done()
    await settle()
    assert next_one.served
    await next_one.done()
    await assert_every_slot_is_there(pool, 1, house)


async def test_a_waiter_cancelled_just_when_it_was_handed_a_slot_gives_it_back(
    house: House,
) -> None:
    pool = make_pool(1)
    async with pool.slot():
        waiter, next_one = await users(2, pool, house)
    # The slot is the waiter's now, which has not run since.
    assert (pool.leased, waiter.served) == (1, False)
    waiter.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter.task
    await settle()
    assert not waiter.served
    assert next_one.served
    await next_one.done()
    assert pool.leased == 0


async def test_a_waiter_whose_deadline_passes_just_when_it_was_handed_a_slot_gives_it_back(
    house: House, clock: Clock
) -> None:
    pool = make_pool(1)
    async with pool.slot():
        waiter = User(pool, house, clock.time() + 5)
        await settle()
    assert pool.leased == 1
    await clock.advance(5)
    if waiter.served:
        await waiter.done()
    else:
        assert isinstance(waiter.task.exception(), PoolTimeout)
    await assert_every_slot_is_there(pool, 1, house)


async def test_a_cancelled_user_gives_its_slot_back(house: House) -> None:
    pool = make_pool(1)
    holder, waiter = await users(2, pool, house)
    holder.task.cancel()
    await settle()
    assert holder.task.cancelled()
    assert waiter.served
    await waiter.done()


class Storm:
    """Sends 300 users through a pool; everything that can happen to them happens to some."""

    def __init__(self, seed: int, size: int, house: House, clock: Clock) -> None:
        self.pool = make_pool(size)
        self._rng = random.Random(seed)
        self._size = size
        self._house = house
        self._clock = clock

    async def run(self) -> Counter[str]:
        """Return how many users came to what."""
        house, rng = self._house, self._rng
        tasks = [asyncio.create_task(self._use(name)) for name in range(300)]
        for task in rng.sample(tasks, 150):
            await self._some_steps()
            task.cancel()
            if house.sessions and self._happens(0.2):
                # One grows too old, another one's server hangs up, wherever they are just now.
                rng.choice(house.sessions).reusable = False
                rng.choice(house.sessions).hang_up()
            assert house.open <= self._size
        while not all(task.done() for task in tasks):
            house.answer_quit()
            await self._clock.advance(0.1)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        return Counter(type(outcome).__name__ for outcome in outcomes)

    async def _use(self, name: int) -> None:
        async with self.pool.slot() as slot:
            session = slot.take_idle() or await self._open(slot)
            assert session.user is None, "lent to two at a time"
            session.user = name
            try:
                session.reusable = False
                await self._some_steps()
                if self._happens(0.1):
                    raise ConnectionResetError
                session.reusable = session.usable and self._happens(0.8)
            except BaseException:
                session.abort()
                raise
            finally:
                session.user = None
            if self._happens(0.1):
                self._house.answers_quit = not self._house.answers_quit

    async def _open(self, slot: Slot[Fake]) -> Fake:
        if self._happens(0.1) and await slot.exchange(60) and (idle := slot.take_idle()):
            return idle
        return await slot.open(self._opened)

    async def _opened(self) -> Fake:
        await self._some_steps()
        if self._happens(0.1):
            raise ConnectionError
        session = await self._house.opened()
        try:
            await self._some_steps()
        except BaseException:
            session.abort()
            raise
        return session

    async def _some_steps(self) -> None:
        for _ in range(self._rng.randrange(6)):
            await asyncio.sleep(0)

    def _happens(self, probability: float) -> bool:
        return self._rng.random() < probability


@pytest.mark.parametrize("seed", range(40))
async def test_cancelling_anywhere_never_loses_a_slot_or_a_session(
    seed: int, house: House, clock: Clock
) -> None:
    size = 2 + seed % 4
    storm = Storm(seed, size, house, clock)
    came_to = await storm.run()
    assert set(came_to) <= {"NoneType", "CancelledError", "ConnectionError", "ConnectionResetError"}
    assert came_to["NoneType"] > 50
    assert came_to["CancelledError"] > 10
    pool = storm.pool
    assert house.peak <= size
    house.answers_quit = True
    house.answer_quit()
    await settle()
    assert (pool.leased, pool.waiting) == (0, 0)
    assert pool.open == house.open <= size
    await clock.advance(61)  # withheld slots are back, idle sessions are ended
    assert (pool.open, house.open) == (0, 0)
    await assert_every_slot_is_there(pool, size, house)
    await pool.aclose(1)
    assert house.open == 0


# Waiting


async def test_waiting_is_no_error_as_long_as_slots_are_given_back(
    house: House, clock: Clock
) -> None:
    pool = make_pool(1)
    crowd = await users(10, pool, house)
    for user in crowd:
        await clock.advance(POOL_TIMEOUT * 0.9)
        assert user.served
        await user.done()
    assert (pool.leased, pool.waiting) == (0, 0)


async def test_who_waits_is_refused_when_no_slot_was_given_back_for_pool_timeout(
    house: House, clock: Clock
) -> None:
    pool = make_pool(1)
    holder, first, second = await users(3, pool, house)
    await clock.advance(POOL_TIMEOUT * 0.9)
    late = User(pool, house)
    await clock.advance(POOL_TIMEOUT * 0.2)
    for user in (first, second):
        error = user.task.exception()
        assert isinstance(error, PoolTimeout)
        assert (error.stage, error.outcome, error.retryable) == ("pool", "not_sent", True)
        assert "within 20 s (pool_timeout)" in str(error)
    assert not late.task.done()
    assert pool.waiting == 1
    await clock.advance(POOL_TIMEOUT)
    assert isinstance(late.task.exception(), PoolTimeout)
    assert pool.waiting == 0
    await holder.done()
    await assert_every_slot_is_there(pool, 1, house)


async def test_pool_timeout_counts_from_the_last_slot_that_was_given_back(
    house: House, clock: Clock
) -> None:
    pool = make_pool(2)
    first, second, third, fourth = await users(4, pool, house)
    await clock.advance(POOL_TIMEOUT * 0.8)
    await first.done()
    await clock.advance(POOL_TIMEOUT * 0.8)
    assert third.served
    assert not fourth.task.done()
    await clock.advance(POOL_TIMEOUT * 0.3)
    assert isinstance(fourth.task.exception(), PoolTimeout)
    for user in (second, third):
        await user.done()


async def test_a_deadline_ends_the_wait_for_a_slot(house: House, clock: Clock) -> None:
    pool = make_pool(1)
    (holder,) = await users(1, pool, house)
    hurried, patient = User(pool, house, clock.time() + 5), User(pool, house)
    await clock.advance(4.5)
    assert not hurried.task.done()
    await clock.advance(1)
    error = hurried.task.exception()
    assert isinstance(error, PoolTimeout)
    assert "the deadline passed" in str(error)
    assert isinstance(error.__cause__, TimeoutError)
    assert pool.waiting == 1
    await holder.done()
    await settle()
    assert patient.served
    await patient.done()


async def test_a_deadline_does_not_touch_who_has_a_slot_already(house: House, clock: Clock) -> None:
    pool = make_pool(1)
    user = User(pool, house, clock.time() + 5)
    await clock.advance(10)
    assert user.served
    assert not user.task.done()
    await user.done()


# Ending sessions


async def test_an_idle_session_is_quit_after_idle_timeout(house: House, clock: Clock) -> None:
    pool = make_pool(3)
    first, second, third = await users(3, pool, house)
    await first.done()
    await clock.advance(IDLE_TIMEOUT * 0.6)
    await second.done()
    await clock.advance(IDLE_TIMEOUT * 0.6)
    assert house.ends() == ["open, quit", "open", "open"]
    assert numbers(pool) == (2, 1, 1, 0)
    await clock.advance(IDLE_TIMEOUT * 0.6)
    assert house.ends() == ["open, quit", "open, quit", "open"]
    await third.done()
    await pool.aclose(1)


async def test_a_session_in_use_is_not_ended_by_idle_timeout(house: House, clock: Clock) -> None:
    pool = make_pool(1)
    await (await users(1, pool, house))[0].done()
    await clock.advance(IDLE_TIMEOUT * 0.9)
    (user,) = await users(1, pool, house)
    await clock.advance(IDLE_TIMEOUT * 5)
    assert house.ends() == ["open"]
    await user.done()
    await clock.advance(IDLE_TIMEOUT * 0.9)
    assert house.ends() == ["open"]
    await clock.advance(IDLE_TIMEOUT * 0.2)
    assert house.ends() == ["open, quit"]


async def test_a_spent_session_is_quit_before_its_slot_is_free(house: House) -> None:
    pool = make_pool(1)
    house.answers_quit = False
    holder, waiter = await users(2, pool, house)
    await holder.spent()
    await settle()
    assert house.ends() == ["open, quit"]
    assert (waiter.served, pool.leased) == (False, 1)
    holder.the_session.hang_up()  # as a server does that has answered QUIT
    await settle()
    assert waiter.served
    assert house.peak == 1
    await waiter.done()


async def test_a_broken_session_is_aborted_and_its_slot_free_at_once(house: House) -> None:
    pool = make_pool(1)
    holder, waiter = await users(2, pool, house)
    holder.the_session.reusable = False
    await holder.broken()
    await settle()
    assert house.ends() == ["open, aborted", "open"]
    assert waiter.served
    await waiter.done()


async def test_a_session_that_is_still_being_quit_makes_room_for_a_new_one(
    house: House, clock: Clock
) -> None:
    pool = make_pool(2)
    for user in await users(2, pool, house):
        await user.done()
    house.answers_quit = False
    await clock.advance(IDLE_TIMEOUT * 1.1)
    assert house.ends() == ["open, quit", "open, quit"]
    (first,) = await users(1, pool, house)
    assert house.ends() == ["open, quit, aborted", "open, quit", "open"]
    (second,) = await users(1, pool, house)
    assert house.ends() == ["open, quit, aborted", "open, quit, aborted", "open", "open"]
    assert house.peak == 2
    for user in (first, second):
        await user.done()


async def test_a_session_too_old_to_be_lent_makes_room_for_the_one_in_its_place(
    house: House,
) -> None:
    pool = make_pool(1)
    await (await users(1, pool, house))[0].done()
    house.answers_quit = False
    house.sessions[0].reusable = False
    (user,) = await users(1, pool, house)
    assert house.sessions[0].gone.is_set()
    assert house.peak == 1
    await user.done()


@pytest.mark.parametrize("holds_slot", [True, False])
async def test_a_farewell_cancelled_before_it_began_leaves_nothing_open(
    holds_slot: bool, house: House, clock: Clock
) -> None:
    pool = make_pool(1)
    before = asyncio.all_tasks()
    async with pool.slot() as slot:
        (await take(slot, house)).reusable = not holds_slot
    if not holds_slot:
        house.sessions[0].reusable = False
        async with pool.slot() as slot:
            assert slot.take_idle() is None
    (farewell,) = asyncio.all_tasks() - before
    farewell.cancel()
    await settle()
    assert house.open == 0
    await assert_every_slot_is_there(pool, 1, house)


# Closing


async def test_closing_refuses_who_waits_and_lets_those_finish_that_have_a_slot(
    house: House,
) -> None:
    pool = make_pool(1)
    holder, waiter = await users(2, pool, house)
    closing = asyncio.create_task(pool.aclose(60))
    await settle()
    error = waiter.task.exception()
    assert isinstance(error, MailerClosed)
    assert (error.stage, error.outcome) == ("pool", "not_sent")
    assert not closing.done()
    assert house.ends() == ["open"]
    await holder.done()
    await closing
    assert house.ends() == ["open, quit"]
    assert numbers(pool) == (0, 0, 0, 0)


async def test_closing_aborts_what_does_not_finish_in_time(house: House, clock: Clock) -> None:
    pool = make_pool(2)
    quick, slow = await users(2, pool, house)
    await quick.done()
    closing = asyncio.create_task(pool.aclose(10))
    await clock.advance(9)
    assert not closing.done()
    await clock.advance(1.1)
    await closing
    assert house.ends() == ["open, quit", "open, aborted"]
    await slow.done()
    assert numbers(pool) == (0, 0, 0, 0)


async def test_a_closed_pool_refuses_a_slot_and_a_session_in_a_slot_that_is_left(
    house: House, clock: Clock
) -> None:
    pool = make_pool(2)
    slot = await pool.slot().__aenter__()
    closing = asyncio.create_task(pool.aclose(1))
    await clock.advance(1.1)
    await closing
    with pytest.raises(MailerClosed):
        await pool.slot().__aenter__()
    with pytest.raises(MailerClosed):
        await slot.open(house.opened)
    assert house.sessions == []
    await slot.__aexit__()
    assert numbers(pool) == (0, 0, 0, 0)


@pytest.mark.parametrize("ends", ["closed", "dropped"])
async def test_a_session_that_is_being_opened_when_the_pool_ends_is_given_up(
    ends: str, house: House, clock: Clock
) -> None:
    pool = make_pool(2)
    came_to: list[str] = []

    silence: asyncio.Future[Fake] = asyncio.get_running_loop().create_future()

    async def silent() -> Fake:
        try:
            return await silence
        except asyncio.CancelledError:
            came_to.append("cancelled")
            raise

    async def send() -> None:
        async with pool.slot() as slot:
            await slot.open(silent)

    task = asyncio.create_task(send())
    await settle()
    if ends == "closed":
        closing = asyncio.create_task(pool.aclose(10))
        await clock.advance(9)
        assert not task.done()
        await clock.advance(1.1)
        await closing
    else:
        pool.drop()
    with pytest.raises(MailerClosed):
        await task
    assert came_to == ["cancelled"]
    assert task.cancelling() == 0
    assert numbers(pool) == (0, 0, 0, 0)


async def test_a_session_that_is_open_just_when_the_pool_ends_is_aborted(house: House) -> None:
    pool = make_pool(1)
    opened: asyncio.Future[Fake] = asyncio.get_running_loop().create_future()

    async def send() -> None:
        async with pool.slot() as slot:
            await slot.open(lambda: opened)

    task = asyncio.create_task(send())
    await settle()
    opened.set_result(await house.opened())
    pool.drop()
    with pytest.raises(MailerClosed):
        await task
    assert house.ends() == ["open, aborted"]


async def test_a_timeout_of_the_opening_itself_is_passed_on(house: House) -> None:
    pool = make_pool(1)

    async def late() -> Fake:
        raise TimeoutError("no greeting")

    with pytest.raises(TimeoutError, match="no greeting"):
        async with pool.slot() as slot:
            await slot.open(late)
    await assert_every_slot_is_there(pool, 1, house)


async def test_who_has_a_slot_may_open_its_session_while_the_pool_is_being_closed(
    house: House,
) -> None:
    pool = make_pool(1)
    slot = await pool.slot().__aenter__()
    closing = asyncio.create_task(pool.aclose(60))
    await settle()
    assert (await take(slot, house)).end == "open"
    await slot.__aexit__()
    await closing
    assert house.ends() == ["open, quit"]


async def test_a_session_given_back_to_a_closed_pool_is_quit(house: House) -> None:
    pool = make_pool(1)
    (user,) = await users(1, pool, house)
    closing = asyncio.create_task(pool.aclose(60))
    await settle()
    user.leave.set()
    await closing
    assert house.ends() == ["open, quit"]


async def test_closing_waits_for_goodbyes_that_were_begun_before(
    house: House, clock: Clock
) -> None:
    pool = make_pool(1)
    house.answers_quit = False
    await (await users(1, pool, house))[0].done()
    await clock.advance(IDLE_TIMEOUT * 1.1)
    closing = asyncio.create_task(pool.aclose(1))
    await settle()
    assert not closing.done()
    house.sessions[0].hang_up()
    await closing
    assert house.open == 0


async def test_closing_twice_is_closing_once(house: House) -> None:
    pool = make_pool(1)
    await (await users(1, pool, house))[0].done()
    await pool.aclose(1)
    await pool.aclose(1)
    assert house.ends() == ["open, quit"]


async def test_a_closed_pool_leaves_no_timer_behind(house: House, clock: Clock) -> None:
    pool = make_pool(1)
    await (await users(1, pool, house))[0].done()
    holder, waiter = await users(2, pool, house)
    closing = asyncio.create_task(pool.aclose(1))
    await settle()
    await holder.done()
    await closing
    assert waiter.task.done()
    # Were one left it would be due now, and find what it was made for gone.
    await clock.advance(IDLE_TIMEOUT + POOL_TIMEOUT)
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in scheduled if not timer.cancelled()] == []


async def test_dropping_aborts_every_session_and_refuses_who_waits_at_once(house: House) -> None:
    pool = make_pool(2)
    idle, holder = await users(2, pool, house)
    (waiter,) = await users(1, pool, house)
    await idle.done()
    waiter_of_two = await users(2, pool, house)
    pool.drop()
    assert house.open == 0
    assert set(house.ends()) == {"open, aborted"}
    await settle()
    assert isinstance(waiter_of_two[-1].task.exception(), MailerClosed)
    for user in (waiter, holder, waiter_of_two[0]):
        if not user.task.done():
            await user.done()
    assert numbers(pool) == (0, 0, 0, 0)


async def test_dropping_aborts_a_session_that_is_being_quit(house: House, clock: Clock) -> None:
    pool = make_pool(1)
    house.answers_quit = False
    await (await users(1, pool, house))[0].done()
    await clock.advance(IDLE_TIMEOUT * 1.1)
    assert house.ends() == ["open, quit"]
    pool.drop()
    assert house.ends() == ["open, quit, aborted"]
    await settle()


async def test_forgetting_writes_nothing_and_asks_nothing_of_the_loop(house: House) -> None:
    pool = make_pool(2)
    idle, holder = await users(2, pool, house)
    await idle.done()
    pool.forget()
    assert house.ends() == ["open, forgotten", "open, forgotten"]
    assert pool.open == 0
    await holder.done()


# A server that takes no further connection


async def test_who_exchanges_its_slot_is_served_before_all_others(house: House) -> None:
    pool = make_pool(2)
    (holder,) = await users(1, pool, house)
    refused = asyncio.Event()

    async def exchanging() -> tuple[Fake | None, bool]:
        async with pool.slot() as slot:
            await refused.wait()
            assert await slot.exchange(60)
            return slot.take_idle(), waiter.served

    task = asyncio.create_task(exchanging())
    await settle()
    (waiter,) = await users(1, pool, house)
    refused.set()
    await settle()
    assert numbers(pool) == (1, 0, 1, 2)
    await holder.done()
    assert await task == (holder.session, False)
    await settle()
    assert waiter.served
    await waiter.done()
    assert len(house.sessions) == 1


async def test_a_withheld_slot_is_out_of_use_for_its_time_and_then_back(
    house: House, clock: Clock
) -> None:
    pool = make_pool(2)
    (holder,) = await users(1, pool, house)

    async def exchanging() -> None:
        async with pool.slot() as slot:
            await slot.exchange(15)
            await take(slot, house)

    task = asyncio.create_task(exchanging())
    await settle()
    await holder.done()
    await task
    first, second = await users(2, pool, house)
    assert (first.served, second.served) == (True, False)
    await clock.advance(14)
    assert (first.served, second.served) == (True, False)
    await clock.advance(1.1)
    assert second.served
    for user in (first, second):
        await user.done()
    await assert_every_slot_is_there(pool, 2, house)


async def test_a_slot_is_not_exchanged_where_no_other_session_is_open(house: House) -> None:
    pool = make_pool(3)
    async with pool.slot() as slot:
        assert not await slot.exchange(60)
        assert pool.leased == 1
        await take(slot, house)
    await assert_every_slot_is_there(pool, 3, house)


async def test_the_last_slot_is_never_exchanged(house: House, clock: Clock) -> None:
    alone = make_pool(1)
    await (await users(1, alone, house))[0].done()
    async with alone.slot() as slot:
        assert not await slot.exchange(60)
    pool = make_pool(2)
    (holder,) = await users(1, pool, house)

    async def exchanging() -> list[bool]:
        async with pool.slot() as slot:
            return [await slot.exchange(60), await slot.exchange(60)]

    task = asyncio.create_task(exchanging())
    await settle()
    await holder.done()
    assert await task == [True, False]
    await alone.aclose(1)


@pytest.mark.parametrize("ends", ["cancelled", "closed", "deadline"])
async def test_an_exchange_that_does_not_come_about_leaves_the_slots_right(
    ends: str, house: House, clock: Clock
) -> None:
    pool = make_pool(2)
    (holder,) = await users(1, pool, house)

    async def exchanging() -> None:
        async with pool.slot(clock.time() + 5) as slot:
            await slot.exchange(60)

    task = asyncio.create_task(exchanging())
    await settle()
    if ends == "cancelled":
        task.cancel()
    elif ends == "closed":
        await asyncio.gather(pool.aclose(60), holder.done())
    else:
        await clock.advance(5.1)
    await holder.done()
    expected = {"cancelled": asyncio.CancelledError, "closed": MailerClosed}
    with pytest.raises(expected.get(ends, PoolTimeout)):
        await task
    assert (pool.leased, pool.waiting) == (0, 0)
    if ends != "closed":
        await clock.advance(61)
        await assert_every_slot_is_there(pool, 2, house)


# What a user did not wait for


async def test_a_session_left_unsettled_keeps_its_slot_until_it_is_settled(house: House) -> None:
    told: list[object] = []
    pool = make_pool(4, told.append)
    (user,) = await users(1, pool, house)
    answer = await user.gone_early()
    await settle()
    assert numbers(pool) == (1, 0, 1, 0)
    assert not told
    answer.set_result(None)
    await settle()
    assert told == ["what 1 was asked for"]
    assert numbers(pool) == (1, 1, 0, 0)
    assert house.ends() == ["open"]
    await assert_every_slot_is_there(pool, 4, house)


async def test_a_session_that_is_settled_and_no_good_is_ended(house: House) -> None:
    pool = make_pool(4)
    (user,) = await users(1, pool, house)
    answer = await user.gone_early()
    user.the_session.reusable = False
    house.answers_quit = True
    answer.set_result(None)
    await settle()
    assert house.ends() == ["open, quit"]
    assert numbers(pool) == (0, 0, 0, 0)


async def test_half_of_the_slots_at_most_are_kept_by_unsettled_sessions(house: House) -> None:
    told: list[object] = []
    pool = make_pool(5, told.append)
    crowd = await users(5, pool, house)
    for user in crowd[:4]:  # all at once
        user.the_session.unsettled = asyncio.get_running_loop().create_future()
        user.leave.set()
    await settle()
    assert house.ends() == ["open, aborted", "open, aborted", "open", "open", "open"]
    assert told == ["what 1 was asked for", "what 2 was asked for"]
    assert pool.leased == 3


async def test_the_only_session_is_not_kept_for_what_may_come(house: House) -> None:
    pool = make_pool(1)
    (user,) = await users(1, pool, house)
    await user.gone_early()
    assert house.ends() == ["open, aborted"]
    assert numbers(pool) == (0, 0, 0, 0)


async def test_closing_aborts_unsettled_sessions_at_once_and_waits_for_the_others(
    house: House,
) -> None:
    pool = make_pool(4)
    crowd = await users(2, pool, house)
    await crowd[0].gone_early()
    closing = asyncio.create_task(pool.aclose(10))
    await settle()
    assert house.ends() == ["open, aborted", "open"]
    house.answers_quit = True
    await crowd[1].done()
    await closing
    assert numbers(pool) == (0, 0, 0, 0)
    assert house.open == 0


async def test_a_session_left_unsettled_while_the_pool_is_closed_is_aborted(house: House) -> None:
    pool = make_pool(4)
    (user,) = await users(1, pool, house)
    closing = asyncio.create_task(pool.aclose(10))
    await settle()
    await user.gone_early()
    await closing
    assert house.ends() == ["open, aborted"]


@pytest.mark.parametrize(("how", "end"), [("drop", "aborted"), ("forget", "forgotten")])
async def test_dropping_and_forgetting_end_unsettled_sessions_too(
    house: House, how: str, end: str
) -> None:
    pool = make_pool(4)
    (user,) = await users(1, pool, house)
    await user.gone_early()
    getattr(pool, how)()
    await settle()
    assert house.ends() == [f"open, {end}"]


async def test_what_is_told_of_a_settled_session_may_fail_and_costs_no_slot(house: House) -> None:
    def tell(late: object) -> None:
        raise ZeroDivisionError

    raised: list[dict[str, t.Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    pool = make_pool(2, tell)
    (user,) = await users(1, pool, house)
    (await user.gone_early()).set_result(None)
    await settle()
    assert [type(each["exception"]) for each in raised] == [ZeroDivisionError]
    assert numbers(pool) == (1, 1, 0, 0)


# Seeking: who has a slot and cannot open a session


class Seeker(User):
    """A user that opens no session and waits for one that another one gives back."""

    async def _use(self, house: House) -> None:
        async with self.slot:
            self.until = asyncio.get_running_loop().create_future()
            if await self.slot.seek(self.until, 60):
                self.session = self.slot.session
                await self.leave.wait()


async def test_a_session_that_is_given_back_goes_to_who_seeks_one_for_longest(house: House) -> None:
    pool = make_pool(3)
    (user,) = await users(1, pool, house)
    seekers = [Seeker(pool, house) for _ in range(3)]  # the last one has no slot yet
    await settle()
    await user.done()
    await settle()
    assert [seeker.session for seeker in seekers] == [user.session, None, None]
    assert numbers(pool) == (1, 0, 3, 0)
    await seekers[0].done()
    await settle()
    assert [seeker.session for seeker in seekers] == [user.session] * 2 + [None]
    await seekers[1].done()
    await settle()
    await seekers[2].done()
    assert seekers[2].session is user.session
    assert numbers(pool) == (1, 1, 0, 0)
    await assert_every_slot_is_there(pool, 3, house)
    await pool.aclose(1)


async def test_who_seeks_takes_an_idle_session_at_once(house: House) -> None:
    pool = make_pool(2)
    (user,) = await users(1, pool, house)
    await user.done()
    seeker = Seeker(pool, house)
    await settle()
    assert seeker.session is user.session
    await seeker.done()
    await pool.aclose(1)


async def test_who_was_given_a_session_and_cancelled_before_it_could_run_gives_it_back(
    house: House,
) -> None:
    pool = make_pool(2)
    (user,) = await users(1, pool, house)
    seeker = Seeker(pool, house)
    await settle()
    await user.done()
    assert seeker.slot.session is user.session
    seeker.task.cancel()
    await asyncio.wait({seeker.task})
    assert seeker.task.cancelled()
    assert seeker.session is None
    assert numbers(pool) == (1, 1, 0, 0)
    await assert_every_slot_is_there(pool, 2, house)
    await pool.aclose(1)


async def test_who_seeks_no_more_is_given_nothing(house: House) -> None:
    pool = make_pool(3)
    (user,) = await users(1, pool, house)
    cancelled, content = Seeker(pool, house), Seeker(pool, house)
    await settle()
    cancelled.task.cancel()
    content.until.set_result(None)
    await asyncio.wait({cancelled.task, content.task})
    await user.done()
    assert (cancelled.session, content.session) == (None, None)
    assert numbers(pool) == (1, 1, 0, 0)
    await pool.aclose(1)


async def test_a_session_that_is_spent_goes_to_nobody(house: House) -> None:
    pool = make_pool(2)
    (user,) = await users(1, pool, house)
    seeker = Seeker(pool, house)
    await settle()
    await user.spent()
    await settle()
    assert seeker.session is None
    seeker.until.set_result(None)
    await seeker.task
    await pool.aclose(1)


async def test_who_seeks_hears_at_once_that_the_pool_ends(house: House) -> None:
    pool = make_pool(1)
    seeker = Seeker(pool, house)
    await settle()
    closing = asyncio.create_task(pool.aclose(0))
    with pytest.raises(MailerClosed):
        await seeker.task
    await closing
    assert pool.leased == 0
