"""MAIL_QUEUE = "celery": an app and its Celery app, as Flask's own page makes it.

Over Celery's broker in memory; with real workers and brokers in tests/brokers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import typing as t
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery, Task, signals
from flask import Flask, current_app

from amail import ConfigError, MailError, Message, NotSent, Receipt, UsageError
from amail.testing import OK, FaultServer
from amail_flask import Mail, email_accepted, email_failed
from tests.messages import ADA
from tests.musts import PASSWORD
from tests.servers.programs import free_port

if t.TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count()


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer.serve_in_thread() as server:
        yield server


def a_message(**fields: t.Any) -> Message:
    return Message("Hello", ["bob@example.org"], "Hi", sender=ADA, **fields)


def celery_init_app(app: Flask) -> Celery:
    """As it stands on the page."""

    class FlaskTask(Task):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask, set_as_current=False)
    celery_app.config_from_object(app.config["CELERY"])
    app.extensions["celery"] = celery_app
    return celery_app


def make_app(
    server: FaultServer, *, celery_first: bool = True, broker: str = "memory://", **config: t.Any
) -> tuple[Flask, Mail]:
    app = Flask("shop")
    app.config.update(MAIL_URL=server.url, MAIL_QUEUE="celery", MAIL_SUPPRESS_SEND=False)
    app.config["CELERY"] = {"broker_url": broker, "task_default_queue": f"mail-{next(_numbers)}"}
    app.config.update(config)
    if celery_first:
        celery_init_app(app)
    mail = Mail(app)
    if not celery_first:
        celery_init_app(app)
    return app, mail


def take(app: Flask) -> list[tuple[dict[str, t.Any], int, float]]:
    """Take what waits out of the broker."""
    celery = app.extensions["celery"]
    taken = []
    with celery.connection_for_read() as connection:
        channel = connection.default_channel
        while (message := channel.basic_get(celery.conf.task_default_queue)) is not None:
            taken.append(tuple(message.decode()[0]))
            channel.basic_ack(message.delivery_tag)
    return taken


def work(app: Flask) -> None:
    """Do what a worker does with what waits."""
    for arguments in take(app):
        done = app.extensions["celery"].tasks["amail.send"].apply(arguments)
        assert done.state == "SUCCESS"


@pytest.mark.parametrize("celery_first", [True, False])
def test_send_later_leaves_a_message_to_the_workers(
    server: FaultServer, celery_first: bool
) -> None:
    app, mail = make_app(server, celery_first=celery_first)

    @app.get("/")
    def view() -> str:
        queued = mail.send_later(a_message())
        assert queued.engine == "celery"
        return queued.message_id

    message_id = app.test_client().get("/").text
    assert server.messages == []
    work(app)
    [received] = server.messages
    assert f"Message-ID: {message_id}\r\n".encode() in received.content


def test_in_an_async_view_it_is_in_the_queue_once_it_was_awaited(server: FaultServer) -> None:
    app, mail = make_app(server)

    @app.get("/")
    async def view() -> str:
        queued = await mail.send_later(a_message())
        assert len(await asyncio.to_thread(take, app)) == 1
        return queued.message_id

    assert app.test_client().get("/").status_code == 200


def test_in_an_async_view_it_gets_there_without_an_await_too(server: FaultServer) -> None:
    app, mail = make_app(server)
    queued = []

    @app.get("/")
    async def view() -> str:
        queued.append(mail.send_later(a_message()))
        return ""

    app.test_client().get("/")
    assert queued[0].putting is not None
    queued[0].putting.result(10)
    assert len(take(app)) == 1


def test_send_is_smtp_now_whatever_the_queue_is(server: FaultServer) -> None:
    app, mail = make_app(server)
    with app.app_context():
        mail.send_sync(a_message())
        asyncio.run(send(mail))
    assert len(server.messages) == 2
    assert take(app) == []


async def send(mail: Mail) -> Receipt:
    return await mail.send(a_message())


def test_a_worker_has_the_task_where_the_celery_app_came_last(server: FaultServer) -> None:
    app, _ = make_app(server, celery_first=False)
    celery = app.extensions["celery"]
    assert "amail.send" not in celery.tasks
    other, _ = make_app(server)

    class Controller:
        app = celery

    signals.worker_init.send(sender=Controller())
    assert "amail.send" in celery.tasks
    assert celery.tasks["amail.send"] is not other.extensions["celery"].tasks["amail.send"]


def test_the_job_names_a_mailer_that_the_workers_config_knows(server: FaultServer) -> None:
    with FaultServer.serve_in_thread() as bulk:
        mailers = {"bulk": {"MAIL_URL": bulk.url, "MAIL_DEFAULT_SENDER": "news@example.com"}}
        app, mail = make_app(server, MAIL_MAILERS=mailers)
        with app.app_context():
            mail.using("bulk").send_later(Message("News", ["bob@example.org"], "Hi"))
        [(job, tries, due)] = take(app)
        assert job["mailer"] == "bulk"
        assert bulk.url not in str(job)
        app.extensions["celery"].tasks["amail.send"].apply((job, tries, due))
        assert [each.reverse_path for each in bulk.messages] == ["news@example.com"]
    assert server.messages == []


def test_the_signals_are_sent_in_the_worker_in_the_context_of_the_app(server: FaultServer) -> None:
    server.change(mail=[OK, "550 5.7.1 no"])
    app, mail = make_app(server)
    seen: list[tuple[str, t.Any]] = []

    def accepted(sender: Flask, message: object, receipt: Receipt) -> None:
        assert current_app == sender
        seen.append((receipt.message_id, message))

    def failed(sender: Flask, message: object, error: MailError) -> None:
        assert current_app == sender
        seen.append((str(getattr(error, "message_id", None)), message))

    with email_accepted.connected_to(accepted, app), email_failed.connected_to(failed, app):
        with app.app_context():
            ids = [mail.send_later(a_message()).message_id for _ in range(2)]
        assert seen == []
        work(app)
    assert seen == [(message_id, None) for message_id in ids]


def test_what_is_suppressed_is_not_queued(server: FaultServer) -> None:
    app, mail = make_app(server, MAIL_SUPPRESS_SEND=True)
    with app.app_context(), mail.record_messages() as outbox:
        mail.send_later(a_message(), countdown=60)
    assert len(outbox) == 1
    assert take(app) == []


def test_countdown_and_eta_are_when_it_is_sent_at_the_earliest(server: FaultServer) -> None:
    app, mail = make_app(server)
    eta = datetime.now(UTC) + timedelta(days=1)
    with app.app_context():
        mail.send_later(a_message(), countdown=3600)
        mail.send_later(a_message(), eta=eta)
        with pytest.raises(UsageError, match="one of them"):
            mail.send_later(a_message(), countdown=1, eta=eta)
    [(_, _, first), (_, _, second)] = take(app)
    assert first == pytest.approx(time.time() + 3600, abs=60)
    assert second == eta.timestamp()


def test_the_queue_in_memory_knows_no_later(server: FaultServer) -> None:
    app, mail = make_app(server, MAIL_QUEUE="memory")
    with app.app_context():
        with pytest.raises(UsageError, match="MAIL_QUEUE"):
            mail.send_later(a_message(), countdown=60)
        mail.send_later(a_message(), countdown=0)
        assert mail.drain(10) == 0
        mail.close()
    assert len(server.messages) == 1


def test_a_broker_that_cannot_be_reached_is_said_where_it_is_noticed(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    app, mail = make_app(server, broker=f"amqp://127.0.0.1:{free_port()}//")
    message = a_message()

    async def in_a_loop() -> None:
        queued = mail.send_later(message)  # which goes on
        with pytest.raises(NotSent):
            await queued

    with app.app_context():
        with pytest.raises(NotSent):
            mail.send_later(message)
        asyncio.run(in_a_loop())
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert said == [f"{message.message_id}: could not be queued: NotSent"]


def test_a_message_that_cannot_be_composed_is_refused_at_once(server: FaultServer) -> None:
    app, mail = make_app(server)
    with app.app_context(), pytest.raises(ValueError, match="subject"):
        mail.send_later(Message("a\r\nBcc: x@x.org", ["bob@example.org"], "Hi", sender=ADA))
    assert take(app) == []


def test_an_app_without_celery_is_told_what_is_missing(server: FaultServer) -> None:
    app, mail = make_app(server, celery_first=False)
    del app.extensions["celery"]
    with app.app_context(), pytest.raises(ConfigError, match=r"app\.extensions\[\"celery\"\]"):
        mail.send_later(a_message())


@pytest.mark.parametrize(
    ("broker", "has_ledger"),
    [
        ("redis://localhost:1/0", True),
        ("redis://localhost:1/0?ssl_cert_reqs=none", False),  # kombu reads more than redis does
        ("redis://a:1;redis://b:1", False),
        ("memory://", False),
    ],
)
def test_there_is_a_ledger_where_the_broker_is_redis(
    server: FaultServer, broker: str, has_ledger: bool
) -> None:
    app, _ = make_app(server, broker=broker)
    assert (ledger_of(app) is not None) == has_ledger


def test_there_may_be_a_ledger_whatever_the_broker_is(server: FaultServer) -> None:
    app, _ = make_app(server, MAIL_QUEUE=f"celery?ledger=redis://:{PASSWORD}@localhost:1/2")
    assert ledger_of(app) is not None
    shown = app.test_cli_runner().invoke(args=["mail", "config"]).output
    assert "MAIL_QUEUE" in shown
    assert PASSWORD not in shown


@pytest.mark.parametrize("queue", ["celery?ledger=redis://h:port", "celery?ledger=http://h", "c"])
def test_a_queue_that_cannot_be_is_refused_when_the_app_starts(
    server: FaultServer, queue: str
) -> None:
    with pytest.raises(ConfigError, match="MAIL_QUEUE"):
        make_app(server, MAIL_QUEUE=queue)


def ledger_of(app: Flask) -> object:
    return app.extensions["celery"].tasks["amail.send"].queue_of_amail.ledger
