"""What Portal and SyncMailer promise to code that has no event loop of its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
import weakref
from concurrent import futures

import pytest

from amail import (
    ConfigError,
    DeliveryUnknown,
    MailerClosed,
    Message,
    MessageError,
    Portal,
    RoundRobin,
    SendError,
    SMTPSettings,
    SMTPTransport,
    SyncMailer,
    UsageError,
)
from amail.testing import FaultServer, Hang
from amail.transports.failover import Failover
from amail.transports.retrying import Retrying
from amail.transports.throttled import Throttled
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST", default="none")


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal(drain_timeout=5)
    yield portal
    portal.close(0)


def letter(subject: str) -> Message:
    return Message(subject, sender="ada@example.com", recipients=["bob@example.org"], body="Hi")


def loop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "amail-loop"]


async def thread_name() -> str:
    return threading.current_thread().name


async def returns(value: object) -> object:
    return value


async def raises(error: Exception) -> None:
    raise error


class Held:
    """A coroutine that runs until it is let go, and tells how far it came."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.came_to = ""
        self.ended = threading.Event()
        self._let_go: asyncio.Event
        self._loop: asyncio.AbstractEventLoop

    async def run(self) -> str:
        self._loop, self._let_go = asyncio.get_running_loop(), asyncio.Event()
        self.begun.set()
        try:
            await self._let_go.wait()
            self.came_to = "done"
        except asyncio.CancelledError:
            self.came_to = "cancelled"
            raise
        finally:
            self.ended.set()
        return "held and let go"

    def let_go(self) -> None:
        self._loop.call_soon_threadsafe(self._let_go.set)


def held_by(portal: Portal) -> tuple[Held, futures.Future[str]]:
    held = Held()
    call = portal.submit(held.run())
    assert held.begun.wait(10)
    return held, call


# The thread


def test_making_a_portal_starts_no_thread() -> None:
    before = loop_threads()
    portal = Portal()
    assert loop_threads() == before
    assert repr(portal) == "<Portal not started, 0 call(s) under way>"
    assert portal.close() == portal.drain() == 0
    assert loop_threads() == before


def test_the_first_call_starts_one_daemon_thread_named_amail_loop(portal: Portal) -> None:
    before = loop_threads()
    assert [portal.call_sync(thread_name()) for _ in range(3)] == ["amail-loop"] * 3
    (thread,) = set(loop_threads()) - set(before)
    assert thread.daemon
    assert repr(portal) == "<Portal running, 0 call(s) under way>"


def test_many_threads_that_call_at_once_share_one_loop(portal: Portal) -> None:
    before = loop_threads()
    ready = threading.Barrier(16)

    def call() -> int:
        ready.wait()
        return portal.call_sync(loop_id())

    async def loop_id() -> int:
        return id(asyncio.get_running_loop())

    with futures.ThreadPoolExecutor(16) as threads:
        loops = {each.result() for each in [threads.submit(call) for _ in range(16)]}
    assert len(loops) == 1
    assert len(set(loop_threads()) - set(before)) == 1


def test_the_thread_does_not_keep_what_the_first_caller_had_in_its_context(portal: Portal) -> None:
    class Request:
        pass

    variable: contextvars.ContextVar[Request] = contextvars.ContextVar("variable")

    def first_call() -> weakref.ref[Request]:
        request = Request()
        variable.set(request)
        portal.call_sync(returns(None))
        return weakref.ref(request)

    seen = contextvars.copy_context().run(first_call)
    portal.call_sync(returns(None))
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("wrong", [-1, float("inf"), float("nan"), True])
def test_a_drain_timeout_is_a_number_of_seconds(wrong: float) -> None:
    with pytest.raises(ConfigError, match="drain_timeout"):
        Portal(drain_timeout=wrong)


# Calling


async def test_a_call_is_awaited_in_another_loop(portal: Portal) -> None:
    assert await portal.call(thread_name()) == "amail-loop"
    assert threading.current_thread().name != "amail-loop"


async def test_a_call_does_not_block_the_loop_that_awaits_it(portal: Portal) -> None:
    held = Held()
    call = asyncio.create_task(portal.call(held.run()))
    while not held.begun.is_set():
        await asyncio.sleep(0)
    assert not call.done()
    held.let_go()
    assert await call == "held and let go"


async def test_call_on_the_portals_own_loop_simply_awaits(portal: Portal) -> None:
    async def outer() -> tuple[bool, str, int]:
        return portal.is_here, await portal.call(thread_name()), len(asyncio.all_tasks())

    assert await portal.call(outer()) == (True, "amail-loop", 1)
    assert not portal.is_here


def test_submit_returns_a_future(portal: Portal) -> None:
    held, call = held_by(portal)
    assert "1 call(s) under way" in repr(portal)
    assert not call.done()
    held.let_go()
    assert call.result(10) == "held and let go"


def test_cancelling_the_future_cancels_the_coroutine(portal: Portal) -> None:
    held, call = held_by(portal)
    assert call.cancel()
    assert held.ended.wait(10)
    assert held.came_to == "cancelled"


async def test_cancelling_the_task_that_awaits_a_call_cancels_the_call(portal: Portal) -> None:
    held = Held()
    call = asyncio.create_task(portal.call(held.run()))
    while not held.begun.is_set():
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert held.ended.wait(10)
    assert held.came_to == "cancelled"


async def test_a_deadline_around_a_call_is_a_timeout_and_cancels_the_call(portal: Portal) -> None:
    held = Held()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await portal.call(held.run())
    if held.begun.is_set():
        assert held.ended.wait(10)
        assert held.came_to == "cancelled"


def test_call_sync_that_lasts_too_long_is_a_timeout_and_cancels_the_call(portal: Portal) -> None:
    held = Held()
    portal.call_sync(returns(None))
    with pytest.raises(TimeoutError):
        portal.call_sync(held.run(), timeout=0.05)
    assert held.ended.wait(10)
    assert held.came_to == "cancelled"


async def test_the_callers_context_variables_are_seen_and_not_changed(portal: Portal) -> None:
    async def look() -> str:
        seen = REQUEST.get()
        REQUEST.set("the portal's")
        return seen

    REQUEST.set("request 1")
    assert await portal.call(look()) == "request 1"
    assert await asyncio.wrap_future(portal.submit(look())) == "request 1"
    assert await asyncio.to_thread(lambda: portal.call_sync(look())) == "request 1"
    assert REQUEST.get() == "request 1"


async def test_an_exception_arrives_as_the_same_object(portal: Portal) -> None:
    error = MailerClosed("closed", stage="pool")
    for calling in (
        portal.call(raises(error)),
        asyncio.to_thread(lambda: portal.call_sync(raises(error))),
        asyncio.wrap_future(portal.submit(raises(error))),
    ):
        with pytest.raises(MailerClosed) as caught:
            await calling
        assert caught.value is error


async def test_call_sync_where_a_loop_runs_is_an_error_that_says_to_await(portal: Portal) -> None:
    coroutine = returns(1)
    before = loop_threads()
    with pytest.raises(UsageError, match="await"):
        portal.call_sync(coroutine)
    assert loop_threads() == before
    with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
        coroutine.send(None)  # it is closed, so nothing warns that it was never awaited


async def test_a_coroutine_that_cannot_be_started_is_closed(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more_threads(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    coroutine = returns(1)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        portal.submit(coroutine)
    with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
        coroutine.send(None)
    monkeypatch.undo()
    assert await portal.call(returns(2)) == 2


# Draining and closing


def test_draining_waits_for_what_was_submitted_and_counts_what_is_left(portal: Portal) -> None:
    held, call = held_by(portal)
    other, _ = held_by(portal)
    assert portal.drain(0) == 2
    assert not call.done()
    held.let_go()
    assert call.result(10)
    assert portal.drain(0) == 1
    other.let_go()
    assert portal.drain() == 0
    assert other.came_to == "done"


def test_closing_drains_and_then_ends_what_is_left() -> None:
    portal = Portal()
    before = loop_threads()
    held, call = held_by(portal)
    finished, done = held_by(portal)
    threading.Timer(0.05, finished.let_go).start()
    assert portal.close(timeout=0.5) == 1
    assert done.result(0) == "held and let go"
    assert call.cancelled()
    assert held.came_to == "cancelled"
    assert loop_threads() == before
    assert portal.close() == 0


def test_a_later_call_starts_a_closed_portal_again() -> None:
    portal = Portal()
    before = loop_threads()
    for _ in range(3):
        assert portal.call_sync(thread_name()) == "amail-loop"
        assert portal.close() == 0
        assert loop_threads() == before


def test_who_waits_for_a_call_that_a_shutdown_ends_gets_delivery_unknown() -> None:
    portal = Portal()
    begun = threading.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    def awaits() -> None:
        asyncio.run(portal.call(forever()))

    def waits() -> None:
        portal.call_sync(forever())

    for calling in (awaits, waits):
        begun.clear()
        with futures.ThreadPoolExecutor(1) as thread:
            call = thread.submit(calling)
            assert begun.wait(10)
            assert portal.close(timeout=0) == 1
            with pytest.raises(DeliveryUnknown, match="shut down"):
                call.result(10)


def test_closers_are_awaited_on_the_portals_loop_before_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    portal = Portal()
    closed: list[str] = []

    async def closer() -> None:
        closed.append(await thread_name())

    portal.at_close(lambda: raises(KeyError("not closed")))
    portal.at_close(closer)
    portal.close()
    assert closed == ["amail-loop"]
    assert "could not be closed" in caplog.text
    portal.call_sync(returns(None))
    portal.close()
    assert closed == ["amail-loop"]


def test_a_portal_whose_thread_has_ended_is_started_again_by_a_call(portal: Portal) -> None:
    before = loop_threads()
    held, call = held_by(portal)
    (thread,) = set(loop_threads()) - set(before)

    async def stop() -> None:
        asyncio.get_running_loop().stop()

    portal.submit(stop())
    thread.join(10)
    assert not thread.is_alive()
    assert (call.cancelled(), held.came_to) == (True, "cancelled")
    assert portal.call_sync(thread_name()) == "amail-loop"


async def test_a_portal_cannot_be_closed_from_its_own_loop(portal: Portal) -> None:
    async def close() -> None:
        portal.close()

    with pytest.raises(UsageError, match="its own loop"):
        await portal.call(close())


def test_calls_that_race_with_closing_all_come_to_an_end() -> None:
    portal = Portal()
    stop = threading.Event()
    came_to: list[object] = []

    def call_again_and_again() -> None:
        while not stop.is_set():
            call = portal.submit(returns("done"))
            try:
                came_to.append(call.result(10))
            except futures.CancelledError:
                came_to.append("ended")

    with futures.ThreadPoolExecutor(4) as threads:
        calling = [threads.submit(call_again_and_again) for _ in range(4)]
        try:
            while len(came_to) < 300 and not any(each.done() for each in calling):
                assert portal.close() in range(5)
        finally:
            stop.set()
        for each in calling:
            each.result()
    portal.close()
    assert set(came_to) <= {"done", "ended"}
    assert len(came_to) >= 300


def test_a_portal_is_not_closed_between_finding_its_loop_and_starting_a_call_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    portal = Portal()
    portal.call_sync(returns(None))
    closing = threading.Thread(target=portal.close)
    submit = asyncio.run_coroutine_threadsafe

    def close_meanwhile(*arguments: t.Any) -> futures.Future[t.Any]:
        monkeypatch.undo()
        closing.start()
        closing.join(0.3)
        return submit(*arguments)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", close_meanwhile)
    call = portal.submit(returns("done"))
    assert futures.wait([call], 10).not_done == set()
    closing.join(10)
    assert not closing.is_alive()


def test_a_portal_that_nobody_has_any_more_ends_its_thread_when_its_calls_are_done() -> None:
    before = loop_threads()
    portal = Portal()
    held, call = held_by(portal)
    (thread,) = set(loop_threads()) - set(before)
    del portal
    gc.collect()
    assert thread.is_alive()
    held.let_go()
    assert call.result(10) == "held and let go"
    del held, call
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


# Forking


def in_a_child(do: t.Callable[[], object]) -> int:
    """Do something in a forked child; its exit code is 0 where that returned True."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if do() is True else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
# Python 3.12 and later warn of it, and it is what is tested here.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@needs_fork
@forks
def test_a_forked_child_starts_a_loop_of_its_own_and_the_parents_goes_on(portal: Portal) -> None:
    held, call = held_by(portal)
    threads = loop_threads()

    def child() -> bool:
        untouched = repr(portal) == "<Portal not started, 0 call(s) under way>"
        name = portal.call_sync(thread_name(), timeout=10)
        return untouched and name == "amail-loop" and portal.close() == 0

    assert in_a_child(child) == 0
    assert loop_threads() == threads
    held.let_go()
    assert call.result(10) == "held and let go"


@needs_fork
@forks
def test_a_fork_while_another_thread_holds_the_portals_lock_does_not_hang_the_child(
    portal: Portal,
) -> None:
    portal.call_sync(returns(None))
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with portal._lock:
            held.set()
            let_go.wait(10)

    with futures.ThreadPoolExecutor(1) as thread:
        thread.submit(hold)
        assert held.wait(10)
        code = in_a_child(lambda: portal.call_sync(returns(True), timeout=5))
        let_go.set()
    assert code == 0


@needs_fork
@forks
def test_a_forked_child_neither_drains_nor_closes_what_is_its_parents(portal: Portal) -> None:
    held, call = held_by(portal)
    assert in_a_child(lambda: (portal.drain(), portal.close()) == (0, 0)) == 0
    held.let_go()
    assert call.result(10) == "held and let go"


def test_a_fork_that_ran_no_hooks_is_seen_by_the_process_number(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, call = held_by(portal)
    before = loop_threads()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        assert (portal.drain(), portal.close()) == (0, 0)
        assert portal.call_sync(thread_name()) == "amail-loop"
        assert len(set(loop_threads()) - set(before)) == 1
        assert portal.close() == 0
    assert loop_threads() == before
    held.let_go()
    assert call.result(10) == "held and let go"


# At exit


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python of its own, in which every warning is an error."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(script)]
    return subprocess.run(
        [*command, *arguments], check=False, capture_output=True, text=True, timeout=50
    )


def test_what_was_submitted_just_before_exit_is_done_names_are_resolved_and_nothing_is_said() -> (
    None
):
    ended = run_script("""
        import asyncio, sys
        from amail import Portal

        async def work():
            await asyncio.sleep(0.2)
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo("localhost", 25)
            await asyncio.to_thread(len, found)
            print("done", flush=True)

        portal = Portal()
        portal.submit(work())
        sys.exit(3)
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "done\n", "")


def test_what_a_function_submits_through_a_portal_it_does_not_keep_is_done_at_exit() -> None:
    ended = run_script("""
        import asyncio
        from amail import Portal

        async def work():
            await asyncio.sleep(0.2)
            print("done", flush=True)

        def fire_and_forget():
            Portal().submit(work())

        fire_and_forget()
    """)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_exit_waits_no_longer_than_drain_timeout_and_says_what_was_left() -> None:
    began = time.monotonic()
    ended = run_script("""
        import asyncio, logging
        from amail import Portal

        logging.basicConfig(format="%(message)s")
        portal = Portal(drain_timeout=0.3)
        portal.submit(asyncio.Event().wait())
        portal.submit(asyncio.sleep(0))
    """)
    assert ended.returncode == 0
    assert ended.stderr == "1 call(s) were not done in time and are ended\n"
    assert time.monotonic() - began < 20


def test_exit_by_an_exception_says_that_exception_alone() -> None:
    ended = run_script("""
        from amail import Portal

        async def nothing():
            pass

        portal = Portal()
        portal.call_sync(nothing())
        raise SystemExit("the script's own words")
    """)
    assert (ended.returncode, ended.stderr) == (1, "the script's own words\n")


# SyncMailer


def test_a_sync_mailer_sends_and_returns_the_receipt() -> None:
    with aiosmtpd_server() as server:
        with SyncMailer(server.url) as mailer:
            receipt = mailer.send(letter("Hello"))
            assert receipt.accepted == ("bob@example.org",)
            assert receipt.queue_id == "A00001"
            assert mailer.send(letter("Again")).outcome == "accepted"
            stats = mailer.stats()
            assert (stats.open, stats.idle, stats.accepted) == (1, 1, 2)
        assert mailer.stats().open == 0
    assert server.sessions == 1
    first, second = server.messages
    assert b"Subject: Hello\r\n" in first.content
    assert b"Subject: Again\r\n" in second.content
    assert first.forward_paths == ("bob@example.org",)


def test_many_threads_send_through_one_sync_mailer() -> None:
    with (
        aiosmtpd_server() as server,
        SyncMailer(server.url, max_connections=3) as mailer,
        futures.ThreadPoolExecutor(8) as threads,
    ):
        sending = [threads.submit(mailer.send, letter(f"No {n}")) for n in range(40)]
        ids = {each.result().message_id for each in sending}
    assert len(ids) == len(server.messages) == 40
    assert server.sessions <= 3


def test_two_sync_mailers_can_share_a_portal_that_neither_closes(portal: Portal) -> None:
    with aiosmtpd_server() as server:
        before = loop_threads()
        with SyncMailer(server.url, portal=portal) as first:
            first.send(letter("One"))
            with SyncMailer(server.url, portal=portal) as second:
                second.send(letter("Two"))
            first.send(letter("Three"))
        assert len(set(loop_threads()) - set(before)) == 1
        assert portal.call_sync(thread_name()) == "amail-loop"
    assert len(server.messages) == 3


def test_a_closed_sync_mailer_refuses_to_send_and_is_opened_anew_by_with() -> None:
    before = loop_threads()
    with aiosmtpd_server() as server:
        mailer = SyncMailer(server.url)
        mailer.send(letter("One"))
        mailer.close()
        mailer.close()
        assert loop_threads() == before
        with pytest.raises(MailerClosed):
            mailer.send(letter("Two"))
        with mailer:
            mailer.send(letter("Three"))
        assert loop_threads() == before
    assert [b"Three" in message.content for message in server.messages] == [False, True]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda transport: transport,
        Retrying,
        lambda transport: Throttled(transport, "1000/s"),
        lambda transport: Failover([transport, "memory://"]),
        lambda transport: Retrying(RoundRobin([Retrying(transport)])),
    ],
    ids=["bare", "retrying", "throttled", "failover", "several"],
)
def test_c23_closing_a_portal_takes_no_longer_than_told_whatever_wraps_the_transport(
    wrapped: t.Callable[[t.Any], t.Any],
) -> None:
    portal = Portal()
    with FaultServer.serve_in_thread(data=Hang()) as server:
        transport = SMTPTransport(SMTPSettings.from_url(server.url))
        mailer = SyncMailer(wrapped(transport), portal=portal)
        with futures.ThreadPoolExecutor(1) as threads:
            sending = threads.submit(mailer.send, letter("Hello"))
            while not any(command.line == "DATA" for command in server.commands):
                time.sleep(0.001)
            began = time.monotonic()
            assert portal.close(timeout=0) == 1
            assert time.monotonic() - began < 3
            assert isinstance(sending.exception(), SendError)
    assert server.messages == []


async def test_c30_a_sync_mailer_in_a_running_loop_says_to_await() -> None:
    mailer = SyncMailer("smtp://127.0.0.1:1")
    before = loop_threads()
    with pytest.raises(UsageError, match="use Mailer and await it"):
        mailer.send(letter("Hello"))
    with pytest.raises(UsageError, match="await"):
        mailer.close()
    with pytest.raises(UsageError, match="await"), mailer:
        pass
    assert loop_threads() == before


def test_a_message_that_cannot_be_composed_is_refused_before_any_thread_is_started() -> None:
    before = loop_threads()
    mailer = SyncMailer("smtp://127.0.0.1:1")
    with pytest.raises(MessageError):
        mailer.send(letter("Hello\r\nX: y"))
    assert loop_threads() == before


def test_c26_a_sync_mailer_that_nobody_has_any_more_says_where_it_was_made() -> None:
    before = loop_threads()
    with aiosmtpd_server() as server:
        mailer = SyncMailer(server.url)
        mailer.send(letter("Hello"))
        (thread,) = set(loop_threads()) - set(before)
        kept = [mailer]
        del mailer

        def let_go() -> None:
            kept.clear()
            thread.join(10)

        with pytest.warns(ResourceWarning, match=rf"made at {__file__}:\d+ was not closed"):
            let_go()
        assert not thread.is_alive()


@needs_fork
@forks
def test_c33_a_sync_mailer_in_a_forked_child_sends_over_a_session_of_its_own() -> None:
    with aiosmtpd_server() as server, SyncMailer(server.url) as mailer:
        mailer.send(letter("Parent"))

        def child() -> bool:
            sent = mailer.send(letter("Child")).outcome == "accepted"
            mailer.close()
            return sent

        assert in_a_child(child) == 0
        mailer.send(letter("Parent again"))
        assert mailer.stats().reconnects == 0
    assert [message.session for message in server.messages] == [1, 2, 1]


async def test_c31_a_task_that_wants_to_end_the_process_ends_nothing_but_itself(
    portal: Portal, caplog: pytest.LogCaptureFixture
) -> None:
    waiting, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def wait() -> str:
        loop.call_soon_threadsafe(waiting.set)
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        return "done"

    async def leave() -> None:
        raise SystemExit(3)

    other = asyncio.ensure_future(portal.call(wait()))
    await waiting.wait()
    with pytest.raises(SystemExit):
        await asyncio.to_thread(portal.submit(leave()).result, 5)
    go_on.set()
    assert await other == "done"
    assert "tried to end it" in caplog.text


async def test_c31_a_portal_whose_loop_is_held_up_shows_its_lag_and_says_by_what(
    portal: Portal, caplog: pytest.LogCaptureFixture
) -> None:
    assert portal.lag == 0
    started, go_on = threading.Event(), threading.Event()

    async def hold_up() -> None:
        started.set()
        go_on.wait(30)

    async def nothing() -> None:
        pass

    held = portal.submit(hold_up())
    assert await asyncio.to_thread(started.wait, 30)
    while portal.lag < 1.1:
        await asyncio.sleep(0.05)
    submitted = [portal.submit(nothing()) for _ in range(3)]
    go_on.set()
    await asyncio.gather(*map(asyncio.wrap_future, [held, *submitted]))
    await portal.call(nothing())
    assert portal.lag < 1.1
    (record,) = [each for each in caplog.records if "held up" in each.getMessage()]
    # It waits in threading, where the kernel is asked.
    assert "threading.py" in record.getMessage()


def test_threads_that_cannot_be_started_leave_none_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    start = threading.Thread.start

    def only_two(thread: threading.Thread) -> None:
        if len(set(threading.enumerate()) - before) >= 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", only_two)
    with pytest.raises(UsageError, match="can't start new thread"):
        Portal().call_sync(returns(1))
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_calls_made_while_a_portal_closes_go_to_its_next_loop(portal: Portal) -> None:
    closing, go_on = threading.Event(), threading.Event()

    async def closer() -> None:
        closing.set()
        await asyncio.get_running_loop().run_in_executor(None, go_on.wait)

    portal.call_sync(returns(1))
    portal.at_close(closer)
    first = threading.Thread(target=portal.close)
    first.start()
    closing.wait(5)
    results: list[object] = []
    second = threading.Thread(target=lambda: results.append(portal.call_sync(returns(2))))
    second.start()
    go_on.set()
    first.join(10)
    second.join(10)
    assert results == [2]


async def test_neither_drain_nor_close_blocks_a_running_loop(portal: Portal) -> None:
    await portal.call(returns(1))
    with pytest.raises(UsageError, match=r"asyncio\.to_thread\(portal\.drain\)"):
        portal.drain()
    with pytest.raises(UsageError, match=r"asyncio\.to_thread\(portal\.close\)"):
        portal.close()
    assert await portal.call(returns(2)) == 2
