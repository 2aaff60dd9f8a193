"""email_accepted, email_failed and email_resolved, from every way of sending."""

from __future__ import annotations

import contextlib
import threading
import typing as t

import pytest
from flask import current_app

from amail import MailError, Receipt, RecipientsRejected
from amail.testing import OK, FaultServer, Hang
from amail_flask import email_accepted, email_failed, email_resolved
from tests.flask.test_lifetime import hello, make_app
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import blinker
    from flask import Flask

    from amail_flask import Mail, Message
    from tests.servers.aiosmtpd_server import AiosmtpdServer

REFUSED = "refused@example.org"


class Told:
    """What a receiver was told, and in which app's context."""

    def __init__(self, signal: blinker.NamedSignal, app: Flask) -> None:
        self.what: list[dict[str, t.Any]] = []
        self.came = threading.Event()
        self._signal = signal
        self._app = app

    def __call__(self, sender: Flask, **what: t.Any) -> None:
        assert sender is self._app
        assert current_app._get_current_object() is self._app  # type: ignore[attr-defined]
        self.what.append(what)
        self.came.set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[t.Self]:
        with self._signal.connected_to(self, self._app):
            yield self


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server(refused={REFUSED}) as running:
        yield running


@pytest.fixture
def app_and_mail(server: AiosmtpdServer) -> Iterator[tuple[Flask, Mail]]:
    app, mail = make_app(server)
    yield app, mail
    with app.app_context():
        mail.close()


def in_async_view(app: Flask, mail: Mail, message: Message) -> None:
    @app.get("/")
    async def view() -> str:
        with contextlib.suppress(MailError):
            await mail.send(message)
        return "done"

    assert app.test_client().get("/").text == "done"


def in_sync_view(app: Flask, mail: Mail, message: Message) -> None:
    @app.get("/")
    def view() -> str:
        with contextlib.suppress(MailError):
            mail.send_sync(message)
        return "done"

    assert app.test_client().get("/").text == "done"


def in_background(app: Flask, mail: Mail, message: Message) -> None:
    with app.app_context():
        mail.send_later(message)
        assert mail.drain(20) == 0


WAYS = pytest.mark.parametrize("send", [in_async_view, in_sync_view, in_background])


@WAYS
def test_email_accepted_has_the_message_and_its_receipt(
    app_and_mail: tuple[Flask, Mail], send: Callable[[Flask, Mail, Message], None]
) -> None:
    app, mail = app_and_mail
    message = hello()
    with (
        Told(email_accepted, app).listening() as accepted,
        Told(email_failed, app).listening() as no,
    ):
        send(app, mail, message)
    (what,) = accepted.what
    assert what["message"] is message
    assert isinstance(what["receipt"], Receipt)
    assert what["receipt"].message_id == message.message_id
    assert not no.what


@WAYS
def test_email_failed_has_the_message_and_the_error(
    app_and_mail: tuple[Flask, Mail], send: Callable[[Flask, Mail, Message], None]
) -> None:
    app, mail = app_and_mail
    message = hello(recipients=[REFUSED])
    with Told(email_accepted, app).listening() as no, Told(email_failed, app).listening() as failed:
        send(app, mail, message)
    (what,) = failed.what
    assert what["message"] is message
    assert isinstance(what["error"], RecipientsRejected)
    assert not no.what


@WAYS
@pytest.mark.parametrize("signal", [email_accepted, email_failed], ids=["accepted", "failed"])
def test_c17_a_receiver_that_fails_changes_no_outcome(
    server: AiosmtpdServer,
    app_and_mail: tuple[Flask, Mail],
    send: Callable[[Flask, Mail, Message], None],
    signal: blinker.NamedSignal,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, mail = app_and_mail

    def fail(sender: Flask, **what: t.Any) -> None:
        raise ZeroDivisionError

    recipients = [REFUSED] if signal is email_failed else ["bob@example.org"]
    with signal.connected_to(fail, app):
        send(app, mail, hello(recipients=recipients))
    assert f"a receiver of {signal.name.replace('-', '_')} failed" in caplog.text
    assert len(server.messages) == (signal is email_accepted)


def test_nothing_is_accepted_or_failed_while_sending_is_suppressed(server: AiosmtpdServer) -> None:
    app, mail = make_app(server, TESTING=True)
    with (
        Told(email_accepted, app).listening() as accepted,
        Told(email_failed, app).listening() as no,
    ):
        in_async_view(app, mail, hello())
    assert not accepted.what
    assert not no.what


def test_email_accepted_of_raw_content_has_no_message(app_and_mail: tuple[Flask, Mail]) -> None:
    app, mail = app_and_mail
    raw = b"From: me@example.com\r\nSubject: Raw\r\n\r\nHi\r\n"

    @app.get("/")
    async def view() -> str:
        receipt = await mail.send_raw(raw, sender="me@example.com", recipients=["bob@example.org"])
        return receipt.message_id

    with Told(email_accepted, app).listening() as accepted:
        message_id = app.test_client().get("/").text
    (what,) = accepted.what
    assert (what["message"], what["receipt"].message_id) == (None, message_id)


@pytest.mark.parametrize("reply", ["250 2.0.0 ok", "554 5.7.1 spam"])
def test_email_resolved_tells_what_a_late_reply_says(reply: str) -> None:
    with FaultServer.serve_in_thread(final=[Hang(reply), OK]) as server:
        app, mail = make_app(server, MAIL_TIMEOUT=0.3)
        message = hello()
        with Told(email_resolved, app).listening() as resolved:
            in_sync_view(app, mail, message)
            assert not resolved.what
            server.release()
            assert resolved.came.wait(10)
        (what,) = resolved.what
        known = what["receipt"] or what["error"]
        assert known.message_id == message.message_id
        assert known.outcome == ("accepted" if reply.startswith("250") else "rejected")
        assert [what["receipt"], what["error"]].count(None) == 1
        with app.app_context():
            mail.close()
