"""Who is compared: each one small function that sends the same messages as its own users would.

A function sends what its task says and is measured between ``clock.begin`` and ``clock.end``: with
the sessions it opens, unless the task has messages that go ahead of the measured ones.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import typing as t

import aiosmtplib
from flask import Flask

from amail import Mailer, Message
from benchmarks import messages
from benchmarks.install import HERE, compiled, has_package, node_folder, package
from benchmarks.measure import Contender

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from benchmarks.measure import Clock, Task

USER, PASSWORD = "ada", "secret"  # the servers here let anybody in


# amail


def amail_mailer(task: Task, **options: t.Any) -> Mailer:
    """Return a mailer with as many sessions as the task says, which no number of messages ends."""
    if task.ca_file:
        options |= {"tls": "implicit", "ca_file": task.ca_file}
        options |= {"username": USER, "password": PASSWORD}
    options = {"max_connections": task.sessions, "max_messages": 0} | options
    return Mailer(host="127.0.0.1", port=task.port, pipeline_depth=task.depth, **options)


async def amail_send(task: Task, clock: Clock) -> None:
    clock.begin()
    async with amail_mailer(task) as mailer:
        for number in task.numbers(clock):
            await mailer.send(messages.amail_message(number, task.size, task.recipients))
        clock.end()


async def amail_send_data(task: Task, clock: Clock) -> None:
    """The same where the server has no CHUNKING."""
    clock.begin()
    async with amail_mailer(task, chunking=False) as mailer:
        for number in task.numbers(clock):
            await mailer.send(messages.amail_message(number, task.size, task.recipients))
        clock.end()


async def amail_gather(task: Task, clock: Clock) -> None:
    await _gather(amail_mailer(task), task, clock)


async def amail_gather_data(task: Task, clock: Clock) -> None:
    await _gather(amail_mailer(task, chunking=False), task, clock)


async def _gather(mailer: Mailer, task: Task, clock: Clock) -> None:
    clock.begin()
    async with mailer:
        source = await _warmed(mailer, task, clock)
        await asyncio.gather(*map(mailer.send, source))
        clock.end()


async def amail_send_many(task: Task, clock: Clock) -> None:
    await _send_many(amail_mailer(task), task, clock)


async def amail_send_many_data(task: Task, clock: Clock) -> None:
    await _send_many(amail_mailer(task, chunking=False), task, clock)


async def _send_many(mailer: Mailer, task: Task, clock: Clock) -> None:
    clock.begin()
    async with mailer:
        source = await _warmed(mailer, task, clock)
        async for result in mailer.send_many(source):
            if result.error is not None:
                raise result.error
        clock.end()


async def _warmed(mailer: Mailer, task: Task, clock: Clock) -> Iterator[Message]:
    """Send those that go ahead, all at once, and return the others."""
    source = (
        messages.amail_message(number, task.size, task.recipients)
        for number in range(task.messages)
    )
    await asyncio.gather(*(mailer.send(next(source)) for _ in range(task.warm)))
    if task.warm:
        clock.begin()
    return source


# aiosmtplib, three ways


def aiosmtplib_options(task: Task) -> dict[str, t.Any]:
    place: dict[str, t.Any] = {"hostname": "127.0.0.1", "port": task.port}
    if not task.ca_file:
        return {**place, "start_tls": False}
    context = ssl.create_default_context(cafile=task.ca_file)
    login = {"username": USER, "password": PASSWORD}
    return {**place, "use_tls": True, "tls_context": context, **login}


async def aiosmtplib_send(task: Task, clock: Clock) -> None:
    """Its shortest form: a connection each."""
    options = aiosmtplib_options(task)
    clock.begin()
    for number in task.numbers(clock):
        message = messages.email_message(number, task.size, task.recipients)
        await aiosmtplib.send(message, **options)
    clock.end()


async def aiosmtplib_pool(task: Task, clock: Clock) -> None:
    """A worker for each connection, and an EmailMessage each."""

    async def send(smtp: aiosmtplib.SMTP, number: int) -> None:
        await smtp.send_message(messages.email_message(number, task.size, task.recipients))

    await _over_connections(task, clock, send)


async def aiosmtplib_bytes(task: Task, clock: Clock) -> None:
    """The same, but amail composes."""

    async def send(smtp: aiosmtplib.SMTP, number: int) -> None:
        message = messages.amail_message(number, task.size, task.recipients)
        octets = message.as_bytes()
        to = [address.partition("<")[2][:-1] for address in t.cast("list[str]", message.recipients)]
        await smtp.sendmail("ada@example.com", to, octets)

    await _over_connections(task, clock, send)


async def _over_connections(
    task: Task, clock: Clock, send: Callable[[aiosmtplib.SMTP, int], Awaitable[None]]
) -> None:
    numbers, options = task.numbers(clock), aiosmtplib_options(task)
    clock.begin()

    async def worker() -> None:
        async with aiosmtplib.SMTP(**options) as smtp:
            for number in numbers:
                await send(smtp, number)

    await asyncio.gather(*(worker() for _ in range(task.sessions)))
    clock.end()


# Flask's


def flask_app(task: Task) -> Flask:
    app = Flask("benchmark")
    app.config.update(MAIL_SERVER="127.0.0.1", MAIL_PORT=task.port)
    if task.ca_file:
        app.config.update(MAIL_USE_SSL=True, MAIL_USERNAME=USER, MAIL_PASSWORD=PASSWORD)
    return app


def flask_mail_send(task: Task, clock: Clock) -> None:
    """A connection each."""
    app = flask_app(task)
    mail = package("flask_mail").Mail(app)
    with app.app_context():
        clock.begin()
        for number in task.numbers(clock):
            mail.send(messages.flask_mail_message(number, task.size, task.recipients))
        clock.end()


def flask_mail_connect(task: Task, clock: Clock) -> None:
    """One after another over one connection, as its page on bulk mail has it."""
    app = flask_app(task)
    mail = package("flask_mail").Mail(app)
    clock.begin()
    with app.app_context(), mail.connect() as connection:
        for number in task.numbers(clock):
            connection.send(messages.flask_mail_message(number, task.size, task.recipients))
        clock.end()


def flask_mailman_connection(task: Task, clock: Clock) -> None:
    app = flask_app(task)
    mail = package("flask_mailman").Mail(app)
    clock.begin()
    with app.app_context(), mail.get_connection() as connection:
        for number in task.numbers(clock):
            messages.flask_mailman_message(
                number, task.size, task.recipients, connection=connection
            ).send()
        clock.end()


# fastapi-mail


def _fastapi_mail(task: Task) -> t.Any:
    fastapi_mail = package("fastapi_mail")
    config = fastapi_mail.ConnectionConfig(
        MAIL_USERNAME=USER,
        MAIL_PASSWORD=PASSWORD,
        MAIL_SERVER="127.0.0.1",
        MAIL_PORT=task.port,
        MAIL_FROM="ada@example.com",
        MAIL_FROM_NAME="Ada",
        MAIL_STARTTLS=False,
        MAIL_SSL_TLS=bool(task.ca_file),
        USE_CREDENTIALS=bool(task.ca_file),
        CERT_BUNDLE=task.ca_file or None,
    )
    return fastapi_mail.FastMail(config)


async def fastapi_mail_send(task: Task, clock: Clock) -> None:
    """A connection each."""
    mail = _fastapi_mail(task)
    clock.begin()
    for number in task.numbers(clock):
        await mail.send_message(messages.fastapi_mail_message(number, task.size, task.recipients))
    clock.end()


async def fastapi_mail_list(task: Task, clock: Clock) -> None:
    """All of them as one list, which goes over one connection."""
    mail = _fastapi_mail(task)
    clock.begin()
    await mail.send_message(
        [
            messages.fastapi_mail_message(number, task.size, task.recipients)
            for number in range(task.messages)
        ]
    )
    clock.end()


# Programs


def _octets(task: Task) -> int:
    """How long the message is that amail composes for the task."""
    return len(messages.amail_message(0, task.size, task.recipients).as_bytes())


def smtp_source(task: Task) -> list[str]:
    """Postfix's, which composes nothing and says one command a write, and never hangs up (-d)."""
    numbers = ["-s", str(task.sessions), "-m", str(task.count), "-l", str(_octets(task))]
    more = ["-r", str(task.recipients)] if task.recipients > 1 else []
    people = ["-f", "ada@example.com", "-t", "reader@example.org"]
    return ["smtp-source", "-d", *numbers, *more, *people, f"127.0.0.1:{task.port}"]


def limit_of(depth: int) -> Callable[[Task], list[str]]:
    def command(task: Task) -> list[str]:
        numbers = (task.port, task.count, task.sessions, _octets(task), depth)
        return [compiled("limit.c"), *map(str, numbers)]

    return command


AMAIL_SEND = Contender("amail `send`, one after another", amail_send)
AMAIL_GATHER = Contender("amail `gather` of `send`", amail_gather)
AMAIL_SEND_DATA = Contender("amail `send`, no CHUNKING", amail_send_data)
AMAIL_GATHER_DATA = Contender("amail `gather` of `send`, no CHUNKING", amail_gather_data)
AMAIL_MANY_DATA = Contender("amail `send_many`, no CHUNKING", amail_send_many_data)
AMAIL_MANY = Contender("amail `send_many`", amail_send_many)
AMAIL_MANY_CHUNKING = Contender("amail `send_many`, CHUNKING", amail_send_many, sink="chunking")
AMAIL_MANY_DEEP = Contender(
    "amail `send_many`, CHUNKING, depth 16", amail_send_many, sink="chunking"
)
AIOSMTPLIB_SEND = Contender("`aiosmtplib.send()`", aiosmtplib_send)
AIOSMTPLIB_POOL = Contender("aiosmtplib `send_message`", aiosmtplib_pool)
AIOSMTPLIB_BYTES = Contender("aiosmtplib, bytes that amail composed", aiosmtplib_bytes)
FLASK_MAIL_SEND = Contender("Flask-Mail `send`", flask_mail_send)
FLASK_MAIL_CONNECT = Contender("Flask-Mail `connect()`", flask_mail_connect)
FLASK_MAILMAN = Contender("Flask-Mailman, one connection", flask_mailman_connection)
FASTAPI_MAIL_SEND = Contender("fastapi-mail `send_message`", fastapi_mail_send)
FASTAPI_MAIL_LIST = Contender("fastapi-mail, a list", fastapi_mail_list)
SMTP_SOURCE = Contender("`smtp-source -d` (C, composes nothing)", program=smtp_source)
LIMIT = Contender("the limit (C, pipelined)", program=limit_of(0))
LIMIT_CHUNKING = Contender("the limit (C), CHUNKING", program=limit_of(1), sink="chunking")
LIMIT_DEEP = Contender("the limit (C), CHUNKING, depth 16", program=limit_of(16), sink="chunking")
NODEMAILER = "Nodemailer, pool"

_NEEDS = {
    FLASK_MAIL_SEND.name: "flask_mail",
    FLASK_MAIL_CONNECT.name: "flask_mail",
    FLASK_MAILMAN.name: "flask_mailman",
    FASTAPI_MAIL_SEND.name: "fastapi_mail",
    FASTAPI_MAIL_LIST.name: "fastapi_mail",
}


def nodemailer() -> list[Contender]:
    """Return the contender, in a list that is empty where it cannot be installed."""
    folder = node_folder("nodemailer")
    if folder is None:
        return []
    node = t.cast("str", shutil.which("node"))
    return [Contender(NODEMAILER, serves=(node, str(HERE / "nodemailer.mjs"), str(folder)))]


def there(*contenders: Contender) -> list[Contender]:
    """Return those that are installed, or could be; says who is left out."""
    packages = {_NEEDS[each.name] for each in contenders if each.name in _NEEDS}
    missing = {package for package in packages if not has_package(package)}
    return [each for each in contenders if _NEEDS.get(each.name) not in missing]
