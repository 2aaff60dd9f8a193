"""A blocking call in a daemon thread of its own, awaited.

Not in the loop's executor: its threads hold the exit of the process until each call has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Callable

T = t.TypeVar("T")


async def in_daemon_thread(function: Callable[[], T], name: str) -> T:
    """Call a function in a thread with that name and return what it returns, or raise what it does.

    Cancelling this lets the thread finish by itself. Where no thread can be started any more (the
    interpreter is shutting down) the executor's may be running already.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not done.done():
            outcome()

    def call() -> None:
        outcome: Callable[[], None]
        try:
            outcome = functools.partial(done.set_result, function())
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            outcome = functools.partial(done.set_exception, error)
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    try:
        threading.Thread(target=call, name=name, daemon=True).start()
    except RuntimeError:
        return await loop.run_in_executor(None, function)
    return await done
