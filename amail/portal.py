"""Portal: one event loop in the background of a process, for callers that have none of their own.

    portal = Portal()
    receipt = await portal.call(mailer.send(message))      # from any other loop
    receipt = portal.call_sync(mailer.send(message))       # from any thread without one

The loop's thread is started at the first call, in the process that calls: after a fork the child
starts its own and lets the parent's alone. At exit what was submitted has time to finish, while
name resolution still works. Invariant: a portal never blocks a thread that runs an event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import concurrent.futures.thread  # its exit hook has to be registered before ours, to run after it
import contextlib
import contextvars
import logging
import os
import threading
import typing as t
import weakref

from amail.errors import ConfigError, DeliveryUnknown, UsageError

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

_logger = logging.getLogger("amail")

T = t.TypeVar("T")

_RESOLVERS = 2
_JOIN_SECONDS = 3.0


class Portal:
    """A background loop. Thread-safe.

    ``drain_timeout`` is how many seconds what was submitted may take when the process exits or the
    portal is closed.
    """

    def __init__(self, *, drain_timeout: float = 10.0) -> None:
        if isinstance(drain_timeout, bool) or not 0 <= drain_timeout < float("inf"):
            raise ConfigError("drain_timeout: must be a number of seconds from 0")
        self.drain_timeout = drain_timeout
        self._finalizer: weakref.finalize[t.Any, t.Any] | None = None
        self._start_anew()
        _portals.add(self)

    def _start_anew(self) -> None:
        """Be as if just made: the loop of a parent process is not touched."""
        self._lock = threading.RLock()  # a signal handler may call while it is held
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._calls: set[concurrent.futures.Future[t.Any]] = set()
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._leave_loop()

    def __repr__(self) -> str:
        state = "running" if self._loop is not None else "not started"
        return f"<Portal {state}, {len(self._calls)} call(s) under way>"

    @property
    def is_here(self) -> bool:
        """True in code that runs on the portal's own loop."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[t.Any, t.Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the portal's loop, with the caller's context variables.

        Cancelling the future cancels the coroutine.
        """
        try:
            with self._running_loop() as loop:
                call = asyncio.run_coroutine_threadsafe(coroutine, loop)
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
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
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
        """Have something awaited on the portal's loop before that ends, such as ``mailer.aclose``.

        Belongs to this process: say it again after a fork.
        """
        with self._running_loop():
            self._closers.append(closer)

    def drain(self, timeout: float | None = None) -> int:
        """Wait until everything submitted so far is done; return how much is not after that time.

        ``timeout`` in seconds, None for ``drain_timeout``.
        """
        if self._pid != os.getpid():
            return 0
        seconds = self.drain_timeout if timeout is None else timeout
        _, left = concurrent.futures.wait(list(self._calls), timeout=seconds)
        return len(left)

    def close(self, timeout: float | None = None) -> int:
        """Drain, end what is left, stop the loop. A later call starts it again.

        Returns how many calls were ended before they were done. Not for the portal's own thread.
        """
        if self.is_here:
            raise UsageError("a portal cannot be closed from its own loop")
        if self._pid != os.getpid():
            return 0
        left = self.drain(timeout)
        with self._lock:
            loop, thread = self._loop, self._thread
            closers, self._closers = self._closers, []
            self._loop = self._thread = None
            self._leave_loop()
        if loop is None or thread is None or not thread.is_alive():
            return left
        left = sum(call.cancel() for call in list(self._calls))
        if left:
            _logger.error("%d call(s) were not done in time and are ended", left)
        stopping = asyncio.run_coroutine_threadsafe(_close_all(closers), loop)
        try:
            stopping.result(_JOIN_SECONDS + _CLOSER_SECONDS * len(closers))
        except (TimeoutError, concurrent.futures.CancelledError):
            _logger.error("the background loop did not end in time")  # noqa: TRY400 - no traceback helps
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_JOIN_SECONDS)
        return left

    def after_fork(self) -> None:
        """Be a new portal in a child process. Called by itself."""
        self._start_anew()

    def _done(self, call: concurrent.futures.Future[t.Any]) -> None:
        self._calls.discard(call)

    @contextlib.contextmanager
    def _running_loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        """Have the loop, which is not closed in here."""
        if self._pid != os.getpid():
            self._start_anew()  # forked by something that runs no hooks
        with self._lock:
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._start_thread()
            if self._loop is None:
                raise UsageError("the background loop could not be started")
            yield self._loop

    def _leave_loop(self) -> None:
        """Leave the loop as it is, whatever becomes of this portal."""
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None

    def _start_thread(self) -> None:
        started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        # In an empty context: what the first caller's holds shall not live as long as the process.
        self._thread = threading.Thread(
            target=contextvars.Context().run,
            args=(_run_loop, started),
            name="amail-loop",
            daemon=True,
        )
        self._thread.start()
        self._loop = started.result()
        self._leave_loop()
        self._finalizer = weakref.finalize(self, _stop, self._loop)
        self._finalizer.atexit = False
        _register_exit_hook()


_CLOSER_SECONDS = 2.5
_portals: weakref.WeakSet[Portal] = weakref.WeakSet()


def _shut_down() -> DeliveryUnknown:
    return DeliveryUnknown("the background loop was shut down meanwhile; delivery is unknown")


async def _close_all(closers: list[Callable[[], Awaitable[None]]]) -> None:
    for closer in closers:
        try:
            async with asyncio.timeout(_CLOSER_SECONDS):
                await closer()
        except Exception:
            _logger.exception("something could not be closed with the background loop")


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    """End the loop of a portal that was collected, and its thread with it."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(loop.stop)


def _run_loop(started: concurrent.futures.Future[asyncio.AbstractEventLoop]) -> None:
    """Run a loop in this thread until it is stopped.

    Not with asyncio.Runner, which would wait for the resolvers at the end, in a thread that it
    starts: Python 3.12 refuses that once the interpreter shuts down.
    """
    resolvers = concurrent.futures.ThreadPoolExecutor(_RESOLVERS, "amail-resolver")
    loop = asyncio.new_event_loop()
    try:
        # Started now for the same reason: names have to be resolved for what is still drained.
        barrier = threading.Barrier(_RESOLVERS + 1)
        for _ in range(_RESOLVERS):
            resolvers.submit(barrier.wait)
        barrier.wait()
        loop.set_default_executor(resolvers)
        asyncio.set_event_loop(loop)
        loop.call_soon(started.set_result, loop)
        loop.run_forever()
        _cancel_all(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
    except BaseException as error:
        if not started.done():
            started.set_exception(error)
        raise
    finally:
        asyncio.set_event_loop(None)
        loop.close()  # which lets the resolvers go without waiting for them


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))


_exit_hook_registered = threading.Event()


def _register_exit_hook() -> None:
    """Have every portal closed before the interpreter refuses new work to executors.

    atexit runs after that, so it is only the second choice where Python's own hook is gone.
    """
    if _exit_hook_registered.is_set():
        return
    _exit_hook_registered.set()
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
