"""What must never be, in a storm (rows F77, C14): see tests/storm.py.

``pytest -m soak_short`` takes minutes, ``-m soak`` hours. A failure names its seed; with AMAIL_SEED
set to it either gives that storm again.
"""

from __future__ import annotations

import functools
import os
import random
import typing as t

import pytest

from tests.loops import LOOPS
from tests.shuffled import ShuffledLoop
from tests.storm import OPENING, TRANSACTION, WAYS, Contexts, ride_out, waves

if t.TYPE_CHECKING:
    import asyncio
    from collections import Counter
    from collections.abc import Callable

    from tests.servers.authority import Authority

SHORT = 1_200
LONG = 10_000
OUTCOMES = {"accepted", "rejected", "not_sent", "unknown"}

in_each_loop = pytest.mark.parametrize("tasks", ["in order", "shuffled"])


def seeds(*usual: int) -> list[int]:
    """The seed that AMAIL_SEED names, or the usual ones."""
    named = os.environ.get("AMAIL_SEED")
    return list(usual) if named is None else [int(named)]


def loop_factory(tasks: str, seed: int) -> Callable[[], asyncio.AbstractEventLoop]:
    if tasks == "shuffled":
        return functools.partial(ShuffledLoop, seed)
    return LOOPS[os.environ.get("AMAIL_LOOP", "asyncio")]


@pytest.fixture(scope="module")
def contexts(authority: Authority) -> Contexts:
    return Contexts(authority.server_context(), authority.client_context())


def assert_all_kinds(came_to: Counter[str], messages: int) -> None:
    assert came_to.total() == messages
    assert set(came_to) == OUTCOMES
    assert came_to["accepted"] > messages / 4
    assert came_to["accepted"] < messages * 3 / 4


def test_the_same_seed_is_the_same_storm_and_another_one_is_not() -> None:
    assert list(waves(1, 500)) == list(waves(1, 500))
    assert list(waves(1, 500)) != list(waves(2, 500))
    assert sum(len(each.letters) for each in waves(1, 500)) == 500
    assert len({letter.token for each in waves(1, 500) for letter in each.letters}) == 500


def test_a_storm_has_every_way_of_sending_and_fails_at_half_of_the_stages() -> None:
    storm = list(waves(1, 10_000))
    assert {each.way for each in storm} == set(WAYS)
    failing = set[str]().union(*(each.rates for each in storm))
    assert failing >= {*OPENING, *TRANSACTION, "starttls", "tls", "auth"}
    stages = [len(OPENING) + len(TRANSACTION) + (3 if each.encrypted else 0) for each in storm]
    assert [len(each.rates) for each in storm] == [number // 2 for number in stages]


@in_each_loop
def test_f77_in_one_wave_every_message_has_one_outcome_that_is_true(
    tasks: str, contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    came_to = ride_out(1, 60, contexts, caplog, loop_factory(tasks, 1))
    assert came_to.total() == 60


@pytest.mark.soak_short
@pytest.mark.timeout(300)
@in_each_loop
@pytest.mark.parametrize("seed", seeds(77, 14))
def test_f77_in_a_storm_every_message_has_one_outcome_that_is_true(
    seed: int, tasks: str, contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    came_to = ride_out(seed, SHORT, contexts, caplog, loop_factory(tasks, seed))
    assert_all_kinds(came_to, SHORT)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@in_each_loop
@pytest.mark.parametrize("seed", seeds(1, 2, 3, random.SystemRandom().randrange(2**32)))
def test_f77_in_a_storm_of_ten_thousand_messages_too(
    seed: int, tasks: str, contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    came_to = ride_out(seed, LONG, contexts, caplog, loop_factory(tasks, seed))
    assert_all_kinds(came_to, LONG)
