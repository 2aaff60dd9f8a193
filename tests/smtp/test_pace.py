"""A server that takes so much in so much time gets that, and only that, from senders that wait."""

from __future__ import annotations

import asyncio
import time
import typing as t
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import Mailer, MailerClosed, SenderRejected, SendTimeout
from amail.smtp.pace import Pace
from amail.testing import FaultServer
from tests.smtp.outcomes import accepted, rejected, said, send
from tests.strategies import EXAMPLES
from tests.transports.ends import Clock, letter, run_in_virtual_time

if t.TYPE_CHECKING:
    from tests.musts import Musts

WIDTH = 5
SLOW = "450 4.7.1 too much mail"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Server:
    """Takes ``limit`` within each ``window`` of seconds, and nothing from who is in ``never``."""

    limit: int
    window: float
    never: set[int] = field(default_factory=set)
    taken: int = 0
    refused: int = 0
    began: float = 0.0
    inside: int = 0
    most: int = 0

    async def ask(self, number: int) -> bool:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0.002)
        self.inside -= 1
        if number in self.never or not self.has_room():
            self.refused += 1
            return False
        self.taken += 1
        return True

    def has_room(self) -> bool:
        if now() // self.window != self.began:
            self.began, self.taken = now() // self.window, 0
        return self.taken < self.limit


class Bucket(Server):
    """Takes ``limit`` at once, and as many within each ``window``, evenly."""

    left: float | None = None

    def has_room(self) -> bool:
        """Fill up for the time since it was last asked, then spend what was taken."""
        left = float(self.limit) if self.left is None else self.left - self.taken
        self.left = min(self.limit, left + (now() - self.began) * self.limit / self.window)
        self.began, self.taken = now(), 0
        return self.left >= 1


async def deliver(
    pace: Pace, server: Server, number: int, slots: asyncio.Semaphore, seconds: float = 60.0
) -> bool:
    """Send one message as the transport does: True when it was taken."""
    async with slots:
        deadline = now() + seconds
        with pace.turn() as turn:
            while True:
                await turn.enter(deadline)
                try:
                    if await server.ask(number):
                        turn.was_accepted()
                        return True
                    others_wait = bool(slots._waiters)
                    if not turn.was_told_to_slow_down(deadline, others_wait=others_wait):
                        return False
                finally:
                    turn.leave()


async def deliver_all(pace: Pace, server: Server, count: int) -> list[bool]:
    slots = asyncio.Semaphore(WIDTH)
    return await asyncio.gather(*(deliver(pace, server, each, slots) for each in range(count)))


def seconds_for_all(server: Server, clock: Clock) -> float:
    """Get a hundred messages through, and say how long that took in virtual time."""
    began = time.monotonic()
    results = run_in_virtual_time(deliver_all(Pace(WIDTH), server, 100), clock)
    assert results == [True] * 100
    return time.monotonic() - began


# In virtual time


@pytest.mark.parametrize(("limit", "window"), [(5, 1.0), (3, 2.0), (20, 5.0), (2, 0.5), (1, 0.2)])
def test_all_get_through_at_about_the_rate_and_few_are_refused(
    clock: Clock, limit: int, window: float
) -> None:
    server = Server(limit, window)
    assert seconds_for_all(server, clock) < 4 * 100 / limit * max(window, 1)
    assert server.refused < 4 * 100 / limit + 2 * WIDTH  # it is asked, not beleaguered


@pytest.mark.parametrize(("limit", "window"), [(14, 1.0), (3, 2.0), (20, 5.0), (1, 0.2)])
def test_all_get_through_a_bucket_that_is_asked_a_few_times_a_second(
    clock: Clock, limit: int, window: float
) -> None:
    server = Bucket(limit, window)
    seconds = seconds_for_all(server, clock)
    assert seconds < 4 * 100 / limit * max(window, 1)
    assert server.refused < 4 * seconds + 2 * WIDTH


def test_while_nobody_objects_there_is_no_limit_but_the_slots(clock: Clock) -> None:
    server = Server(10**6, 1.0)
    began = time.monotonic()
    run_in_virtual_time(deliver_all(Pace(WIDTH), server, 1000), clock)
    assert server.most == WIDTH
    assert time.monotonic() - began < 1000 * 0.002


def test_it_grows_back_when_the_server_has_time_again(clock: Clock) -> None:
    server = Server(3, 1.0)
    pace = Pace(WIDTH)

    async def main() -> None:
        await deliver_all(pace, server, 20)
        assert pace.is_slow
        assert pace.width < WIDTH
        server.limit = 10**6
        await deliver_all(pace, server, 100)
        assert (pace.is_slow, pace.width) == (False, WIDTH)

    run_in_virtual_time(main(), clock)


def test_pauses_become_shorter_again_when_they_need_not_be_long(clock: Clock) -> None:
    server = Server(5, 8.0)
    pace = Pace(WIDTH)

    async def main() -> None:
        await deliver_all(pace, server, 30)
        server.window = 1.0
        began = now()
        await deliver_all(pace, server, 100)
        assert now() - began < 60

    run_in_virtual_time(main(), clock)


async def test_c15_a_turn_handed_to_one_who_is_cancelled_goes_to_the_next() -> None:
    pace, later = Pace(1), now() + 60
    first, second, third = pace.turn(), pace.turn(), pace.turn()
    await first.enter(later)
    waiting = [asyncio.ensure_future(turn.enter(later)) for turn in (second, third)]
    await asyncio.sleep(0)
    first.leave()
    waiting[0].cancel()
    await waiting[1]
    assert waiting[0].cancelled()


@pytest.mark.parametrize("kind", [Server, Bucket])
def test_one_refused_whatever_the_rate_hears_so_at_once_and_slows_nobody_down(
    clock: Clock, kind: type[Server]
) -> None:
    server, pace = kind(10**6, 1.0, {50}), Pace(WIDTH)
    began = time.monotonic()
    results = run_in_virtual_time(deliver_all(pace, server, 1000), clock)
    assert {number for number, taken in enumerate(results) if not taken} == {50}
    assert time.monotonic() - began < 1000 * 0.002
    assert not pace.is_slow
    assert server.refused < 6


@pytest.mark.parametrize("never", [{20, 40, 60, 80}, set(range(0, 300, 50))])
def test_some_refused_whatever_the_rate_hear_so_and_the_others_get_through(
    clock: Clock, never: set[int]
) -> None:
    server = Server(10**6, 1.0, never)
    began = time.monotonic()
    results = run_in_virtual_time(deliver_all(Pace(WIDTH), server, 1000), clock)
    assert {number for number, taken in enumerate(results) if not taken} == never
    assert time.monotonic() - began < 10


def test_where_nothing_is_accepted_the_refusal_is_heard_at_once(clock: Clock) -> None:
    server = Server(10**6, 1.0, set(range(100)))
    pace = Pace(1)
    began = time.monotonic()
    assert run_in_virtual_time(deliver_all(pace, server, 100), clock) == [False] * 100
    assert (server.refused, pace.is_slow) == (100, False)
    assert time.monotonic() - began < 1


def test_a_server_that_never_recovers_is_asked_more_and_more_rarely(clock: Clock) -> None:
    server = Server(5, 10**9)

    async def main() -> list[bool | BaseException]:
        pace, slots = Pace(WIDTH), asyncio.Semaphore(WIDTH)
        deliveries = (deliver(pace, server, each, slots) for each in range(10))
        return await asyncio.gather(*deliveries, return_exceptions=True)

    results = run_in_virtual_time(main(), clock)
    assert results[:5] == [True] * 5
    assert all(each is False or isinstance(each, TimeoutError) for each in results[5:])
    assert server.refused < 5 * 4


def test_a_pause_that_would_outlast_the_deadline_is_not_waited_for(clock: Clock) -> None:
    server = Server(1, 10**9)

    async def main() -> None:
        pace, slots = Pace(WIDTH), asyncio.Semaphore(WIDTH)
        assert await deliver(pace, server, 1, slots)
        began = now()
        assert not await deliver(pace, server, 2, slots, seconds=0.5)
        assert now() - began < 0.1
        with pytest.raises(TimeoutError):
            await deliver(pace, server, 3, slots, seconds=0.5)
        assert 0.5 <= now() - began < 0.7

    run_in_virtual_time(main(), clock)


def test_closing_refuses_those_who_wait(clock: Clock) -> None:
    server = Server(1, 10**9)

    async def main() -> None:
        pace, slots = Pace(WIDTH), asyncio.Semaphore(WIDTH)
        await deliver(pace, server, 1, slots)
        waiting = [asyncio.ensure_future(deliver(pace, server, each, slots)) for each in (2, 3)]
        await asyncio.sleep(0.5)
        pace.end()
        for each in waiting:
            with pytest.raises(MailerClosed):
                await each

    run_in_virtual_time(main(), clock)


@given(cancelled=st.sets(st.tuples(st.integers(0, 19), st.integers(0, 6))))
@EXAMPLES
def test_whoever_is_cancelled_whenever_the_others_get_through(
    cancelled: set[tuple[int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        server, pace = Server(3, 1.0), Pace(WIDTH)

        async def main() -> None:
            slots = asyncio.Semaphore(WIDTH)
            tasks = [asyncio.ensure_future(deliver(pace, server, n, slots)) for n in range(20)]
            for half_second in range(7):
                await asyncio.sleep(0.5)
                for number, when in cancelled:
                    if when == half_second:
                        tasks[number].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            chosen = {number for number, _ in cancelled}
            others = {number: results[number] for number in range(20) if number not in chosen}
            assert set(others.values()) <= {True}, others
            # Every turn was given back: as many as ever may ask at once.
            server.limit, server.most = 10**6, 0
            await deliver_all(pace, server, 100)
            assert server.most == WIDTH

        run_in_virtual_time(main(), clock)


# Over the wire


async def test_a_message_told_to_slow_down_is_accepted_over_the_same_session_at_its_first_attempt(
    musts: Musts,
) -> None:
    async with (
        FaultServer(mail={2: SLOW}) as server,
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        accepted(await send(musts, mailer))
        accepted(await send(musts, mailer))
        assert (server.connections, said(server).count("MAIL")) == (1, 3)
        assert (mailer.stats().accepted, mailer.stats().rejected) == (2, 0)


async def test_a_fresh_session_closed_with_a_policy_reply_is_replaced_after_a_pause(
    musts: Musts,
) -> None:
    too_fast = "421 4.7.0 too fast"
    async with (
        FaultServer(mail={2: too_fast, 3: too_fast}) as server,
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        accepted(await send(musts, mailer))
        with musts.not_counting():
            began = time.monotonic()
            accepted(await send(musts, mailer))
            assert time.monotonic() - began >= 1
        assert server.connections == 3
        assert mailer.stats().reconnects == 1


@pytest.mark.parametrize("reply", ["450 4.2.0 busy", "451 4.3.0 later", "450 not now", "550 5.7.1"])
async def test_f39_what_is_no_policy_for_now_is_refused_at_once(musts: Musts, reply: str) -> None:
    async with FaultServer(mail={2: reply}) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        accepted(await send(musts, mailer))
        code = int(reply[:3])
        result = await send(musts, mailer)
        rejected(result, SenderRejected, stage="mail", retryable=code < 500, code=code)
        assert said(server).count("MAIL") == 2


async def test_a_deadline_before_the_end_of_the_pause_ends_with_nothing_sent(
    musts: Musts, caplog: pytest.LogCaptureFixture
) -> None:
    async with FaultServer(mail={2: SLOW}) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        accepted(await send(musts, mailer))
        slowed = asyncio.ensure_future(send(musts, mailer))
        while "asks to slow down" not in caplog.text:
            await asyncio.sleep(0)
        with pytest.raises(SendTimeout, match="asked to slow down") as caught:
            await mailer.transport.send(*letter(), deadline=time.monotonic() + 0.2)
        assert (caught.value.stage, caught.value.outcome) == ("mail", "not_sent")
        accepted(await slowed)
