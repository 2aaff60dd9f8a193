"""C33, C34: a process that forks while mail is under way, and what its child may rely on.

Each script runs in a Python of its own and forks there; a child that hangs is ended and counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from amail.testing import FaultServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

PRELUDE = """
import logging, os, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from flask import Flask
from amail_flask import Mail, Message
from amail_flask.state import _process

app = Flask("app")
app.config.update(MAIL_URL=sys.argv[1], MAIL_DEFAULT_SENDER="me@example.com", MAIL_DRAIN_TIMEOUT=1)
mail = Mail(app)

def hello(subject="Hello"):
    return Message(subject, ["bob@example.org"], "Hi")

def in_child(do):
    "Fork; do it in the child, within a minute. Return the child's number."
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(60)
            do()
            code = 0
        finally:
            os._exit(code)
    return child

def came_to(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def held(lock):
    "Have a thread hold a lock until the returned event is set."
    holding, let_go = threading.Event(), threading.Event()
    def hold():
        with lock:
            holding.set()
            let_go.wait()
    threading.Thread(target=hold, daemon=True).start()
    assert holding.wait(10)
    return let_go
"""


def run(script: str, server: FaultServer) -> None:
    """Run a script, which must end well and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), server.url],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "lock",
    ["_process.portal._lock", "_process._lock", "logging.root.handlers[0].lock"],
)
def test_c34_a_child_sends_though_its_parent_held_a_lock_when_it_forked(lock: str) -> None:
    with FaultServer.serve_in_thread() as server:
        run(
            f"""
            logging.basicConfig(filename=os.devnull, level="DEBUG")
            mail.send_sync(hello("parent"))
            let_go = held({lock})
            child = in_child(lambda: mail.send_sync(hello("child")))
            assert came_to(child) == 0
            let_go.set()
            mail.send_sync(hello("parent again"))
            """,
            server,
        )
    assert len(server.messages) == 3
    assert server.connections == 2  # the parent's went on, the child's is its own
    assert server.violations == []


def test_c34_a_child_sends_though_the_loop_was_in_a_log_handler_when_it_forked() -> None:
    with FaultServer.serve_in_thread() as server:
        run(
            """
            parent = os.getpid()
            in_handler, let_go = threading.Event(), threading.Event()

            class Handler(logging.Handler):
                def emit(self, record):
                    if os.getpid() == parent and record.name == "amail.smtp":
                        in_handler.set()
                        let_go.wait(20)

            logging.basicConfig(level="DEBUG", handlers=[Handler()])
            mail.send_later(hello("parent"))
            assert in_handler.wait(10)
            child = in_child(lambda: mail.send_sync(hello("child")))
            assert came_to(child) == 0
            let_go.set()
            assert mail.drain(10) == 0
            """,
            server,
        )
    assert len(server.messages) == 2
    assert server.violations == []


def test_c34_children_forked_at_any_moment_of_many_sends_all_send() -> None:
    with FaultServer.serve_in_thread() as server:
        run(
            """
            class Handler(logging.Handler):
                "Not to a file: Python leaves the lock of its buffer as it was in the parent."
                def emit(self, record):
                    os.write(devnull, self.format(record).encode())

            devnull = os.open(os.devnull, os.O_WRONLY)
            logging.basicConfig(level="DEBUG", handlers=[Handler()])
            stop = threading.Event()

            def send_on():
                while not stop.is_set():
                    mail.send_sync(hello("parent"))

            senders = [threading.Thread(target=send_on) for _ in range(3)]
            for each in senders:
                each.start()
            children = [in_child(lambda: mail.send_sync(hello("child"))) for _ in range(15)]
            assert [came_to(child) for child in children] == [0] * 15
            stop.set()
            for each in senders:
                each.join()
            mail.close()
            """,
            server,
        )
    assert sum(b"Subject: child" in each.content for each in server.messages) == 15
    assert server.violations == []


def test_c33_a_child_that_ends_well_closes_nothing_of_its_parent() -> None:
    with FaultServer.serve_in_thread() as server:
        run(
            """
            mail.send_sync(hello("parent"))
            child = os.fork()
            if not child:
                sys.exit(0)  # with all that Python does at exit
            assert came_to(child) == 0
            mail.send_sync(hello("parent again"))
            """,
            server,
        )
    assert len(server.messages) == 2
    assert server.connections == 1
    assert server.violations == []


def test_c34_what_a_child_queues_is_drained_at_its_own_exit() -> None:
    with FaultServer.serve_in_thread() as server:
        run(
            """
            mail.send_sync(hello("parent"))
            child = os.fork()
            if not child:
                mail.send_later(hello("child"))
                sys.exit(0)
            assert came_to(child) == 0
            """,
            server,
        )
    assert len(server.messages) == 2
    assert server.violations == []
