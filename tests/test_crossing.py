"""Crossing: many coroutines to a portal's loop and their outcomes back, in batches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import DeliveryUnknown, Envelope, Portal, Receipt, Reply, UsageError
from amail.crossing import Crossing
from tests.strategies import EXAMPLES

if t.TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator


class CountingPortal(Portal):
    """A portal that knows how often it was crossed to."""

    crossed = 0

    def submit(self, coroutine: Coroutine[t.Any, t.Any, t.Any]) -> t.Any:
        self.crossed += 1
        return super().submit(coroutine)


@pytest.fixture(scope="module")
def portal() -> Iterator[CountingPortal]:
    portal = CountingPortal(drain_timeout=0)
    yield portal
    portal.close()


def receipt(number: int) -> Receipt:
    return Receipt(f"<{number}@x.org>", Envelope("", ("a@x.org",)), Reply(250, None, "ok"), ())


async def never() -> None:
    await asyncio.get_running_loop().create_future()


async def after(turns: int, number: int) -> Receipt:
    """Return a receipt after so many turns of the loop; with -1 raise."""
    assert threading.current_thread().name == "amail-loop"
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns < 0:
        raise LookupError(number)
    return receipt(number)


@EXAMPLES
@given(st.lists(st.integers(-1, 20), max_size=30), st.integers(1, 5))
def test_each_gets_its_own_outcome_whatever_ends_first(
    portal: CountingPortal, turns: list[int], at_once: int
) -> None:
    async def run() -> None:
        crossing = Crossing(lambda _: portal)
        slots = asyncio.Semaphore(at_once)

        async def one(number: int) -> None:
            async with slots:
                if turns[number] < 0:
                    with pytest.raises(LookupError, match=str(number)):
                        await crossing.call(after(-1, number))
                else:
                    assert await crossing.call(after(turns[number], number)) == receipt(number)

        await asyncio.gather(*map(one, range(len(turns))))

    asyncio.run(run())


async def test_what_is_begun_in_one_turn_crosses_as_one(portal: CountingPortal) -> None:
    crossing = Crossing(lambda _: portal)
    before = portal.crossed
    got = await asyncio.gather(*(crossing.call(after(1, number)) for number in range(100)))
    assert [each.message_id for each in got] == [f"<{number}@x.org>" for number in range(100)]
    assert portal.crossed - before <= 5


async def test_a_slow_one_holds_up_no_outcome_of_the_others(portal: CountingPortal) -> None:
    crossing = Crossing(lambda _: portal)
    goes_on = threading.Event()

    async def slow() -> Receipt:
        while not goes_on.is_set():
            await asyncio.sleep(0)
        return receipt(0)

    waiting = asyncio.create_task(crossing.call(slow()))
    await asyncio.sleep(0)
    for number in range(1, 5):
        assert await crossing.call(after(0, number)) == receipt(number)
    assert not waiting.done()
    goes_on.set()
    assert await waiting == receipt(0)


async def test_cancelling_a_call_cancels_the_coroutine_there(portal: CountingPortal) -> None:
    crossing = Crossing(lambda _: portal)
    began, cancelled = threading.Event(), threading.Event()

    async def hang() -> Receipt:
        began.set()
        try:
            await never()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return receipt(0)

    call = asyncio.create_task(crossing.call(hang()))
    assert await asyncio.to_thread(began.wait, 10)
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(cancelled.wait, 10)
    assert await crossing.call(after(0, 1)) == receipt(1)


async def test_a_call_that_is_cancelled_before_it_crosses_never_begins(
    portal: CountingPortal,
) -> None:
    crossing = Crossing(lambda _: portal)
    began: list[int] = []

    async def begin() -> Receipt:
        began.append(1)
        return receipt(0)

    call = asyncio.create_task(crossing.call(begin()))
    asyncio.get_running_loop().call_soon(call.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await call
    await crossing.call(after(0, 1))
    assert not began


async def test_what_is_under_way_when_the_portal_closes_is_unknown() -> None:
    portal = Portal(drain_timeout=0)
    crossing = Crossing(lambda _: portal)
    began = threading.Event()

    async def hang() -> Receipt:
        began.set()
        await never()
        return receipt(0)

    calls = [asyncio.create_task(crossing.call(hang())) for _ in range(3)]
    assert await asyncio.to_thread(began.wait, 10)
    await asyncio.to_thread(portal.close)
    for call in calls:
        with pytest.raises(DeliveryUnknown, match="shut down"):
            await call


async def test_where_there_can_be_no_portal_the_call_says_so() -> None:
    class Ended(Portal):
        def submit(self, coroutine: Coroutine[t.Any, t.Any, t.Any]) -> t.Any:
            coroutine.close()
            raise UsageError("no background loop can be started")

    crossing = Crossing(lambda _: Ended())
    with pytest.raises(UsageError, match="no background loop"):
        await crossing.call(after(0, 0))


def test_it_works_on_the_portals_own_loop_too(portal: CountingPortal) -> None:
    crossing = Crossing(lambda _: portal)
    assert portal.call_sync(crossing.call(after(3, 7))) == receipt(7)
