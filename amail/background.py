"""BackgroundLoop: an event loop in a daemon thread of its own. Knows no mail.

Invariant: nothing a task raises ends the loop, not even SystemExit; only ``stop`` does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import logging
import sys
import threading
import time
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_logger = logging.getLogger("amail")

T = t.TypeVar("T")

_RESOLVERS = 2
_HELD_UP_SECONDS = 1.0


class BackgroundLoop:
    """A running loop.

    Raises RuntimeError where no thread can be started any more, and OSError where too many files
    are open.
    """

    def __init__(self, name: str) -> None:
        self._asked_at: float | None = None
        self._said = False
        self.loop = self._start(name)

    def _start(self, name: str) -> asyncio.AbstractEventLoop:
        """Start the thread, and return the loop once it runs."""
        started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()

        def run() -> None:
            run_until_stopped(_loop_with_resolvers, started.set_result, started.set_exception)

        # In an empty context: what the first caller's holds shall not live as long as the process.
        self._thread = threading.Thread(
            target=contextvars.Context().run, args=(run,), name=name, daemon=True
        )
        self._thread.start()
        return started.result()

    @property
    def is_alive(self) -> bool:
        """True while the loop runs."""
        return self._thread.is_alive()

    @property
    def is_here(self) -> bool:
        """True in code that runs on this loop."""
        return threading.current_thread() is self._thread

    @property
    def ident(self) -> int | None:
        """The number of the thread, as the operating system's threads are numbered in Python."""
        return self._thread.ident

    def submit(self, coroutine: Coroutine[t.Any, t.Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the loop, with the caller's context variables."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    @property
    def lag(self) -> float:
        """Seconds for which the loop has not come to what it was asked; 0.0 when it has."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else time.monotonic() - asked_at

    def watch(self) -> None:
        """Measure the lag from now on, and say once where a loop that hangs is held up.

        Whatever runs in it should never block: a receiver or a token source that does holds up
        every message of the process.
        """
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self.loop.call_soon_threadsafe(self._answer, context=contextvars.Context())
        elif self.lag > _HELD_UP_SECONDS and not self._said:
            self._said = True
            text = "the background loop has been held up for %.1f s by %s"
            _logger.warning(text, self.lag, self._where())

    def _answer(self) -> None:
        self._asked_at = None
        self._said = False

    def _where(self) -> str:
        frame = sys._current_frames().get(self.ident or 0)
        if frame is None:
            return "nobody knows what"
        return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"

    def stop(self) -> None:
        """Have the loop end once its tasks were cancelled. Returns at once."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)

    def join(self, seconds: float) -> None:
        """Wait until the loop has ended."""
        self._thread.join(seconds)


def run_until_stopped(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    started: Callable[[asyncio.AbstractEventLoop], object],
    failed: Callable[[Exception], object],
) -> None:
    """Make a loop and run it in this thread until it is stopped.

    Not with asyncio.Runner, which would wait for the resolvers at the end, in a thread that it
    starts: Python 3.12 refuses that once the interpreter shuts down.
    """
    try:
        loop = new_loop()
    except Exception as error:  # noqa: BLE001 - raised where the loop is waited for
        failed(error)
        return
    try:
        asyncio.set_event_loop(loop)
        loop.call_soon(started, loop)
        _run_whatever_is_raised(loop)
        _cancel_all(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()  # which lets the resolvers go without waiting for them


def _loop_with_resolvers() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    try:
        loop.set_default_executor(_started_resolvers())
    except RuntimeError:
        loop.close()
        raise
    return loop


def _run_whatever_is_raised(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            loop.run_forever()
        except BaseException:
            # SystemExit, which asyncio lets through. Who awaits the task gets it; others go on.
            _logger.exception("a task in the background loop tried to end it")
        else:
            return


def _started_resolvers() -> concurrent.futures.ThreadPoolExecutor:
    """Return an executor whose threads are running.

    Once the interpreter shuts down no thread can be started, and names have to be resolved for what
    is still being drained.
    """
    resolvers = concurrent.futures.ThreadPoolExecutor(_RESOLVERS, "amail-resolver")
    barrier = threading.Barrier(_RESOLVERS + 1)
    try:
        for _ in range(_RESOLVERS):
            resolvers.submit(barrier.wait)
    except RuntimeError:
        barrier.abort()
        resolvers.shutdown(wait=False)
        raise
    barrier.wait()
    return resolvers


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
