"""The event loops under which the suite is run (row C37)."""

from __future__ import annotations

import asyncio
import sys
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Callable


def eager_loop() -> asyncio.AbstractEventLoop:
    """A loop whose tasks begin to run when they are made (Python 3.12 and later)."""
    loop = asyncio.new_event_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def uvloop_loop() -> asyncio.AbstractEventLoop:
    """A loop of uvloop, which is not needed otherwise."""
    import uvloop

    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "eager": eager_loop,
    "uvloop": uvloop_loop,
}
