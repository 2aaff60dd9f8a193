"""Mail in Flask apps: views of both kinds, the background, tests of users, several apps."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import subprocess
import sys
import textwrap
import threading
import typing as t

import pytest
from flask import Flask, current_app

from amail import (
    InvalidHeader,
    MessageError,
    QueueFull,
    Receipt,
    RecipientsRejected,
    SendError,
    UsageError,
)
from amail.testing import FaultServer, Hang
from amail_flask import (
    BadHeaderError,
    Mail,
    Message,
    email_dispatched,
    sanitize_address,
    sanitize_addresses,
)
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.aiosmtpd_server import AiosmtpdServer

REFUSED = "refused@example.org"


def hello(**fields: t.Any) -> Message:
    return Message("Hello", **{"recipients": ["bob@example.org"], "body": "Hi", **fields})


@contextlib.contextmanager
def mail_app(server: t.Any, **config: t.Any) -> Iterator[tuple[Flask, Mail]]:
    app = Flask(__name__)
    app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER="me@example.com", **config)
    mail = Mail(app)
    yield app, mail
    with app.app_context():
        mail.close()


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server(refused={REFUSED}) as running:
        yield running


# Views


def test_three_requests_to_an_async_view_use_one_session(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail):

        @app.get("/")
        async def view() -> str:
            receipt = await mail.send(hello())
            return str(receipt.queue_id)

        client = app.test_client()
        assert [client.get("/").text for _ in range(3)] == ["A00001", "A00002", "A00003"]
    assert server.sessions == 1
    assert len(server.messages) == 3


def test_a_sync_view_that_forgets_to_wait_fails_and_is_told_what_to_write(
    server: AiosmtpdServer,
) -> None:
    with mail_app(server) as (app, mail):

        @app.get("/")
        def view() -> str:
            mail.send(hello())  # type: ignore[unused-coroutine]
            return "sent"  # which would be a lie

        app.testing = False
        app.config["PROPAGATE_EXCEPTIONS"] = True
        with pytest.raises(UsageError, match=r"mail\.send_sync\(message\), or make it async def"):
            app.test_client().get("/")
    assert server.messages == []


def test_the_state_in_the_extensions_refuses_what_mail_refuses(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, _), app.test_request_context():
        state = app.extensions["mail"]
        with pytest.raises(UsageError, match="this view is not async"):
            state.send(hello())
        with pytest.raises(UsageError, match="this view is not async"):
            state.send_message("Hello", ["bob@example.org"], "Hi")
        with pytest.raises(UsageError, match="async with"), state.connect():
            pass
    assert server.messages == []


def test_a_mail_made_with_current_app_belongs_to_the_app_behind_it(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, _):
        with app.app_context():
            mail = Mail(current_app)  # as Flask-AppBuilder does
        assert mail.app is app
        assert mail.send_sync(hello()).outcome == "accepted"
        assert mail.send_later(hello()).engine == "memory"
        assert mail.drain(10) == 0
        mail.close()
    assert len(server.messages) == 2


def test_a_mail_made_for_each_message_uses_the_sessions_that_are_there(
    server: AiosmtpdServer,
) -> None:
    with mail_app(server) as (app, _), app.app_context():
        for _ in range(3):
            Mail(current_app).send_sync(hello())
        assert server.sessions == 1
        app.config["MAIL_DEFAULT_SENDER"] = "other@example.com"
        Mail(current_app).send_sync(hello())
        app.extensions["mail"].close()
    assert [each.reverse_path for each in server.messages] == [
        *["me@example.com"] * 3,
        "other@example.com",
    ]


def test_send_sync_sends_from_a_sync_view(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail):

        @app.get("/")
        def view() -> str:
            return mail.send_sync(hello()).message_id

        client = app.test_client()
        ids = [client.get("/").text for _ in range(3)]
    assert [
        id_ in stored.content.decode() for id_, stored in zip(ids, server.messages, strict=True)
    ]
    assert server.sessions == 1


async def test_send_sync_in_a_running_loop_says_to_await(server: AiosmtpdServer) -> None:
    app = Flask(__name__)
    app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER="me@example.com")
    mail = Mail(app)
    with pytest.raises(UsageError, match=r"await mail\.send\(message\)"):
        mail.send_sync(hello())
    with pytest.raises(UsageError, match=r"await asyncio\.to_thread\(mail\.close\)"):
        mail.close()
    with pytest.raises(UsageError, match=r"await asyncio\.to_thread\(mail\.drain\)"):
        mail.drain(1)
    assert server.messages == []


async def test_send_works_in_any_loop_inside_an_app_context(server: AiosmtpdServer) -> None:
    app = Flask(__name__)
    app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER="me@example.com")
    mail = Mail(app)
    receipts = await asyncio.gather(*(mail.send(hello()) for _ in range(20)))
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert len(server.messages) == 20
    assert server.sessions <= 5
    await asyncio.to_thread(_close, app, mail)


def _close(app: Flask, mail: Mail) -> None:
    with app.app_context():
        mail.close()


def test_the_message_is_taken_as_it_is_when_send_is_called(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail):

        @app.get("/")
        async def view() -> str:
            message = hello(body="as it was")
            sending = mail.send(message)
            message.body = "as it is"
            await sending
            return "sent"

        assert app.test_client().get("/").text == "sent"
    assert b"as it was" in server.messages[0].content


def test_a_refusal_reaches_the_view_as_it_is(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail):

        @app.get("/")
        async def view() -> str:
            try:
                await mail.send(hello(recipients=[REFUSED]))
            except RecipientsRejected as error:
                return f"{error.outcome} {error.refused[REFUSED]}"
            return "sent"

        assert app.test_client().get("/").text == "rejected 550 5.1.1 no such user here"


def test_bad_headers_are_refused_at_the_call(server: AiosmtpdServer) -> None:
    assert BadHeaderError is InvalidHeader
    with mail_app(server) as (app, mail), app.app_context():
        with pytest.raises(BadHeaderError, match="subject: U\\+000A"):
            mail.send(Message("a\nBcc: x@example.org", ["bob@example.org"]))  # type: ignore[unused-coroutine]
        with pytest.raises(MessageError, match="recipients"):
            mail.send(Message("nobody"))  # type: ignore[unused-coroutine]


def test_send_message_takes_what_message_takes(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail):

        @app.get("/")
        async def view() -> str:
            receipt = await mail.send_message("Hello", ["bob@example.org"], "Hi")
            return receipt.message_id

        assert app.test_client().get("/").text.startswith("<")
    assert server.messages[0].forward_paths == ("bob@example.org",)


def test_connect_sends_one_after_another_over_one_session(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail):

        @app.get("/")
        async def view() -> str:
            async with mail.connect() as connection:
                for number in range(5):
                    await connection.send(hello(body=str(number)))
                await connection.send(hello(), envelope_from="bounces@example.com")
                await connection.send_message("Hello", ["bob@example.org"], "Hi")
                await hello().send(connection)
            return "sent"

        assert app.test_client().get("/").text == "sent"
    assert server.sessions == 1
    assert len(server.messages) == 8
    assert [message.reverse_path for message in server.messages[4:7]] == [
        "me@example.com",
        "bounces@example.com",
        "me@example.com",
    ]


def test_with_connect_says_to_write_async_with(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail), app.app_context():  # noqa: SIM117
        with pytest.raises(UsageError, match="async with"), mail.connect():
            pass


def test_max_emails_bounds_the_messages_of_a_session(server: AiosmtpdServer) -> None:
    with mail_app(server, MAIL_MAX_EMAILS=2) as (app, mail):

        @app.get("/")
        async def view() -> str:
            async with mail.connect() as connection:
                for _ in range(5):
                    await connection.send(hello())
            return "sent"

        assert app.test_client().get("/").text == "sent"
    assert [message.session for message in server.messages] == [1, 1, 2, 2, 3]


# In the background


def test_send_later_answers_before_the_message_is_sent() -> None:
    with FaultServer.serve_in_thread(greeting=Hang()) as server, mail_app(server) as (app, mail):

        @app.get("/")
        def view() -> str:
            return mail.send_later(hello()).message_id

        message_id = app.test_client().get("/").text
        assert server.messages == []
        with app.app_context():
            assert mail.drain(0.1) == 1
            server.change(greeting="220 now")
            server.release()
            assert mail.drain(10) == 0
        (stored,) = server.messages
        assert message_id.encode() in stored.content


def test_send_later_reads_file_objects_at_once(server: AiosmtpdServer, tmp_path: t.Any) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"the notes")
    with mail_app(server) as (app, mail), app.app_context():
        message = hello()
        with path.open("rb") as file:
            message.attach("notes.txt", "text/plain", file)
            mail.send_later(message)
        assert mail.drain(10) == 0
    assert b"the notes" in server.messages[0].content


def test_while_sending_is_suppressed_what_is_sent_later_is_recorded_at_once(
    server: AiosmtpdServer,
) -> None:
    with (
        mail_app(server, TESTING=True) as (app, mail),
        app.app_context(),
        mail.record_messages() as outbox,
    ):
        queued = mail.send_later(hello())
        assert [message.message_id for message in outbox] == [queued.message_id]
    assert server.messages == []


async def test_what_send_later_returns_may_be_awaited(server: AiosmtpdServer) -> None:
    app = Flask(__name__)
    app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER="me@example.com")
    mail = Mail(app)
    queued = mail.send_later(hello())
    assert await queued == queued
    assert queued.engine == "memory"
    await asyncio.to_thread(mail.drain, 10)
    await asyncio.to_thread(_close, app, mail)
    assert queued.message_id.encode() in server.messages[0].content


def test_what_fails_in_the_background_is_logged(
    server: AiosmtpdServer, caplog: pytest.LogCaptureFixture
) -> None:
    with mail_app(server) as (app, mail), app.app_context():
        queued = mail.send_later(hello(recipients=[REFUSED]))
        assert mail.drain(10) == 0
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.getMessage() == (
        f"{queued.message_id}: could not be sent in the background: rejected, RecipientsRejected "
        "at the stage rcpt, 550"
    )
    assert REFUSED not in caplog.text


def test_a_message_that_cannot_be_composed_is_refused_at_the_call(server: AiosmtpdServer) -> None:
    with (
        mail_app(server) as (app, mail),
        app.app_context(),
        pytest.raises(MessageError),
    ):
        mail.send_later(Message("nobody"))


def test_c19_the_queue_is_bounded() -> None:
    with FaultServer.serve_in_thread(greeting=Hang()) as server, mail_app(server) as (app, mail):
        with app.app_context():
            for _ in range(1000):
                mail.send_later(hello())
            with pytest.raises(QueueFull, match="1000 messages wait") as caught:
                mail.send_later(hello())
            assert caught.value.outcome == "not_sent"
            server.change(greeting="220 now")
            server.release()
            assert mail.drain(30) == 0
        assert len(server.messages) == 1000


def test_what_waits_is_sent_before_the_process_ends(server: AiosmtpdServer) -> None:
    program = f"""
        from flask import Flask
        from amail_flask import Mail, Message

        app = Flask("app")
        app.config.update(MAIL_URL={server.url!r}, MAIL_DEFAULT_SENDER="me@example.com")
        mail = Mail(app)

        @app.get("/")
        def view():
            for number in range(50):
                mail.send_later(Message("Later", recipients=["bob@example.org"], body=str(number)))
            return "accepted", 202

        assert app.test_client().get("/").status_code == 202
        raise SystemExit(7)
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert len(server.messages) == 50


# The log


def test_mail_debug_shows_the_stages_and_no_credentials(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("amail"), "level", logging.NOTSET)
    with FaultServer.serve_in_thread(users={"ada": "canary-pa55word"}) as server:
        app = Flask(__name__)
        app.config.update(
            MAIL_SERVER=server.host,
            MAIL_PORT=server.port,
            MAIL_USERNAME="ada",
            MAIL_PASSWORD="canary-pa55word",
            MAIL_DEFAULT_SENDER="me@example.com",
            MAIL_DEBUG="on",
        )
        mail = Mail(app)
        mail.send_sync(hello())
        _close(app, mail)
    lines = [each.getMessage() for each in caplog.records if each.levelno == logging.DEBUG]
    stages = [line.rpartition(" ")[2] for line in lines if line.startswith("127.0.0.1:")]
    assert stages == ["session", "greeting", "ehlo", "auth"]
    assert "canary" not in caplog.text
    assert base64.b64encode(b"\0ada\0canary-pa55word").decode() not in caplog.text


# Tests of users


def test_nothing_is_sent_while_testing_and_no_thread_is_started(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail):
        app.testing = True
        threads = set(threading.enumerate())

        @app.get("/")
        async def view() -> str:
            receipt = await mail.send(hello())
            return str(receipt.relay)

        with app.app_context(), mail.record_messages() as outbox:
            assert app.test_client().get("/").text == "suppressed"
            assert mail.send_sync(hello(body="sync")).relay == "suppressed"
            mail.send_later(hello(body="later"))
        assert [message.body for message in outbox] == ["Hi", "sync", "later"]
        started = {thread.name for thread in set(threading.enumerate()) - threads}
        assert "amail-loop" not in started
    assert server.sessions == 0


def test_b112_suppressing_follows_testing_at_the_time_of_sending(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail), app.app_context():
        app.testing = True
        mail.send_sync(hello())
        app.testing = False
        mail.send_sync(hello())
        assert mail.suppress is False
    assert len(server.messages) == 1


@pytest.mark.parametrize("testing", [False, True])
def test_b112_mail_suppress_send_wins_over_testing(server: AiosmtpdServer, testing: bool) -> None:
    with mail_app(server, MAIL_SUPPRESS_SEND=not testing) as (app, mail), app.app_context():
        app.testing = testing
        mail.send_sync(hello())
    assert len(server.messages) == testing


def test_a_suppressed_message_is_checked_all_the_same(server: AiosmtpdServer) -> None:
    with mail_app(server, TESTING=True) as (app, mail), app.app_context():
        with pytest.raises(BadHeaderError):
            mail.send_sync(Message("a\nb", ["bob@example.org"]))
        with mail.record_messages() as outbox, pytest.raises(MessageError):
            mail.send_later(Message("nobody"))
    assert outbox == []


def test_email_dispatched_names_app_and_message(server: AiosmtpdServer) -> None:
    seen: list[tuple[Flask, Message]] = []

    def receiver(app: Flask, message: Message) -> None:
        seen.append((app, message))

    with mail_app(server) as (app, mail), app.app_context():
        sent, later, refused = hello(), hello(), hello(recipients=[REFUSED])
        with email_dispatched.connected_to(receiver):
            mail.send_sync(sent)
            mail.send_later(later)
            mail.drain(10)
            with pytest.raises(SendError):
                mail.send_sync(refused)
    assert seen == [(app, sent), (app, later)]


def test_c17_a_receiver_that_fails_changes_nothing(
    server: AiosmtpdServer, caplog: pytest.LogCaptureFixture
) -> None:
    def receiver(app: Flask, message: Message) -> None:
        raise ZeroDivisionError

    with (
        mail_app(server) as (app, mail),
        app.app_context(),
        email_dispatched.connected_to(receiver),
    ):
        assert mail.send_sync(hello()).outcome == "accepted"
    assert "a receiver of email_dispatched failed" in caplog.text


def test_the_outbox_holds_the_messages_of_its_own_app(server: AiosmtpdServer) -> None:
    with (
        mail_app(server, TESTING=True) as (app, mail),
        mail_app(server, TESTING=True) as (b, other),
        app.app_context(),
        mail.record_messages() as outbox,
    ):
        mail.send_sync(hello(body="mine"))
        with b.app_context():
            other.send_sync(hello(body="theirs"))
    assert [message.body for message in outbox] == ["mine"]


# Apps


def test_b113_one_mail_serves_the_apps_of_a_factory(server: AiosmtpdServer) -> None:
    mail = Mail()

    def create_app(sender: str) -> Flask:
        app = Flask(__name__)
        app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER=sender)
        mail.init_app(app)
        return app

    first, second = create_app("one@example.com"), create_app("two@example.com")
    for app in (first, second, first):
        with app.app_context():
            mail.send_sync(hello())
    assert [(m.reverse_path, m.session) for m in server.messages] == [
        ("one@example.com", 1),
        ("two@example.com", 2),
        ("one@example.com", 1),
    ]
    for app in (first, second):
        _close(app, mail)


def test_b113_without_an_app_the_error_says_what_to_write() -> None:
    with pytest.raises(UsageError, match=r"with app\.app_context\(\), or make Mail\(app\)"):
        Mail().send_sync(hello())
    with (
        Flask(__name__).app_context(),
        pytest.raises(UsageError, match=r"mail\.init_app\(app\)"),
    ):
        Mail().send_sync(hello())


def test_mail_made_for_an_app_needs_no_app_context(server: AiosmtpdServer) -> None:
    with mail_app(server) as (_, mail):
        mail.send_sync(hello())
    assert len(server.messages) == 1


def test_the_default_sender_and_ascii_names_may_be_set_later(server: AiosmtpdServer) -> None:
    with mail_app(server) as (app, mail), app.app_context():
        state = mail.state
        assert state is not None
        assert app.extensions["mail"] is state
        state.default_sender = ("Ada", "ada@example.com")
        state.ascii_attachments = True
        message = hello()
        message.attach("prüfung.txt", "text/plain", "x")
        mail.send_sync(message)
        assert b"From: Ada <ada@example.com>" in message.as_bytes()
    assert b"From: Ada <ada@example.com>" in server.messages[0].content
    assert b'filename="prufung.txt"' in server.messages[0].content
    assert server.messages[0].reverse_path == "ada@example.com"


def test_init_mail_makes_a_state_of_a_mapping() -> None:
    state = Mail().init_mail({"MAIL_SERVER": "smtp.example.com"}, testing=True)
    assert state.suppress is True
    assert state.mailer.default_sender is None


def test_people_are_written_as_text() -> None:
    assert sanitize_address(("Ada, Countess", "ada@example.com")) == (
        '"Ada, Countess" <ada@example.com>'
    )
    assert sanitize_addresses(["a@x.org", ("B", "b@x.org")]) == ["a@x.org", "B <b@x.org>"]
    with pytest.raises(MessageError):
        sanitize_address("a@x.org\nBcc: b@x.org")


def test_names_of_the_state_are_found_on_mail_and_others_are_not(server: AiosmtpdServer) -> None:
    with mail_app(server) as (_, mail):
        assert mail.default_sender == "me@example.com"
        with pytest.raises(AttributeError):
            mail.no_such_thing  # noqa: B018


def test_the_protocol_trace_is_shown_without_further_ado(server: AiosmtpdServer) -> None:
    program = """
        import sys
        from flask import Flask
        from amail_flask import Mail, Message

        app = Flask("shop")
        app.config.update(MAIL_URL=sys.argv[1], MAIL_PROTOCOL_TRACE="on")
        mail = Mail(app)
        mail.send_sync(Message("Hello", ["bob@example.org"], "canary", sender="a@example.com"))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True)
    assert "C: RCPT TO:<b***@example.org>" in done.stderr
    assert "S: 250 2.0.0 ok" in done.stderr
    assert "canary" not in done.stderr
