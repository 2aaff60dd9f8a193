"""What the extension must not keep alive, hold up or lose."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
import weakref

import pytest
from flask import Flask, request

from amail import QueueFull
from amail.testing import FaultServer, Hang
from amail_flask import Mail, Message, email_dispatched
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.aiosmtpd_server import AiosmtpdServer


def hello(**fields: t.Any) -> Message:
    return Message("Hello", **{"recipients": ["bob@example.org"], "body": "Hi", **fields})


def make_app(server: t.Any, **config: t.Any) -> tuple[Flask, Mail]:
    app = Flask(__name__)
    app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER="me@example.com", **config)
    return app, Mail(app)


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server() as running:
        yield running


def run(program: str, seconds: float = 40) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return done, time.monotonic() - began


def test_c40_a_pooled_session_keeps_no_request_alive(server: AiosmtpdServer) -> None:
    app, mail = make_app(server)
    requests: list[weakref.ref[t.Any]] = []

    @app.post("/")
    async def view() -> str:
        requests.append(weakref.ref(request._get_current_object()))  # type: ignore[attr-defined]
        await mail.send(hello())
        return "sent"

    assert app.test_client().post("/", data=b"x" * 1000).text == "sent"
    mail.send_sync(hello())  # outside of any request, and the loop has left that one behind
    gc.collect()
    assert requests[0]() is None
    assert mail.mailer.stats().idle == 1
    mail.close()


def test_a_receiver_may_take_its_time_and_send_mail_itself(server: AiosmtpdServer) -> None:
    _, mail = make_app(server, MAIL_MAX_CONNECTIONS=1)
    others, may_go_on = [], threading.Event()

    def receiver(_: Flask, message: Message) -> None:
        if message.subject == "Hello":
            may_go_on.wait(20)
            mail.send_sync(Message("Nested", ["bob@example.org"], "Hi"))

    with email_dispatched.connected_to(receiver):
        for _ in range(5):
            mail.send_later(hello())
        # Five receivers are held; a session is opened and used all the same.
        others.append(mail.send_sync(Message("Other", ["bob@example.org"], "Hi")))
        may_go_on.set()
        assert mail.drain(20) == 0
    assert others[0].outcome == "accepted"
    assert len(server.messages) == 11
    mail.close()


@pytest.mark.parametrize("given", ["extra_headers", "message_id"])
def test_what_send_later_returns_names_the_message_id_that_is_sent(
    given: str, server: AiosmtpdServer
) -> None:
    _, mail = make_app(server)
    fields: dict[str, t.Any] = {"message_id": "<given@x.org>"}
    if given == "extra_headers":
        fields = {"extra_headers": {"Message-Id": "<given@x.org>"}}
    assert mail.send_later(hello(**fields)).message_id == "<given@x.org>"
    assert mail.drain(10) == 0
    assert b"Message-ID: <given@x.org>" in server.messages[0].content
    mail.close()


@pytest.mark.parametrize("drain_timeout", ["0", "0.5"])
def test_the_drain_timeout_bounds_the_exit_and_what_is_lost_is_logged(drain_timeout: str) -> None:
    with FaultServer.serve_in_thread(mail=Hang()) as server:
        done, seconds = run(
            f"""
            import logging
            from flask import Flask
            from amail_flask import Mail, Message

            logging.basicConfig(format="%(name)s %(message)s", level="ERROR")
            app = Flask("app")
            app.config.update(MAIL_URL={server.url!r}, MAIL_DEFAULT_SENDER="me@example.com",
                              MAIL_DRAIN_TIMEOUT={drain_timeout!r})
            mail = Mail(app)
            print(mail.send_later(Message("Hello", ["bob@example.org"], "Hi")).message_id)
            """
        )
    assert done.returncode == 0
    assert seconds < 8
    message_id = done.stdout.strip()
    assert f"amail.queue {message_id}: could not be sent in the background: not sent" in done.stderr


def test_an_app_that_has_sent_is_not_kept_for_the_life_of_the_process(
    server: AiosmtpdServer,
) -> None:
    apps = []
    for _ in range(3):
        app, mail = make_app(server)
        mail.send_sync(hello())
        mail.close()
        apps.append(weakref.ref(app))
        del app, mail
    gc.collect()
    assert [reference() for reference in apps] == [None, None, None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_c33_a_child_has_a_queue_of_its_own() -> None:
    with FaultServer.serve_in_thread(greeting=Hang()) as server:
        done, _ = run(
            f"""
            import logging, os, sys, warnings
            warnings.simplefilter("ignore")
            from flask import Flask
            from amail_flask import Mail, Message

            logging.disable()
            app = Flask("app")
            app.config.update(MAIL_URL={server.url!r}, MAIL_DEFAULT_SENDER="me@example.com",
                              MAIL_DRAIN_TIMEOUT=0)
            mail = Mail(app)
            for _ in range(1000):
                mail.send_later(Message("Hello", ["bob@example.org"], "Hi"))
            child = os.fork()
            if not child:
                assert mail.drain(5) == 0
                mail.send_later(Message("Hello", ["bob@example.org"], "Hi"))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            sys.exit(os.waitstatus_to_exitcode(status))
            """
        )
    assert (done.returncode, done.stderr) == (0, "")


def test_hasattr_needs_no_app() -> None:
    assert not hasattr(Mail(), "default_sender")


def test_c19_queue_full_is_a_send_error_that_says_not_sent() -> None:
    assert QueueFull("full").outcome == "not_sent"
