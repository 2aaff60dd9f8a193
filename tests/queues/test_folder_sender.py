"""A worker in the background loop of a process: when it begins, and how it ends."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import typing as t

import pytest

from amail import Mailer, MemoryTransport, Portal
from amail.queues.folder import FolderQueue
from amail.queues.folder_sender import FolderSender
from amail.queues.worker import FolderWorker
from tests.queues.test_folder import a_job, rooms
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def queue(tmp_path: Path) -> FolderQueue:
    return FolderQueue(tmp_path / "spool")


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal(drain_timeout=5)
    yield portal
    portal.close(timeout=0)


def sender_over(queue: FolderQueue, portal: Portal, where: t.Any, **options: t.Any) -> FolderSender:
    mailer = Mailer(where)
    return FolderSender(queue, portal, lambda: FolderWorker(queue, mailer, **options))


def test_nothing_is_sent_before_it_is_started(queue: FolderQueue, portal: Portal) -> None:
    memory = MemoryTransport()
    sender = sender_over(queue, portal, memory)
    queue.put(a_job())
    assert sender.drain(0) == 1
    sender.start()
    assert sender.drain(20) == 0
    assert len(memory.messages) == 1


def test_many_threads_start_one_worker(queue: FolderQueue, portal: Portal) -> None:
    made = []

    def new_worker() -> FolderWorker:
        made.append(FolderWorker(queue, Mailer(MemoryTransport())))
        barrier.wait(10)
        return made[-1]

    barrier = threading.Barrier(5)
    sender = FolderSender(queue, portal, new_worker)
    threads = [threading.Thread(target=sender.start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.put(a_job())
    assert sender.drain(20) == 0
    runs = [worker for worker in made if worker._idle.is_set()]
    assert len(runs) == 1


def test_what_is_due_is_drained_and_what_is_for_later_is_left(
    queue: FolderQueue, portal: Portal
) -> None:
    memory = MemoryTransport()
    for number in range(30):
        queue.put(a_job(str(number)))
    queue.put(a_job())
    [claimed] = queue.claim(1)
    queue.defer(claimed, claimed.job, time.time() + 3600)
    sender = sender_over(queue, portal, memory)
    sender.start()
    assert sender.drain(20) == 1
    assert len(memory.messages) == 30


def test_drain_takes_no_longer_than_it_may(queue: FolderQueue, portal: Portal) -> None:
    queue.put(a_job())

    class Waiting(MemoryTransport):
        async def send(self, *args: t.Any, **options: t.Any) -> t.Any:
            await asyncio.Event().wait()

    sender = sender_over(queue, portal, Waiting())
    sender.start()
    began = time.monotonic()
    assert sender.drain(0.1) == 1
    assert time.monotonic() - began < 5


def test_closing_the_loop_waits_for_those_under_way_and_begins_no_other(
    queue: FolderQueue, portal: Portal
) -> None:
    for number in range(20):
        queue.put(a_job(str(number)))
    with aiosmtpd_server() as server:
        sender = sender_over(queue, portal, server.url, concurrency=2)
        sender.start()
        while not server.messages:
            time.sleep(0.01)
        assert portal.close() == 0
        sent = len(server.messages)
    assert sent >= 1
    assert rooms(queue.folder) == ({"new": 20 - sent} if sent < 20 else {})
    assert list((queue.folder / "claimed").iterdir()) == []


def test_after_a_close_it_can_be_started_anew(queue: FolderQueue, portal: Portal) -> None:
    memory = MemoryTransport()
    sender = sender_over(queue, portal, memory)
    for number in range(1, 4):
        sender.start()
        queue.put(a_job())
        assert sender.drain(20) == 0
        assert len(memory.messages) == number
        portal.close()
        assert not sender.has_begun


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_worker_of_its_own(queue: FolderQueue, portal: Portal) -> None:
    with aiosmtpd_server() as server:
        sender = sender_over(queue, portal, server.url)
        sender.start()
        queue.put(a_job())
        assert sender.drain(20) == 0
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert not sender.has_begun
                sender.start()
                queue.put(a_job())
                code = sender.drain(20)
                portal.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        queue.put(a_job())
        assert sender.drain(20) == 0
        assert len(server.messages) == 3
