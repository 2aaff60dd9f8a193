"""The worker of a folder: what it does with what a job comes to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import threading
import time
import typing as t
from dataclasses import replace

import pytest

from amail import (
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeliveryUnknown,
    Mailer,
    MailError,
    MemoryTransport,
    Message,
    MessageRejected,
    NotSent,
    RecipientsRejected,
    Reply,
)
from amail.queues import pack
from amail.queues.folder import FolderQueue
from amail.queues.worker import FolderWorker
from amail.testing import OK, Close, FaultServer, Hang
from tests.messages import ADA
from tests.musts import BODY
from tests.queues.test_folder import a_job, die, only, rooms
from tests.transports.ends import End

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from amail import Receipt
    from amail.testing import Stage

BUSY, GONE = Reply(450, "4.2.0", "greylisted"), Reply(550, "5.1.1", "no such user")


@pytest.fixture
def queue(tmp_path: Path) -> FolderQueue:
    return FolderQueue(tmp_path / "spool")


async def run_once(queue: FolderQueue, mailers: t.Any, **options: t.Any) -> list[t.Any]:
    """Send what is due, and return what it came to."""
    done: list[t.Any] = []
    worker = FolderWorker(queue, mailers, on_done=done.append, **options)
    await worker.run(once=True)
    await worker.aclose()
    return done


@contextlib.asynccontextmanager
async def running(
    queue: FolderQueue, mailers: t.Any, **options: t.Any
) -> AsyncIterator[list[t.Any]]:
    done: list[t.Any] = []
    worker = FolderWorker(queue, mailers, on_done=done.append, **options)
    task = asyncio.create_task(worker.run())
    try:
        yield done
    finally:
        await worker.aclose()
        await task


async def until(condition: t.Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def said(queue: FolderQueue, job: t.Any) -> list[str]:
    return [record.outcome for record in queue.about(job["id"])[1]]


# What it comes to


async def test_what_waits_is_sent_and_gone(queue: FolderQueue) -> None:
    memory = MemoryTransport()
    jobs = [a_job(str(number)) for number in range(20)]
    for job in jobs:
        queue.put(job)
    done = await run_once(queue, Mailer(memory))
    assert {each.message_id for each in done} == {job["id"] for job in jobs}
    assert all(each.outcome == "sent" for each in done)
    assert len(memory.messages) == 20
    assert rooms(queue.folder) == {}
    assert said(queue, jobs[0]) == ["accepted"]


def _has(done: t.Sized, number: int) -> bool:
    return len(done) == number


async def test_what_is_put_while_it_runs_is_sent_at_once(queue: FolderQueue) -> None:
    memory = MemoryTransport()
    async with running(queue, Mailer(memory)) as done:
        await until((queue.folder / "new").exists)
        for number in range(1, 11):
            before = time.monotonic()
            await asyncio.to_thread(queue.put, a_job())
            await until(functools.partial(_has, done, number))
            assert time.monotonic() - before < 0.9  # it is told, and does not only look
    assert len(memory.messages) == 10


async def test_what_another_process_puts_is_found(queue: FolderQueue) -> None:
    memory = MemoryTransport()
    async with running(queue, Mailer(memory)) as done:
        await until((queue.folder / "new").exists)
        FolderQueue(queue.folder).put(a_job())
        await until(lambda: done)
    assert len(memory.messages) == 1


async def test_as_many_are_under_way_as_it_may_have(queue: FolderQueue) -> None:
    for number in range(10):
        queue.put(a_job(str(number)))
    async with (
        FaultServer(final=Hang()) as server,
        Mailer(server.url, max_connections=9) as mailer,
        running(queue, mailer, concurrency=3) as done,
    ):
        await server.reached("final", 3)
        assert rooms(queue.folder) == {"claimed": 3, "new": 7}
        server.change(final=OK)
        server.release()
        await until(lambda: len(done) == 10)
        assert server.connections <= 3


async def test_a_message_that_was_rejected_is_told_and_never_tried_again(
    queue: FolderQueue, caplog: pytest.LogCaptureFixture
) -> None:
    job, end = a_job(), End("end", MessageRejected("no", reply=GONE))
    queue.put(job)
    [error] = await run_once(queue, Mailer(end))
    assert isinstance(error, MessageRejected)
    assert rooms(queue.folder) == {}
    assert said(queue, job) == ["rejected"]
    assert "given up: MessageRejected" in caplog.text
    assert "bob@" not in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("lost", retryable=True),
        NotSent("a disk is full there"),
        MessageRejected("not now", reply=BUSY, retryable=True),
    ],
    ids=["lost", "not sent", "4yz"],
)
async def test_what_was_not_taken_is_tried_again_later(
    queue: FolderQueue, error: MailError
) -> None:
    job, end = a_job(), End("end", error)
    queue.put(job)
    pauses = []
    for tries in (1, 2, 3, 4):
        before = time.time()
        assert await run_once(queue, Mailer(end), first=60, longest=200) == []
        found = only(queue)
        assert (found.state, found.tries, len(end.tried)) == ("waiting", tries, tries)
        pauses.append(found.due - before)
        found.path.rename(found.path.with_name(f"{0:013d}{found.path.name[13:]}"))
    for pause, longest in zip(pauses, (60, 120, 200, 200), strict=True):
        assert longest / 2 <= pause <= longest + 5
    end.from_now_on()
    [handled] = await run_once(queue, Mailer(end))
    assert handled.outcome == "sent"
    assert said(queue, job) == [*["deferred"] * 4, "accepted"]


async def test_what_would_be_tried_again_past_its_expiry_is_given_up(queue: FolderQueue) -> None:
    job, end = a_job(expires=time.time() + 10), End("end", ConnectionLost("lost", retryable=True))
    queue.put(job)
    [error] = await run_once(queue, Mailer(end))
    assert isinstance(error, ConnectionLost)
    assert rooms(queue.folder) == {}
    assert said(queue, job) == ["not_sent"]


async def test_what_has_expired_is_not_sent_and_told(queue: FolderQueue) -> None:
    job, end = a_job(expires=time.time() - 1), End("end")
    queue.put(job)
    [error] = await run_once(queue, Mailer(end))
    assert isinstance(error, NotSent)
    assert (str(error), error.message_id) == ("it expired in the queue", job["id"])
    assert (end.tried, rooms(queue.folder), said(queue, job)) == ([], {}, ["expired"])


async def test_recipients_refused_for_the_time_being_are_tried_again_and_no_others(
    queue: FolderQueue,
) -> None:
    def some(receipt: Receipt) -> Receipt:
        refused = {"b@x.org": GONE, "c@x.org": BUSY}
        return replace(receipt, accepted=("a@x.org",), refused=refused)

    message = Message("Hello", ["a@x.org", "b@x.org", "c@x.org"], "Hi", sender=ADA)
    queue.put(job := pack(message))
    [handled] = await run_once(queue, Mailer(End("end", some)))
    assert handled.outcome == "sent"
    assert only(queue).job()["env"]["to"] == ["c@x.org"]
    assert only(queue).tries == 1

    queue.retry(only(queue))
    nobody = RecipientsRejected("no", refused={"c@x.org": BUSY}, retryable=True)
    assert await run_once(queue, Mailer(End("end", nobody))) == []
    assert only(queue).job()["env"]["to"] == ["c@x.org"]
    assert said(queue, job) == ["accepted", "deferred", "deferred"]


async def test_what_is_unknown_is_parked_told_and_never_sent_again_by_itself(
    queue: FolderQueue, caplog: pytest.LogCaptureFixture
) -> None:
    job = a_job()
    queue.put(job)
    async with FaultServer(final=Close()) as server, Mailer(server.url) as mailer:
        [error] = await run_once(queue, mailer)
        assert isinstance(error, DeliveryUnknown)
        assert rooms(queue.folder) == {"unknown": 1}
        server.change(final=OK)
        before = len(server.messages)
        assert await run_once(queue, mailer) == []
        assert len(server.messages) == before
        assert queue.retry(only(queue))
        [handled] = await run_once(queue, mailer)
        assert len(server.messages) == before + 1
    assert handled.outcome == "sent"
    assert server.messages[-1].content == job["mime"].encode()
    assert "is parked" in caplog.text


async def test_of_what_is_unknown_those_refused_for_the_time_being_are_tried_again(
    queue: FolderQueue,
) -> None:
    message = Message("Hello", ["a@x.org", "b@x.org"], "Hi", sender=ADA)
    queue.put(pack(message))
    end = End("end", DeliveryUnknown("?", refused={"b@x.org": BUSY}, recipients=("a@x.org",)))
    [error] = await run_once(queue, Mailer(end))
    assert isinstance(error, DeliveryUnknown)
    states = {each.state: each.job()["env"]["to"] for each in queue.jobs()}
    assert states == {"waiting": ["b@x.org"], "unknown": ["a@x.org", "b@x.org"]}


async def test_a_server_that_is_down_costs_no_tries_and_holds_up_no_other_mailer(
    queue: FolderQueue, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        queue.put(a_job(str(number), mailer="down"))
    queue.put(a_job(mailer="up"))
    down, memory = End("down", ConnectError("refused", stage="connect")), MemoryTransport()
    mailers = {"down": Mailer(down), "up": Mailer(memory)}
    async with running(queue, mailers, concurrency=2) as done:
        await until(lambda: done)
        await until(lambda: rooms(queue.folder) == {"new": 5})
        assert len(down.tried) <= 2
        assert {each.tries for each in queue.jobs()} == {0}
        assert "down cannot be used, and is left alone for" in caplog.text
        down.from_now_on()
        await until(lambda: len(done) == 6)
    assert len(memory.messages) == 1


async def test_a_mailer_that_this_process_does_not_have_leaves_its_jobs_waiting(
    queue: FolderQueue,
) -> None:
    queue.put(job := a_job(mailer="elsewhere"))

    def find(name: str) -> Mailer:
        raise ConfigError(f"there is no {name}")

    ways: list[t.Any] = [{}, find]
    for mailers in ways:
        assert await run_once(queue, mailers) == []
        assert rooms(queue.folder) == {"new": 1}
    assert set(said(queue, job)) == {"deferred"}


async def test_a_fault_of_ours_costs_no_message(
    queue: FolderQueue, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryTransport):
        async def send(self, *args: t.Any, **options: t.Any) -> Receipt:
            raise ZeroDivisionError

    queue.put(a_job())
    assert await run_once(queue, Mailer(Broken())) == []
    assert only(queue).state == "waiting"
    assert "the try failed" in caplog.text


async def test_what_on_done_raises_is_logged_and_harms_nobody(
    queue: FolderQueue, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(ended: object) -> None:
        raise ZeroDivisionError

    for number in range(3):
        queue.put(a_job(str(number)))
    worker = FolderWorker(queue, Mailer(MemoryTransport()), on_done=fail)
    await worker.run(once=True)
    assert rooms(queue.folder) == {}
    assert caplog.text.count("on_done failed") == 3


# When it ends


async def test_those_under_way_may_end_and_no_other_is_begun(queue: FolderQueue) -> None:
    for number in range(5):
        queue.put(a_job(str(number)))
    async with FaultServer(final=Hang()) as server, Mailer(server.url) as mailer:
        done: list[t.Any] = []
        worker = FolderWorker(queue, mailer, concurrency=2, on_done=done.append)
        task = asyncio.create_task(worker.run())
        await server.reached("final", 2)
        ending = asyncio.create_task(worker.aclose(drain=20))
        await asyncio.sleep(0)
        server.release()
        await ending
        await task
    assert [each.outcome for each in done] == ["sent"] * 2
    assert rooms(queue.folder) == {"new": 3}
    assert list((queue.folder / "claimed").iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "room"), [("mail", "new"), ("data", "new"), ("final", "unknown")]
)
async def test_what_is_under_way_after_that_waits_again_or_is_unknown(
    queue: FolderQueue, stage: Stage, room: str
) -> None:
    queue.put(a_job())
    script: dict[str, t.Any] = {stage: Hang()}
    async with FaultServer(**script) as server, Mailer(server.url) as mailer:
        worker = FolderWorker(queue, mailer)
        task = asyncio.create_task(worker.run())
        await server.reached(stage)
        await worker.aclose(drain=0)
        await task
    assert rooms(queue.folder) == {room: 1}


async def test_a_worker_that_is_cancelled_leaves_its_jobs_to_others(queue: FolderQueue) -> None:
    queue.put(a_job())
    async with FaultServer(mail=Hang()) as server, Mailer(server.url) as mailer:
        task = asyncio.create_task(FolderWorker(queue, mailer).run())
        await server.reached("mail")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert rooms(queue.folder) == {"new": 1}


async def test_what_is_being_claimed_when_a_worker_is_cancelled_is_not_held_for_ever(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(a_job())
    claim, claiming, go_on = queue.claim, threading.Event(), threading.Event()

    def slowly(*args: t.Any) -> t.Any:
        claimed = claim(*args)
        claiming.set()
        go_on.wait(20)
        return claimed

    monkeypatch.setattr(queue, "claim", slowly)
    task = asyncio.create_task(FolderWorker(queue, Mailer(MemoryTransport())).run())
    await until(claiming.is_set)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    memory = MemoryTransport()
    await run_once(FolderQueue(queue.folder), Mailer(memory))
    assert len(memory.messages) == 1


async def test_a_worker_that_is_closed_before_it_runs_claims_nothing(queue: FolderQueue) -> None:
    queue.put(a_job())
    worker = FolderWorker(queue, Mailer(MemoryTransport()))
    await worker.aclose()
    await worker.run()
    assert rooms(queue.folder) == {"new": 1}


async def test_what_is_claimed_while_it_ends_waits_again(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(a_job())
    claim = queue.claim
    loop = asyncio.get_running_loop()

    def slowly(*args: t.Any) -> t.Any:
        claimed = claim(*args)
        closing.append(asyncio.run_coroutine_threadsafe(worker.aclose(), loop))
        while not worker._is_ending:
            time.sleep(0.001)
        return claimed

    closing: list[t.Any] = []
    monkeypatch.setattr(queue, "claim", slowly)
    memory = MemoryTransport()
    worker = FolderWorker(queue, Mailer(memory))
    await worker.run()
    await asyncio.wrap_future(closing[0])
    assert (memory.messages, rooms(queue.folder)) == ([], {"new": 1})


# What others left


async def test_what_a_dead_worker_had_is_seen_to(queue: FolderQueue) -> None:
    for number in range(3):
        queue.put(a_job(str(number)))
    [first, _] = queue.claim(2)
    first.mark()
    die(queue)
    memory = MemoryTransport()
    done = await run_once(FolderQueue(queue.folder), Mailer(memory))
    assert len(memory.messages) == 2
    [unknown] = [each for each in done if isinstance(each, DeliveryUnknown)]
    assert unknown.message_id == first.job["id"]
    assert rooms(queue.folder) == {"unknown": 1}


async def test_two_workers_send_each_job_once(queue: FolderQueue) -> None:
    memory = MemoryTransport()
    for number in range(200):
        queue.put(a_job(str(number)))
    workers = [(FolderQueue(queue.folder), Mailer(memory)) for _ in range(2)]
    done = await asyncio.gather(*(run_once(*each) for each in workers))
    assert sum(map(len, done)) == len(memory.messages) == 200
    assert len({each.content.message_id for each in memory.messages}) == 200
    assert rooms(queue.folder) == {}


# The disk


async def test_a_disk_that_is_full_after_the_server_took_it_makes_no_second_copy(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def some(receipt: Receipt) -> Receipt:
        return replace(receipt, accepted=("a@x.org",), refused={"b@x.org": BUSY})

    class Filling(End):
        async def send(self, *args: t.Any, **options: t.Any) -> Receipt:
            receipt = await super().send(*args, **options)
            patched.setattr(os, "fsync", full)
            return receipt

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = Message("Hello", ["a@x.org", "b@x.org"], "Hi", sender=ADA)
    queue.put(pack(message))
    end = Filling("end", some)
    with monkeypatch.context() as patched:
        patched.setattr("amail.queues.worker._DISK_SECONDS", 0.01)
        async with running(queue, Mailer(end)) as done:
            await until(lambda: caplog.text.count("nothing can be noted") > 2)
            assert rooms(queue.folder) == {"claimed": 1}
            patched.undo()
            await until(lambda: done)
    assert len(end.tried) == 1
    assert only(queue).job()["env"]["to"] == ["b@x.org"]


async def test_a_folder_that_cannot_be_written_is_said_once_and_looked_at_again(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put(a_job())
    memory = MemoryTransport()

    def read_only(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr("amail.queues.worker._POLL_SECONDS", 0.01)
        patched.setattr(os, "rename", read_only)
        patched.setattr(type(queue.folder), "rename", read_only)
        async with running(queue, Mailer(memory)) as done:
            await until(lambda: "nothing can be claimed" in caplog.text)
            await asyncio.sleep(0.1)
            assert caplog.text.count("nothing can be claimed") == 1
            patched.undo()
            await until(lambda: done)
    assert len(memory.messages) == 1


async def test_a_folder_that_cannot_be_used_ends_a_run_that_is_to_end(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(OSError):
        await run_once(FolderQueue(tmp_path / "spool"), Mailer(MemoryTransport()))


async def test_what_waits_is_not_overlooked_in_a_large_folder_that_was_just_looked_at(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amail.queues.folder._LARGE", 5)
    monkeypatch.setattr("amail.queues.folder._REST", 1_000)
    monkeypatch.setattr("amail.queues.worker._POLL_SECONDS", 0.05)
    for number in range(20):
        queue.put(a_job(str(number), mailer="down" if number < 10 else "up"))
    memory = MemoryTransport()
    mailers = {"down": Mailer(End("down", ConnectError("no"))), "up": Mailer(memory)}
    worker = FolderWorker(queue, mailers)
    task = asyncio.create_task(worker.run())
    await worker.until_idle()
    assert len(memory.messages) == 10
    for number in range(10):
        await asyncio.to_thread(queue.put, a_job(str(number), mailer="up"))
    await worker.until_idle()
    assert len(memory.messages) == 20
    await worker.aclose()
    await task


async def test_nothing_is_sent_that_could_not_be_noted(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(a_job())
    async with FaultServer() as server, Mailer(server.url) as mailer:
        rename = type(queue.folder).rename

        def refuse_marks(path: Path, target: Path) -> Path:
            if target.name.endswith(".out"):
                raise OSError(errno.EROFS, "Read-only file system")
            return rename(path, target)

        monkeypatch.setattr(type(queue.folder), "rename", refuse_marks)
        assert await run_once(queue, mailer) == []
        assert server.messages == []
    found = only(queue)
    assert (found.state, found.tries) == ("waiting", 1)


def test_a_worker_that_cannot_work_is_a_config_error(queue: FolderQueue) -> None:
    for options in ({"concurrency": 0}, {"first": 0}, {"longest": -1}, {"time_limit": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            FolderWorker(queue, {}, **t.cast("dict[str, t.Any]", options))


async def test_no_body_is_logged(queue: FolderQueue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "amail")
    for error in (ConnectionLost(BODY[:5]), MessageRejected("no", reply=GONE)):
        queue.put(a_job())
        await run_once(queue, Mailer(End("end", error)))
    assert BODY not in caplog.text
