"""Portal: one event loop in the background of a process, for callers that have none of their own.

    portal = Portal()
    receipt = await portal.call(mailer.send(message))      # from any other loop
    receipt = portal.call_sync(mailer.send(message))       # from any thread without one

The loop is started at the first call, in the process that calls: after a fork the child starts its
own and lets the parent's alone. At exit what was submitted has time to finish, while names can
still be resolved. Invariant: a portal never blocks a thread that runs an event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import concurrent.futures.thread  # its exit hook has to be registered before ours, to run after it
import contextlib
import functools
import logging
import os
import threading
import typing as t
import weakref

from amail.errors import ConfigError, DeliveryUnknown, UsageError
from amail.native import start_loop
from amail.threads import check_may_block, loop_is_running

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from amail.background import BackgroundLoop

_logger = logging.getLogger("amail")

T = t.TypeVar("T")

_JOIN_SECONDS = 3.0
_CLOSER_SECONDS = 5.0
_SETTLE_SECONDS = 1.0


class Portal:
    """A background loop. Thread-safe.

    ``drain_timeout`` is how many seconds what was submitted may take when the process exits or the
    portal is closed.
    """

    def __init__(self, *, drain_timeout: float = 10.0) -> None:
        is_number = isinstance(drain_timeout, int | float) and not isinstance(drain_timeout, bool)
        if not is_number or not 0 <= drain_timeout < float("inf"):
            raise ConfigError("drain_timeout: must be a number of seconds from 0")
        self.drain_timeout = drain_timeout
        self._finalizer: weakref.finalize[t.Any, t.Any] | None = None
        self._start_anew()
        _portals.add(self)

    def _start_anew(self) -> None:
        """Be as if just made: the loop of a parent process is not touched."""
        self._lock = threading.RLock()  # a signal handler may call while it is held
        self._pid = os.getpid()
        self._background: BackgroundLoop | None = None
        self._calls: set[concurrent.futures.Future[t.Any]] = set()
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._enders: list[Callable[[], object]] = []
        self._leave_loop()

    def __repr__(self) -> str:
        state = "running" if self._background is not None else "not started"
        return f"<Portal {state}, {len(self._calls)} call(s) under way>"

    @property
    def is_here(self) -> bool:
        """True in code that runs on the portal's own loop."""
        return self._background is not None and self._background.is_here

    @property
    def lag(self) -> float:
        """Seconds for which the loop has not answered, since this or a call asked it first.

        For a monitor that looks every few seconds: far below one unless something holds up the
        loop; then the log says what.
        """
        background = self._background if self._pid == os.getpid() else None
        if background is None or not background.is_alive:
            return 0.0
        background.watch()
        return background.lag

    def submit(self, coroutine: Coroutine[t.Any, t.Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the portal's loop, with the caller's context variables.

        Cancelling the future cancels the coroutine. Raises UsageError where no thread can be
        started any more, because the interpreter is shutting down.
        """
        try:
            with self._running_loop() as background:
                background.watch()
                call = background.submit(coroutine)
                self._calls.add(call)
        except BaseException:
            coroutine.close()
            raise
        call.add_done_callback(self._done)  # which keeps the portal until then
        return call

    async def call(self, coroutine: Coroutine[t.Any, t.Any, T]) -> T:
        """Await a coroutine on the portal's loop. On that loop itself, simply await it.

        When this is cancelled the coroutine is. Raises what it raises, and DeliveryUnknown when the
        portal is shut down meanwhile.
        """
        if self.is_here:
            return await coroutine
        try:
            return await asyncio.wrap_future(self.submit(coroutine))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not ours. A bare CancelledError would pass by every handler of a web framework.
            raise _shut_down() from None

    def call_sync(self, coroutine: Coroutine[t.Any, t.Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the portal's loop and wait for it in this thread.

        Raises UsageError in a thread that runs an event loop, which it would block, and
        TimeoutError after ``timeout`` seconds; then the coroutine is cancelled.
        """
        if loop_is_running():
            coroutine.close()
            raise UsageError("this would block the running event loop; await the async form")
        call = self.submit(coroutine)
        try:
            return call.result(timeout)
        except concurrent.futures.CancelledError:
            raise _shut_down() from None
        except BaseException:
            call.cancel()
            raise

    def at_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Have something awaited on the portal's loop before that ends, while calls still run.

        It is what ends the calls that were not done in time, such as ``transport.aclose``. Belongs
        to this process: say it again after a fork. Each is awaited in a task of its own.
        """
        with self._running_loop():
            self._closers.append(closer)

    def at_drain(self, ender: Callable[[], object]) -> None:
        """Have something called when this is closed, before what was submitted is waited for.

        It is for what would go on submitting. Belongs to this process and this loop, as
        ``at_close`` does.
        """
        with self._running_loop():
            self._enders.append(ender)

    def drain(self, timeout: float | None = None) -> int:
        """Wait until everything submitted so far is done; return how much is not after that time.

        ``timeout`` in seconds, None for ``drain_timeout``. Raises UsageError in a thread that runs
        an event loop.
        """
        self._check_may_block("drain")
        if self._pid != os.getpid():
            return 0
        seconds = self.drain_timeout if timeout is None else timeout
        _, left = concurrent.futures.wait(list(self._calls), timeout=seconds)
        return len(left)

    def close(self, timeout: float | None = None) -> int:
        """Drain, end what is left, stop the loop. A later call starts it again.

        Returns how many calls were ended before they were done. Raises UsageError in a thread that
        runs an event loop, the portal's own among them.
        """
        self._check_may_block("close")
        if self._pid != os.getpid():
            return 0
        enders, self._enders = self._enders, []
        for ender in enders:
            ender()
        self.drain(timeout)
        # Who calls meanwhile waits, and starts the next loop when this one has ended.
        with self._lock:
            background, self._background = self._background, None
            closers, self._closers = self._closers, []
            calls = list(self._calls)
            self._leave_loop()
            if background is None or not background.is_alive:
                return 0
            left = sum(not call.done() for call in calls)
            if left:
                _logger.error("%d call(s) were not done in time and are ended", left)
            _await_closers(background, closers)
            # What the closers ended says by itself what became of it.
            concurrent.futures.wait(calls, timeout=_SETTLE_SECONDS)
            for call in calls:
                call.cancel()
            background.stop()
            background.join(_JOIN_SECONDS)
        return left

    def after_fork(self) -> None:
        """Be a new portal in a child process. Called by itself."""
        self._start_anew()

    def _check_may_block(self, name: str) -> None:
        if self.is_here:
            raise UsageError(f"{name}(): a portal does not wait for its own loop")
        check_may_block(f"portal.{name}")

    def _done(self, call: concurrent.futures.Future[t.Any]) -> None:
        self._calls.discard(call)

    @contextlib.contextmanager
    def _running_loop(self) -> Iterator[BackgroundLoop]:
        """Have the loop, which is not closed in here."""
        if self._pid != os.getpid():
            self._start_anew()  # forked by something that runs no hooks
        with self._lock:
            if self._background is None or not self._background.is_alive:
                self._start()
            if self._background is None:
                raise UsageError("the background loop could not be started")
            yield self._background

    def _start(self) -> None:
        try:
            background = start_loop("amail-loop")
        except (RuntimeError, OSError) as error:
            raise UsageError(f"no background loop can be started: {error}") from error
        if self._background is not None and self._background.is_alive:
            background.stop()  # a signal handler was faster
            return
        self._background = background
        self._leave_loop()
        self._finalizer = weakref.finalize(self, background.stop)
        self._finalizer.atexit = False
        _register_exit_hook()

    def _leave_loop(self) -> None:
        """Leave the loop as it is, whatever becomes of this portal."""
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None


_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


def _shut_down() -> DeliveryUnknown:
    return DeliveryUnknown("the background loop was shut down meanwhile; delivery is unknown")


def _await_closers(
    background: BackgroundLoop, closers: list[Callable[[], Awaitable[None]]]
) -> None:
    closing = background.submit(_close_all(closers))
    try:
        closing.result(_CLOSER_SECONDS + _JOIN_SECONDS)
    except (TimeoutError, concurrent.futures.CancelledError):
        _logger.error("not everything was closed in time")  # noqa: TRY400 - no traceback helps


async def _close_all(closers: list[Callable[[], Awaitable[None]]]) -> None:
    await asyncio.gather(*map(_close, closers))


async def _close(closer: Callable[[], Awaitable[None]]) -> None:
    try:
        async with asyncio.timeout(_CLOSER_SECONDS):
            await closer()
    except Exception:
        _logger.exception("something could not be closed with the background loop")


@functools.cache
def _register_exit_hook() -> None:
    """Have every portal closed before the interpreter refuses new work to executors. Once.

    atexit runs after that, so it is only the second choice where Python's own hook is gone.
    """
    register = getattr(threading, "_register_atexit", None)
    if register is None:
        atexit.register(_close_portals)
        return
    try:
        register(_close_portals)
    except RuntimeError:  # the interpreter is shutting down already
        atexit.register(_close_portals)


def _close_portals() -> None:
    for portal in list(_portals):
        portal.close()


def _forget_parents_portals() -> None:
    for portal in list(_portals):
        portal.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_portals)
