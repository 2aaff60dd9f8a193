"""FolderWorker: sends what waits in a folder. Any number of processes may have one.

Invariant: what a job came to is in the folder before anybody is told of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import random
import time
import typing as t
from collections.abc import Mapping
from dataclasses import dataclass

from amail.errors import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    DeliveryUnknown,
    MailerClosed,
    MailError,
    NotSent,
    PoolTimeout,
    ServerBusy,
    TLSError,
    UsageError,
)
from amail.frames import first_place
from amail.mailer import Mailer
from amail.queues.ended import left_of, said_of
from amail.queues.job import TIMEOUT, Handled, handle, has_expired
from amail.smtp.settings import check_seconds
from amail.transports.retrying import RetryPolicy

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail.queues.folder import Claimed, FolderQueue
    from amail.queues.job import Job
    from amail.queues.journal import Outcome

    Mailers = Mailer | Mapping[str, Mailer] | Callable[[str], Mailer]
    OnDone = Callable[[Handled | MailError], object]

_logger = logging.getLogger("amail.queue")

_POLL_SECONDS = 1.0
_LEAST_SECONDS = 0.05
_RESCUE_SECONDS = 10.0
_DISK_SECONDS = 5.0
_LONGEST_PAUSE = 60.0
# What these say is true of every message of that mailer.
_ABOUT_THE_SERVER = (
    *(ConnectError, ServerBusy, TLSError, AuthenticationError, PoolTimeout, MailerClosed),
    *(ConfigError, UsageError),
)


class FolderWorker:
    """Sends the jobs of ``queue``, ``concurrency`` at once, in the loop that runs ``run``.

    ``mailers`` is a Mailer, or several by the names that jobs have. What was not taken is tried
    again after a pause of between half and all of ``first`` seconds, twice as much each time up to
    ``longest``, until the job expires; where it is the server that cannot be had, all jobs of that
    mailer wait for it. ``on_done`` is called in the loop with what a job came to in the end.

    Raises ConfigError.
    """

    def __init__(
        self,
        queue: FolderQueue,
        mailers: Mailers,
        *,
        concurrency: int = 5,
        first: float = 30.0,
        longest: float = 3600.0,
        time_limit: float = TIMEOUT,
        on_done: OnDone | None = None,
    ) -> None:
        if type(concurrency) is not int or concurrency < 1:
            raise ConfigError("concurrency: must be a whole number from 1")
        check_seconds("time_limit", time_limit)
        self._queue = queue
        self._mailers = mailers
        self._concurrency = concurrency
        self._policy = RetryPolicy(first=first, longest=longest)
        self._time_limit = time_limit
        self._on_done = on_done
        self._tasks: set[asyncio.Task[None]] = set()
        self._outages: dict[str, _Outage] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopped.set()
        self._rescue_at = 0.0
        self._is_ending = False
        self._said = ""

    async def run(self, *, once: bool = False) -> None:
        """Send what is due, and what comes to be, until this is cancelled or ``aclose`` is called.

        With ``once`` return when nothing is due any more, and raise OSError where the folder cannot
        be used. Not to be run again once it is closed.
        """
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._woken)

        self._stopped.clear()
        self._queue.at_put(wake)
        try:
            while not self._is_ending:
                self._wake.clear()
                claimed = await self._claim(once=once)
                for each in claimed:
                    await self._begin(each)
                if not self._tasks and not self._wake.is_set() and self._queue.is_sure:
                    self._idle.set()
                    if once:
                        return
                await self._rest()
        finally:
            self._queue.not_at_put(wake)
            self._stopped.set()
            if not self._is_ending:
                await self._end_tasks()
                await asyncio.to_thread(self._queue.close)

    async def until_idle(self) -> None:
        """Wait until nothing is under way and nothing is due of those that can be sent now."""
        await self._idle.wait()

    async def aclose(self, drain: float | None = 4.0) -> None:
        """Take no more jobs, give those under way so many seconds to end, and end ``run``.

        None for as long as they take.
        """
        self._is_ending = True
        self._wake.set()
        await self._stopped.wait()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain)
        await self._end_tasks()
        self._idle.set()
        await asyncio.to_thread(self._queue.close)

    def _woken(self) -> None:
        """Something was put, or has ended."""
        self._idle.clear()
        self._wake.set()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _rest(self) -> None:
        """Wait until there may be something to do."""
        until = _POLL_SECONDS
        due = self._queue.next_due(self._paused())
        if len(self._tasks) < self._concurrency and due is not None:
            until = min(until, max(_LEAST_SECONDS, due - time.time()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until):
                await self._wake.wait()

    # Claiming

    async def _claim(self, *, once: bool) -> list[Claimed]:
        """Take as many jobs as there is room for."""
        room = self._concurrency - len(self._tasks)
        if room <= 0 or self._is_ending:
            return []
        now = time.monotonic()
        try:
            if now >= self._rescue_at:
                for job in await asyncio.to_thread(self._queue.rescue):
                    self._tell(_died(job))
                self._rescue_at = now + _RESCUE_SECONDS
            claimed = await asyncio.to_thread(self._queue.claim, room, self._paused())
        except OSError as error:
            if once:
                raise
            self._complain(error)
            await asyncio.sleep(_POLL_SECONDS)
            return []
        self._said = ""
        return claimed

    def _paused(self) -> set[str]:
        now = time.monotonic()
        return {name for name, outage in self._outages.items() if now < outage.until}

    def _complain(self, error: OSError) -> None:
        """Say once what is wrong with the folder, until that changes."""
        text = f"{self._queue.folder}: nothing can be claimed: {error}"
        if text != self._said:
            self._said = text
            _logger.error("%s", text)

    async def _begin(self, claimed: Claimed) -> None:
        if self._is_ending:  # meanwhile
            await self._leave(claimed)
            return
        self._idle.clear()
        task = asyncio.create_task(self._see_to(claimed))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            text = "a job could not be seen to its end: %s in %s"
            _logger.error(text, type(error).__name__, first_place(error))

    # One job

    async def _see_to(self, claimed: Claimed) -> None:
        try:
            ended = await self._try(claimed)
        except asyncio.CancelledError:
            await self._leave(claimed)
            raise
        if isinstance(ended, Handled):
            await self._handled(claimed, ended)
        else:
            await self._failed(claimed, ended)

    async def _try(self, claimed: Claimed) -> Handled | MailError:
        if has_expired(claimed.job):
            return Handled("expired", claimed.job["id"])
        try:
            mailer = self._mailer(claimed.job["mailer"])
            return await handle(
                claimed.job, mailer, time_limit=self._time_limit, before_last_octet=claimed.mark
            )
        except MailError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a fault of ours must not cost a message
            # Not with its frames, which hold the content.
            text = f"the try failed: {type(error).__name__} in {first_place(error)}"
            _logger.error("%s: %s", claimed.job["id"], text)  # noqa: TRY400
            kind = DeliveryUnknown if claimed.is_marked else NotSent
            return kind(text, message_id=claimed.job["id"])

    def _mailer(self, name: str) -> Mailer:
        mailers = self._mailers
        if isinstance(mailers, Mailer):
            return mailers
        if not isinstance(mailers, Mapping):
            return mailers(name)
        if name not in mailers:
            raise ConfigError(f"there is no mailer {name!r} here; another worker may have it")
        return mailers[name]

    async def _leave(self, claimed: Claimed) -> None:
        """Leave a job in the middle: this worker ends."""
        if claimed.is_marked:
            error = DeliveryUnknown("the worker was ended while it was sent")
            error.message_id = claimed.job["id"]
            await self._park(claimed, error)
        else:
            await self._settled(functools.partial(self._queue.give_back, claimed))

    async def _handled(self, claimed: Claimed, handled: Handled) -> None:
        queue = self._queue
        self._outages.pop(claimed.mailer, None)
        if handled.rest is not None:
            due = self._next_try(claimed)
            await self._settled(functools.partial(queue.divide, claimed, handled.rest, due))
        about: dict[str, t.Any] = {"tries": claimed.tries}
        outcome: Outcome = "expired"
        if (receipt := handled.receipt) is not None:
            outcome = "accepted"
            about = {
                "recipients": len(receipt.accepted),
                "text": str(receipt.reply),
                "relay": receipt.relay,
                "queue_id": receipt.queue_id,
            }
        else:
            _logger.error("%s: expired after %d tries", claimed.job["id"], claimed.tries)
        await self._settled(functools.partial(queue.finish, claimed, outcome, **about))
        self._tell(_expired(claimed.job) if handled.outcome == "expired" else handled)

    async def _failed(self, claimed: Claimed, error: MailError) -> None:
        if isinstance(error, DeliveryUnknown):
            await self._park(claimed, error)
            return
        if isinstance(error, _ABOUT_THE_SERVER):
            why = str(error) if self._pause(claimed, error) else ""
            await self._settled(functools.partial(self._queue.give_back, claimed, why))
            return
        self._outages.pop(claimed.mailer, None)
        rest = left_of(claimed.job, error)
        due = self._next_try(claimed)
        if rest is not None and due < claimed.job.get("exp", math.inf):
            text = "%s: try %d failed, the next one is in %.0f s: %s"
            seconds = due - time.time()
            _logger.info(text, rest["id"], claimed.tries + 1, seconds, said_of(error))
            defer = functools.partial(self._queue.defer, claimed, rest, due, **_about(error))
            await self._settled(defer)
            return
        _logger.error("%s: is given up: %s", claimed.job["id"], said_of(error))
        outcome: Outcome = getattr(error, "outcome", "not_sent")
        await self._settled(
            functools.partial(self._queue.finish, claimed, outcome, **_about(error))
        )
        self._tell(error)

    async def _park(self, claimed: Claimed, error: DeliveryUnknown) -> None:
        rest = left_of(claimed.job, error)
        if rest is not None:
            due = self._next_try(claimed)
            await self._settled(functools.partial(self._queue.divide, claimed, rest, due))
        await self._settled(functools.partial(self._queue.park, claimed, **_about(error)))
        text = "%s: may have been sent or not, and is parked: %s"
        _logger.error(text, claimed.job["id"], said_of(error))
        self._tell(error)

    async def _settled(self, settle: Callable[[], object]) -> None:
        """Have the folder say what became of a job, however long that takes.

        A disk that is full lets nobody go on, and what this process holds is found when it dies.
        """
        while True:
            try:
                await asyncio.to_thread(settle)
            except FileNotFoundError as error:
                _logger.error("a job was removed by somebody while it was sent: %s", error)  # noqa: TRY400
                return
            except OSError as error:
                _logger.error("%s: nothing can be noted: %s", self._queue.folder, error)  # noqa: TRY400
                if self._is_ending:
                    return
                await asyncio.sleep(_DISK_SECONDS)
            else:
                return

    # When

    def _next_try(self, claimed: Claimed) -> float:
        """Return when to try again, in seconds since 1970."""
        longest = self._policy.longest_pause(claimed.tries + 1)
        return time.time() + random.uniform(longest / 2, longest)  # noqa: S311

    def _pause(self, claimed: Claimed, error: MailError) -> bool:
        """Leave a mailer alone for a while; False where it is left alone already."""
        now = time.monotonic()
        outage = self._outages.get(claimed.mailer, _Outage())
        if now < outage.until:
            return False
        longest = min(_LONGEST_PAUSE, 2.0**outage.times)
        seconds = random.uniform(longest / 2, longest)  # noqa: S311
        self._outages[claimed.mailer] = _Outage(now + seconds, min(outage.times + 1, 10))
        text = "%s cannot be used, and is left alone for %.0f s: %s"
        name = claimed.job["mailer"] or "the mailer"
        _logger.warning(text, name, seconds, said_of(error))
        return True

    def _tell(self, ended: Handled | MailError) -> None:
        if self._on_done is not None:
            try:
                self._on_done(ended)
            except Exception:
                _logger.exception("on_done failed")


@dataclass(frozen=True, slots=True)
class _Outage:
    """Until when a mailer is left alone, and how often it was in a row."""

    until: float = 0.0
    times: int = 0


def _expired(job: Job) -> NotSent:
    return NotSent("it expired in the queue", stage="pool", message_id=job["id"])


def _died(job: Job) -> DeliveryUnknown:
    text = "the process that sent it died; the server may hold the message"
    error = DeliveryUnknown(text, message_id=job["id"], recipients=tuple(job["env"]["to"]))
    _logger.error("%s: may have been sent or not, and is parked: its process died", job["id"])
    return error


def _about(error: MailError) -> dict[str, t.Any]:
    return {"text": str(error), "relay": getattr(error, "relay", None)}
