"""The background loop in a process whose threads gevent has made greenlets.

A loop in a greenlet would be taken for the running loop of every greenlet of its thread. So this
one has a thread of the operating system, made of what gevent has replaced and kept. Invariant: that
thread takes no lock that greenlets take, for a greenlet that waits while another thread has it may
wait for ever. So results are handed to the waiting greenlet's hub, and log records to the first's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import sys
import threading
import typing as t

from amail.background import BackgroundLoop, run_until_stopped
from amail.threads import in_daemon_thread, original, start_daemon, threads_are_greenlets

if t.TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = t.TypeVar("T")

_LOGGERS = ("amail", "amail.smtp", "amail.pool", "amail.queue", "amail.flask", "asyncio")


def start_loop(name: str) -> BackgroundLoop:
    """Start a loop in a thread, of the operating system in any case.

    Raises RuntimeError where no thread can be started any more, and OSError where too many files
    are open.
    """
    return _NativeLoop(name) if threads_are_greenlets() else BackgroundLoop(name)


class _NativeLoop(BackgroundLoop):
    def _start(self, name: str) -> asyncio.AbstractEventLoop:
        # Locks that block the whole thread, for the moment that starting takes: greenlets that ran
        # meanwhile might wait for one that the caller holds.
        allocate = original("_thread", "allocate_lock")
        starting, self._running = allocate(), allocate()
        starting.acquire()
        self._running.acquire()
        self._ident: int | None = None
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        wake, spawn_greenlet = _waker(ref=False), _spawner()
        came_to: list[asyncio.AbstractEventLoop | Exception] = []

        def settle(what: asyncio.AbstractEventLoop | Exception) -> None:
            came_to.append(what)
            starting.release()

        def run() -> None:
            self._ident = _ident()
            threading.current_thread().name = name  # takes a lock, but nobody else runs yet
            run_until_stopped(lambda: _GreenFreeLoop(spawn_greenlet), settle, settle)

        def ended() -> None:
            for logger in loggers:
                logger.removeFilter(records)
            self._running.release()
            wake(lambda: self._ended.set_result(None))

        loggers, records = [*map(logging.getLogger, _LOGGERS)], _RecordsToGreenlets(spawn_greenlet)
        start_daemon(run, name, ended)
        starting.acquire()
        if isinstance(came_to[0], Exception):
            raise came_to[0]
        records.of_thread = self._ident
        for logger in loggers:
            logger.addFilter(records)
        return came_to[0]

    @property
    def is_alive(self) -> bool:
        return bool(self._running.locked())

    @property
    def is_here(self) -> bool:
        return _ident() == self._ident

    @property
    def ident(self) -> int | None:
        return self._ident

    def join(self, seconds: float) -> None:
        concurrent.futures.wait([self._ended], seconds)
        sys.modules["gevent"].sleep(0)  # what was logged at the end is written now

    def submit(self, coroutine: Coroutine[t.Any, t.Any, T]) -> concurrent.futures.Future[T]:
        call: concurrent.futures.Future[T] = concurrent.futures.Future()
        wake = _waker()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            task = self.loop.create_task(coroutine)
            tasks.append(task)
            task.add_done_callback(lambda task: wake(functools.partial(_settle, call, task)))

        def stop() -> None:
            tasks[0].cancel()

        def stop_if_cancelled(call: concurrent.futures.Future[T]) -> None:
            if call.cancelled():
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self.loop.call_soon_threadsafe(stop)

        self.loop.call_soon_threadsafe(start)
        call.add_done_callback(stop_if_cancelled)
        return call


class _GreenFreeLoop(asyncio.SelectorEventLoop):
    """A loop that neither selects nor calls functions by way of greenlets.

    ``spawn_greenlet`` starts one elsewhere, and may be called in the loop's thread.
    """

    def __init__(self, spawn_greenlet: Callable[..., None]) -> None:
        super().__init__(original("selectors", "DefaultSelector")())
        self.spawn_greenlet = spawn_greenlet

    def run_in_executor(  # type: ignore[override]
        self, executor: concurrent.futures.Executor | None, func: Callable[..., T], *args: t.Any
    ) -> asyncio.Future[T]:
        if executor is not None:
            return super().run_in_executor(executor, func, *args)
        return self.create_task(in_daemon_thread(functools.partial(func, *args), "amail-executor"))

    async def getaddrinfo(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        look_up = functools.partial(original("socket", "getaddrinfo"), *args, **kwargs)
        return await in_daemon_thread(look_up, "amail-resolver")


def _ident() -> int:
    return int(original("_thread", "get_ident")())


def _waker(*, ref: bool = True) -> Callable[[Callable[[], None]], None]:
    """Return what has something done once by the hub of this thread, whichever thread asks.

    With ``ref`` the hub knows that something is to come: one with nothing to wait for gives up.
    """
    hub = sys.modules["gevent"].get_hub()
    watcher = hub.loop.async_(ref=ref)

    def wake(settle: Callable[[], None]) -> None:
        if hub.loop is None:  # destroyed with its thread, so nobody waits there
            settle()
            return
        asked.append(settle)
        watcher.send()

    def woken() -> None:
        watcher.stop()
        watcher.close()
        asked[0]()

    asked: list[Callable[[], None]] = []
    watcher.start(woken)
    return wake


class _RecordsToGreenlets(logging.Filter):
    """Has what is logged in the loop's thread handled by a greenlet, for handlers have locks."""

    def __init__(self, spawn_greenlet: Callable[..., None]) -> None:
        super().__init__()
        self.of_thread: int | None = None
        self._spawn_greenlet = spawn_greenlet

    def filter(self, record: logging.LogRecord) -> bool:
        if _ident() != self.of_thread:
            return True
        self._spawn_greenlet(logging.getLogger(record.name).handle, record)
        return False


def _spawner() -> Callable[..., None]:
    """Return what starts a greenlet in this thread, whichever thread asks."""
    gevent = sys.modules["gevent"]
    hub = gevent.get_hub()

    def spawn_greenlet(function: Callable[..., object], *args: t.Any) -> None:
        if hub.loop is None:  # destroyed with its thread
            function(*args)
        else:
            hub.loop.run_callback_threadsafe(gevent.spawn, function, *args)

    return spawn_greenlet


def _settle(call: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    if task.cancelled():
        call.cancel()
    if not call.set_running_or_notify_cancel():
        return
    error = task.exception()
    if error is None:
        call.set_result(task.result())
    else:
        call.set_exception(error)
