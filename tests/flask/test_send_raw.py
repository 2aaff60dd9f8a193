"""mail.send_raw: what was composed elsewhere, sent by the app's mailer."""

from __future__ import annotations

import typing as t

import pytest
from flask import Flask

from amail import InvalidHeader, UsageError
from amail_flask import Mail, email_dispatched
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.aiosmtpd_server import AiosmtpdServer

EML = (
    b"From: eve@example.net\r\nDate: Tue, 24 Nov 2026 09:05:00 +0000\r\n"
    b"Message-ID: <own@example.net>\r\n\r\nHi\r\n"
)
PATHS: dict[str, t.Any] = {"sender": "ada@example.com", "recipients": "bob@example.org"}


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server() as running:
        yield running


def mail_app(url: str, **config: t.Any) -> tuple[Flask, Mail]:
    app = Flask(__name__)
    app.config.update(MAIL_URL=url, **config)
    return app, Mail(app)


def test_an_async_view_sends_it_over_the_sessions_of_the_app(server: AiosmtpdServer) -> None:
    app, mail = mail_app(server.url)

    @app.get("/")
    async def view() -> str:
        receipt = await mail.send_raw(b"Bcc: x@y.org\r\n" + EML, **PATHS, timeout=20)
        return receipt.message_id

    client = app.test_client()
    assert [client.get("/").text for _ in range(2)] == ["<own@example.net>"] * 2
    mail.close()
    assert server.sessions == 1
    assert [(each.content, each.forward_paths) for each in server.messages] == [
        (EML, ("bob@example.org",))
    ] * 2


async def test_while_sending_is_suppressed_it_is_checked_and_not_sent(
    server: AiosmtpdServer,
) -> None:
    app, mail = mail_app(server.url, MAIL_SUPPRESS_SEND=True)
    heard: list[object] = []
    with email_dispatched.connected_to(lambda app, message: heard.append(message), app):
        receipt = await mail.send_raw(EML, **PATHS)
    assert (receipt.relay, receipt.message_id) == ("suppressed", "<own@example.net>")
    with pytest.raises(InvalidHeader):
        _ = mail.send_raw(b"X: y\r\n", **PATHS)
    assert (server.messages, heard) == ([], [])


def test_a_sync_view_is_told_what_to_write(server: AiosmtpdServer) -> None:
    app, mail = mail_app(server.url)
    with (
        app.test_request_context(),
        pytest.raises(UsageError, match=r"make it async def and write await mail\.send_raw"),
    ):
        _ = mail.send_raw(EML, **PATHS)
