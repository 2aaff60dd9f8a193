"""A mailer's life in any order: what must never be is looked for after each thing that happens.

A hypothesis state machine over lease, send, fault, cancel, deadline, idle, restart, outage, close,
reopen, fork and new loop. The server runs in a thread of its own and outlives the mailer's loops;
that thread holds up the mailer's too, so N8 is left to the storm.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
import traceback
import typing as t
import warnings
from collections import Counter, deque

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from amail import Attachment, Mailer, Receipt
from amail.errors import MailerClosed
from amail.testing import Bytes, Close, Early, FaultServer, Hang, Partial, Reset
from tests.messages import tokened
from tests.musts import Musts
from tests.smtp.modes import OFFERS, in_every_mode
from tests.storm import STAGES

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from amail import MailError, Result
    from amail.testing import Moment, Script, Stage
    from tests.smtp.modes import Mode

SIZE = 3
IDLE_TIMEOUT, MAX_AGE = 30.0, 300.0
SOON = 0.05
LARGE = 3_000_000

CLOSING = "421 4.3.2 closing"
NO_REPLY = Bytes(b"2x0 what?\r\n")

Fault: t.TypeAlias = "tuple[Stage, Script, set[str], set[str]]"
"""What a server does once, and what may then become of a message to one, and to several, whose
content waits for the replies to its envelope."""

FAULTS: list[Fault] = [
    ("connect", Close(), {"accepted"}, {"accepted"}),
    ("greeting", Reset(), {"accepted"}, {"accepted"}),
    ("greeting", CLOSING, {"not_sent"}, {"not_sent"}),
    ("ehlo", Close(), {"accepted"}, {"accepted"}),
    ("ehlo", "451 4.3.0 later", {"not_sent"}, {"not_sent"}),
    ("mail", Close(), {"accepted"}, {"accepted"}),
    ("mail", Reset(), {"accepted"}, {"accepted"}),
    ("mail", CLOSING, {"accepted"}, {"accepted"}),
    ("mail", NO_REPLY, {"accepted"}, {"accepted"}),
    ("mail", "451 4.3.0 later", {"rejected"}, {"rejected"}),
    ("mail", "550 5.7.1 not you", {"rejected"}, {"rejected"}),
    ("rcpt", Close(), {"accepted"}, {"accepted"}),
    ("rcpt", CLOSING, {"accepted"}, {"accepted"}),
    ("rcpt", "550 5.1.1 who?", {"rejected"}, {"accepted"}),
    ("rcpt", "452 4.5.3 too many", {"rejected"}, {"accepted"}),
    ("data", Close(), {"accepted"}, {"accepted"}),
    ("data", CLOSING, {"not_sent"}, {"not_sent"}),
    ("data", "554 5.6.0 no", {"rejected"}, {"rejected"}),
    ("body", Early("552 5.3.4 too large", after=200), {"rejected"}, {"rejected"}),
    # Of a large content the last octet may have been written or not.
    ("body", Close(), {"unknown", "accepted"}, {"unknown", "accepted"}),
    ("final", Close(), {"unknown"}, {"unknown"}),
    ("final", Reset(), {"unknown"}, {"unknown"}),
    ("final", Partial("25"), {"unknown"}, {"unknown"}),
    ("final", NO_REPLY, {"unknown"}, {"unknown"}),
    ("final", "451 4.3.0 later", {"rejected"}, {"rejected"}),
    ("final", CLOSING, {"rejected"}, {"rejected"}),
    ("final", Bytes(b"250 2.0.0 ok\r\n421 4.3.2 closing\r\n"), {"accepted"}, {"accepted"}),
    ("rset", "500 5.5.1 what?", {"accepted"}, {"accepted"}),
    ("rset", Close(), {"accepted"}, {"accepted"}),
]
WAITING_AT: list[Stage] = ["connect", "greeting", "ehlo", "mail", "rcpt", "data", "body", "final"]

faults = st.sampled_from(FAULTS)
stages = st.sampled_from(WAITING_AT)
recipients = st.integers(1, 3)
attached = st.sampled_from([0, 0, 0, LARGE])


class ClockLoop(asyncio.SelectorEventLoop):
    """A loop whose clock can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        """Return the time of this loop."""
        return super().time() + self.ahead


@contextlib.contextmanager
def loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def descriptors() -> int:
    folder = "/proc/self/fd"
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


class Life(RuleBasedStateMachine):
    """One mailer, one server, and whatever may happen to them."""

    def __init__(
        self, outside: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture, mode: Mode
    ) -> None:
        super().__init__()
        self._outside = outside
        self._mode = mode
        self._descriptors = descriptors()
        self._due: dict[Stage, deque[Script]] = {stage: deque() for stage in STAGES}
        self._stands_at: Counter[Stage] = Counter()
        self._server = FaultServer(dict.fromkeys(STAGES, self._script), extensions=OFFERS)
        self._there(self._server.start())
        self._runner = asyncio.Runner(loop_factory=ClockLoop)
        self._mailer = Mailer(
            self._server.url,
            max_connections=SIZE,
            idle_timeout=IDLE_TIMEOUT,
            max_age=MAX_AGE,
            on_resolved=self._resolve,
            **mode.settings,
        )
        self._is_open = True
        self._last = ""
        self._counts: Counter[str] = Counter()
        self._tokens: dict[str, str] = {}
        self._late: list[Receipt | MailError] = []
        self._musts = self._here(_make_musts(caplog))
        self._musts.watch(self._server)

    # Things that happen

    @rule(number=st.integers(1, 2 * SIZE))
    def lease(self, number: int) -> None:
        """Many send at once: each slot is taken, the others wait, and all are served."""
        if not self._is_open:
            return
        at_once = min(number, SIZE)
        self._due["final"].extend([Hang()] * at_once)

        async def all_of_them() -> None:
            sends = [asyncio.ensure_future(self._outcome()) for _ in range(number)]
            await self._until(lambda: self._stands_at["final"] == at_once)
            stats = self._mailer.stats()
            assert (stats.leased, stats.waiting) == (at_once, number - at_once)
            assert (stats.open, stats.idle) == (at_once, 0) or at_once < SIZE
            self._server.release()
            assert set(await asyncio.gather(*sends)) == {"accepted"}

        self._here(all_of_them())

    @rule(recipients=recipients, attached=attached)
    def send(self, recipients: int, attached: int) -> None:
        """Nothing is wrong: it is accepted, or the mailer is closed."""
        outcome = self._here(self._outcome(recipients, attached))
        assert outcome == ("accepted" if self._is_open else "not_sent")

    @rule(fault=faults, recipients=recipients, attached=attached)
    def send_with_fault(
        self,
        fault: Fault,
        recipients: int,
        attached: int,
    ) -> None:
        """The server fails once at a stage, if that comes up."""
        if not self._is_open:
            return
        stage, script, _, _ = fault
        self._due[stage].append(script)
        outcome = self._here(self._outcome(recipients, attached))
        expected = self._expected(fault, recipients)
        assert outcome in (expected if self._stands_at[stage] else {"accepted"}), (
            f"{fault}: {self._last}"
        )

    # A greeting with 421 beside open sessions takes a slot out of use for a minute (F14).
    @rule(fault=faults.filter(lambda fault: fault[0] != "greeting"), number=st.integers(2, 12))
    def bulk(self, fault: Fault, number: int) -> None:
        """Many are sent by send_many, and the server fails once, if that comes up."""
        if not self._is_open:
            return
        self._due[fault[0]].append(fault[1])
        outcomes = self._here(self._outcomes(number))
        assert set(outcomes) <= {"accepted", "unknown"} | self._expected(fault, 1), outcomes
        # One that dies with its session, and those in flight with it.
        assert len(outcomes) - outcomes.count("accepted") <= self._mode.depth, outcomes

    @rule(stage=stages, recipients=recipients, attached=attached)
    def cancel(self, stage: Stage, recipients: int, attached: int) -> None:
        """A sender is cancelled while the server is silent at a stage, if that comes up."""
        if not self._is_open:
            return
        self._due[stage].append(Hang())
        token = self._musts.token()

        async def cancelled() -> None:
            task = asyncio.ensure_future(self._outcome(recipients, attached, token=token))
            await self._until(lambda: bool(self._stands_at[stage]) or task.done())
            task.cancel()
            if self._stands_at[stage]:
                try:
                    async with self._musts.within(0):
                        await task
                except asyncio.CancelledError as error:
                    self._musts.cancelled(token, error)
            else:
                assert await task == "accepted"
            self._server.release()

        self._here(cancelled())
        if self._stands_at[stage]:
            outcome = self._musts.outcomes[token]
            self._counts[outcome] += 1
            assert outcome in self._left_at(stage)

    @rule(stage=stages, recipients=recipients, attached=attached)
    def deadline(self, stage: Stage, recipients: int, attached: int) -> None:
        """A sender's time ends while the server is silent at a stage, if that comes up."""
        if not self._is_open:
            return
        self._due[stage].extend([Hang()] * 2)

        async def late() -> str:
            async with self._musts.within(SOON):
                return await self._outcome(recipients, attached, timeout=SOON)

        outcome = self._here(late())
        self._due[stage].clear()
        self._server.release()
        if self._stands_at[stage]:
            assert outcome in self._left_at(stage)
        else:
            assert outcome in {"accepted", "not_sent", "unknown"}  # by a busy machine

    @rule(seconds=st.sampled_from([1.0, IDLE_TIMEOUT + 1, 2 * MAX_AGE]))
    def idle(self, seconds: float) -> None:
        """Time passes."""
        loop = t.cast("ClockLoop", self._runner.get_loop())
        idle = self._mailer.stats().idle
        loop.ahead += seconds
        if seconds > IDLE_TIMEOUT:
            self._here(self._until(lambda: self._mailer.stats().open == 0))
        else:
            self._here(asyncio.sleep(0))
            assert self._mailer.stats().idle == idle

    @rule()
    def restart(self) -> None:
        """The server ends every session and is there again at once."""
        self._there(self._server.aclose())
        self._there(self._server.start())

    @precondition(lambda self: self._is_open)
    @rule()
    def outage(self) -> None:
        """The server is away for one message; the next one is accepted again."""
        self._there(self._server.aclose())
        if self._mode.at_once:  # or it would be the price of what was heard within a second
            self._here(self._until(lambda: self._mailer.stats().open == 0))
        assert self._here(self._outcome()) == "not_sent"
        self._there(self._server.start())
        assert self._here(self._outcome()) == "accepted"

    @rule()
    def close(self) -> None:
        """The mailer is closed, maybe again."""
        self._here(self._mailer.aclose())
        self._is_open = False

    @precondition(lambda self: self._is_open)
    @rule(stage=st.sampled_from(["mail", "data", "final"]))
    def close_while_sending(self, stage: Stage) -> None:
        """The mailer is closed while a message is under way, which gets its time."""
        if stage == "data" and not self._mode.says_data:
            return
        self._due[stage].append(Hang())

        async def closing() -> None:
            sending = asyncio.ensure_future(self._outcome())
            await self._until(lambda: bool(self._stands_at[stage]))
            closed = asyncio.ensure_future(self._mailer.aclose())
            await asyncio.sleep(0)
            assert await self._outcome() == "not_sent"
            self._server.release()
            assert await sending == "accepted"
            await closed

        self._here(closing())
        self._is_open = False

    @precondition(lambda self: not self._is_open)
    @rule()
    def reopen(self) -> None:
        """The mailer is entered again."""
        self._here(self._mailer.__aenter__())
        self._is_open = True

    @precondition(lambda self: self._is_open and hasattr(os, "fork"))
    @rule(closes=st.booleans())
    def fork(self, closes: bool) -> None:
        """A child sends one message over a session of its own; the parent's are unharmed."""
        before, connections = self._mailer.stats(), self._server.connections
        token = self._musts.token()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that there is the server's thread
            child = os.fork()
        if child == 0:
            _be_a_child(self._mailer, token, closes=closes)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        held = [each for each in self._server.messages if token.encode() in each.content]
        assert [each.connection for each in held] == [connections + 1]
        assert self._mailer.stats() == before
        if before.idle:
            assert self._here(self._outcome()) == "accepted"
            assert self._mailer.stats().reconnects == before.reconnects
            assert self._server.connections == connections + 1

    @rule()
    def new_loop(self) -> None:
        """The loop is closed, with the sessions open, and another one begins."""
        ahead = t.cast("ClockLoop", self._runner.get_loop()).ahead
        self._runner.close()
        self._runner = asyncio.Runner(loop_factory=ClockLoop)
        t.cast("ClockLoop", self._runner.get_loop()).ahead = ahead
        assert self._mailer.stats().open == 0

    # What holds whenever nothing is going on

    @invariant()
    def nothing_is_wrong(self) -> None:
        """N1 to N7, and the numbers. N9 is looked for where somebody waits."""
        self._here(self._until(self._is_quiet))
        stats = self._mailer.stats()
        assert stats.open == stats.idle <= (SIZE if self._is_open else 0)
        assert stats.leased == stats.waiting == 0
        while self._late:
            self._take_late(self._late.pop())
        counted = {name: getattr(stats, name) for name in _OUTCOMES}
        assert counted == {name: self._counts[name] for name in _OUTCOMES}
        self._musts.check_stored()
        self._musts.check_servers()
        self._stands_at.clear()
        for due in self._due.values():
            due.clear()

    def teardown(self) -> None:
        """Close everything: nothing may be left."""
        try:
            self._here(self._mailer.aclose())
            assert self._mailer.stats().open == 0
        finally:
            self._runner.close()
            self._there(self._server.aclose())
        assert descriptors() == self._descriptors, "N4: a descriptor is left"

    # How

    def _is_quiet(self) -> bool:
        """Tell whether both sides have seen what the other did."""
        stats = self._mailer.stats()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        return not stats.leased and not tasks and stats.open == self._server.open_connections

    def _script(self, moment: Moment) -> Script | None:
        due = self._due[moment.stage]
        if not due:
            return None
        self._stands_at[moment.stage] += 1
        return due.popleft()

    def _resolve(self, result: Receipt | MailError) -> None:
        self._late.append(result)

    def _take_late(self, result: Receipt | MailError) -> None:
        self._musts.resolved(self._tokens[str(getattr(result, "message_id", None))], result)
        self._counts["unknown"] -= 1
        self._counts[str(getattr(result, "outcome", None))] += 1

    async def _outcome(
        self,
        recipients: int = 1,
        attached: int = 0,
        *,
        token: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Send one message and count what came of it."""
        token = token or self._musts.token()
        message = tokened(token, recipients)
        if attached:
            message.attachments = [Attachment("data.bin", data=_octets(attached))]
        self._tokens[str(message.message_id)] = token
        sending = self._mailer.send(message, timeout=timeout)
        result = await self._musts.outcome_of(sending, token=token)
        outcome = self._musts.outcomes[token]
        self._last = repr(result)[-300:]
        if not isinstance(result, MailerClosed):
            self._counts[outcome] += 1
        return outcome

    async def _outcomes(self, number: int) -> list[str]:
        """Send many in one go and count what came of them."""
        tokens = [self._musts.token() for _ in range(number)]
        messages = [tokened(token) for token in tokens]
        by_id = {str(each.message_id): token for each, token in zip(messages, tokens, strict=True)}
        self._tokens |= by_id
        async for result in self._mailer.send_many(messages):
            token = by_id[str(result.message.message_id)]
            await self._musts.outcome_of(_of(result), token=token)
            self._counts[self._musts.outcomes[token]] += 1
        return [self._musts.outcomes[token] for token in tokens]

    def _expected(self, fault: Fault, recipients: int) -> set[str]:
        """What may become of a message; more where its content may have gone out at once."""
        stage, script, to_one, to_several = fault
        expected = to_one if recipients == 1 else to_several
        ends = isinstance(script, Close | Reset | Bytes) or (script == CLOSING and recipients > 1)
        at_once = self._mode.at_once and stage in {"rset", "mail", "rcpt"}
        return expected | {"unknown"} if at_once and ends else expected

    def _left_at(self, stage: Stage) -> set[str]:
        """What becomes of a message whose sender leaves while the server stands at a stage."""
        if stage == "body" or (self._mode.at_once and stage in {"mail", "rcpt"}):
            # Whether our last octet is written already is not seen there.
            return {"not_sent", "unknown"}
        return {"unknown"} if stage == "final" else {"not_sent"}

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that both sides' loops bring about."""
        until = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < until, f"N4: {self._mailer.stats()} {self._server}"
            await asyncio.sleep(0.001)

    def _here(self, awaitable: Awaitable[T]) -> T:
        """Run in the mailer's loop."""

        async def wait() -> T:
            return await awaitable

        return self._runner.run(wait())

    def _there(self, coroutine: t.Coroutine[t.Any, t.Any, T]) -> T:
        """Run in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._outside).result(10)


T = t.TypeVar("T")
_OUTCOMES = ("accepted", "rejected", "not_sent", "unknown")


async def _of(result: Result) -> Receipt:
    """Return or raise what came of one of many."""
    if result.receipt is None:
        assert result.error is not None
        raise result.error
    return result.receipt


async def _make_musts(caplog: pytest.LogCaptureFixture) -> Musts:
    return Musts(caplog)


@functools.cache
def _octets(number: int) -> bytes:
    return bytes(number)


def _be_a_child(mailer: Mailer, token: str, *, closes: bool) -> t.NoReturn:
    """Send one message, and end with 0 if it was accepted."""
    code = 1

    async def send() -> None:
        assert mailer.stats().open == 0
        await mailer.send(tokened(token))
        if closes:
            await mailer.aclose()

    try:
        asyncio.run(send())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def live(examples: int, caplog: pytest.LogCaptureFixture, mode: Mode) -> None:
    with loop_in_thread() as outside:
        run_state_machine_as_test(
            t.cast("type[Life]", functools.partial(Life, outside, caplog, mode)),
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


@in_every_mode
def test_what_must_never_be_is_not_after_whatever_happens_in_whatever_order(
    caplog: pytest.LogCaptureFixture, mode: Mode
) -> None:
    live(15 if mode.name == "pipelined" else 5, caplog, mode)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@in_every_mode
def test_what_must_never_be_is_not_in_ten_thousand_lives(
    caplog: pytest.LogCaptureFixture, mode: Mode
) -> None:
    live(10_000, caplog, mode)
