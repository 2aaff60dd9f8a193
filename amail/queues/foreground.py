"""A worker as a program of its own: until SIGTERM or Ctrl-C, or until nothing is due."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import typing as t

if t.TYPE_CHECKING:
    from amail.queues.worker import FolderWorker


async def run_in_foreground(worker: FolderWorker, *, once: bool) -> None:
    """Run a worker until the process is told to end; those under way end first.

    With ``once`` until nothing is due any more. Being told a second time waits for nobody.
    """
    ending: list[asyncio.Task[None]] = []

    def end() -> None:
        ending.append(asyncio.create_task(worker.aclose(0 if ending else None)))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, end)
    try:
        await worker.run(once=once)
    finally:
        if not ending:
            end()
        await asyncio.wait(ending)
