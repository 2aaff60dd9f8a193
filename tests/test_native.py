"""The background loop under gevent: on a real thread, so that greenlets wait and nothing else does.

Each script runs in a Python of its own, which gevent patches as the first thing it does.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from amail.testing import FaultServer
from tests.servers.programs import require_module

PATCHED = """
import gevent.monkey
gevent.monkey.patch_all()
import asyncio, contextvars, gevent, logging, os, threading, time
from amail import Message, Portal, SyncMailer, UsageError

def letter(subject="Hi"):
    return Message(subject, ["bob@example.org"], "Hi", sender="ada@example.com")

def files():
    return len(os.listdir("/proc/self/fd"))

async def thread_name():
    return threading.current_thread().name

portal = Portal()
"""


@pytest.fixture(autouse=True)
def _gevent() -> None:
    require_module("gevent")


def run(script: str, *, prelude: str = PATCHED) -> str:
    """Run a script, which must end well and say nothing on stderr; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", prelude + textwrap.dedent(script)],
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_many_greenlets_send_over_few_sessions_and_others_go_on_meanwhile() -> None:
    with FaultServer.serve_in_thread() as server:
        run(f"""
            ticks = []

            def tick():
                while True:
                    ticks.append(time.monotonic())
                    gevent.sleep(0.001)

            gevent.spawn(tick)
            with SyncMailer({server.url!r}, portal=portal, max_connections=3) as mailer:
                sending = [gevent.spawn(mailer.send, letter()) for _ in range(200)]
                gevent.joinall(sending, raise_error=True)
            assert len(ticks) > 10, ticks
        """)
    assert len(server.messages) == 200
    assert server.connections <= 3
    assert server.violations == []


def test_results_exceptions_and_context_variables_cross() -> None:
    run("""
        variable = contextvars.ContextVar("variable")
        variable.set("the caller's")

        async def read():
            return variable.get()

        async def fail():
            raise KeyError("as it is")

        assert portal.call_sync(read()) == "the caller's"
        assert portal.call_sync(thread_name()) == "amail-loop"
        try:
            portal.call_sync(fail())
        except KeyError as error:
            assert error.args == ("as it is",)
        else:
            raise AssertionError
    """)


def test_a_timeout_cancels_what_runs_in_the_loop() -> None:
    run("""
        ended = []

        async def wait():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        try:
            portal.call_sync(wait(), timeout=0.05)
        except TimeoutError:
            portal.call_sync(thread_name())
        assert ended == ["cancelled"]
        assert repr(portal) == "<Portal running, 0 call(s) under way>"
    """)


def test_what_was_submitted_just_before_exit_is_done() -> None:
    assert (
        run("""
            async def work():
                await asyncio.sleep(0.2)
                found = await asyncio.get_running_loop().getaddrinfo("localhost", 25)
                await asyncio.to_thread(len, found)
                print("done", flush=True)

            portal.submit(work())
        """)
        == "done\n"
    )


def test_a_greenlet_in_whose_thread_another_runs_a_loop_may_wait_and_that_loop_may_not() -> None:
    run("""
        loop = asyncio.new_event_loop()
        gevent.spawn(loop.run_forever)
        gevent.sleep(0)
        assert portal.call_sync(thread_name()) == "amail-loop"

        async def block():
            portal.call_sync(thread_name())

        try:
            asyncio.run_coroutine_threadsafe(block(), loop).result(10)
        except UsageError:
            pass
        else:
            raise AssertionError

        async def call():
            return await portal.call(thread_name())

        assert asyncio.run_coroutine_threadsafe(call(), loop).result(10) == "amail-loop"
        loop.call_soon_threadsafe(loop.stop)
        gevent.sleep(0.05)
        loop.close()
    """)


def test_neither_calls_nor_loops_nor_threads_leave_files_open() -> None:
    run("""
        async def work():
            await asyncio.get_running_loop().getaddrinfo("localhost", 25)
            await asyncio.to_thread(time.sleep, 0.001)  # patched: it makes a hub in that thread

        def all_of_it():
            for _ in range(3):
                portal.call_sync(work())
            portal.close()

        all_of_it()
        before = files()
        for _ in range(5):
            all_of_it()
        end = time.monotonic() + 10
        while files() > before and time.monotonic() < end:
            gevent.sleep(0.01)  # the threads end a moment after their results are there
        assert files() <= before, (files(), before)
    """)


def test_greenlets_and_the_loop_may_log_at_the_same_time() -> None:
    run("""
        lines = []

        class Handler(logging.Handler):
            def emit(self, record):
                lines.append((record.getMessage(), record.threadName, gevent.get_hub()))

        logging.basicConfig(level="INFO", handlers=[Handler()])

        async def log():
            for n in range(5000):
                logging.getLogger("amail.smtp").info("loop")
                if n % 10 == 0:
                    await asyncio.sleep(0)

        def log_too():
            for n in range(5000):
                logging.info("greenlet")
                if n % 10 == 0:
                    gevent.sleep(0)

        call = portal.submit(log())
        gevent.joinall([gevent.spawn(log_too) for _ in range(3)], raise_error=True)
        call.result(20)
        portal.close()
        assert [line[0] for line in lines].count("greenlet") == 15000
        # A greenlet has handled it, and the record tells where it is from.
        assert lines.count(("loop", "amail-loop", gevent.get_hub())) == 5000
    """)


def test_receivers_of_signals_run_in_a_greenlet() -> None:
    with FaultServer.serve_in_thread() as server:
        run(f"""
            from flask import Flask
            from amail_flask import Mail, email_dispatched

            app = Flask("app")
            app.config.update(MAIL_URL={server.url!r})
            mail, seen = Mail(app), []

            @email_dispatched.connect
            def receiver(app, message):
                seen.append(gevent.get_hub())

            mail.send_later(letter())
            assert mail.drain(10) == 0
            assert seen == [gevent.get_hub()]
        """)


def test_a_greenlet_that_ends_with_its_thread_leaves_no_call_under_way() -> None:
    run("""
        def submit_and_leave():
            calls.append(portal.submit(asyncio.sleep(0.1)))

        calls = []
        gevent.get_hub().threadpool.apply(submit_and_leave)
        gevent.get_hub().threadpool.kill()  # thread and hub are gone before the call is done
        assert portal.drain(10) == 0
    """)


def test_gevent_that_patched_nothing_changes_nothing_and_is_not_imported_by_us() -> None:
    run(
        """
        import sys, threading
        from amail import Portal

        async def name():
            return threading.current_thread().name

        portal = Portal()
        portal.call_sync(name())
        assert not any(module.partition(".")[0] == "gevent" for module in sys.modules)
        portal.close()
        import gevent.monkey
        assert portal.call_sync(name()) == "amail-loop"
        assert [each.name for each in threading.enumerate()].count("amail-loop") == 1
        """,
        prelude="",
    )
