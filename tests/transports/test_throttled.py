"""A rate is kept, whatever comes. Time goes on by itself wherever somebody waits for it."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import ConfigError, Mailer, Message, PoolTimeout
from amail.transports.base import PoolStats
from amail.transports.throttled import Throttled, Window, parse_rate
from tests.messages import ADA
from tests.strategies import EXAMPLES
from tests.transports.ends import Clock, End, letter, run_in_virtual_time

if t.TYPE_CHECKING:
    from amail import Content, Envelope, MailError, Receipt


NOTED_LATE = 0.01


class Noting(End):
    """Notes when a send began."""

    def __init__(self, name: str, *outcomes: MailError) -> None:
        super().__init__(name, *outcomes)
        self.began: list[float] = []

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        self.began.append(time.monotonic())
        return await super().send(envelope, content, deadline=deadline)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def assert_kept(began: list[float], limit: int, seconds: float) -> None:
    """No more than ``limit`` within any ``seconds``, as far as a message is noted at once."""
    for first, beyond in zip(began, began[limit:], strict=False):
        assert beyond >= first + seconds - NOTED_LATE


def test_fact_60_5000_messages_at_200_a_second_take_24_seconds(clock: Clock) -> None:
    end = Noting("end")

    async def main() -> None:
        async with Mailer(Throttled(end, "200/s"), default_sender=ADA) as mailer:
            message = Message("Hello", ["bob@example.org"], body="Hi")
            await asyncio.gather(*(mailer.send(message) for _ in range(5000)))

    run_in_virtual_time(main(), clock)
    assert 24 <= end.began[-1] - end.began[0] < 27
    assert_kept(end.began, 200, 1)


@given(
    limit=st.integers(1, 20),
    seconds=st.floats(0.01, 1000),
    arrivals=st.lists(st.floats(0, 100), max_size=100),
)
@EXAMPLES
def test_no_arrivals_get_more_than_the_limit_into_any_window_and_none_waits_longer_than_it_must(
    limit: int, seconds: float, arrivals: list[float]
) -> None:
    window = Window(limit, seconds)
    began: list[float] = []
    for arrival in itertools.accumulate(arrivals):
        at = max(arrival, window.opens_at())
        window.take(at)
        began.append(at)
        is_free = len(began) <= limit or began[-limit - 1] + seconds <= arrival
        assert at == arrival or not is_free
    assert began == sorted(began)
    for first, beyond in zip(began, began[limit:], strict=False):
        assert beyond >= first + seconds


def test_of_several_rates_each_holds(clock: Clock) -> None:
    end = Noting("end")

    async def main() -> None:
        throttled = Throttled(end, ["5/s", "20/min"])
        await asyncio.gather(*(throttled.send(*letter()) for _ in range(50)))

    run_in_virtual_time(main(), clock)
    assert_kept(end.began, 5, 1)
    assert_kept(end.began, 20, 60)
    assert 120 <= end.began[-1] - end.began[0] < 125


def test_a_burst_goes_through_at_once_and_the_rest_in_the_order_it_came(clock: Clock) -> None:
    end = Noting("end")

    async def main() -> list[str]:
        throttled = Throttled(end, "10/h")
        messages = [letter() for _ in range(30)]
        await asyncio.gather(*(throttled.send(*each) for each in messages))
        return [content.message_id for _, content in messages]

    ids = run_in_virtual_time(main(), clock)
    assert [content.message_id for _, content, _ in end.tried] == ids
    assert end.began[9] - end.began[0] < 60


def test_a_deadline_ends_the_wait_with_nothing_sent_and_takes_nobodys_place(clock: Clock) -> None:
    end = Noting("end")

    async def main() -> None:
        throttled = Throttled(end, "1/min")
        await throttled.send(*letter())
        waiting = asyncio.ensure_future(throttled.send(*letter()))
        began = time.monotonic()
        with pytest.raises(PoolTimeout, match=re.escape("throttled to 1/min")) as caught:
            await throttled.send(*letter(), deadline=began + 25)
        assert 25 <= time.monotonic() - began < 26
        error = caught.value
        assert (error.outcome, error.stage, error.retryable) == ("not_sent", "pool", True)
        assert error.message_id
        assert error.recipients == ("bob@example.org",)
        await waiting

    run_in_virtual_time(main(), clock)
    assert 60 <= end.began[1] - end.began[0] < 61


def test_who_is_cancelled_while_waiting_takes_nobodys_place(clock: Clock) -> None:
    end = Noting("end")

    async def main() -> None:
        throttled = Throttled(end, "1/min")
        await throttled.send(*letter())
        sendings = [asyncio.ensure_future(throttled.send(*letter())) for _ in range(10)]
        await asyncio.sleep(1)
        for sending in sendings[:9]:
            sending.cancel()
        await sendings[9]

    run_in_virtual_time(main(), clock)
    assert len(end.began) == 2
    assert 60 <= end.began[1] - end.began[0] < 61


def test_the_rate_outlives_the_loop(clock: Clock) -> None:
    end = Noting("end")
    throttled = Throttled(end, "5/min")

    async def main() -> None:
        await asyncio.gather(*(throttled.send(*letter()) for _ in range(7)))

    for _ in range(3):
        run_in_virtual_time(main(), clock)
    assert len(end.began) == 21
    assert_kept(end.began, 5, 60)


async def test_a_deadline_that_holds_is_handed_on_and_so_is_everything_else() -> None:
    end = End("end")
    throttled = Throttled(end, "5/s")
    deadline = time.monotonic() + 60
    envelope, content = letter()
    receipt = await throttled.send(envelope, content, deadline=deadline)
    assert receipt.relay == "end"
    assert end.tried == [(envelope, content, deadline)]
    assert (throttled.concurrency, throttled.stats()) == (3, PoolStats())
    await throttled.aclose()
    assert end.closed == 1


@pytest.mark.parametrize(
    ("rate", "limit", "seconds"),
    [("14/s", 14, 1), ("100 / min", 100, 60), ("500/h", 500, 3600), ("10000/day", 10_000, 86_400)],
)
def test_a_rate_is_a_number_and_a_unit(rate: str, limit: int, seconds: float) -> None:
    assert parse_rate(rate) == (limit, seconds)


@pytest.mark.parametrize(
    "rate", ["", "14", "/s", "14/", "14/week", "1.5/s", "-1/s", "0/s", "9999999/s", "٣/s", 14, None]
)
def test_a_rate_that_is_none_is_refused_by_its_value(rate: t.Any) -> None:
    with pytest.raises(ConfigError, match=f"^rate: .*{re.escape(str(rate))}|not (int|NoneType)$"):
        Throttled(End("end"), rate)
    with pytest.raises(ConfigError, match=f"^rate: .*{re.escape(str(rate))}"):
        Throttled(End("end"), ["14/s", rate])


def test_an_empty_list_of_rates_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        Throttled(End("end"), [])
