"""The ledger in a folder: what holds of every ledger, and what files are there."""

from __future__ import annotations

import json
import os
import stat
import time
import typing as t

import pytest

from amail import ConfigError, Mailer, MemoryTransport, NotSent
from amail.queues import handle, key_of
from amail.queues.folder_ledger import FolderLedger
from amail.queues.ledger import KEPT, Entry
from tests.queues.ledger_facts import *  # noqa: F403 - these are this module's tests too
from tests.queues.ledger_facts import KEY, LEASE, OTHER, a_job
from tests.transports.ends import End

if t.TYPE_CHECKING:
    from pathlib import Path

    from tests.queues.ledger_facts import Later, NewLedger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def new_ledger(folder: Path) -> NewLedger:
    return lambda lease: FolderLedger(folder, lease=lease)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    ahead = 0.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)

    def go_on(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    return go_on


async def test_files_are_the_owners_only_and_say_nothing_of_messages(folder: Path) -> None:
    job = a_job()
    await handle(job, Mailer(MemoryTransport()), FolderLedger(folder))
    [shard] = folder.iterdir()
    assert {stat.S_IMODE(each.stat().st_mode) for each in (folder, shard)} == {0o700}
    assert {stat.S_IMODE(each.stat().st_mode) for each in shard.iterdir()} == {0o600}
    assert {each.name for each in shard.iterdir()} == {key_of(job), "lock", "pruned"}
    assert "bob" not in (shard / key_of(job)).read_text()


async def test_what_is_too_old_to_matter_is_removed(folder: Path, later: Later) -> None:
    ledger = FolderLedger(folder)
    other = KEY[:2] + OTHER[2:]
    await ledger.begin(KEY, "1")
    await ledger.sent(KEY, "1")
    left = folder / KEY[:2] / "0123456789abcdef.part"
    left.write_text("of a process that died")
    later(KEPT + 1)
    await ledger.begin(other, "2")
    assert {each.name for each in (folder / KEY[:2]).iterdir()} == {other, "lock", "pruned"}


async def test_a_file_that_cannot_be_read_is_said_and_taken_for_none(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = FolderLedger(folder)
    await ledger.begin(KEY, "1")
    for octets in (b"", b"\xff", b"[]", b"{}", b'["sent", "1", "soon", []]'):
        (folder / KEY[:2] / KEY).write_bytes(octets)
        caplog.clear()
        assert await ledger.begin(KEY, "2") == Entry("begun")
        assert "cannot be read" in caplog.text


async def test_a_ledger_that_cannot_be_written_has_nothing_sent(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file")
    end = End("end")
    with pytest.raises(NotSent, match="ledger cannot be asked") as caught:
        await handle(a_job(), Mailer(end), FolderLedger(tmp_path / "ledger"))
    assert caught.value.retryable
    assert end.tried == []


async def test_what_was_sent_stays_sent_where_the_ledger_cannot_be_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaking(MemoryTransport):
        async def send(self, *args: t.Any, **options: t.Any) -> t.Any:
            receipt = await super().send(*args, **options)
            for each in folder.rglob("*"):
                if each.is_file():
                    each.unlink()
            for shard in folder.iterdir():
                os.rmdir(shard)
                shard.write_text("a file")
            return receipt

    handled = await handle(a_job(), Mailer(Breaking()), FolderLedger(folder))
    assert handled.outcome == "sent"
    assert "could not be told" in caplog.text


def test_a_ledger_that_cannot_work_is_a_config_error(tmp_path: Path) -> None:
    for folder in ("", None, 5):
        with pytest.raises(ConfigError, match="folder"):
            FolderLedger(t.cast("str", folder))
    with pytest.raises(ConfigError, match="lease"):
        FolderLedger(tmp_path, lease=0)
    with pytest.raises(ConfigError, match="kept"):
        FolderLedger(tmp_path, kept=LEASE - 1)


async def test_a_file_holds_json(folder: Path) -> None:
    await FolderLedger(folder).begin(KEY, "1")
    state, token, until, deferred = json.loads((folder / KEY[:2] / KEY).read_text())
    assert (state, token, deferred) == ("begun", "1", [])
    assert until == pytest.approx(time.time() + LEASE, abs=60)
