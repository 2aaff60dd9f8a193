"""The must-nevers: what no send may ever do, whatever happened, as far as it shows from outside.

A test asks for the fixture ``musts``, registers its servers, and gets its outcomes through it:

    async def test_f12(musts):
        async with FaultServer(greeting="554 no") as server, Mailer(server.url) as mailer:
            musts.watch(server)
            token = musts.token()
            outcome = await musts.outcome_of(mailer.send(message(token)), token=token)

N1 no second copy, N2 no body under another's envelope, N3 one outcome and one that is true:
    messages that carry a token in envelope and content are compared with the outcomes.
N4 no task and no descriptor left, no exception that nobody retrieved.
N5 no canary in a log, an exception, a traceback, a frame's locals, a repr. What is logged is looked
    at in every test, whether it asks for ``musts`` or not: ``LogWatch``.
N6 no clear-text command but EHLO, STARTTLS and QUIT where ``watch(..., tls_required=True)``.
N7 nothing raised but MailErrors: ``outcome_of``.
N8 no callback that holds up the loop. N9 ``within``: no wait past its deadline.

N8 and N9 leave out the time in which the kernel let others run, so that a busy machine changes
nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import itertools
import logging
import os
import re
import sys
import threading
import time
import traceback
import typing as t
import uuid
from collections import Counter

from amail.errors import DeliveryUnknown, MailError
from amail.receipt import Receipt

if sys.platform != "win32":
    import resource

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping

    import pytest

    from amail.testing import FaultServer

PASSWORD = "canary-pa55word"
BODY = "canary-b0dy-of-the-message"

_TOKEN = re.compile(rb"token-[0-9a-f]{32}")
_unknown = itertools.count()
_CLEAR_COMMANDS = {"EHLO", "HELO", "STARTTLS", "QUIT"}
_OWN_FILES = tuple(f"{os.sep}{name}{os.sep}" for name in ("tests", "_pytest", "pytest_asyncio"))


# N5


def _forms(secret: str) -> list[str]:
    """A secret as it is, and as it shows in base64 behind 0, 1 or 2 other octets."""
    forms = [secret]
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret.encode()).decode()
        # The outermost characters depend on the neighbours.
        forms.append(encoded.rstrip("=")[4 if before else 0 : -2])
    return forms


_CANARIES = {form: secret for secret in (PASSWORD, BODY) for form in _forms(secret)}
_CANARY = re.compile("|".join(map(re.escape, _CANARIES)))


def canary_in(text: str) -> str | None:
    """Return which canary can be read in a text, and in which form; None if there is none."""
    found = _CANARY.search(text)
    return found and f"{_CANARIES[found[0]]!r} (as {found[0]!r})"


def assert_no_canary(text: str, where: str) -> None:
    """Fail if a password or a body can be read in a text."""
    found = canary_in(text)
    assert found is None, f"N5: {found} shows in {where}"


def assert_keeps_secrets(error: BaseException) -> None:
    """Fail if a canary can be read in an exception, its causes, or the locals of its frames.

    Frames of the tests themselves are left out, for there the canaries come from.
    """
    assert_no_canary("".join(traceback.format_exception(error)), f"the traceback of {error!r}")
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
        name = type(each).__name__
        text = f"{each} {each!r} {each.args!r} {vars(each)!r}"  # its notes are an attribute
        assert_no_canary(text, f"{name} or its attributes")
        for frame, _ in traceback.walk_tb(each.__traceback__):
            code = frame.f_code
            if not any(part in code.co_filename for part in _OWN_FILES):
                for variable, value in frame.f_locals.items():
                    where = f"local {variable!r} of {code.co_qualname} in the traceback of {name}"
                    assert_no_canary(_repr(value), where)


def assert_record_keeps_secrets(record: logging.LogRecord) -> None:
    """Fail if a canary can be read in a log record, or in the exception that came with it."""
    text = f"{record.getMessage()} {record.args!r} {vars(record)!r}"
    assert_no_canary(text, f"a log record of {record.name}")
    if record.exc_info and record.exc_info[1]:
        assert_keeps_secrets(record.exc_info[1])


class LogWatch(logging.Handler):
    """Looks for canaries in every record of every logger, with all that "amail" has to say."""

    def __init__(self) -> None:
        super().__init__()
        self._found: list[str] = []

    def __enter__(self) -> t.Self:
        self._level = (logger := logging.getLogger("amail")).level
        logger.setLevel(logging.DEBUG)
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger().removeHandler(self)
        logging.getLogger("amail").setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        """Note what is wrong; an exception here would end in whoever logs."""
        try:
            assert_record_keeps_secrets(record)
        except Exception as error:  # also of one that cannot be formatted
            self._found.append(str(error))

    def check(self) -> None:
        """Fail if a canary was logged since the last time."""
        found = self.take()
        assert not found, "\n".join(found)

    def take(self) -> list[str]:
        """Return what was found since the last time, and forget it."""
        found, self._found = self._found, []
        return found


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


# N8, N9


def _waited_for_cpu() -> float:
    """Seconds in which this thread could have run and others did. 0 where Linux is not at hand."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except OSError:
        return 0.0


def _slept() -> int:
    """How often this thread let go of its CPU by itself. Always another number where unknown."""
    if sys.platform == "win32":
        return next(_unknown)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Stopwatch:
    """Seconds that passed for this thread, without those in which it waited for a CPU."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited = _waited_for_cpu()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began - (_waited_for_cpu() - self._waited)


class LoopWatch:
    """Notes each callback that held up the loop of the thread it was made in."""

    def __init__(self) -> None:
        self.limit = 0.05
        self.blocked: list[str] = []
        self._thread = threading.get_ident()
        self._not_counted = 0.0
        self._collecting_since = 0.0
        self._run = asyncio.Handle._run

    def __enter__(self) -> t.Self:
        run, mine, clock = self._run, self._thread, time.perf_counter
        read_at, waited = clock(), _waited_for_cpu()

        def timed(handle: asyncio.Handle) -> None:
            nonlocal read_at, waited
            if threading.get_ident() != mine:
                run(handle)
                return
            began = clock()
            if began - read_at > 0.01:  # reading it for each callback would slow down everything
                read_at, waited = began, _waited_for_cpu()
            self._not_counted = 0.0
            slept, cpu_seconds = _slept(), time.thread_time()
            run(handle)
            seconds = clock() - began - self._not_counted
            if seconds > self.limit:
                seconds -= _waited_for_cpu() - waited
                read_at = 0.0
                if _slept() == slept:
                    # It was awake all the time: what is no CPU time was taken from it.
                    seconds = min(seconds, time.thread_time() - cpu_seconds)
            if seconds > self.limit:
                self.blocked.append(f"{seconds * 1000:.0f} ms in {handle!r}")

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
        gc.callbacks.append(self._collecting)
        return self

    def __exit__(self, *exc_info: object) -> None:
        gc.callbacks.remove(self._collecting)
        asyncio.Handle._run = self._run  # type: ignore[method-assign]

    @contextlib.contextmanager
    def not_counting(self) -> Iterator[None]:
        """What the test itself does here (making a large message, say) holds up nobody."""
        began = time.perf_counter()
        yield
        self._not_counted += time.perf_counter() - began

    def _collecting(self, phase: str, info: object) -> None:
        """Leave out garbage collection, whose length is that of the whole suite's heap."""
        if threading.get_ident() == self._thread:
            now = time.perf_counter()
            if phase == "stop":
                self._not_counted += now - self._collecting_since
            self._collecting_since = now


# N4


def _descriptors() -> set[tuple[str, str]]:
    """What this process holds open. Empty where there is no /proc."""
    held = set()
    knows_its_own = isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
    folder = "/proc/self/fd"
    for number in os.listdir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError):
            target = os.readlink(f"{folder}/{number}")
            if not target.startswith("/proc/"):  # the listing itself
                # uvloop has another pair of sockets, with the same numbers, whenever it is run.
                held.add((number, target if knows_its_own else target.partition(":")[0]))
    return held


# N1, N3


def _fates(result: Receipt | MailError) -> dict[str, str]:
    """What is known of single forward-paths: "accepted" or "refused"."""
    if not isinstance(result, Receipt | DeliveryUnknown):
        return {}  # then all had the same
    return dict.fromkeys(result.accepted, "accepted") | dict.fromkeys(result.refused, "refused")


def _noted(error: BaseException) -> str:
    """The outcome of a cancelled send, by the notes on its CancelledError."""
    notes = " ".join(getattr(error, "__notes__", ()))
    if "had accepted" in notes or "had been accepted" in notes:
        return "accepted"
    return "unknown" if "delivery unknown" in notes else "not_sent"


class Musts:
    """What one test has to answer for."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.loop_watch = LoopWatch()
        self._caplog = caplog
        self._servers: list[tuple[FaultServer, bool]] = []
        self._outcomes: dict[str, str] = {}
        self._fates: dict[tuple[str, str], str] = {}  # of a token, for one recipient
        self._repeatable: set[str] = set()
        self._tasks = asyncio.all_tasks()
        self._descriptors = _descriptors()

    def watch(self, server: FaultServer, *, tls_required: bool = False) -> FaultServer:
        """Compare at the end what this server noted. Several of them count as one."""
        self._servers.append((server, tls_required))
        return server

    def token(self) -> str:
        """A word to put into every forward-path's local part and into the content."""
        return f"token-{uuid.uuid4().hex}"

    def may_repeat(self, token: str) -> None:
        """This message may arrive more than once: the test itself sends it again."""
        self._repeatable.add(token)

    async def outcome_of(
        self, sending: Awaitable[Receipt], *, token: str | None = None
    ) -> Receipt | MailError:
        """Await a send: its receipt, or the MailError it raised. Any other exception fails (N7).

        With a token the outcome is compared at the end with what the servers hold.
        """
        result: Receipt | MailError
        try:
            result = await sending
        except MailError as error:
            assert_keeps_secrets(error)
            result = error
            # The caller's frames would keep alive what the test wants to see gone.
            error.__traceback__ = None
        except Exception as error:
            assert_keeps_secrets(error)
            raise AssertionError(f"N7: {type(error).__name__} is no MailError: {error}") from error
        if token is not None:
            self._note(token, getattr(result, "outcome", "not_sent"))
            self._fates.update({(token, path): fate for path, fate in _fates(result).items()})
        assert_no_canary(f"{result} {result!r}", "what a send came to")
        return result

    def cancelled(self, token: str, error: BaseException | None = None) -> None:
        """This send was cancelled by the test: it may have arrived or not, but once at most.

        With the CancelledError, what its notes say is compared; without a note nothing was sent.
        """
        self._note(token, "unknown" if error is None else _noted(error))

    def resolved(self, token: str, result: Receipt | MailError) -> None:
        """The late reply to this send, which had been unknown, has come: compare that too."""
        assert self._outcomes[token] in {"unknown", "accepted"}, "N3: there was an outcome"
        refused = {} if isinstance(result, Receipt) else getattr(result, "recipients", ())
        fates = _fates(result) | dict.fromkeys(refused, "refused")
        for path, fate in fates.items():
            assert self._fates.setdefault((token, path), fate) == fate, "N3: two outcomes"

    @property
    def outcomes(self) -> Mapping[str, str]:
        """What is known so far: the outcome of each token."""
        return self._outcomes

    def _note(self, token: str, outcome: str) -> None:
        assert token not in self._outcomes or token in self._repeatable, "N3: two outcomes"
        self._outcomes[token] = outcome

    @contextlib.asynccontextmanager
    async def within(self, deadline: float, *, slack: float = 0.25) -> AsyncIterator[None]:
        """What is awaited here ends within that many seconds, plus ``slack`` (N9)."""
        stopwatch = Stopwatch()
        try:
            async with asyncio.timeout(deadline + 10):
                yield
        finally:
            seconds = stopwatch.seconds
            assert seconds <= deadline + slack, f"N9: {seconds:.2f} s, deadline {deadline} s"

    def not_counting(self) -> contextlib.AbstractContextManager[None]:
        """Do something slow that is the test's own (N8)."""
        return self.loop_watch.not_counting()

    def check_stored(self) -> None:
        """N1, N2, N3: compare what the servers hold with the outcomes."""
        held: set[str] = set()
        copies: Counter[tuple[str, str]] = Counter()  # of a token, for one recipient
        for server, _ in self._servers:
            for message in server.messages:
                inside = {found.decode() for found in _TOKEN.findall(message.content)}
                paths = " ".join([message.reverse_path, *message.forward_paths])
                outside = {found.decode() for found in _TOKEN.findall(paths.encode())}
                assert inside == outside, f"N2: the content of {inside} went out to {outside}"
                held |= inside
                copies.update((token, path) for token in inside for path in message.forward_paths)
        for (token, path), number in copies.items():
            assert number == 1 or token in self._repeatable, f"N1: {number} copies for {path}"
        for token, outcome in self._outcomes.items():
            if self._servers and outcome == "accepted":
                assert token in held, f"N3: {token} is accepted and no server holds it"
            if outcome in {"rejected", "not_sent"} and token not in self._repeatable:
                assert token not in held, f"N3: {token} is {outcome} and a server holds it"
        for (token, path), fate in self._fates.items():
            if self._servers and token not in self._repeatable:
                number, wanted = copies[token, path], int(fate == "accepted")
                assert number == wanted, f"N3: {fate} for {path}, of which {number} copies are held"

    def check_servers(self) -> None:
        """N6, and everything the servers object to."""
        for server, tls_required in self._servers:
            assert not server.violations, f"the server objects: {server.violations}"
            if tls_required:
                clear = [each.line for each in server.commands if not each.encrypted]
                said = [line for line in clear if line.split(" ")[0].upper() not in _CLEAR_COMMANDS]
                assert not said, f"N6: said in the clear: {said}"

    def check_logs(self) -> None:
        """N5 in everything that was logged, and no exception that nobody retrieved (N4)."""
        for record in itertools.chain(
            self._caplog.get_records("setup"), self._caplog.get_records("call")
        ):
            assert_record_keeps_secrets(record)
            loud = record.name == "asyncio" and record.levelname in {"ERROR", "CRITICAL"}
            assert not loud, f"N4: asyncio complains: {record.getMessage()}"

    async def check_nothing_left(self) -> None:
        """N4: tasks and descriptors. What is being closed has a moment to end."""
        gc.collect()
        for _ in range(50):
            tasks = asyncio.all_tasks() - self._tasks - {asyncio.current_task()}
            descriptors = _descriptors() - self._descriptors
            if not tasks and not descriptors:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"N4: left behind: {tasks or ''} {sorted(descriptors) or ''}")

    def check_loop(self) -> None:
        """N8: nothing held up the loop."""
        assert not self.loop_watch.blocked, f"N8: held up: {self.loop_watch.blocked}"


async def _warm_up() -> None:
    """Have the loop open what it keeps for itself: uvloop does with the first connection."""
    if isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        return
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.close()
        await writer.wait_closed()
    await asyncio.to_thread(int)


@contextlib.asynccontextmanager
async def watching(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Musts]:
    """Watch what happens inside, and check everything at the end."""
    caplog.set_level("DEBUG", logger="amail")
    await _warm_up()
    musts = Musts(caplog)
    with musts.loop_watch:
        yield musts
    await musts.check_nothing_left()
    musts.check_stored()
    musts.check_servers()
    musts.check_logs()
    musts.check_loop()
