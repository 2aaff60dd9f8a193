"""Sends many messages, so many at once: pulls them lazily, gives one Result each.

Invariant: never are more than ``2 * concurrency`` messages between the source and the consumer.
"""

from __future__ import annotations

import asyncio
import typing as t
from collections.abc import AsyncIterable, Iterable

from amail.errors import ConfigError, MailError, UsageError
from amail.receipt import Result

if t.TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

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
    workers = [asyncio.create_task(run.work()) for _ in range(concurrency)]
    try:
        while (result := await run.next()) is not None:
            yield result
            del result  # or it would be kept until the next one is there
        if run.error is not None:
            raise run.error
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _one_by_one(messages: Iterable[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


class _Run:
    """What the workers of one run share.

    Through the queue go the results, or where they shall be in order, a future for each message in
    the order of pulling; None comes last.
    """

    def __init__(self, send: Send, messages: Messages, concurrency: int, *, ordered: bool) -> None:
        self.error: BaseException | None = None
        self._send = send
        self._source = (
            aiter(messages) if isinstance(messages, AsyncIterable) else _one_by_one(messages)
        )
        self._ordered = ordered
        self._pulling = asyncio.Lock()
        self._ended = False
        self._working = concurrency
        self._queue: asyncio.Queue[Result | Place | None] = asyncio.Queue(concurrency)

    async def next(self) -> Result | None:
        """Return the next result, None when there are no more."""
        while True:
            result = await self._queue.get()
            if isinstance(result, asyncio.Future):
                result = await result
                if result is None:  # it is what the run failed with
                    continue
            return result

    async def work(self) -> None:
        """Send one message after another, until there are no more or the run has failed."""
        while not self._ended:
            place: Place | None = None
            try:
                pulled = await self._pull()
                if pulled is None:
                    break
                message, place = pulled
                result = await self._result_of(message)
                del message, pulled
            except Exception as error:  # noqa: BLE001 - raised to the consumer, behind the results
                self._fail(error)
                if place is not None:
                    place.set_result(None)
                break
            if place is not None:
                place.set_result(result)
            else:
                await self._queue.put(result)
            del result
        self._working -= 1
        if not self._working:
            await self._queue.put(None)

    async def _pull(self) -> tuple[Message, Place | None] | None:
        """Take the next message and, where they shall be in order, its place; None at the end."""
        async with self._pulling:
            if self._ended:
                return None
            try:
                message = await anext(self._source)
            except StopAsyncIteration:
                self._ended = True
                return None
            if not self._ordered:
                return message, None
            place: Place = asyncio.get_running_loop().create_future()
            await self._queue.put(place)
            return message, place

    async def _result_of(self, message: Message) -> Result:
        try:
            return Result(message, await self._send(message))
        except (ConfigError, UsageError):
            raise  # they are about the call, and hold for the other messages too
        except MailError as error:
            return Result(message, error=error)

    def _fail(self, error: BaseException) -> None:
        self._ended = True
        if self.error is None:
            self.error = error
