"""What users feel: processor time, round trips, waiting, and a loop that stalls, all over TLS.

    python -m benchmarks.feel [--quick]

Five questions. Processor time of the application's process for each accepted message, composing
included, and AUTH; round trips of one send over a session that is open; round trips of the first
message of a process, on a port like 465, with AUTH; how unlike the waits of 50 callers are; and how
long a loop stalls at most while 25 MB go out. Round trips are those of the benchmark "latency". The
server and the network are on another core than who is measured, if there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
import typing as t
from pathlib import Path

import aiosmtplib

from benchmarks import messages, peers
from benchmarks.measure import Contender, Task, Trial, anew, in_turn, off_the_core
from benchmarks.report import Series, Table, command
from benchmarks.sinks import far_away, fast_sink

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from benchmarks.measure import Clock, Measured, Plan
    from benchmarks.sinks import Sink

PROCESSOR = "processor time of the application for each accepted message"
WARM = "one `send` over an open session, 40 ms"
FIRST = "first message of a process, implicit TLS and AUTH, 40 ms"
CALLERS = "50 callers at once, 10 ms: the slowest of a hundred against the middle one"
STALL = "longest stall of the loop while 25 MB go out"
BIG = 25_000_000


# 50 callers


async def amail_callers(task: Task, clock: Clock) -> None:
    async with peers.amail_mailer(task) as mailer:

        async def send(number: int) -> None:
            await mailer.send(messages.amail_message(number))

        await _call(send, task, clock)


async def aiosmtplib_callers(task: Task, clock: Clock) -> None:
    """As many connections, of which a caller waits for one."""
    async with _idle_connections(task) as idle:

        async def send(number: int) -> None:
            smtp = await idle.get()
            try:
                await smtp.send_message(messages.email_message(number))
            finally:
                idle.put_nowait(smtp)

        await _call(send, task, clock)


async def aiosmtplib_callers_alone(task: Task, clock: Clock) -> None:
    """A connection each."""
    options = peers.aiosmtplib_options(task)

    async def send(number: int) -> None:
        await aiosmtplib.send(messages.email_message(number), **options)

    await _call(send, task, clock)


@contextlib.asynccontextmanager
async def _idle_connections(task: Task) -> AsyncIterator[asyncio.Queue[aiosmtplib.SMTP]]:
    async with contextlib.AsyncExitStack() as stack:
        idle: asyncio.Queue[aiosmtplib.SMTP] = asyncio.Queue()
        for _ in range(task.sessions):
            smtp = aiosmtplib.SMTP(**peers.aiosmtplib_options(task))
            idle.put_nowait(await stack.enter_async_context(smtp))
        yield idle


AT_ONCE = 50


async def _call(send: Callable[[int], Awaitable[None]], task: Task, clock: Clock) -> None:
    """Have 50 callers send one after another; the first of each opens what there is to open."""
    took: list[float] = []

    async def caller(numbers: Iterable[int], took: list[float]) -> None:
        for number in numbers:
            began = time.perf_counter()
            await send(number)
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(caller([number], []) for number in range(task.warm)))
    clock.begin()
    rounds = range(task.count // AT_ONCE)
    await asyncio.gather(*(caller(rounds, took) for _ in range(AT_ONCE)))
    clock.end()
    percentiles = statistics.quantiles(took, n=100, method="inclusive")
    clock.more["tail"] = percentiles[98] / percentiles[49]


# 25 MB


async def amail_stall_path(task: Task, clock: Clock) -> None:
    async with peers.amail_mailer(task) as mailer:
        await mailer.send(messages.amail_message(0))
        async with _watched(clock):
            message = messages.amail_message(1)
            message.attach(messages.NAME, messages.TYPE, Path(task.path))
            await mailer.send(message)


async def amail_stall_bytes(task: Task, clock: Clock) -> None:
    octets = messages.octets_of(task.path)
    async with peers.amail_mailer(task) as mailer:
        await mailer.send(messages.amail_message(0))
        async with _watched(clock):
            message = messages.amail_message(1)
            message.attach(messages.NAME, messages.TYPE, octets)
            await mailer.send(message)


async def aiosmtplib_stall(task: Task, clock: Clock) -> None:
    octets = messages.octets_of(task.path)
    async with aiosmtplib.SMTP(**peers.aiosmtplib_options(task)) as smtp:
        await smtp.send_message(messages.email_message(0))
        async with _watched(clock):
            message = messages.email_message(1)
            message.add_attachment(octets, *messages.TYPE.split("/"), filename=messages.NAME)
            await smtp.send_message(message)


@contextlib.asynccontextmanager
async def _watched(clock: Clock) -> AsyncIterator[None]:
    """Have the loop do something every millisecond, and say by how much it was late at most."""
    every, longest = 0.001, 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(every)
            longest = max(longest, time.perf_counter() - began - every)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.05)
    clock.begin()  # which collects garbage, and that is no stall of who is measured
    await asyncio.sleep(0.05)
    longest = 0.0
    try:
        yield
        await asyncio.sleep(2 * every)
    finally:
        clock.end()
        watching.cancel()
        clock.more["stall"] = longest


AMAIL_CALLERS = Contender("amail, 5 sessions", amail_callers)
AIOSMTPLIB_CALLERS = Contender("aiosmtplib, 5 connections in a queue", aiosmtplib_callers)
AIOSMTPLIB_CALLERS_ALONE = Contender("`aiosmtplib.send()`", aiosmtplib_callers_alone)
AMAIL_STALL_PATH = Contender("amail, from a path", amail_stall_path)
AMAIL_STALL_BYTES = Contender("amail, bytes", amail_stall_bytes)
AIOSMTPLIB_STALL = Contender("aiosmtplib `send_message`", aiosmtplib_stall)


# The five questions


def processor(sink: Sink, plan: Plan) -> Table:
    """Microseconds a message; over ten sessions, who has one at a time over that."""
    messages_of = {
        peers.AMAIL_GATHER: 5000,
        peers.AMAIL_GATHER_DATA: 5000,
        peers.AIOSMTPLIB_BYTES: 1500,
        peers.AIOSMTPLIB_POOL: 400,
        peers.FLASK_MAIL_CONNECT: 400,
        peers.FLASK_MAIL_SEND: 200,
    } | dict.fromkeys(peers.nodemailer(), 800)
    trials = [
        Trial(
            contender,
            Task(sink.port, plan.count(messages_of[contender]), 10, warm=1, ca_file=sink.ca_file),
            sink.counter,
        )
        for contender in peers.there(*messages_of)
    ]
    return _table(
        PROCESSOR,
        "us",
        trials,
        in_turn(trials, plan.runs),
        lambda trial, measured: measured.cpu / trial.task.count * 1e6,
        base=peers.AMAIL_GATHER_DATA.name,
    )


def warm_send(far: Sink, plan: Plan) -> Table:
    contenders = {
        peers.AMAIL_SEND: 10,
        peers.AMAIL_SEND_DATA: 10,
        peers.AIOSMTPLIB_POOL: 5,
        peers.FLASK_MAIL_SEND: 3,
    }
    trials = [
        Trial(
            contender,
            Task(far.port, plan.count(contenders[contender]), warm=1, ca_file=far.ca_file),
            far.counter,
        )
        for contender in peers.there(*contenders)
    ]
    found = in_turn(trials, plan.runs)
    return _table(
        WARM, "round trips", trials, found, _round_trips(far), base=peers.AMAIL_SEND_DATA.name
    )


def first_message(far: Sink, plan: Plan) -> Table:
    """Each in a fresh process, whose modules are imported."""
    contenders = peers.there(
        peers.AMAIL_SEND, peers.AMAIL_SEND_DATA, peers.AIOSMTPLIB_SEND, peers.FLASK_MAIL_SEND
    )
    task = Task(far.port, ca_file=far.ca_file)
    trials = [Trial(contender, task, far.counter) for contender in contenders]
    rounds = [[anew(trial, 1)[0] for trial in trials] for _ in range(plan.runs)]
    found = [list(column) for column in zip(*rounds, strict=True)]
    return _table(
        FIRST, "round trips", trials, found, _round_trips(far), base=peers.AMAIL_SEND_DATA.name
    )


def callers(far: Sink, plan: Plan) -> Table:
    count = AT_ONCE * plan.count(10)
    trials = [
        Trial(contender, Task(far.port, count, 5, warm=5, ca_file=far.ca_file), far.counter)
        for contender in (AMAIL_CALLERS, AIOSMTPLIB_CALLERS, AIOSMTPLIB_CALLERS_ALONE)
    ]
    found = in_turn(trials, plan.runs)
    return _table(CALLERS, "times", trials, found, lambda _, measured: measured.more["tail"])


def stall(sink: Sink, plan: Plan, path: Path) -> Table:
    task = Task(sink.port, 1, warm=1, ca_file=sink.ca_file, path=str(path))
    trials = [
        Trial(contender, task, sink.counter)
        for contender in (AMAIL_STALL_PATH, AMAIL_STALL_BYTES, AIOSMTPLIB_STALL)
    ]
    found = in_turn(trials, plan.runs)
    return _table(
        STALL,
        "ms",
        trials,
        found,
        lambda _, measured: measured.more["stall"] * 1e3,
        base=AMAIL_STALL_PATH.name,
    )


def _round_trips(far: Sink) -> Callable[[Trial, Measured], float]:
    return lambda trial, measured: measured.seconds / trial.task.count / far.round_trip


def _table(
    question: str,
    unit: str,
    trials: list[Trial],
    found: list[list[Measured]],
    figure: Callable[[Trial, Measured], float],
    *,
    base: str = "",
) -> Table:
    series = tuple(
        Series(trial.contender.name, tuple(figure(trial, each) for each in runs))
        for trial, runs in zip(trials, found, strict=True)
    )
    return Table(question, unit, "less", series, base)


def measure(plan: Plan) -> list[Table]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(folder) / messages.NAME
        path.write_bytes(messages.octets(max(1000, round(BIG * plan.share))))
        with off_the_core():
            sink = stack.enter_context(fast_sink(tls=True))
        far = stack.enter_context(far_away(sink, 0.04))
        near = stack.enter_context(far_away(sink, 0.01))
        return [
            processor(sink, plan),
            warm_send(far, plan),
            first_message(far, plan),
            callers(near, plan),
            stall(sink, plan, path),
        ]


if __name__ == "__main__":
    command("feel", measure, __doc__)
