"""Celery's workers as they are run: a process with its children, which can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from tests.beside import ROOT
from tests.servers.programs import wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from amail.testing import FaultServer
    from tests.brokers.broker import Broker


@dataclass
class Workers:
    """Starts workers of an app, each a main process with its children, in a session of its own."""

    folder: Path
    environment: Mapping[str, str]
    app: str = "tests.brokers.app"
    started: list[Worker] = field(default_factory=list)

    def start(self, *arguments: str, children: int = 4) -> Worker:
        """Start a worker, and wait until it takes jobs."""
        number = len(self.started) + 1
        log = self.folder / f"worker-{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", self.app, "worker"),
                    *("-n", f"worker-{number}@test", "-c", str(children), "-l", "INFO"),
                    *("--without-gossip", "--without-mingle", *arguments),
                ],
                cwd=ROOT,
                env={**os.environ, **self.environment, "C_FORCE_ROOT": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, log)
        self.started.append(worker)
        wait_until(lambda: process.poll() is not None or " ready." in worker.log, "the worker")
        assert process.poll() is None, worker.log
        return worker

    @property
    def log(self) -> str:
        """What all of them have to say."""
        return "".join(worker.log for worker in self.started)


@dataclass(frozen=True)
class Worker:
    """A running worker."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def log(self) -> str:
        """What it has to say about it all."""
        return self.path.read_text("utf-8", "replace")

    @property
    def children(self) -> list[int]:
        """The processes that send."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def signal(self, number: int) -> None:
        """Send a signal to it and all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Kill it with all its children at once: what a power cut leaves of them."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end what is under way, and then itself."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the worker did not end; it says:\n{self.log}") from None


@contextlib.contextmanager
def workers(
    folder: Path, broker: Broker, server: FaultServer, *, ledger: str = ""
) -> Iterator[Workers]:
    """Run workers for a while. None is left at the end."""
    environment = {
        "TEST_BROKER": broker.url,
        "TEST_SMTP": server.url,
        "TEST_LEDGER": ledger,
        "TEST_SETTINGS": json.dumps(broker.settings),
    }
    running = Workers(folder, environment)
    try:
        yield running
    finally:
        for worker in running.started:
            worker.kill()
