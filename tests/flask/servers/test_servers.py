"""What each real server does for the mail of an app: it arrives, and what waits at the end is sent.

A message that was left to be sent later has not been offered to the mail server when its process is
told to end: it arrives only if that process then takes its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
import typing as t
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from amail.testing import OK, Delay, FaultServer, Hang
from tests.flask.servers.app import LATER
from tests.servers.programs import require_module

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[3]
APP = "tests.flask.servers.app"
HERE = "127.0.0.1:0"
MAX_CONNECTIONS = 4
SENDS = 80
SLOW = 0.7


@dataclass(frozen=True)
class Server:
    """A server program and how it is started. ``drains``: by which signal, and how many of three.

    ``processes``: how many may serve. ``group``: the signal goes to all processes, as Ctrl-C does.
    """

    needs: tuple[str, ...]
    command: tuple[str, ...]
    drains: t.Mapping[signal.Signals, int]
    processes: int = 1
    group: bool = False
    sends_in_master: bool = False


def gunicorn(*options: str, app: str = "wsgi_app", needs: tuple[str, ...] = ()) -> tuple[str, ...]:
    return ("gunicorn", "--bind", HERE, *options, f"{APP}:{app}()")


def uvicorn(app: str) -> tuple[str, ...]:
    return ("uvicorn", "--port", "0", "--factory", f"{APP}:{app}")


TERM, INT = signal.SIGTERM, signal.SIGINT
BOTH = {TERM: LATER, INT: LATER}
ONLY_INT = {TERM: 0, INT: LATER}

SERVERS = {
    "gunicorn-sync": Server(("gunicorn",), gunicorn("-w2"), BOTH, processes=2),
    # Ctrl-C may hang until the graceful timeout: gunicorn takes a lock in its signal handler that
    # the interrupted code may hold.
    "gunicorn-gthread": Server(("gunicorn",), gunicorn("--threads=8"), {TERM: LATER}),
    "gunicorn-preload": Server(
        ("gunicorn",), gunicorn("-w2", "--preload"), BOTH, processes=3, sends_in_master=True
    ),
    "gunicorn-gevent": Server(
        ("gunicorn", "gevent"), gunicorn("-kgevent", app="gevent_app"), BOTH
    ),
    "gunicorn-asgi": Server(
        ("gunicorn", "a2wsgi"), gunicorn("-kasgi", app="bare_a2wsgi"), BOTH
    ),
    "flask-run": Server(
        ("flask",), ("flask", "--app", f"{APP}:wsgi_app", "run", "--port=0"), ONLY_INT
    ),
    "flask-run-debug": Server(
        ("flask",),
        (
            "flask", "--app", f"{APP}:wsgi_app", "run", "--port=0", "--debug",
            "--exclude-patterns=*.py",  # somebody may be writing there
        ),
        {TERM: 0, INT: 0},
        group=True,
    ),
    "waitress": Server(
        ("waitress",),
        ("waitress-serve", "--listen", HERE, "--threads=8", "--call", f"{APP}:wsgi_app"),
        ONLY_INT,
    ),
    # Told to end at once (--die-on-term, SIGINT), it leaves out what Python does at exit if it is
    # not quite through with a request yet.
    "uwsgi": Server(
        ("pyuwsgi",),
        (
            "uwsgi", "--http-socket", HERE, "--master", "--enable-threads", "--threads=8",
            "--hook-master-start", "unix_signal:15 gracefully_kill_them_all",
            "--need-app", "--wsgi", f"{APP}:wsgi_app()",
        ),
        {TERM: LATER},
    ),
    "uvicorn-a2wsgi": Server(("uvicorn", "a2wsgi"), uvicorn("bare_a2wsgi"), ONLY_INT),
    "uvicorn-a2wsgi-lifespan": Server(("uvicorn", "a2wsgi"), uvicorn("drained_a2wsgi"), BOTH),
    "uvicorn-asgiref": Server(("uvicorn",), uvicorn("bare_asgiref"), ONLY_INT),
    "uvicorn-asgiref-lifespan": Server(("uvicorn",), uvicorn("drained_asgiref"), BOTH),
    "quart-hypercorn": Server(
        ("hypercorn", "quart"), ("hypercorn", "--bind", HERE, f"{APP}:quart_app()"), BOTH
    ),
}  # fmt: skip


class Running:
    """A server that runs. ``said`` is what it has written so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.said = ""
        self._read_more = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._read_more:
                self.said += line.decode(errors="replace")
                self._read_more.notify_all()
        async with self._read_more:
            self._read_more.notify_all()

    async def says(self, what: str) -> re.Match[str]:
        """Wait until it has written what the regular expression describes."""
        async with self._read_more:
            while not (found := re.search(what, self.said)):
                assert not self.process.stdout or not self.process.stdout.at_eof(), self.said
                await self._read_more.wait()
        return found

    async def listens(self) -> None:
        self.port = int((await self.says(r"127\.0\.0\.1:(?!0\b)(\d+)"))[1])

    @contextlib.asynccontextmanager
    async def asked(self, path: str) -> AsyncIterator[asyncio.StreamReader]:
        """Ask for a page, and leave at the end of the scope, be it answered or not."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            yield reader
        finally:
            writer.close()

    async def get(self, path: str) -> str:
        """Return the body of a page that has to be there."""
        async with self.asked(path) as reader:
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b" 200 " in head.partition(b"\r\n")[0], f"{path}: {head!r} {body!r}\n{self.said}"
        return body.decode()

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    async def ended(self) -> None:
        """Wait until no process is left that could write."""
        await self._reading
        await self.process.wait()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL, group=True)
        await self.ended()


@contextlib.asynccontextmanager
async def running(
    command: tuple[str, ...], mail: FaultServer, **config: t.Any
) -> AsyncIterator[Running]:
    """Run a server of the app, whose mail goes to ``mail``, in a process group of its own."""
    config = {"MAIL_URL": mail.url, "MAIL_MAX_CONNECTIONS": MAX_CONNECTIONS} | config
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name(command[0]),
        *command[1:],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            **{f"AMAIL_TEST_{key}": str(value) for key, value in config.items()},
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    server = Running(process)
    try:
        await server.listens()
        yield server
    finally:
        await server.kill()


def subjects(mail: FaultServer) -> Counter[str]:
    found = [re.search(rb"(?m)^Subject: (.*?)\r$", each.content) for each in mail.messages]
    return Counter(match[1].decode() for match in found if match)


def require_modules(server: Server) -> None:
    for module in server.needs:
        require_module(module)


@pytest.mark.parametrize("name", SERVERS)
async def test_mail_of_many_requests_arrives_over_few_sessions_and_sigterm_drains_the_queue(
    name: str,
) -> None:
    server = SERVERS[name]
    require_modules(server)
    config = {"SEND_IN_MASTER": 1} if server.sends_in_master else {}
    async with FaultServer() as mail, running(server.command, mail, **config) as at:
        pages = ["/async"] * SENDS + ["/sync"]
        processes = set(await asyncio.gather(*map(at.get, pages)))
        expected = Counter({"async": SENDS, "sync": 1, "master": int(server.sends_in_master)})
        assert subjects(mail) == +expected
        assert len(processes) <= server.processes
        assert mail.connections <= MAX_CONNECTIONS * server.processes
        assert mail.connections < SENDS / 2  # they are used again

        mail.change(mail=Delay(SLOW))
        await at.get("/later")
        at.send(TERM, group=server.group)
        await at.ended()
        assert subjects(mail)["later"] == server.drains[TERM], at.said
    assert mail.violations == []


@pytest.mark.parametrize("name", [name for name in SERVERS if INT in SERVERS[name].drains])
async def test_ctrl_c_drains_the_queue(name: str) -> None:
    server = SERVERS[name]
    require_modules(server)
    async with FaultServer(mail=Delay(SLOW)) as mail, running(server.command, mail) as at:
        await at.get("/later")
        at.send(INT, group=server.group)
        await at.ended()
        assert subjects(mail)["later"] == server.drains[INT], at.said
    assert mail.violations == []


async def test_a_reloader_restarts_the_app_when_the_queue_is_drained(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.write_text("")
    command = (*SERVERS["flask-run-debug"].command, f"--extra-files={watched}")
    async with FaultServer(mail=Hang()) as mail, running(command, mail) as at:
        first = await at.get("/later")
        await mail.reached("mail", LATER)
        watched.write_text("changed")
        await at.says(r"Detected change in .*watched")
        mail.release()
        await mail.until(lambda: len(mail.messages) == LATER)
        await at.says(r"(?s)Detected change in .*Debugger PIN")
        mail.change(mail=OK)
        assert await at.get("/sync") != first
    assert subjects(mail) == {"later": LATER, "sync": 1}


async def test_a_handler_for_sigterm_that_exits_drains_the_queue() -> None:
    require_module("waitress")
    command = SERVERS["waitress"].command
    async with (
        FaultServer(mail=Delay(SLOW)) as mail,
        running(command, mail, EXIT_ON_SIGTERM=1) as at,
    ):
        await at.get("/later")
        at.send(TERM)
        await at.ended()
        assert subjects(mail) == {"later": LATER}


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
async def test_sync_views_under_gevent_need_no_recipe(options: tuple[str, ...]) -> None:
    for module in ("gunicorn", "gevent"):
        require_module(module)
    command = gunicorn("-kgevent", *options)
    async with FaultServer() as mail, running(command, mail, SEND_IN_MASTER=1) as at:
        await asyncio.gather(*map(at.get, ["/sync"] * SENDS))
        assert subjects(mail) == {"sync": SENDS, "master": 1}
        assert mail.connections <= MAX_CONNECTIONS + 1


# What a worker is told by gunicorn


async def test_c32_a_worker_that_is_aborted_for_its_timeout_drains_the_queue() -> None:
    require_module("gunicorn")
    async with (
        FaultServer(mail=Hang()) as mail,
        running(gunicorn("--timeout=1"), mail) as at,
        at.asked("/later-then-hang"),
    ):
        await mail.reached("mail")
        await at.says("WORKER TIMEOUT")
        mail.release()  # a second later the worker is killed
        await mail.until(lambda: len(mail.messages) == 1)


async def test_c32_sigterm_is_answered_within_the_drain_timeout_and_what_is_lost_is_logged() -> (
    None
):
    require_module("gunicorn")
    async with (
        FaultServer(mail=Hang()) as mail,
        running(gunicorn(), mail, MAIL_DRAIN_TIMEOUT=0.5) as at,
    ):
        await at.get("/later")
        await mail.reached("mail", LATER)
        began = time.monotonic()
        at.send(TERM)
        await at.ended()
        assert time.monotonic() - began < 5
        lost = re.findall(r"<\S+@\S+>: could not be sent in the background: not sent", at.said)
        assert len(lost) == LATER, at.said


async def test_c32_mail_of_a_client_that_has_left_is_sent() -> None:
    require_module("gunicorn")
    async with FaultServer(mail=Hang()) as mail, running(gunicorn(), mail) as at:
        async with at.asked("/async"):
            await mail.reached("mail")
        mail.release()
        await mail.until(lambda: len(mail.messages) == 1)
    assert subjects(mail) == {"async": 1}
