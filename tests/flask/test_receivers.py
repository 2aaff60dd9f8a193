"""Receivers of signals that send mail themselves."""

from __future__ import annotations

import typing as t
from email import message_from_bytes

import pytest

from amail_flask import email_dispatched
from tests.flask.test_lifetime import hello, make_app
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask

    from amail_flask import Mail, Message
    from tests.servers.aiosmtpd_server import AiosmtpdServer


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server() as running:
        yield running


class Echo:
    """Sends a second message when the first one was sent."""

    def __init__(self, mail: Mail, how: str) -> None:
        self._mail = mail
        self._how = how

    def __call__(self, app: Flask, message: Message) -> None:
        if message.subject == "Hello":
            echo = hello()
            echo.subject = "Echo"
            getattr(self._mail, self._how)(echo)


@pytest.mark.parametrize("how", ["send_sync", "send_later"])
def test_c38_a_receiver_may_send_over_the_only_session_after_a_sync_view(
    server: AiosmtpdServer, how: str
) -> None:
    app, mail = make_app(server, MAIL_MAX_CONNECTIONS=1)

    @app.get("/")
    def view() -> str:
        return mail.send_sync(hello()).message_id

    with email_dispatched.connected_to(Echo(mail, how)):
        assert app.test_client().get("/").status_code == 200
        check_both_came(app, mail, server)


def test_c38_a_receiver_may_send_over_the_only_session_after_an_async_view(
    server: AiosmtpdServer,
) -> None:
    app, mail = make_app(server, MAIL_MAX_CONNECTIONS=1)

    @app.get("/")
    async def view() -> str:
        return (await mail.send(hello())).message_id

    with email_dispatched.connected_to(Echo(mail, "send_later")):
        assert app.test_client().get("/").status_code == 200
        check_both_came(app, mail, server)


@pytest.mark.parametrize("how", ["send_sync", "send_later"])
def test_c38_a_receiver_may_send_over_the_only_session_in_the_background(
    server: AiosmtpdServer, how: str
) -> None:
    app, mail = make_app(server, MAIL_MAX_CONNECTIONS=1)

    @app.get("/")
    def view() -> str:
        return mail.send_later(hello()).message_id

    with email_dispatched.connected_to(Echo(mail, how)):
        assert app.test_client().get("/").status_code == 200
        check_both_came(app, mail, server)


def check_both_came(app: Flask, mail: Mail, server: AiosmtpdServer) -> None:
    with app.app_context():
        # A receiver in the background belongs to the message it is told of.
        assert mail.drain(20) == 0
        assert mail.drain(20) == 0
        mail.close()
    assert sorted(subject_of(stored.content) for stored in server.messages) == ["Echo", "Hello"]


def subject_of(content: bytes) -> str:
    return str(message_from_bytes(content)["Subject"])
