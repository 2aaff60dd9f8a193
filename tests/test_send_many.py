"""send_many: lazily, so many at once, one Result each; leaving early leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import tracemalloc
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import Envelope, Mailer, MemoryTransport, Message, Receipt, Reply, Result
from amail.errors import MailError, MessageRejected, UsageError, Vetoed
from amail.many import send_many
from amail.testing import FaultServer, Hang
from tests.messages import ADA, tokened
from tests.strategies import EXAMPLES

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from amail import Content
    from tests.musts import Musts

OK = Reply(250, None, "ok")
"""What the transports of these tests answer."""


def numbered(number: int) -> Message:
    return Message(str(number), [f"bob{number}@example.org"], "Hi", sender=ADA)


def numbers(results: list[Result]) -> list[int]:
    return [int(result.message.subject) for result in results]


class Gate:
    """A transport whose sends wait until they are let through, or fail."""

    concurrency = 3

    def __init__(self) -> None:
        self.under_way: dict[str, asyncio.Future[None]] = {}
        self.most = 0
        self.ended = 0

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        path = envelope.forward_paths[0]
        self.under_way[path] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.under_way))
        try:
            await self.under_way[path]
        finally:
            self.under_way.pop(path, None)
            self.ended += 1
        return Receipt(content.message_id, envelope, OK, envelope.forward_paths)

    async def aclose(self) -> None:
        """Nothing to let go of."""

    async def holds(self, count: int) -> None:
        while len(self.under_way) < count:
            await asyncio.sleep(0)

    def let_through(self, number: int) -> None:
        self.under_way.pop(f"bob{number}@example.org").set_result(None)


async def settle() -> None:
    """Let everything happen that can happen without anybody doing anything."""
    for _ in range(50):
        await asyncio.sleep(0)


# What is yielded


async def test_each_message_has_one_result_with_a_receipt_or_an_error() -> None:
    messages: list[Message] = [numbered(1), Message("2", [], "Hi", sender=ADA), numbered(3)]
    async with Mailer("memory://") as mailer:
        results = [result async for result in mailer.send_many(messages, ordered=True)]
    first, second, third = results
    assert [result.message for result in results] == messages
    assert (first.outcome, second.outcome, third.outcome) == ("accepted", "not_sent", "accepted")
    assert (first.error, second.receipt, third.error) == (None, None, None)
    assert first.receipt is not None
    assert first.receipt.message_id == messages[0].message_id
    assert isinstance(second.error, MailError)


async def test_results_come_as_messages_finish() -> None:
    gate = Gate()
    sending = Mailer(gate).send_many(map(numbered, range(3)))
    first = asyncio.ensure_future(anext(sending))
    await gate.holds(3)
    gate.let_through(2)
    assert numbers([await first]) == [2]
    gate.let_through(0)
    gate.let_through(1)
    assert sorted(numbers([result async for result in sending])) == [0, 1]


async def test_results_come_in_the_order_of_the_messages_when_asked() -> None:
    gate = Gate()
    sending = Mailer(gate).send_many(map(numbered, range(3)), ordered=True)
    first = asyncio.ensure_future(anext(sending))
    await gate.holds(3)
    gate.let_through(2)
    gate.let_through(1)
    await settle()
    assert not first.done()
    gate.let_through(0)
    assert numbers([await first]) == [0]
    assert numbers([result async for result in sending]) == [1, 2]


async def test_an_async_iterable_is_taken_too() -> None:
    async def source() -> AsyncIterator[Message]:
        for number in range(5):
            await asyncio.sleep(0)
            yield numbered(number)

    async with Mailer("memory://") as mailer:
        results = [result async for result in mailer.send_many(source())]
    assert sorted(numbers(results)) == list(range(5))


async def test_no_messages_are_no_results() -> None:
    async with Mailer("memory://") as mailer:
        assert [result async for result in mailer.send_many([])] == []


class Fates:
    """Messages whose fates are settled: "accepted", "rejected", "odd"."""

    def __init__(self, fates: list[str]) -> None:
        self.fates = fates
        self.sent: list[int] = []

    async def send(self, message: Message) -> Receipt:
        number = int(message.subject)
        self.sent.append(number)
        for _ in range(number % 3):
            await asyncio.sleep(0)
        if self.fates[number] == "odd":
            raise ZeroDivisionError
        if self.fates[number] == "rejected":
            raise MessageRejected("no")
        return Receipt("<x>", Envelope(ADA, ("b@example.org",)), OK, ("b@example.org",))

    def messages(self) -> Iterator[Message]:
        return map(numbered, range(len(self.fates)))

    async def async_messages(self) -> AsyncIterator[Message]:
        for message in self.messages():
            await asyncio.sleep(0)
            yield message


@EXAMPLES
@given(
    fates=st.lists(st.sampled_from(["accepted", "rejected", "odd"]), max_size=30),
    concurrency=st.integers(1, 8),
    ordered=st.booleans(),
    is_async=st.booleans(),
)
def test_every_message_before_a_failure_of_the_run_has_exactly_one_result(
    fates: list[str], concurrency: int, ordered: bool, is_async: bool
) -> None:
    script = Fates(fates)
    results: list[Result] = []

    async def run() -> bool:
        messages = script.async_messages() if is_async else script.messages()
        try:
            async for result in send_many(
                script.send, messages, concurrency=concurrency, ordered=ordered
            ):
                results.append(result)
        except ZeroDivisionError:
            return False
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}
        return True

    assert asyncio.run(run()) == ("odd" not in fates)
    found = numbers(results)
    assert sorted(found) == [each for each in sorted(script.sent) if fates[each] != "odd"]
    assert [result.outcome for result in results] == [fates[each] for each in found]
    if ordered:
        assert found == sorted(found)


# How many at once


async def test_as_many_are_under_way_as_there_are_connections() -> None:
    gate = Gate()
    sending = Mailer(gate).send_many(map(numbered, range(9)))
    first = asyncio.ensure_future(anext(sending))
    await gate.holds(3)
    await settle()
    assert gate.most == 3
    first.cancel()
    await asyncio.wait({first})


async def test_concurrency_is_the_callers_when_given() -> None:
    gate = Gate()
    sending = Mailer(gate).send_many(map(numbered, range(9)), concurrency=5)
    first = asyncio.ensure_future(anext(sending))
    await gate.holds(5)
    await settle()
    assert gate.most == 5
    first.cancel()
    await asyncio.wait({first})


@pytest.mark.parametrize("ordered", [False, True], ids=["as_they_finish", "ordered"])
async def test_c39_a_slow_consumer_holds_up_the_source(ordered: bool) -> None:
    pulled = 0

    def source() -> Iterator[Message]:
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            yield numbered(number)

    async with Mailer("memory://") as mailer:
        sending = mailer.send_many(source(), concurrency=4, ordered=ordered)
        async with contextlib.aclosing(sending):
            taken = 0
            async for _ in sending:
                taken += 1
                await settle()
                # Four in the queue, one in each worker's hands.
                assert pulled <= taken + 9
                if taken == 100:
                    break


async def test_c39_a_generator_left_early_cancels_what_is_under_way_and_pulls_no_more(
    musts: Musts,
) -> None:
    async with (
        FaultServer(final=["250 2.0.0 ok", Hang()]) as server,
        Mailer(server.url, max_connections=3) as mailer,
    ):
        musts.watch(server)
        tokens = [musts.token() for _ in range(20)]
        source = iter([tokened(token) for token in tokens])
        async for result in mailer.send_many(source):
            assert result.outcome == "accepted"
            await server.reached("final", 4)
            break
        del result
        # Nobody closed it: the loop does when it is collected. One session waits for its reply.
        while mailer.stats().leased > 1:
            await asyncio.sleep(0.001)
        pulled = 20 - len(list(source))
        assert pulled <= 1 + 2 * 3
        assert (mailer.stats().accepted, mailer.stats().unknown) == (1, 3)
        assert mailer.stats().not_sent == pulled - 4  # those behind them


async def test_c16_cancelling_who_iterates_ends_what_is_under_way(musts: Musts) -> None:
    async with (
        FaultServer(final=["250 2.0.0 ok"] * 2 + [Hang()]) as server,
        Mailer(server.url, max_connections=2) as mailer,
    ):
        musts.watch(server)
        tokens = [musts.token() for _ in range(10)]
        done: list[Result] = []
        source = iter([tokened(token) for token in tokens])

        async def bulk() -> None:
            async for result in mailer.send_many(source):
                done.append(result)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(bulk())
            await server.reached("final", 4)
            async with musts.within(0.05):
                task.cancel()
                await asyncio.wait({task})
        assert task.cancelled()
        assert {result.outcome for result in done} <= {"accepted"}
        stats = mailer.stats()
        assert (stats.accepted, stats.unknown) == (2, 2)
        assert stats.not_sent == 10 - len(list(source)) - 4  # those behind them
        server.release()
        while mailer.stats().leased:
            await asyncio.sleep(0.001)


async def test_c16_what_was_cancelled_behind_its_last_octet_is_unknown_in_the_log(
    musts: Musts, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FaultServer(final=Hang()) as server,
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        message = tokened(musts.token())
        first = asyncio.ensure_future(anext(mailer.send_many([message])))
        await server.reached("final")
        first.cancel()
        await asyncio.wait({first})
        logged = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        assert any(
            "delivery unknown" in text and str(message.message_id) in text for text in logged
        )


# What ends a run


async def test_what_the_source_raises_comes_behind_the_results_of_those_before() -> None:
    def source() -> Iterator[Message]:
        yield numbered(0)
        yield numbered(1)
        raise LookupError("the database has gone")

    results = []
    async with Mailer("memory://") as mailer:
        with pytest.raises(LookupError, match="the database has gone"):
            async for result in mailer.send_many(source(), ordered=True):
                results.append(result)
    assert numbers(results) == [0, 1]


async def test_what_is_no_message_ends_the_run() -> None:
    messages = t.cast("list[Message]", [numbered(0), "Hello"])
    async with Mailer("memory://") as mailer:
        with pytest.raises(UsageError, match="must be a Message, not str"):
            async for _ in mailer.send_many(messages):
                pass


async def test_c17_an_exception_in_prepare_reaches_who_iterates_and_a_veto_is_a_result() -> None:
    def prepare(message: Message) -> Message:
        if message.subject == "1":
            raise Vetoed("not that one")
        if message.subject == "2":
            raise KeyError("a bug")
        return message

    results = []
    async with Mailer("memory://", prepare=prepare) as mailer:
        with pytest.raises(KeyError, match="a bug"):
            async for result in mailer.send_many(map(numbered, range(3)), ordered=True):
                results.append(result)
    assert [result.outcome for result in results] == ["accepted", "not_sent"]


@pytest.mark.parametrize("concurrency", [0, -1, True, 1.5])
async def test_concurrency_must_be_a_whole_number_from_one(concurrency: int) -> None:
    with pytest.raises(UsageError, match="concurrency"):
        Mailer("memory://").send_many([], concurrency=concurrency)


async def test_one_message_is_no_iterable_of_messages() -> None:
    with pytest.raises(UsageError, match="must be an iterable of Message, not Message"):
        Mailer("memory://").send_many(t.cast("list[Message]", numbered(0)))


# What it costs


async def test_any_number_of_messages_costs_the_same_memory() -> None:
    class Nowhere(MemoryTransport):
        async def send(
            self, envelope: Envelope, content: Content, *, deadline: float | None = None
        ) -> Receipt:
            await asyncio.sleep(0)
            return Receipt(content.message_id, envelope, OK, envelope.forward_paths)

    async def peak_of(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        async with Mailer(Nowhere()) as mailer:
            async for _ in mailer.send_many(map(numbered, range(count))):
                pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    await peak_of(100)  # what is cached once
    few, many = await peak_of(100), await peak_of(3000)
    assert many - few < 256 * 1024


@pytest.mark.parametrize("ordered", [False, True], ids=["as_they_finish", "ordered"])
async def test_c16_a_source_that_times_out_ends_the_run(ordered: bool) -> None:
    async def source() -> AsyncIterator[Message]:
        async with asyncio.timeout(0.05):
            for number in range(3):
                yield numbered(number)
            await asyncio.Event().wait()

    results = []
    async with Mailer("memory://") as mailer:
        with pytest.raises(TimeoutError):
            async for result in mailer.send_many(source(), ordered=ordered):
                results.append(result)
    assert sorted(numbers(results)) == [0, 1, 2]


@pytest.mark.parametrize("ordered", [False, True], ids=["as_they_finish", "ordered"])
async def test_c16_a_cancelled_error_of_the_callers_code_ends_the_run(ordered: bool) -> None:
    def prepare(message: Message) -> Message:
        if message.subject == "2":
            raise asyncio.CancelledError
        return message

    async with Mailer("memory://", prepare=prepare) as mailer:
        with pytest.raises(asyncio.CancelledError):
            async for _ in mailer.send_many(map(numbered, range(9)), ordered=ordered):
                pass


async def test_an_error_of_the_call_ends_the_run_while_the_source_waits() -> None:
    async def source() -> AsyncIterator[Message]:
        yield t.cast("Message", "no message")
        await asyncio.Event().wait()

    async with Mailer("memory://") as mailer:
        with pytest.raises(UsageError):
            async for _ in mailer.send_many(source()):
                pass


# The source that is an async generator


class Source:
    """An async generator without end, which tells who ran it and whether it was closed."""

    def __init__(self, when_closing: asyncio.Event | None = None) -> None:
        self.run_by: list[asyncio.Task[t.Any] | None] = []
        self.closed = asyncio.Event()
        self.closing = asyncio.Event()
        self._when_closing = when_closing

    async def __aiter__(self) -> AsyncIterator[Message]:
        number = 0
        try:
            while True:
                self.run_by.append(asyncio.current_task())
                yield numbered(number)
                number += 1
        finally:
            self.run_by.append(asyncio.current_task())
            self.closing.set()
            if self._when_closing is not None:
                await self._when_closing.wait()
            self.closed.set()


@pytest.mark.parametrize("ordered", [False, True], ids=["as_they_finish", "ordered"])
async def test_a_source_is_closed_when_the_loop_is_left_early_by_the_task_that_pulled(
    ordered: bool,
) -> None:
    source = Source()
    async with Mailer("memory://") as mailer:
        async with contextlib.aclosing(mailer.send_many(aiter(source), ordered=ordered)) as results:
            async for _ in results:
                break
        assert source.closed.is_set()
    assert len(set(source.run_by)) == 1
    assert asyncio.current_task() not in source.run_by


async def test_c16_a_source_is_closed_when_who_iterates_is_cancelled() -> None:
    gate, source = Gate(), Source()
    sending = Mailer(gate).send_many(source)
    first = asyncio.ensure_future(anext(sending))
    await gate.holds(3)
    first.cancel()
    await asyncio.wait({first})
    assert source.closed.is_set()
    assert len(set(source.run_by)) == 1


async def test_a_source_has_the_time_it_takes_to_close_however_many_messages_end_the_run() -> None:
    may_close, gate = asyncio.Event(), Gate()
    source = Source(may_close)
    sending = Mailer(gate).send_many(source)
    first = asyncio.ensure_future(anext(sending))
    await gate.holds(3)
    for under_way in list(gate.under_way.values()):
        under_way.set_exception(LookupError("a bug"))
        await source.closing.wait()
        await settle()
        assert not first.done()
    may_close.set()
    with pytest.raises(LookupError):
        await first
    assert source.closed.is_set()


async def test_what_closing_the_source_raises_reaches_who_leaves_early() -> None:
    async def source() -> AsyncIterator[Message]:
        try:
            while True:
                yield numbered(0)
        finally:
            raise LookupError("the cursor could not be closed")

    async with Mailer("memory://") as mailer:
        sending = mailer.send_many(source())
        await anext(sending)
        with pytest.raises(LookupError, match="cursor"):
            await sending.aclose()


async def test_a_source_that_will_not_be_cancelled_is_pulled_no_more() -> None:
    pulled = 0

    async def source() -> AsyncIterator[Message]:
        nonlocal pulled
        while True:
            pulled += 1
            if pulled > 1:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            yield numbered(pulled)

    async with Mailer("memory://") as mailer:
        sending = mailer.send_many(source())
        await anext(sending)
        await settle()
        await sending.aclose()
    assert pulled == 2
