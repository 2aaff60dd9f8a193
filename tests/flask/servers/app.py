"""The app that every server of tests/flask/servers runs, made by a function for each kind of them.

Config keys come from the environment, where their names begin with AMAIL_TEST.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
import typing as t

from flask import Flask

from amail import Mailer
from amail_flask import Mail, Message, lifespan

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from quart import Quart

    from amail.asgi import ASGIApp

LATER = 3
QUEUED = 10


def hello(subject: str) -> Message:
    return Message(subject, ["bob@example.org"], "Hi", sender="ada@example.com")


def make_app(flask: type[Flask] = Flask) -> tuple[Flask, Mail]:
    logging.basicConfig(level="WARNING")
    app = flask(__name__)
    app.config.from_prefixed_env("AMAIL_TEST")
    mail = Mail(app)

    @app.get("/async")
    async def send() -> str:
        await mail.send(hello("async"))
        return str(os.getpid())

    @app.get("/sync")
    def send_sync() -> str:
        mail.send_sync(hello("sync"))
        return str(os.getpid())

    @app.get("/later")
    def send_later() -> str:
        for _ in range(LATER):
            mail.send_later(hello("later"))
        return str(os.getpid())

    @app.get("/queue")
    def send_later_and_tell() -> list[str]:
        return [mail.send_later(hello("queue")).message_id for _ in range(QUEUED)]

    @app.get("/later-then-hang")
    def send_later_then_hang() -> str:
        mail.send_later(hello("later"))
        while True:
            time.sleep(60)

    if app.config.get("EXIT_ON_SIGTERM"):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    if app.config.get("SEND_IN_MASTER"):
        mail.send_sync(hello("master"))
    return app, mail


def wsgi_app() -> Flask:
    return make_app()[0]


def gevent_app() -> Flask:
    """Run async views in one loop that is a greenlet, as Flask's page on gevent says."""
    import gevent

    loop = asyncio.new_event_loop()
    gevent.spawn(loop.run_forever)

    class GeventFlask(Flask):
        def async_to_sync(self, func: Callable[..., t.Any]) -> Callable[..., t.Any]:
            def run(*args: t.Any, **kwargs: t.Any) -> t.Any:
                return asyncio.run_coroutine_threadsafe(func(*args, **kwargs), loop).result()

            return run

    return make_app(GeventFlask)[0]


def bare_a2wsgi() -> ASGIApp:
    from a2wsgi import WSGIMiddleware

    app: ASGIApp = WSGIMiddleware(wsgi_app())
    return app


def drained_a2wsgi() -> ASGIApp:
    from a2wsgi import WSGIMiddleware

    app, mail = make_app()
    return lifespan(WSGIMiddleware(app), mail)


def bare_asgiref() -> ASGIApp:
    from asgiref.wsgi import WsgiToAsgi

    app: ASGIApp = WsgiToAsgi(wsgi_app())
    return app


def drained_asgiref() -> ASGIApp:
    from asgiref.wsgi import WsgiToAsgi

    app, mail = make_app()
    return lifespan(WsgiToAsgi(app), mail)


def quart_app() -> Quart:
    """Quart has one loop for all its views, so it needs no extension: the mailer lives there."""
    from quart import Quart

    app = Quart(__name__)
    app.config.from_prefixed_env("AMAIL_TEST")
    mailer = Mailer(app.config["MAIL_URL"], max_connections=app.config["MAIL_MAX_CONNECTIONS"])
    loop: asyncio.AbstractEventLoop

    async def serve() -> AsyncIterator[None]:
        nonlocal loop
        loop = asyncio.get_running_loop()
        async with mailer:
            yield

    async def send() -> str:
        await mailer.send(hello("async"))
        return str(os.getpid())

    def send_sync() -> str:
        asyncio.run_coroutine_threadsafe(mailer.send(hello("sync")), loop).result()
        return str(os.getpid())

    async def send_later() -> str:
        async def send_one() -> None:  # Quart calls in a thread what is no coroutine function
            await mailer.send(hello("later"))

        for _ in range(LATER):
            app.add_background_task(send_one)
        return str(os.getpid())

    app.while_serving(serve)
    for path, view in {"/async": send, "/sync": send_sync, "/later": send_later}.items():
        app.add_url_rule(path, view_func=view)
    return app
