"""A disk that is full, and one that is read-only, as they are: a small file system of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import typing as t

import pytest

from amail import Mailer, MemoryTransport, NotSent, QueueFull
from amail.queues.folder import FolderQueue
from tests.queues.test_folder import a_job, rooms
from tests.queues.test_worker import running, until

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.servers


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system")
    try:
        _run("mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", folder)
    except subprocess.CalledProcessError:
        pytest.skip("no file system can be mounted here")
    yield folder
    with contextlib.suppress(subprocess.CalledProcessError):
        _run("umount", folder)


def fill(disk: Path) -> Path:
    """Leave not an octet free."""
    ballast = disk / "ballast"
    with pytest.raises(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return ballast


async def test_on_a_full_disk_who_queues_is_told_and_what_waits_is_sent_once(disk: Path) -> None:
    queue = FolderQueue(disk / "spool")
    names = [queue.put(a_job(str(number))) for number in range(10)]
    ballast = fill(disk)
    with pytest.raises(QueueFull, match="No space left on device"):
        queue.put(a_job())
    assert sorted(each.name for each in queue.jobs()) == sorted(names)
    assert list((disk / "spool" / "tmp").iterdir()) == []

    memory = MemoryTransport()
    async with running(queue, Mailer(memory)) as done:
        await until(lambda: len(done) == 10)
        ballast.unlink()
        queue.put(a_job())
        await until(lambda: len(done) == 11)
    assert len({each.content.message_id for each in memory.messages}) == 11
    assert len(memory.messages) == 11
    assert rooms(queue.folder) == {}


async def test_on_a_read_only_disk_nothing_is_queued_and_nothing_is_sent_until_it_can_be_noted(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = FolderQueue(disk / "spool")
    for number in range(5):
        queue.put(a_job(str(number)))
    memory = MemoryTransport()
    _run("mount", "-o", "remount,ro", disk)
    with pytest.raises(NotSent, match="Read-only file system"):
        queue.put(a_job())
    async with running(queue, Mailer(memory)) as done:
        await until(lambda: "Read-only file system" in caplog.text)
        assert memory.messages == []
        _run("mount", "-o", "remount,rw", disk)
        await until(lambda: len(done) == 5)
    assert len(memory.messages) == 5
    assert rooms(queue.folder) == {}
