"""The folder: where a job is at every moment, and who may take it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
import time
import typing as t
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import ConfigError, Message, MessageError, NotSent, QueueFull, UsageError
from amail.queues import folder as folder_module
from amail.queues import pack, unpack
from amail.queues.folder import EXPIRES, FolderQueue, Found
from amail.queues.journal import Record
from amail.queues.report import report
from tests.messages import ADA
from tests.musts import BODY
from tests.strategies import EXAMPLES, nasty_text

if t.TYPE_CHECKING:
    from amail.queues import Job


def a_job(subject: str = "Hello", **about: t.Any) -> Job:
    return pack(Message(subject, ["bob@example.org"], BODY, sender=ADA), **about)


def rooms(folder: Path) -> dict[str, int]:
    """How many jobs are where."""
    found: dict[str, int] = {}
    for each in FolderQueue(folder).jobs():
        room = each.path.parent.name if each.state != "claimed" else "claimed"
        found[room] = found.get(room, 0) + 1
    return found


def only(queue: FolderQueue) -> Found:
    [found] = queue.jobs()
    return found


def die(queue: FolderQueue) -> None:
    """Let go of the lock and of nothing else, as the kernel does for a process that dies."""
    assert queue._claims is not None
    queue._claims.forget()
    queue._claims = None


@pytest.fixture
def queue(tmp_path: Path) -> FolderQueue:
    return FolderQueue(tmp_path / "spool")


# Put


def test_a_job_that_was_put_is_a_file_of_its_owner_only(queue: FolderQueue) -> None:
    job = a_job()
    name = queue.put(job)
    found = only(queue)
    assert (found.name, found.state, found.tries) == (name, "waiting", 0)
    read = found.job()
    assert {**read, "exp": None} == {**job, "exp": None}
    assert read["exp"] == pytest.approx(time.time() + EXPIRES, abs=60)
    for path in (queue.folder, *queue.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_job_keeps_the_expiry_it_came_with(queue: FolderQueue) -> None:
    queue.put(a_job(expires=2_000_000_000))
    assert only(queue).job()["exp"] == 2_000_000_000


def test_what_is_no_job_is_not_put(queue: FolderQueue) -> None:
    with pytest.raises(MessageError, match="v: is not 1"):
        queue.put({**a_job(), "v": 2})
    assert rooms(queue.folder) == {}


def test_the_file_is_on_disk_before_it_has_its_name_and_the_name_before_put_returns(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(a_job())
    synced = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), rooms(queue.folder)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    queue.put(a_job())
    (file, before), (folder, after) = synced
    assert file.endswith(".part")
    assert (before, after) == ({"new": 1}, {"new": 2})
    assert folder == str(queue.folder / "new")


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, QueueFull), (errno.EDQUOT, QueueFull), (errno.EIO, NotSent)],
)
def test_where_the_disk_does_not_take_it_the_caller_is_told_and_nothing_waits(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[NotSent]
) -> None:
    queue.put(a_job())
    outcomes = iter([True, False, True])

    def fsync(descriptor: int) -> None:
        if next(outcomes):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    for _ in ("the file", "its name"):
        with pytest.raises(kind, match=os.strerror(number)) as caught:
            queue.put(a_job())
        assert caught.value.retryable
        assert caught.value.outcome == "not_sent"
        assert str(queue.folder) in str(caught.value)
    assert rooms(queue.folder) == {"new": 1}
    assert list((queue.folder / "tmp").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotSent, match="cannot be queued"):
        FolderQueue(tmp_path / "file" / "spool").put(a_job())


# Claim


def test_a_claimed_job_is_nobody_elses(queue: FolderQueue) -> None:
    names = [queue.put(a_job(str(number))) for number in range(3)]
    other = FolderQueue(queue.folder)
    mine, its = queue.claim(2), other.claim(2)
    assert [each.name for each in (*mine, *its)] == names
    assert queue.claim(5) == other.claim(5) == []
    assert [each.state for each in queue.jobs()] == ["claimed"] * 3


def test_jobs_are_claimed_in_the_order_in_which_they_are_due(queue: FolderQueue) -> None:
    names = [queue.put(a_job(str(number))) for number in range(20)]
    claimed = [each for _ in range(7) for each in queue.claim(3)]
    assert sorted(each.name for each in claimed) == sorted(names)
    stamps = [each.path.name[:13] for each in claimed]
    assert stamps == sorted(stamps)


def test_a_job_that_comes_while_others_wait_is_found(queue: FolderQueue) -> None:
    for _ in range(50):
        name = queue.put(a_job())
        assert [each.name for each in queue.claim(1)] == [name]


def test_a_paused_mailers_jobs_hold_up_nobody_elses(queue: FolderQueue) -> None:
    for _ in range(3):
        queue.put(a_job(mailer="down"))
    name = queue.put(a_job(mailer="up"))
    [down] = queue.claim(1)
    assert [each.name for each in queue.claim(9, {down.mailer})] == [name]
    later = queue.put(a_job(mailer="up"))
    assert [each.name for each in queue.claim(9, {down.mailer})] == [later]
    assert len(queue.claim(9)) == 2


def test_a_deferred_job_waits_until_it_is_due_and_counts_its_tries(queue: FolderQueue) -> None:
    name = queue.put(a_job())
    [claimed] = queue.claim(1)
    queue.defer(claimed, claimed.job, time.time() + 60, text="greylisted")
    assert queue.claim(1) == []
    found = only(queue)
    assert (found.state, found.name, found.tries) == ("waiting", name, 1)
    assert found.due == pytest.approx(time.time() + 60, abs=30)
    assert queue.next_due() in {None, found.due}
    assert queue.retry(found)
    [claimed] = queue.claim(1)
    assert claimed.tries == 0


def test_a_deferred_job_may_be_for_fewer(queue: FolderQueue) -> None:
    message = Message("Hello", ["a@x.org", "b@x.org"], BODY, sender=ADA)
    queue.put(pack(message))
    [claimed] = queue.claim(1)
    fewer = {**claimed.job, "env": {**claimed.job["env"], "to": ["b@x.org"]}}
    queue.defer(claimed, fewer, time.time() - 1)
    [again] = queue.claim(1)
    assert again.name == claimed.name
    assert again.job["env"]["to"] == ["b@x.org"]
    assert unpack(again.job)


def test_what_is_no_job_is_put_aside_and_holds_up_nobody(
    queue: FolderQueue, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [queue.put(a_job()) for _ in range(4)]
    for name, octets in zip(
        bad, (b"", b"\xff", b"[" * 100_000, json.dumps({**a_job(), "v": 9}).encode()), strict=True
    ):
        found = queue.find(name)
        assert found is not None
        found.path.write_bytes(octets)
    good = queue.put(a_job())
    assert [each.name for each in queue.claim(9)] == [good]
    assert rooms(queue.folder) == {"claimed": 1, "corrupt": 4}
    assert caplog.text.count("is no job, and is put aside") == 4
    assert BODY not in caplog.text


def test_files_of_others_in_the_folder_are_left_alone(queue: FolderQueue) -> None:
    queue.put(a_job())
    for room in ("new", "later"):
        (queue.folder / room / "README").write_text("who put this here?")
    assert len(queue.claim(9)) == 1
    assert queue.next_due() is None
    assert (queue.folder / "new" / "README").exists()


def test_who_removes_the_folder_has_it_made_anew(queue: FolderQueue) -> None:
    queue.put(a_job())
    queue.claim(1)
    shutil.rmtree(queue.folder)
    with pytest.raises(OSError):
        queue.claim(1)
    name = queue.put(a_job())
    assert [each.name for each in queue.claim(1)] == [name]


def test_what_cannot_be_claimed_on_disk_is_claimed_later(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [queue.put(a_job()) for _ in range(3)]
    queue.claim(0)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError):
            queue.claim(2)
    assert sorted(each.name for each in queue.claim(9)) == sorted(names)


# What came of it


def test_a_job_that_was_accepted_is_gone_and_the_journal_knows(queue: FolderQueue) -> None:
    job = a_job()
    name = queue.put(job)
    [claimed] = queue.claim(1)
    claimed.mark()
    queue.finish(claimed, "accepted", text="250 ok", relay="mx:25", queue_id="4Xyz")
    assert rooms(queue.folder) == {}
    found, [record] = queue.about(job["id"])
    assert found == []
    assert (record.outcome, record.name, record.queue_id, record.tries) == (
        *("accepted", name, "4Xyz", 1),
    )
    assert record.at == pytest.approx(time.time(), abs=60)


def test_the_journal_forgets_in_time(queue: FolderQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_job()
    queue.put(job)
    [claimed] = queue.claim(1)
    queue.finish(claimed, "accepted")
    real = time.time
    for days, known in ((13, 1), (16, 0)):
        monkeypatch.setattr(time, "time", lambda ahead=days: real() + ahead * 86_400)
        queue.rescue()
        assert len(queue.about(job["id"])[1]) == known


def test_a_line_of_the_journal_that_was_cut_short_costs_no_other(queue: FolderQueue) -> None:
    job = a_job()
    queue.put(job)
    [claimed] = queue.claim(1)
    queue.finish(claimed, "accepted")
    [file] = (queue.folder / "journal").iterdir()
    whole = file.read_bytes()
    for octets in (whole[:-5], b'\n{"a":1}', b"\n[]", b"\n\xff\xfe", b"\nnull"):
        file.write_bytes(octets)
        queue.put(job)
        [claimed] = queue.claim(1)
        queue.finish(claimed, "rejected")
        assert [each.outcome for each in queue.about(job["id"])[1]] == ["rejected"]


def test_what_was_unknown_stays_until_somebody_decides(queue: FolderQueue) -> None:
    names = [queue.put(a_job()) for _ in range(2)]
    for claimed in queue.claim(2):
        claimed.mark()
        queue.park(claimed)
    assert queue.claim(9) == []
    queue.rescue()
    assert rooms(queue.folder) == {"unknown": 2}
    first, second = map(queue.find, names)
    assert first is not None
    assert second is not None
    assert queue.retry(first)
    assert not queue.retry(first)
    assert not queue.drop(first)
    assert queue.drop(second)
    [claimed] = queue.claim(9)
    assert (claimed.tries, claimed.is_marked) == (0, False)


# Who dies


def test_what_a_dead_process_had_claimed_waits_again(queue: FolderQueue) -> None:
    names = [queue.put(a_job()) for _ in range(3)]
    assert len(queue.claim(2)) == 2
    other = FolderQueue(queue.folder)
    assert other.rescue() == []
    assert rooms(queue.folder) == {"claimed": 2, "new": 1}
    die(queue)
    assert other.rescue() == []
    assert rooms(queue.folder) == {"new": 3}
    assert sorted(each.name for each in other.claim(9)) == sorted(names)


def test_what_may_have_been_sent_when_a_process_died_is_parked(queue: FolderQueue) -> None:
    queue.put(a_job())
    job = queue.put(a_job())
    first, second = queue.claim(2)
    second.mark()
    die(queue)
    other = FolderQueue(queue.folder)
    [unknown] = other.rescue()
    assert unknown["id"] == second.job["id"]
    found = other.find(job)
    assert found is not None
    assert found.state == "unknown"
    assert rooms(queue.folder) == {"new": 1, "unknown": 1}
    _, [record] = other.about(unknown["id"])
    assert record.outcome == "unknown"
    assert [each.name for each in other.claim(9)] == [first.name]


def test_what_was_seen_to_its_end_before_the_process_died_is_not_unknown(
    queue: FolderQueue,
) -> None:
    queue.put(a_job())
    [claimed] = queue.claim(1)
    claimed.mark()
    copy = claimed.path.read_bytes()
    queue.finish(claimed, "accepted")
    claimed.path.write_bytes(copy)  # killed between the two
    die(queue)
    assert FolderQueue(queue.folder).rescue() == []
    assert rooms(queue.folder) == {}


@pytest.mark.parametrize("boot", ["0123456789abcdef", ""])
def test_after_another_boot_whatever_was_claimed_may_have_been_sent(
    queue: FolderQueue, boot: str
) -> None:
    """A mark is a name that changes, which a power cut can take back."""
    queue.put(a_job())
    queue.claim(1)
    die(queue)
    [folder] = (queue.folder / "claimed").iterdir()
    folder.rename(folder.with_name(f"{boot}-{folder.name.rpartition('-')[2]}"))
    assert len(FolderQueue(queue.folder).rescue()) == 1
    assert rooms(queue.folder) == {"unknown": 1}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_neither_has_nor_holds_its_parents_claims(queue: FolderQueue) -> None:
    queue.put(a_job())
    queue.claim(1)
    (ready, tell), (held, release) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        code = 0 if queue._claims is None and queue.claim(9) == [] else 1
        os.write(tell, b"!")
        os.read(held, 1)
        os._exit(code)
    os.read(ready, 1)
    die(queue)  # while the child lives
    other = FolderQueue(queue.folder)
    other.rescue()
    assert len(other.claim(9)) == 1
    for descriptor in (release, held, ready, tell):
        os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_file_that_was_never_finished_is_cleared_away(queue: FolderQueue) -> None:
    queue.put(a_job())
    old, new = (queue.folder / "tmp" / f"{name}.part" for name in ("old", "new"))
    for path in (old, new):
        path.write_text("half a j")
    os.utime(old, (time.time() - 7200,) * 2)
    queue.rescue()
    assert (old.exists(), new.exists()) == (False, True)


def test_who_dies_while_an_unknown_one_is_retried_by_hand_loses_nothing(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(a_job())
    [claimed] = queue.claim(1)
    claimed.mark()
    queue.park(claimed)
    with monkeypatch.context() as patched:
        patched.setattr("amail.queues.folder.write_whole", _killed)
        with pytest.raises(ZeroDivisionError):
            queue.retry(only(queue))
    for _ in range(2):
        die(queue)
        queue.rescue()
        assert rooms(queue.folder) == {"new": 1}
        queue.claim(1)
    found = only(queue)
    found.path.rename(f"{found.path}.out")
    die(queue)
    assert len(queue.rescue()) == 1
    assert rooms(queue.folder) == {"unknown": 1}


def _killed(*args: object) -> None:
    raise ZeroDivisionError


def test_a_job_that_becomes_smaller_is_there_whatever_the_disk_says(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(pack(Message("Hello", ["a@x.org", "b@x.org"], BODY, sender=ADA)))
    [claimed] = queue.claim(1)
    fewer = {**claimed.job, "env": {**claimed.job["env"], "to": ["b@x.org"]}}
    calls = iter([None, OSError(errno.EIO, "I/O error")])

    def fail(descriptor: int) -> None:
        if (error := next(calls, None)) is not None:
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError):
            queue.defer(claimed, fewer, time.time())
    queue.defer(claimed, fewer, time.time() - 1)
    [again] = queue.claim(1)
    assert again.job["env"]["to"] == ["b@x.org"]


def test_a_job_for_later_waits_until_then_and_expires_after_that(queue: FolderQueue) -> None:
    due = time.time() + 3600
    queue.put(a_job(), due=due)
    assert queue.claim(1) == []
    found = only(queue)
    assert found.due == pytest.approx(due, abs=0.01)
    assert found.job()["exp"] == pytest.approx(due + EXPIRES, abs=2)


def test_folders_of_others_among_the_claims_are_left_alone(queue: FolderQueue) -> None:
    queue.put(a_job())
    queue.claim(0)
    (queue.folder / "claimed" / "README").write_text("who put this here?")
    (queue.folder / "claimed" / "some").mkdir()
    assert queue.rescue() == []
    assert len(queue.claim(1)) == 1


@EXAMPLES
@given(
    due=st.floats(0, 9e9),
    tries=st.integers(0, 2000),
    mailer=nasty_text,
    message_id=nasty_text,
    random=st.integers(0, 2**64 - 1),
)
def test_a_name_says_what_was_written_into_it(
    due: float, tries: int, mailer: str, message_id: str, random: int
) -> None:
    job = {"mailer": mailer, "id": message_id}
    name = f"{random:016x}"
    path = Path("new", folder_module._name(job, due, tries, name))
    assert path.name == path.parts[-1]
    for each in (path, Path(f"{path}.out")):
        found = Found.at(each, "waiting")
        assert (found.name, found.tries) == (name, min(tries, 999))
        assert found.due == pytest.approx(due, abs=0.001)


@EXAMPLES
@given(nasty_text)
def test_any_name_of_a_file_can_be_listed(name: str) -> None:
    found = Found.at(Path("new") / name.replace("/", "_").replace("\0", "_"), "waiting")
    assert found.state == "corrupt"


@EXAMPLES
@given(st.one_of(st.binary(), nasty_text.map(lambda text: text.encode("utf-8", "replace"))))
def test_any_octets_are_a_job_or_a_message_error(octets: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(octets)
        file.flush()
        with pytest.raises(MessageError):
            Found("waiting", Path(file.name)).job()


@EXAMPLES
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*Record.__dataclass_fields__, "more"]),
            st.one_of(
                st.none(), st.integers(), nasty_text, st.just("<a@x.org>"), st.just("accepted")
            ),
        ),
        max_size=4,
    )
)
def test_whatever_stands_in_the_journal_what_is_read_can_be_shown(records: list[t.Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        queue = FolderQueue(folder)
        (Path(folder) / "journal").mkdir()
        whole = {"outcome": "accepted", "message_id": "<a@x.org>", "name": "n", "recipients": 1}
        lines = [json.dumps({**whole, **each}) for each in records]
        (Path(folder) / "journal" / "20990101.jsonl").write_text("\n".join(lines))
        with contextlib.suppress(UsageError):
            assert all(report(queue, "status", ["<a@x.org>"]))


def test_close_leaves_nothing_of_a_process_behind(queue: FolderQueue) -> None:
    queue.put(a_job())
    [claimed] = queue.claim(1)
    queue.finish(claimed, "accepted")
    queue.close()
    assert list((queue.folder / "claimed").iterdir()) == []


# How much


def test_ten_thousand_jobs_are_claimed_without_reading_the_folder_for_each(
    queue: FolderQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(a_job())
    [found] = queue.jobs()
    octets = found.path.read_bytes()
    for number in range(9_999):
        path = found.path.with_name(found.path.name.replace(found.random, f"{number:016x}"))
        path.write_bytes(octets)
    listed = 0
    listdir = os.listdir

    def count(path: t.Any) -> list[str]:
        nonlocal listed
        listed += 1
        return listdir(path)

    monkeypatch.setattr(os, "listdir", count)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    names = [each.name for _ in range(1000) for each in queue.claim(10)]
    assert len(set(names)) == 10_000
    assert listed <= 4


# How it is named


def test_a_url_names_a_folder_by_its_absolute_path() -> None:
    assert str(FolderQueue.from_url("folder:///var/spool/app%20mail").folder) == (
        "/var/spool/app mail"
    )
    assert str(FolderQueue.from_url("folder://localhost/var/spool").folder) == "/var/spool"
    for url in ("folder://", "folder:///", "folder://host/x", "folder:///x?y=1", "file:///x"):
        with pytest.raises(ConfigError, match="folder:///var/spool/app-mail"):
            FolderQueue.from_url(url)
    for wrong in ("", None, 5):
        with pytest.raises(ConfigError, match="folder: must be a path"):
            FolderQueue(t.cast("str", wrong))
    with pytest.raises(ConfigError, match="expires"):
        FolderQueue("/x", expires=0)
