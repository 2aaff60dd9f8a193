"""lifespan(): whatever the wrapped app knows of the protocol, the queue is drained at shutdown."""

from __future__ import annotations

import logging
import typing as t

import pytest
from flask import Flask

from amail.testing import Delay, FaultServer, Hang
from amail_flask import Mail, Message, lifespan

if t.TYPE_CHECKING:
    from amail.asgi import ASGIApp, Event, Receive, Send

STARTUP, SHUTDOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}


def mail_for(server: FaultServer, **config: t.Any) -> Mail:
    app = Flask(__name__)
    app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER="me@example.com", **config)
    return Mail(app)


def hello() -> Message:
    return Message("Hello", ["bob@example.org"], "Hi")


async def serve(app: ASGIApp, mail: Mail) -> list[str]:
    """Do as a server does with an app; three messages are queued in between. What the app said."""
    said: list[str] = []
    events = iter([STARTUP, SHUTDOWN])

    async def receive() -> Event:
        event = dict(next(events))
        if event == SHUTDOWN:
            for _ in range(3):
                mail.send_later(hello())
        return event

    async def send(event: Event) -> None:
        said.append(event["type"].removeprefix("lifespan."))

    await app({"type": "lifespan"}, receive, send)
    return said


async def knows_it(scope: Event, receive: Receive, send: Send) -> None:
    for name in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{name}"
        await send({"type": f"lifespan.{name}.complete"})


async def refuses_the_scope(scope: Event, receive: Receive, send: Send) -> None:
    raise ValueError(scope["type"])


async def fails_on_the_event(scope: Event, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "http.request"


async def returns_at_once(scope: Event, receive: Receive, send: Send) -> None:
    pass


async def leaves_after_startup(scope: Event, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize(
    "app", [knows_it, refuses_the_scope, fails_on_the_event, returns_at_once, leaves_after_startup]
)
async def test_the_queue_is_drained_before_the_server_hears_that_shutdown_is_complete(
    app: ASGIApp,
) -> None:
    async with FaultServer(mail=Delay(0.1)) as server:
        mail = mail_for(server)
        assert await serve(lifespan(app, mail), mail) == ["startup.complete", "shutdown.complete"]
        assert len(server.messages) == 3
        await server.all_closed()  # the sessions are ended too
    assert server.violations == []


async def test_every_app_of_an_extension_without_one_of_its_own_is_drained() -> None:
    async with FaultServer(mail=Delay(0.1)) as server:
        mail, apps = Mail(), [Flask("first"), Flask("second")]
        for app in apps:
            app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER="me@example.com")
            mail.init_app(app)
            with app.app_context():
                mail.send_later(hello())
        other = mail_for(server)
        wrapped = lifespan(knows_it, mail)
        events = iter([STARTUP, SHUTDOWN])

        async def receive() -> Event:
            return dict(next(events))

        async def send(event: Event) -> None:
            pass

        await wrapped({"type": "lifespan"}, receive, send)
        assert len(server.messages) == 2
        assert await other.send(hello())  # what is none of its apps goes on
        await other._drain_and_close()


async def test_what_is_not_done_in_time_is_ended_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with FaultServer(mail=Hang()) as server:
        mail = mail_for(server, MAIL_DRAIN_TIMEOUT=0.1)
        await serve(lifespan(knows_it, mail), mail)
        await server.all_closed()
    lost = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert len(lost) == 3
    assert all("could not be sent in the background: not sent" in line for line in lost)


async def test_a_failed_startup_is_the_last_word() -> None:
    async def fails(scope: Event, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async with FaultServer() as server:
        mail = mail_for(server)
        assert await serve(lifespan(fails, mail), mail) == ["startup.failed"]


async def test_an_app_that_fails_at_its_shutdown_is_drained_and_fails() -> None:
    async def fails(scope: Event, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise RuntimeError("at shutdown")

    async with FaultServer(mail=Delay(0.1)) as server:
        mail = mail_for(server)
        with pytest.raises(RuntimeError, match="at shutdown"):
            await serve(lifespan(fails, mail), mail)
        assert len(server.messages) == 3


async def test_other_scopes_go_to_the_app_untouched() -> None:
    seen: list[tuple[t.Any, ...]] = []

    async def app(*arguments: t.Any) -> None:
        seen.append(arguments)

    scope, receive, send = {"type": "http"}, object(), object()
    await lifespan(app, Mail())(scope, receive, send)
    assert seen == [(scope, receive, send)]
