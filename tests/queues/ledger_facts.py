"""What holds of every ledger. The test module of one has fixtures ``new_ledger`` and ``later``.

    from tests.queues.ledger_facts import *

``new_ledger(lease)`` returns a ledger, each time another object over the same store, as another
process has it. ``later(seconds)`` has the store's clock be so much later.
"""

from __future__ import annotations

import asyncio
import typing as t
from collections import Counter
from dataclasses import replace

import pytest

from amail import (
    ConfigError,
    ConnectionLost,
    DeliveryUnknown,
    Mailer,
    MemoryTransport,
    Message,
    MessageRejected,
    NotSent,
    Reply,
)
from amail.queues import handle, key_of, pack
from amail.queues.ledger import KEPT, Entry
from tests.messages import ADA
from tests.transports.ends import End

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail import Receipt
    from amail.queues import Job
    from amail.queues.ledger import Ledger

    NewLedger = Callable[[float], Ledger]
    Later = Callable[[float], object]

LEASE = 900.0
KEY, OTHER = "ab" * 32, "cd" * 32


def a_job(*to: str) -> Job:
    return pack(Message("Hello", list(to) or ["bob@example.org"], "Hi", sender=ADA))


# Keys


async def test_one_at_a_time_has_a_key(new_ledger: NewLedger) -> None:
    one, other = new_ledger(LEASE), new_ledger(LEASE)
    assert await one.begin(KEY, "1") == Entry("begun")
    assert await other.begin(KEY, "2") == Entry("busy")
    assert await one.begin(KEY, "1") == Entry("busy")
    assert await other.begin(OTHER, "2") == Entry("begun")


async def test_of_many_who_begin_at_once_one_has_the_key(new_ledger: NewLedger) -> None:
    ledgers = [new_ledger(LEASE) for _ in range(20)]
    beginning = [each.begin(KEY, str(number)) for number, each in enumerate(ledgers)]
    states = Counter(entry.state for entry in await asyncio.gather(*beginning))
    assert states == {"begun": 1, "busy": 19}


@pytest.mark.parametrize("state", ["sent", "unknown"])
async def test_what_was_done_is_known_to_all_with_who_was_left(
    new_ledger: NewLedger, later: Later, state: t.Literal["sent", "unknown"]
) -> None:
    one, other = new_ledger(LEASE), new_ledger(LEASE)
    await one.begin(KEY, "1")
    await getattr(one, state)(KEY, "1", (0, 2))
    assert await other.begin(KEY, "2") == Entry(state, (0, 2))
    later(LEASE + 1)
    assert await other.begin(KEY, "2") == Entry(state, (0, 2))


async def test_what_was_sent_is_forgotten_in_time(new_ledger: NewLedger, later: Later) -> None:
    ledger = new_ledger(LEASE)
    await ledger.begin(KEY, "1")
    await ledger.sent(KEY, "1")
    later(KEPT - 60)
    assert await ledger.begin(KEY, "2") == Entry("sent")
    later(120)
    assert await ledger.begin(KEY, "2") == Entry("begun")


async def test_a_key_that_is_released_may_be_begun_at_once(new_ledger: NewLedger) -> None:
    ledger = new_ledger(LEASE)
    await ledger.begin(KEY, "1")
    await ledger.release(KEY, "1")
    assert await ledger.begin(KEY, "2") == Entry("begun")


async def test_the_key_of_a_worker_that_died_may_be_begun_when_its_lease_has_ended(
    new_ledger: NewLedger, later: Later
) -> None:
    one, other = new_ledger(LEASE), new_ledger(LEASE)
    await one.begin(KEY, "1")
    later(LEASE - 60)
    assert await other.begin(KEY, "2") == Entry("busy")
    later(120)
    assert await other.begin(KEY, "2") == Entry("begun")


async def test_who_has_lost_a_key_changes_nothing_about_it(
    new_ledger: NewLedger, later: Later
) -> None:
    one, other = new_ledger(LEASE), new_ledger(LEASE)
    await one.begin(KEY, "1")
    later(LEASE + 1)
    await other.begin(KEY, "2")
    await one.release(KEY, "1")
    await one.unknown(KEY, "1")
    assert await one.begin(KEY, "3") == Entry("busy")
    await other.sent(KEY, "2")
    await one.release(KEY, "1")
    await one.unknown(KEY, "1")
    assert await one.begin(KEY, "3") == Entry("sent")


async def test_a_key_says_nothing_of_addresses() -> None:
    assert "bob" not in key_of(a_job())


# Jobs


async def test_a_job_that_is_delivered_twice_is_sent_once(new_ledger: NewLedger) -> None:
    memory, job = MemoryTransport(), a_job()
    outcomes = [(await handle(job, Mailer(memory), new_ledger(LEASE))).outcome for _ in range(3)]
    assert outcomes == ["sent", "skipped", "skipped"]
    assert len(memory.messages) == 1


async def test_the_same_message_to_others_is_another_job(new_ledger: NewLedger) -> None:
    memory, ledger, job = MemoryTransport(), new_ledger(LEASE), a_job()
    others = {**job, "env": {**job["env"], "to": ["eve@example.net"]}}
    for each in (job, others, job, others):
        await handle(each, Mailer(memory), ledger)
    paths = [each.envelope.forward_paths for each in memory.messages]
    assert paths == [("bob@example.org",), ("eve@example.net",)]


async def test_a_job_that_is_under_way_elsewhere_is_to_be_tried_again(
    new_ledger: NewLedger,
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    class Waiting(MemoryTransport):
        async def send(self, *args: t.Any, **options: t.Any) -> Receipt:
            began.set()
            await go_on.wait()
            return await super().send(*args, **options)

    job, transport = a_job(), Waiting()
    first = asyncio.create_task(handle(job, Mailer(transport), new_ledger(LEASE)))
    await began.wait()
    with pytest.raises(NotSent, match="another worker") as caught:
        await handle(job, Mailer(transport), new_ledger(LEASE))
    assert caught.value.retryable
    go_on.set()
    assert (await first).outcome == "sent"
    assert len(transport.messages) == 1


@pytest.mark.parametrize(
    "error", [ConnectionLost("lost", retryable=True), MessageRejected("no")], ids=["lost", "no"]
)
async def test_what_was_not_taken_may_be_tried_again_at_once(
    new_ledger: NewLedger, error: NotSent | MessageRejected
) -> None:
    end, job = End("end", error, lambda receipt: receipt), a_job()
    with pytest.raises(type(error)):
        await handle(job, Mailer(end), new_ledger(LEASE))
    assert (await handle(job, Mailer(end), new_ledger(LEASE))).outcome == "sent"


async def test_what_is_unknown_is_not_sent_again_whoever_delivers_the_job(
    new_ledger: NewLedger, later: Later
) -> None:
    end, job = End("end", DeliveryUnknown("?", retryable=True)), a_job()
    with pytest.raises(DeliveryUnknown):
        await handle(job, Mailer(end), new_ledger(LEASE))
    later(LEASE + 1)
    assert (await handle(job, Mailer(end), new_ledger(LEASE))).outcome == "skipped"
    assert len(end.tried) == 1


@pytest.mark.parametrize("went_out", [True, False])
async def test_what_was_cancelled_is_unknown_if_its_last_octet_went_out(
    new_ledger: NewLedger, went_out: bool
) -> None:
    class Hanging(MemoryTransport):
        async def send(self, envelope: t.Any, content: t.Any, **options: t.Any) -> Receipt:
            if went_out:
                bytes(content)
            began.set()
            await asyncio.Event().wait()
            raise AssertionError

    began, job = asyncio.Event(), a_job()
    sending = asyncio.create_task(handle(job, Mailer(Hanging()), new_ledger(LEASE)))
    await began.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    again = await handle(job, Mailer(MemoryTransport()), new_ledger(LEASE))
    assert again.outcome == ("skipped" if went_out else "sent")


async def test_who_was_left_is_left_again_where_the_job_is_skipped(new_ledger: NewLedger) -> None:
    """A worker that dies before it has queued the rest loses nobody."""
    busy, gone = Reply(450, "4.2.0", "greylisted"), Reply(550, "5.1.1", "no such user")

    def some(receipt: Receipt) -> Receipt:
        return replace(receipt, accepted=("a@x.org",), refused={"b@x.org": gone, "c@x.org": busy})

    job, mailer = a_job("a@x.org", "b@x.org", "c@x.org"), Mailer(End("end", some))
    for outcome in ("sent", "skipped"):
        handled = await handle(job, mailer, new_ledger(LEASE))
        assert handled.outcome == outcome
        assert handled.rest is not None
        assert handled.rest["env"]["to"] == ["c@x.org"]


async def test_a_lease_shorter_than_a_try_is_refused(new_ledger: NewLedger) -> None:
    end = End("end")
    with pytest.raises(ConfigError, match="lease: must be more than 660 s"):
        await handle(a_job(), Mailer(end), new_ledger(600.0))
    assert end.tried == []
