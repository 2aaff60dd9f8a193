"""``amail queue``: what it shows, what it does with what is parked, and its worker."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import typing as t

import pytest
from click.testing import CliRunner

from amail.cli.commands import amail
from amail.queues.folder import FolderQueue
from amail.testing import OK, FaultServer, Hang
from tests.musts import BODY, PASSWORD, assert_no_canary
from tests.queues.test_folder import a_job, only, rooms

if t.TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def queue(tmp_path: Path) -> FolderQueue:
    return FolderQueue(tmp_path / "spool")


def run(queue: FolderQueue, *arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(amail, ["queue", str(queue.folder), *arguments], env=environment)
    assert result.exception is None, result.output
    assert_no_canary(result.output, "the output")
    return result.output


def complaint(queue: FolderQueue, *arguments: str, **environment: str) -> str:
    result = CliRunner().invoke(amail, ["queue", str(queue.folder), *arguments], env=environment)
    assert result.exit_code == 1, result.output
    assert_no_canary(result.output, "the output")
    return result.stderr


def one_of_each(queue: FolderQueue) -> dict[str, str]:
    """A job that waits, one that is being sent, one that is unknown, one that is no job."""
    names = {state: queue.put(a_job()) for state in ("claimed", "unknown", "corrupt")}
    found = queue.find(names["corrupt"])
    assert found is not None
    found.path.write_bytes(b"{")
    for claimed in queue.claim(3):
        if claimed.name == names["unknown"]:
            claimed.mark()
            queue.park(claimed, text="no reply")
    return {**names, "waiting": queue.put(a_job())}


def test_each_job_is_listed_with_its_name_and_where_it_is(queue: FolderQueue) -> None:
    names = one_of_each(queue)
    said = run(queue)
    for state, text in {
        "waiting": "waiting since .*, not tried yet  <.*>  1 recipient",
        "claimed": "being sent  <.*>  1 recipient",
        "unknown": "unknown: it may have been sent.*  <.*>  1 recipient",
        "corrupt": "corrupt: is no job.*is no JSON",
    }.items():
        assert re.search(f"(?m)^{names[state]}  {text}$", said), said
    assert said.splitlines()[-1] == "1 waiting, 1 claimed, 1 unknown, 1 corrupt"
    assert "bob@" not in said


def test_no_more_are_listed_than_wanted_but_all_that_are_parked(queue: FolderQueue) -> None:
    one_of_each(queue)
    for _ in range(10):
        queue.put(a_job())
    lines = run(queue, "--limit", "3").splitlines()
    assert lines[3] == "... and 9 more"
    assert len(lines) == 3 + 1 + 2 + 1
    assert lines[-1].startswith("11 waiting, 1 claimed")


def test_show_says_where_a_job_goes_and_nothing_of_what_it_says(queue: FolderQueue) -> None:
    said = run(queue, "show", queue.put(a_job(mailer="bulk")))
    assert "to: bob@example.org" in said
    assert "from: ada@example.com" in said
    assert "mailer: bulk" in said
    assert "expires: " in said
    assert BODY not in said


def test_retry_sends_it_again_and_drop_removes_it(queue: FolderQueue) -> None:
    names = one_of_each(queue)
    assert "waits to be sent" in run(queue, "retry", names["unknown"])
    assert rooms(queue.folder) == {"new": 2, "claimed": 1, "corrupt": 1}
    assert "is dropped" in run(queue, "drop", names["corrupt"], names["waiting"])
    assert rooms(queue.folder) == {"new": 1, "claimed": 1}
    assert "is being sent" in run(queue, "drop", names["claimed"])
    assert "is being sent" in run(queue, "retry", names["claimed"])
    assert rooms(queue.folder) == {"new": 1, "claimed": 1}


def test_unknown_is_the_name_of_all_that_are(queue: FolderQueue) -> None:
    for _ in range(3):
        queue.put(a_job())
    for claimed in queue.claim(3):
        claimed.mark()
        queue.park(claimed)
    assert run(queue, "retry", "unknown").count("waits to be sent") == 3
    assert run(queue, "retry", "unknown") == ""


def test_what_is_not_there_or_cannot_be_done_is_said(queue: FolderQueue, tmp_path: Path) -> None:
    assert "no such folder" in complaint(queue)
    names = one_of_each(queue)
    assert "there is no job 0123; it may have been sent" in complaint(queue, "drop", "0123")
    assert "Give names as the list has them" in complaint(queue, "retry")
    assert "is no job that can be sent" in complaint(queue, "retry", names["corrupt"])
    assert "no such folder" in complaint(FolderQueue(tmp_path / "other"))


def test_status_says_accepted_rejected_waiting_or_unknown(queue: FolderQueue) -> None:
    jobs = {state: a_job() for state in ("accepted", "rejected", "unknown")}
    for job in jobs.values():
        queue.put(job)
    ids = {state: job["id"] for state, job in jobs.items()}
    claimed = {each.job["id"]: each for each in queue.claim(3)}
    accepted, rejected, unknown = (claimed[message_id] for message_id in ids.values())
    queue.finish(accepted, "accepted", text="250 2.0.0 ok", relay="mx:25", queue_id="4Xyz")
    queue.finish(rejected, "rejected", text="550 5.1.1 no \x1b[31m such user", relay="mx:25")
    unknown.mark()
    queue.park(unknown, text="no reply came in time")
    said = run(queue, "status", ids["accepted"])
    assert re.search(r"accepted by mx:25 as 4Xyz for 1 recipient: 250 2\.0\.0 ok$", said.strip())
    said = run(queue, "status", ids["rejected"].strip("<>"))
    assert "rejected by mx:25 for 1 recipient: 550 5.1.1 no \\x1b[31m such user" in said
    said = run(queue, "status", ids["unknown"])
    assert "no reply came in time" in said
    assert "it is not sent again by itself" in said
    queue.put(waiting := a_job())
    assert "waiting since" in run(queue, "status", waiting["id"])
    assert "nothing is known of it" in complaint(queue, "status", "<never@example.com>")


async def test_a_worker_sends_what_waits_and_ends_with_once(queue: FolderQueue) -> None:
    for number in range(5):
        queue.put(a_job(str(number), mailer="" if number else "bulk-2"))
    async with FaultServer() as server:
        env = {"MAIL_URL": server.url, "MAIL_URL_BULK_2": server.url}
        ran = await _worker(queue, "--once", **env)
        said, _ = await ran.communicate()
        assert ran.returncode == 0, said
        assert len(server.messages) == 5
    assert rooms(queue.folder) == {}
    assert_no_canary(said.decode(), "the log")


async def test_a_worker_ends_with_sigterm_when_those_under_way_have_ended(
    queue: FolderQueue,
) -> None:
    queue.put(a_job())
    async with FaultServer(final=Hang()) as server:
        ran = await _worker(queue, MAIL_URL=server.url)
        await server.reached("final")
        ran.send_signal(signal.SIGTERM)
        server.change(final=OK)
        server.release()
        said, _ = await ran.communicate()
        assert ran.returncode == 0, said
        assert len(server.messages) == 1
    assert rooms(queue.folder) == {}
    assert list((queue.folder / "claimed").iterdir()) == []


async def test_a_worker_for_a_mailer_that_it_does_not_have_leaves_its_jobs(
    queue: FolderQueue,
) -> None:
    queue.put(a_job(mailer="bulk"))
    async with FaultServer() as server:
        ran = await _worker(queue, "--once", MAIL_URL=server.url)
        said, _ = await ran.communicate()
    assert "MAIL_URL_BULK" in said.decode()
    assert only(queue).state == "waiting"


def test_a_worker_without_any_url_says_what_to_set(queue: FolderQueue) -> None:
    assert "MAIL_URL: is not set" in complaint(queue, "--run")
    secret = f"smtp://user:{PASSWORD}@host:port"
    queue.put(a_job())
    run(queue, "--run", "--once", MAIL_URL=secret)
    assert only(queue).state == "waiting"


async def _worker(queue: FolderQueue, *options: str, **environment: str) -> t.Any:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *(
            "-c",
            "from amail.cli import main; main()",
            "queue",
            str(queue.folder),
            "--run",
            *options,
        ),
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
