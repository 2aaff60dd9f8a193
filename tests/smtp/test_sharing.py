"""A slot shared by one who only waits for the end and one who follows, in the pool alone."""

from __future__ import annotations

import asyncio
import functools
import random

import pytest

from amail.smtp.pool import Pool
from tests.shuffled import ShuffledLoop
from tests.smtp.test_pool import Fake, House


def pool_of(size: int) -> Pool[Fake]:
    return Pool(size, idle_timeout=30, pool_timeout=20)


async def test_who_follows_has_the_session_and_gives_it_back_when_it_is_the_last() -> None:
    house, pool = House(), pool_of(1)
    async with pool.slot(shares=True) as first:
        session = await first.open(house.opened)
        first.offer()
        async with pool.slot(shares=True) as second:
            assert second.take_idle() is session
            assert second.is_shared
            assert not first.is_shared
            assert pool.leased == 1
        assert (pool.leased, pool.idle) == (1, 0)  # the first one waits for it still
    assert (pool.leased, pool.idle) == (0, 1)


async def test_who_was_followed_may_leave_before_and_costs_the_other_nothing() -> None:
    house, pool = House(), pool_of(1)
    first, second = pool.slot(shares=True), pool.slot(shares=True)
    await first.__aenter__()
    session = await first.open(house.opened)
    first.offer()
    await second.__aenter__()
    assert second.take_idle() is session
    await first.__aexit__()
    assert (pool.leased, pool.idle) == (1, 0)
    assert not second.is_shared
    await second.__aexit__()
    assert (pool.leased, pool.idle) == (0, 1)


async def test_an_offer_nobody_takes_is_withdrawn_with_its_slot() -> None:
    house, pool = House(), pool_of(1)
    async with pool.slot(shares=True) as first:
        await first.open(house.opened)
        first.offer()
    async with pool.slot(shares=True) as second:
        assert not second.is_shared
        assert second.take_idle() is not None


async def test_who_does_not_share_is_not_handed_a_slot_that_is() -> None:
    house, pool = House(), pool_of(1)
    first = pool.slot(shares=True)
    await first.__aenter__()
    await first.open(house.opened)
    waiting = asyncio.ensure_future(pool.slot().__aenter__())
    await asyncio.sleep(0)
    first.offer()
    await asyncio.sleep(0)
    assert not waiting.done()
    await first.__aexit__()
    await (await waiting).__aexit__()


async def test_who_has_gone_on_to_another_slot_is_not_given_the_one_it_left() -> None:
    house, pool = House(), pool_of(2)
    first, second = pool.slot(shares=True), pool.slot(shares=True)
    await first.__aenter__()
    session = await first.open(house.opened)
    first.offer()
    await second.__aenter__()
    assert second.take_idle() is session
    first.drop()
    assert await first.open(house.opened) is not session
    assert pool.leased == 2
    await second.__aexit__()
    assert (pool.leased, pool.idle) == (1, 1)
    await first.__aexit__()
    assert (pool.leased, pool.idle) == (0, 2)


async def test_a_session_is_not_lost_with_the_one_who_was_to_follow_who_has_gone_on() -> None:
    house, pool = House(), pool_of(1)
    first, second = pool.slot(shares=True), pool.slot(shares=True)
    await first.__aenter__()
    session = await first.open(house.opened)
    waiting = asyncio.ensure_future(second.__aenter__())
    await asyncio.sleep(0)
    first.offer()
    first.drop()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert (pool.leased, pool.idle) == (0, 1)
    await first.__aexit__()
    async with pool.slot() as third:
        assert third.take_idle() is session


async def test_one_who_was_offered_a_slot_and_cancelled_at_once_leaves_it_to_its_holder() -> None:
    house, pool = House(), pool_of(1)
    async with pool.slot(shares=True) as first:
        await first.open(house.opened)
        waiting = asyncio.ensure_future(pool.slot(shares=True).__aenter__())
        await asyncio.sleep(0)
        first.offer()
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        assert pool.leased == 1
    assert (pool.leased, pool.idle) == (0, 1)


async def test_one_who_needs_another_session_leaves_the_shared_one_alone() -> None:
    house, pool = House(), pool_of(2)
    async with pool.slot(shares=True) as first:
        session = await first.open(house.opened)
        first.offer()
        async with pool.slot(shares=True) as second:
            assert second.take_idle() is session
            second.drop()
            assert session.end == "open"
            assert await second.open(house.opened) is not session
            assert pool.leased == 2
    assert (pool.leased, pool.idle, house.peak) == (0, 2, 2)


async def test_one_who_left_the_shared_slot_has_none_to_exchange() -> None:
    house, pool = House(), pool_of(3)
    async with pool.slot(shares=True) as first:
        await first.open(house.opened)
        first.offer()
        async with pool.slot(shares=True) as second:
            second.take_idle()
            second.drop()
            assert not await second.exchange(60)
            assert pool.leased == 1
    assert (pool.leased, pool.idle) == (0, 1)
    await pool.aclose(1)


class Users:
    """Many who share at random, and leave at random."""

    def __init__(self, pool: Pool[Fake], house: House, rng: random.Random) -> None:
        self.pool, self.house, self.rng = pool, house, rng
        self.writing: dict[int, int] = {}
        self.done = 0

    async def moment(self) -> None:
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)

    async def use(self) -> None:
        async with self.pool.slot(shares=self.rng.random() < 0.8) as slot:
            session = slot.take_idle() or await slot.open(self.house.opened)
            if self.rng.random() < 0.1:
                slot.drop()
                session = await slot.open(self.house.opened)
            key = id(session)
            self.writing[key] = self.writing.get(key, 0) + 1
            try:
                assert self.writing[key] == 1, "two write at once"
                await self.moment()
            finally:
                self.writing[key] -= 1
            if self.rng.random() < 0.2:
                session.reusable = False
            elif self.rng.random() < 0.8:
                slot.offer()
            await self.moment()
        self.done += 1

    async def use_and_maybe_leave(self) -> None:
        task = asyncio.ensure_future(self.use())
        if self.rng.random() < 0.4:
            await self.moment()
            await self.moment()
            task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()


@pytest.mark.parametrize("seed", range(40))
def test_whoever_leaves_whenever_no_slot_and_no_session_is_lost(seed: int) -> None:
    async def main() -> None:
        house, pool = House(), pool_of(3)
        users = Users(pool, house, random.Random(seed))

        async def lane() -> None:
            for _ in range(40):
                await users.use_and_maybe_leave()

        await asyncio.gather(*(lane() for _ in range(8)))
        while pool.leased:
            await asyncio.sleep(0)  # goodbyes hold their slots
        assert house.peak <= 3
        assert pool.idle <= 3
        assert users.done > 100
        held = [pool.slot() for _ in range(3)]
        for each in held:
            async with asyncio.timeout(1):
                await each.__aenter__()
        for each in held:
            await each.__aexit__()
        await pool.aclose(1)
        assert house.open == 0

    with asyncio.Runner(loop_factory=functools.partial(ShuffledLoop, seed)) as runner:
        runner.run(main())
