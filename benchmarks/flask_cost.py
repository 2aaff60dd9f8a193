"""What does a request cost whose view sends a mail, with and without TLS and AUTH?

    python -m benchmarks.flask_cost [--quick]

One request after another through the app's WSGI interface, warm, in one process; app and server are
pinned to one and the same core. Two figures: milliseconds a request until the last message has been
accepted (for ``send_later`` too), and the processor time of the app's process. Flask-Mail opens a
connection for each mail and does not look at the server's certificate; amail does.
"""

from __future__ import annotations

import io
import typing as t
from dataclasses import dataclass

from amail_flask import Mail
from benchmarks import messages, peers
from benchmarks.install import has_package, package
from benchmarks.measure import Contender, Task, Trial, in_turn
from benchmarks.report import Series, Table, command
from benchmarks.sinks import fast_sink

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask

    from benchmarks.measure import Clock, Plan

PLAIN, SECURE = "no TLS", "TLS + AUTH"
WALL, CPU = "ms a request", "ms of processor time a request"


def nothing_sync(task: Task, clock: Clock) -> None:
    """What Flask itself takes."""
    app = peers.flask_app(task)

    @app.get("/")
    def view() -> str:
        return "ok"

    _requests(app, task, clock)
    clock.end()


def nothing_async(task: Task, clock: Clock) -> None:
    """The same with the loop that Flask makes for each request."""
    app = peers.flask_app(task)

    @app.get("/")
    async def view() -> str:
        return "ok"

    _requests(app, task, clock)
    clock.end()


def flask_mail(task: Task, clock: Clock) -> None:
    app = peers.flask_app(task)
    mail = package("flask_mail").Mail(app)
    numbers = iter(range(task.messages))

    @app.get("/")
    def view() -> str:
        mail.send(messages.flask_mail_message(next(numbers)))
        return "ok"

    _requests(app, task, clock)
    clock.end()


def amail_async(task: Task, clock: Clock) -> None:
    app, mail, numbers = _with_amail(task)

    @app.get("/")
    async def view() -> str:
        await mail.send(messages.amail_message(next(numbers)))
        return "ok"

    _requests(app, task, clock)
    clock.end()
    _close(app, mail)


def amail_sync(task: Task, clock: Clock) -> None:
    app, mail, numbers = _with_amail(task)

    @app.get("/")
    def view() -> str:
        mail.send_sync(messages.amail_message(next(numbers)))
        return "ok"

    _requests(app, task, clock)
    clock.end()
    _close(app, mail)


def amail_later(task: Task, clock: Clock) -> None:
    app, mail, numbers = _with_amail(task)

    @app.get("/")
    def view() -> str:
        mail.send_later(messages.amail_message(next(numbers)))
        return "ok"

    _requests(app, task, clock)
    with app.app_context():
        mail.drain(60)
    clock.end()
    _close(app, mail)


def _with_amail(task: Task) -> tuple[Flask, Mail, Iterator[int]]:
    app = peers.flask_app(task)
    if task.ca_file:
        app.config["MAIL_CA_FILE"] = task.ca_file
    return app, Mail(app), iter(range(task.messages))


def _close(app: Flask, mail: Mail) -> None:
    with app.app_context():
        mail.close()


def _requests(app: Flask, task: Task, clock: Clock) -> None:
    """Make requests one after another; the clock begins behind those that go ahead."""
    clock.begin()
    for _ in task.numbers(clock):
        _request(app)


def _request(app: Flask) -> None:
    """Do what a WSGI server does for a GET (PEP 3333)."""
    statuses = []

    def start_response(status: str, headers: object, exc_info: object = None) -> t.Any:
        statuses.append(status)

    body = app.wsgi_app(_environ(), start_response)
    if [*body] != [b"ok"] or statuses != ["200 OK"]:
        raise SystemExit(f"the request failed: {statuses}")


def _environ() -> dict[str, t.Any]:
    """Return a GET, as a WSGI server hands it over (PEP 3333)."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


@dataclass(frozen=True)
class Entry:
    """A view and how many requests; ``sends`` is False where it sends nothing."""

    contender: Contender
    requests: int
    sends: bool = True


AMAIL_ASYNC = Contender("amail, async view, `await mail.send`", amail_async)
AMAIL_SYNC = Contender("amail, sync view, `mail.send_sync`", amail_sync)
AMAIL_LATER = Contender("amail, sync view, `mail.send_later`", amail_later)
FLASK_MAIL = Contender("Flask-Mail, sync view, `mail.send`", flask_mail)
NOTHING_SYNC = Contender("a sync view that sends nothing", nothing_sync)
NOTHING_ASYNC = Contender("an async view that sends nothing", nothing_async)
ENTRIES = (
    Entry(AMAIL_ASYNC, 400),
    Entry(AMAIL_SYNC, 700),
    Entry(AMAIL_LATER, 900),
    Entry(FLASK_MAIL, 150),
    Entry(NOTHING_SYNC, 3000, sends=False),
    Entry(NOTHING_ASYNC, 800, sends=False),
)


def measure(plan: Plan) -> list[Table]:
    entries = [
        each for each in ENTRIES if each.contender is not FLASK_MAIL or has_package("flask_mail")
    ]
    asked: list[tuple[str, Trial]] = []
    with fast_sink() as plain, fast_sink(tls=True) as secure:
        for question, sink in {PLAIN: plain, SECURE: secure}.items():
            for entry in entries:
                task = Task(sink.port, plan.count(entry.requests), warm=3, ca_file=sink.ca_file)
                counter = sink.counter if entry.sends else None
                asked.append((question, Trial(entry.contender, task, counter)))
        found = in_turn([trial for _, trial in asked], plan.runs)
    tables = []
    for question in (PLAIN, SECURE):
        of = [
            (trial, runs)
            for (its, trial), runs in zip(asked, found, strict=True)
            if its == question
        ]
        for unit in (WALL, CPU):
            series = tuple(
                Series(
                    trial.contender.name,
                    tuple(
                        (each.seconds if unit == WALL else each.cpu) / trial.task.count * 1e3
                        for each in runs
                    ),
                )
                for trial, runs in of
            )
            tables.append(Table(f"{question}: {unit}", "ms", "less", series, AMAIL_ASYNC.name))
    return tables


if __name__ == "__main__":
    command("flask_cost", measure, __doc__)
