"""How much memory does a message of 25 MiB take, and how much 10,000 or 100,000 small ones?

    python -m benchmarks.memory [--quick]

Each in a fresh process, warmed up with one message: the peak of its resident memory above what it
had before. Linux only (it tells the peak of a process since it was last asked to forget it).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
import typing as t
from dataclasses import replace
from pathlib import Path

import aiosmtplib

from benchmarks import messages, peers
from benchmarks.install import has_package, package
from benchmarks.measure import Clock, Contender, Plan, Task, Trial, anew
from benchmarks.report import Series, Table, command
from benchmarks.sinks import fast_sink, postfix_sink

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail import Message
    from benchmarks.sinks import Sink

MIB = 1024 * 1024
BIG = 25 * MIB
SESSIONS = 10
LARGE = "25 MiB attached"
MANY, VERY_MANY = "10,000 messages (2 runs)", "100,000 messages (2 runs)"
FEW = 2  # runs of these: each takes long, and they do not differ
EACH = "each of 100,000 messages at once"


def _resident(field: str) -> float:
    """MiB of this process: "VmRSS" has now, "VmHWM" had at its peak."""
    status = Path("/proc/self/status").read_text("utf-8")
    kib = re.search(rf"{field}:\s+(\d+) kB", status)
    assert kib is not None
    return int(kib[1]) / 1024


@contextlib.contextmanager
def peak_of(clock: Clock) -> Iterator[None]:
    """Say how much the peak is above what was there before, in MiB, as ``extra``."""
    clock.begin()
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # forget the peak so far: proc(5)
    before = _resident("VmRSS")
    yield
    clock.more["extra"] = max(0.0, _resident("VmHWM") - before)
    clock.end()


# 25 MiB


async def amail_path(task: Task, clock: Clock) -> None:
    async with peers.amail_mailer(task) as mailer:
        await mailer.send(messages.amail_message(0))
        with peak_of(clock):
            message = messages.amail_message(1)
            message.attach(messages.NAME, messages.TYPE, Path(task.path))
            await mailer.send(message)


async def amail_bytes(task: Task, clock: Clock) -> None:
    async with peers.amail_mailer(task) as mailer:
        await mailer.send(messages.amail_message(0))
        with peak_of(clock):
            message = messages.amail_message(1)
            message.attach(messages.NAME, messages.TYPE, messages.octets_of(task.path))
            await mailer.send(message)


async def aiosmtplib_large(task: Task, clock: Clock) -> None:
    options: dict[str, t.Any] = {"hostname": "127.0.0.1", "port": task.port, "start_tls": False}
    async with aiosmtplib.SMTP(**options) as smtp:
        await smtp.send_message(messages.email_message(0))
        with peak_of(clock):
            message = messages.email_message(1)
            octets = messages.octets_of(task.path)
            message.add_attachment(octets, *messages.TYPE.split("/"), filename=messages.NAME)
            await smtp.send_message(message)


def flask_mail_large(task: Task, clock: Clock) -> None:
    app = peers.flask_app(task)
    mail = package("flask_mail").Mail(app)
    with app.app_context():
        mail.send(messages.flask_mail_message(0))
        with peak_of(clock):
            message = messages.flask_mail_message(1)
            message.attach(messages.NAME, messages.TYPE, messages.octets_of(task.path))
            mail.send(message)


def flask_mailman_large(task: Task, clock: Clock) -> None:
    app = peers.flask_app(task)
    mail = package("flask_mailman").Mail(app)
    with app.app_context(), mail.get_connection() as connection:
        messages.flask_mailman_message(0, connection=connection).send()
        with peak_of(clock):
            message = messages.flask_mailman_message(1, connection=connection)
            message.attach_file(task.path)
            message.send()


# Many


async def amail_gather(task: Task, clock: Clock) -> None:
    """All at once, each with its message."""
    async with peers.amail_mailer(task) as mailer:
        await mailer.send(messages.amail_message(0))
        with peak_of(clock):
            numbers = range(1, task.messages)
            await asyncio.gather(*(mailer.send(_small(number)) for number in numbers))


async def amail_send_many(task: Task, clock: Clock) -> None:
    async with peers.amail_mailer(task) as mailer:
        await mailer.send(messages.amail_message(0))
        with peak_of(clock):
            async for result in mailer.send_many(map(_small, range(1, task.messages))):
                if result.error is not None:
                    raise result.error


def _small(number: int) -> Message:
    return messages.amail_message(number)


async def aiosmtplib_gather(task: Task, clock: Clock) -> None:
    """All at once over as many connections, each with its EmailMessage."""
    options: dict[str, t.Any] = {"hostname": "127.0.0.1", "port": task.port, "start_tls": False}
    async with contextlib.AsyncExitStack() as stack:
        idle: asyncio.Queue[aiosmtplib.SMTP] = asyncio.Queue()
        for _ in range(task.sessions):
            idle.put_nowait(await stack.enter_async_context(aiosmtplib.SMTP(**options)))

        async def send(message: t.Any) -> None:
            smtp = await idle.get()
            try:
                await smtp.send_message(message)
            finally:
                idle.put_nowait(smtp)

        await send(messages.email_message(0))
        with peak_of(clock):
            numbers = range(1, task.messages)
            await asyncio.gather(*(send(messages.email_message(number)) for number in numbers))


AMAIL_PATH = Contender("amail, from a path", amail_path)
AMAIL_BYTES = Contender("amail, bytes", amail_bytes)
AMAIL_GATHER = Contender("amail `gather` of `send`", amail_gather)
AMAIL_MANY = Contender("amail `send_many`", amail_send_many)
AIOSMTPLIB = Contender("aiosmtplib `send_message`", aiosmtplib_large)
FLASK_MAIL = Contender("Flask-Mail `send`", flask_mail_large)
FLASK_MAILMAN = Contender("Flask-Mailman, one connection", flask_mailman_large)
AIOSMTPLIB_GATHER = Contender("aiosmtplib `gather` of `send_message`", aiosmtplib_gather)


def large(sink: Sink, plan: Plan, path: Path) -> Table:
    contenders = [AMAIL_PATH, AMAIL_BYTES, AIOSMTPLIB]
    contenders += [FLASK_MAIL] if has_package("flask_mail") else []
    contenders += [FLASK_MAILMAN] if has_package("flask_mailman") else []
    contenders += peers.nodemailer()
    task = Task(sink.port, count=1, warm=1, path=str(path))
    return _table(LARGE, contenders, task, sink, plan)


def many(sink: Sink, plan: Plan) -> Table:
    count = plan.count(10_000, least=20)
    task = Task(sink.port, count, SESSIONS, warm=1)
    contenders = [AMAIL_GATHER, AMAIL_MANY, AIOSMTPLIB_GATHER]
    return _table(MANY, contenders, task, sink, _few(plan))


def very_many(sink: Sink, plan: Plan) -> list[Table]:
    """In all, and for each message of those that are all there at once."""
    count = plan.count(100_000, least=20)
    task = Task(sink.port, count, SESSIONS, warm=1)
    in_all = _table(VERY_MANY, [AMAIL_GATHER, AMAIL_MANY], task, sink, _few(plan))
    gathered = in_all.series[0]
    each = Series(gathered.who, tuple(mib * 1024 / count for mib in gathered.figures))
    return [in_all, Table(EACH, "KiB more", "less", (each,))]


def _few(plan: Plan) -> Plan:
    return replace(plan, runs=min(plan.runs, FEW))


def _table(question: str, contenders: list[Contender], task: Task, sink: Sink, plan: Plan) -> Table:
    """Measure in fresh processes. What is next to nothing makes no ratio, so there is no base."""
    series = []
    for contender in contenders:
        runs = anew(Trial(contender, task, sink.counter), plan.runs)
        series.append(Series(contender.name, tuple(each.more["extra"] for each in runs)))
    return Table(question, "MiB more", "less", tuple(series))


def measure(plan: Plan) -> list[Table]:
    with tempfile.TemporaryDirectory() as folder, postfix_sink() as plain, fast_sink() as fast:
        path = Path(folder) / messages.NAME
        path.write_bytes(messages.octets(max(1000, round(BIG * plan.share))))
        return [large(plain, plan, path), many(plain, plan), *very_many(fast, plan)]


if __name__ == "__main__":
    command("memory", measure, __doc__)
