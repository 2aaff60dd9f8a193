"""Kill a process at each of its steps on the folder, one after another, and see what is left.

A step is whatever Python tells its auditors of a path or a descriptor in the folder. What is killed
is a fork, so that each try costs milliseconds. Prints a line for each step; ends with 1 where a
message was lost, or sent twice without being listed as unknown.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import typing as t
from collections import Counter
from dataclasses import replace
from pathlib import Path

from amail import Mailer, MemoryTransport, Message, Reply
from amail.queues import pack
from amail.queues.folder import FolderQueue
from amail.queues.worker import FolderWorker

if t.TYPE_CHECKING:
    from amail import Content, Envelope, Receipt

BUSY = Reply(450, "4.2.0", "greylisted")
JOBS = 3


class Server(MemoryTransport):
    """Takes what is sent, and has it in a file before it says so. Refuses nobody twice."""

    def __init__(self, taken: Path) -> None:
        super().__init__()
        self._taken = taken

    async def send(self, envelope: Envelope, content: Content, **options: t.Any) -> Receipt:
        bytes(content)
        paths = envelope.forward_paths
        accepted = paths if len(paths) == 1 else paths[:1]
        descriptor = os.open(self._taken, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(
            descriptor, "".join(f"{content.message_id} {each}\n" for each in accepted).encode()
        )
        os.close(descriptor)
        receipt = await super().send(envelope, content, **options)
        refused = {path: BUSY for path in paths if path not in accepted}
        return replace(receipt, accepted=accepted, refused=refused)


def messages() -> list[Message]:
    return [
        Message(
            "Hello", ["a@x.org", "b@x.org"][: 1 + number % 2], "Hi", sender="a@y.org",
            message_id=f"<{number}@y.org>",
        )
        for number in range(JOBS)
    ]  # fmt: skip


def work(folder: Path, *, put: bool) -> None:
    """Put the messages, noting which are queued, and send what is due."""
    queue = FolderQueue(folder)
    if put:
        for message in messages():
            queue.put(pack(message))
            with open(folder.with_name("queued"), "a") as file:
                file.write(f"{message.message_id}\n")

    async def run() -> None:
        worker = FolderWorker(queue, Mailer(Server(folder.with_name("taken"))), concurrency=2)
        await worker.run(once=True)
        await worker.aclose()

    asyncio.run(run())


def in_a_fork(folder: Path, *, put: bool, dies_at: int) -> int:
    """Do the work in a process that is killed at a step. Return how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    steps = 0

    def audit(event: str, args: tuple[t.Any, ...]) -> None:
        nonlocal steps
        if event.partition(".")[0] in {"os", "open", "shutil", "fcntl"} and _is_ours(args, folder):
            steps += 1
            if steps == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    try:
        work(folder, put=put)
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def _is_ours(args: tuple[t.Any, ...], folder: Path) -> bool:
    return any(isinstance(each, int) or str(folder.parent) in str(each) for each in args)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def check(folder: Path) -> str:
    """Return what is wrong, "" where nothing is."""
    taken = Counter(lines(folder.with_name("taken")))
    queue = FolderQueue(folder)
    unknown: set[str] = set()
    waiting: set[str] = set()
    for found in queue.jobs():
        job = found.job()
        recipients = {f"{job['id']} {path}" for path in job["env"]["to"]}
        {"unknown": unknown, "waiting": waiting}[found.state].update(recipients)
    for message in messages():
        for path in message.recipients:
            each = f"{message.message_id} {path}"
            if taken[each] > 1:
                return f"{each} was sent {taken[each]} times"
            if taken[each] and each in waiting:
                return f"{each} was sent, and waits to be sent again"
            is_queued = message.message_id in lines(folder.with_name("queued"))
            if is_queued and not taken[each] and each not in unknown | waiting:
                return f"{each} is lost"
    return ""


def main(base: Path, put: bool) -> None:
    step = 0
    while True:
        step += 1
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        folder = base / "spool"
        if not put:
            queue = FolderQueue(folder)
            for message in messages():
                queue.put(pack(message))
            folder.with_name("queued").write_text("\n".join(str(m.message_id) for m in messages()))
        ended = in_a_fork(folder, put=put, dies_at=step)
        if ended == 1:
            sys.exit(f"step {step}: the work failed")
        again = in_a_fork(folder, put=False, dies_at=0)
        wrong = check(folder)
        left = Counter(found.state for found in FolderQueue(folder).jobs())
        sys.stdout.write(f"step {step}: {dict(left)} {wrong}\n")
        if wrong or again:
            sys.exit(1)
        if ended == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "put")
