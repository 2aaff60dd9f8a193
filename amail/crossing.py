"""Crossing: takes many coroutines to the background loop, and their outcomes back, in batches.

What is begun in one turn of the caller's loop crosses as one, and so do the outcomes that are there
when they are asked for; one by one, crossing would cost half as much as sending. It is made for one
run in one loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import typing as t

from amail.errors import DeliveryUnknown, UsageError

if t.TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from amail.portal import Portal
    from amail.receipt import Receipt

    Sending = Coroutine[t.Any, t.Any, Receipt]
    # Known in both loops by the future that is awaited in the caller's.
    Place = asyncio.Future[Receipt]

_SHUT_DOWN = "the background loop was shut down meanwhile; delivery is unknown"


class Crossing:
    """``call`` awaits a coroutine on the loop of the portal that ``portal_for`` returns for it."""

    def __init__(self, portal_for: Callable[[Sending], Portal]) -> None:
        self._portal_for = portal_for
        self._waiting: list[tuple[Place, Sending]] = []
        self._under_way: set[Place] = set()
        self._taker: asyncio.Task[None] | None = None
        self._there = _There()

    async def call(self, sending: Sending) -> Receipt:
        """Await a coroutine there. When this is cancelled the coroutine is, as with a Portal."""
        portal = self._portal_for(sending)
        loop = asyncio.get_running_loop()
        place: Place = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._cross, portal)
        self._waiting.append((place, sending))
        try:
            return await place
        except asyncio.CancelledError:
            if place in self._under_way:
                with contextlib.suppress(UsageError):  # then there is nothing left to cancel
                    portal.submit(self._there.cancel(place))
            raise

    def _cross(self, portal: Portal) -> None:
        waiting, self._waiting = self._waiting, []
        batch = {}
        for place, sending in waiting:
            if place.done():
                sending.close()  # its caller has left before it began
            else:
                batch[place] = sending
        try:
            portal.submit(self._there.begin(batch))
        except UsageError as error:
            for place, sending in batch.items():
                sending.close()
                place.set_exception(error)
            return
        self._under_way.update(batch)
        if self._taker is None:
            self._taker = asyncio.create_task(self._take(portal))

    async def _take(self, portal: Portal) -> None:
        """Bring back outcomes as long as there are any to come."""
        try:
            while self._under_way:
                for place, outcome in await portal.call(self._there.outcomes()):
                    self._settle(place, outcome)
        except (DeliveryUnknown, UsageError):
            for place in list(self._under_way):
                self._settle(place, DeliveryUnknown(_SHUT_DOWN))
        finally:
            self._taker = None

    def _settle(self, place: Place, outcome: Receipt | BaseException) -> None:
        self._under_way.discard(place)
        if place.done():  # its caller has left
            return
        if isinstance(outcome, BaseException):
            place.set_exception(outcome)
        else:
            place.set_result(outcome)


class _There:
    """The far side. Its coroutines run on the portal's loop, and nothing else touches it."""

    def __init__(self) -> None:
        self._tasks: dict[Place, asyncio.Task[Receipt]] = {}
        self._outcomes: list[tuple[Place, Receipt | BaseException]] = []
        self._some: asyncio.Future[None] | None = None

    async def begin(self, batch: dict[Place, Sending]) -> None:
        for place, sending in batch.items():
            self._tasks[place] = task = asyncio.create_task(sending)
            task.add_done_callback(functools.partial(self._ended, place))

    async def cancel(self, place: Place) -> None:
        if place in self._tasks:
            self._tasks[place].cancel()

    async def outcomes(self) -> list[tuple[Place, Receipt | BaseException]]:
        """Wait for the next one, and return all there are."""
        if not self._outcomes:
            self._some = asyncio.get_running_loop().create_future()
            await self._some
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _ended(self, place: Place, task: asyncio.Task[Receipt]) -> None:
        del self._tasks[place]
        if task.cancelled():
            outcome: Receipt | BaseException = DeliveryUnknown(_SHUT_DOWN)
        else:
            outcome = task.exception() or task.result()
        self._outcomes.append((place, outcome))
        if self._some is not None and not self._some.done():
            self._some.set_result(None)
