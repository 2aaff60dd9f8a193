"""Sends many messages, so many at once: pulls them lazily, gives one Result each.

Invariant: never are more than ``concurrency`` messages on their way to a server, and as many again
between the source and the consumer, those among them that wait for the last reply to them; and the
source is only ever run in one task.
"""

from __future__ import annotations

import asyncio
import typing as t
from collections.abc import AsyncGenerator, AsyncIterable, Iterable

from amail.errors import ConfigError, MailError, UsageError
from amail.receipt import Result
from amail.transports.base import when_written

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from amail.message import Message
    from amail.receipt import Receipt

    Send = Callable[[Message], Awaitable[Receipt]]
    Place = asyncio.Future[Result | None]

Messages: t.TypeAlias = "Iterable[Message] | AsyncIterable[Message]"


def send_many(
    send: Send, messages: Messages, *, concurrency: int, ordered: bool
) -> AsyncGenerator[Result, None]:
    """Return what yields a Result for each message, as they finish or in their order.

    What ends one message only is its Result; whatever else is raised, by the source too, is raised
    once those under way have finished. Raises UsageError.
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise UsageError("concurrency: must be a whole number from 1")
    if not isinstance(messages, Iterable | AsyncIterable):
        raise UsageError(f"messages: must be an iterable of Message, not {type(messages).__name__}")
    return _results(_Run(send, messages, concurrency, ordered=ordered), concurrency)


async def _results(run: _Run, concurrency: int) -> AsyncGenerator[Result, None]:
    tasks = run.start(concurrency)
    try:
        while (result := await run.next()) is not None:
            yield result
            del result  # or it would be kept until the next one is there
        if run.error is not None:
            raise run.error
    finally:
        run.stop_pulling()
        for worker in tasks[1:]:
            worker.cancel()
        of_closing, *_ = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(of_closing, Exception):
            raise of_closing


async def _one_by_one(messages: Iterable[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


class _Once:
    """What is done the first time it is called."""

    __slots__ = ("_do",)

    def __init__(self, do: Callable[[], None]) -> None:
        self._do: Callable[[], None] | None = do

    def __call__(self) -> None:
        if self._do is not None:
            do, self._do = self._do, None
            do()


class _Run:
    """One task that pulls messages, and workers that send them.

    To the consumer go the results, or where they shall be in order, a future for each message in
    the order of pulling; None comes last.
    """

    def __init__(self, send: Send, messages: Messages, concurrency: int, *, ordered: bool) -> None:
        self.error: BaseException | None = None
        self._send = send
        self._source = (
            aiter(messages) if isinstance(messages, AsyncIterable) else _one_by_one(messages)
        )
        self._ordered = ordered
        self._room = asyncio.Semaphore(2 * concurrency)
        self._under_way = asyncio.Semaphore(concurrency)
        self._wanted = asyncio.Semaphore(0)  # by workers with nothing to do
        self._pulled: asyncio.Queue[tuple[Message, Place | None] | None] = asyncio.Queue()
        self._results: asyncio.Queue[Result | Place | None] = asyncio.Queue()
        self._puller: asyncio.Task[None] | None = None
        self._pulls_no_more = False
        self._working = 0

    def start(self, concurrency: int) -> list[asyncio.Task[None]]:
        """Make the puller and the workers, which end when there are no more messages."""
        self._working = 2 * concurrency  # half of which wait for a last reply
        self._puller = asyncio.create_task(self._pull())
        return [self._puller, *(asyncio.create_task(self._work()) for _ in range(self._working))]

    def stop_pulling(self) -> None:
        """Cancel the puller. Only once: then it closes the source, which may take a moment."""
        if self._puller is not None and not self._pulls_no_more:
            self._puller.cancel()
        self._pulls_no_more = True

    async def next(self) -> Result | None:
        """Return the next result, None when there are no more."""
        while True:
            result = await self._results.get()
            if isinstance(result, asyncio.Future):
                result = await result
                if result is None:  # it is what the run failed with
                    continue
            self._room.release()
            return result

    async def _pull(self) -> None:
        """Pull until there are no more or this is stopped. Raises what closing the source does."""
        try:
            await self._pull_each()
        except StopAsyncIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - raised to the consumer, behind the results
            self._pulls_no_more = True
            self._note(error)
        try:
            if isinstance(self._source, AsyncGenerator):
                await self._source.aclose()
        finally:
            for _ in range(self._working):
                self._pulled.put_nowait(None)

    async def _pull_each(self) -> None:
        while not self._pulls_no_more:
            await self._wanted.acquire()
            await self._under_way.acquire()
            await self._room.acquire()
            message = await anext(self._source)
            place: Place | None = None
            if self._ordered:
                place = asyncio.get_running_loop().create_future()
                self._results.put_nowait(place)
            self._pulled.put_nowait((message, place))
            del message, place

    async def _work(self) -> None:
        """Send one message after another, until there are no more or the run has failed."""
        place: Place | None = None
        try:
            while (pulled := await self._next_message()) is not None:
                message, place = pulled
                del pulled
                self._hand_over(await self._result_of(message), place)
                del message
                place = None
        except BaseException as error:  # noqa: BLE001 - raised to the consumer, behind the results
            self._note(error)
            self.stop_pulling()
            self._hand_over(None, place)
        finally:
            self._working -= 1
            if not self._working:
                self._give_up_rest()
                self._results.put_nowait(None)

    async def _next_message(self) -> tuple[Message, Place | None] | None:
        self._wanted.release()
        return await self._pulled.get()

    def _give_up_rest(self) -> None:
        """Settle the places of those nobody sends any more."""
        while not self._pulled.empty():
            pulled = self._pulled.get_nowait()
            if pulled is not None:
                self._hand_over(None, pulled[1])

    def _hand_over(self, result: Result | None, place: Place | None) -> None:
        if place is not None:
            if not place.done():
                place.set_result(result)
        elif result is not None:
            self._results.put_nowait(result)

    async def _result_of(self, message: Message) -> Result:
        let_next_begin = _Once(self._under_way.release)
        when_written.set(let_next_begin)
        try:
            return Result(message, await self._send(message))
        except (ConfigError, UsageError):
            raise  # they are about the call, and hold for the other messages too
        except MailError as error:
            return Result(message, error=error)
        finally:
            let_next_begin()

    def _note(self, error: BaseException) -> None:
        """Keep what the run failed with first."""
        if self.error is None:
            self.error = error
