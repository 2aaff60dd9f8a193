"""FolderSender: a FolderWorker in the background loop of each process that uses a folder.

Invariant: one worker a process, begun when it is first needed, in a forked child too. When the loop
is closed no job is begun any more, and those under way have its drain timeout to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import typing as t
from concurrent import futures

from amail.errors import UsageError
from amail.frames import first_place

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail.portal import Portal
    from amail.queues.folder import FolderQueue
    from amail.queues.worker import FolderWorker

_logger = logging.getLogger("amail.queue")


class FolderSender:
    """Has what waits in ``queue`` sent, on the loop of ``portal``, by what ``new_worker`` makes."""

    def __init__(
        self, queue: FolderQueue, portal: Portal, new_worker: Callable[[], FolderWorker]
    ) -> None:
        self.queue = queue
        self._portal = portal
        self._new_worker = new_worker
        self._begun: dict[int, FolderWorker] = {}  # by process, as the next one
        self._ending: dict[int, futures.Future[None]] = {}
        self._run: asyncio.Task[None] | None = None

    @property
    def has_begun(self) -> bool:
        """True where this process has a worker."""
        return os.getpid() in self._begun

    def start(self) -> None:
        """Have a worker in this process, if it has none.

        Where no loop can be started any more there is none: what waits is for the next process.
        """
        if self.has_begun:
            return
        pid, worker = os.getpid(), self._new_worker()
        if self._begun.setdefault(pid, worker) is not worker:
            return  # another thread was faster
        try:
            self._portal.submit(self._start(worker))
            self._portal.at_drain(self.end)
        except UsageError:
            del self._begun[pid]

    def drain(self, timeout: float | None) -> int:
        """Wait up to so many seconds until nothing is due; return how many jobs are left.

        None is as long as it takes. After ``end`` only those under way are waited for.
        """
        pid = os.getpid()
        worker, ending = self._begun.get(pid), self._ending.get(pid)
        if worker is not None:
            waiting = self._portal.submit(worker.until_idle())
            futures.wait([waiting], timeout)
            waiting.cancel()
        elif ending is not None:
            futures.wait([ending], timeout)
        return sum(found.state in {"waiting", "claimed"} for found in self.queue.jobs())

    def end(self) -> None:
        """Begin no job any more in this process, until it is started anew.

        Those under way go on, and the portal's ``drain`` waits for them.
        """
        worker = self._begun.pop(os.getpid(), None)
        if worker is not None:
            with contextlib.suppress(UsageError):
                self._ending[os.getpid()] = self._portal.submit(worker.aclose(None))

    async def _start(self, worker: FolderWorker) -> None:
        self._run = asyncio.create_task(worker.run())
        self._run.add_done_callback(self._ended)

    def _ended(self, run: asyncio.Task[None]) -> None:
        if not run.cancelled() and (error := run.exception()) is not None:
            text = "%s: nothing is sent any more by this process: %s in %s"
            _logger.error(text, self.queue.folder, type(error).__name__, first_place(error))
