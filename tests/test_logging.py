"""MailHandler: errors are mailed to those who look after an application, and hold up nobody."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
from email import message_from_bytes, policy

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from amail import ConfigError, Message, MessageError, Portal, QueueFull, SyncMailer
from amail.logging import MailHandler
from amail.testing import FaultServer, Hang
from amail_flask import Mail
from tests.strategies import EXAMPLES

if t.TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN = "admin@example.com"


class Outbox:
    """Keeps what is left to be sent; holds so many."""

    def __init__(self, length: int = 10_000) -> None:
        self.messages: list[Message] = []
        self.length = length

    def send_later(self, message: Message) -> None:
        if len(self.messages) >= self.length:
            raise QueueFull("full", stage="pool")
        self.messages.append(message)

    @property
    def subjects(self) -> list[str]:
        return [str(message.subject) for message in self.messages]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.Logger("shop")
    yield logger
    for handler in logger.handlers:
        handler.close()


def handler_for(logger: logging.Logger, where: t.Any, **options: t.Any) -> MailHandler:
    handler = MailHandler(where, **{"recipients": [ADMIN], "sender": "shop@example.com", **options})
    logger.addHandler(handler)
    return handler


def test_an_error_is_mailed_with_its_traceback(logger: logging.Logger) -> None:
    with FaultServer.serve_in_thread() as server:
        handler = handler_for(logger, server.url)
        try:
            raise LookupError("no such order")
        except LookupError:
            logger.exception("order %d", 7)
        handler.close()  # which lets it be sent
    (stored,) = server.messages
    message = message_from_bytes(stored.content, policy=policy.default)
    assert stored.forward_paths == (ADMIN,)
    assert (message["From"], message["Subject"]) == ("shop@example.com", "ERROR in shop: order 7")
    assert message["Auto-Submitted"] == "auto-generated"
    assert "LookupError: no such order" in message.get_content()


def test_records_below_its_level_are_not_mailed(logger: logging.Logger) -> None:
    outbox = Outbox()
    handler_for(logger, outbox)
    logger.warning("careful")
    assert outbox.messages == []


def test_one_of_a_kind_is_mailed_in_an_interval_and_the_next_mail_says_how_many_were_not(
    logger: logging.Logger,
) -> None:
    outbox, clock = Outbox(), Clock()
    handler_for(logger, outbox, interval=60.0, clock=clock)
    for number in (*range(42), None):
        if number is None:
            clock.now += 60
        logger.error("order %s failed", number)
    first, second = outbox.messages
    assert first.body == "order 0 failed\n"
    assert second.body is not None
    assert second.body.startswith("order None failed\n\nLogged 41 more time(s) since the last mail")
    clock.now += 60
    logger.error("order %s failed", 1)
    assert outbox.messages[-1].body == "order 1 failed\n"


def test_errors_that_are_raised_at_different_places_are_of_different_kinds(
    logger: logging.Logger,
) -> None:
    outbox = Outbox()
    handler_for(logger, outbox)
    for _ in range(3):
        for fail in (lambda: 1 / 0, lambda: int("x"), lambda: next(iter(()))):
            try:
                fail()
            except Exception:
                logger.exception("request failed")
    assert len(outbox.messages) == 3


def test_of_all_kinds_together_no_more_than_the_limit_are_mailed(logger: logging.Logger) -> None:
    outbox, clock = Outbox(), Clock()
    handler_for(logger, outbox, limit=5, interval=60.0, clock=clock)
    for number in range(12):
        logger.error(f"order {number} failed")  # as it should not be written
    assert len(outbox.messages) == 5
    clock.now += 60
    logger.error("another")
    assert "7 other record(s) were not mailed" in str(outbox.messages[-1].body)
    clock.now += 60
    logger.error("yet another")
    assert "not mailed" not in str(outbox.messages[-1].body)


def test_what_finds_the_queue_full_is_counted_and_the_same_kind_may_be_mailed_at_once_again(
    logger: logging.Logger,
) -> None:
    outbox = Outbox(length=0)
    handler_for(logger, outbox)
    logger.error("first")
    outbox.length = 10
    logger.error("first")
    assert "1 other record(s) were not mailed" in str(outbox.messages[0].body)


def test_it_keeps_only_so_many_kinds_and_loses_no_count(logger: logging.Logger) -> None:
    outbox, clock = Outbox(), Clock()
    handler = handler_for(logger, outbox, limit=10_000, interval=60.0, clock=clock)
    for _ in range(2):
        logger.error("first")
    for number in range(3000):
        logger.error(f"kind {number}")
    assert len(handler._kinds) == 1000
    assert sum("1 other record(s)" in str(each.body) for each in outbox.messages) == 1


def test_who_logs_is_not_held_up_by_a_server_that_hangs(logger: logging.Logger) -> None:
    with FaultServer.serve_in_thread(greeting=Hang()) as server:
        handler = handler_for(logger, server.url, limit=10_000, drain_timeout=0)
        began = time.monotonic()
        for number in range(1500):
            logger.error(f"order {number} failed")
        assert time.monotonic() - began < 10
        assert server.messages == []
        handler.close()
    assert handler._others >= 500  # the queue holds a thousand


def test_a_mail_that_fails_leads_to_no_other(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    with FaultServer.serve_in_thread(greeting="554 5.3.2 no") as server:
        handler = handler_for(root, server.url)
        try:
            logging.getLogger("shop").error("order failed")
            handler.close()
        finally:
            root.removeHandler(handler)
    assert [each.name for each in caplog.records if each.levelno >= logging.ERROR] == [
        "shop",
        "amail.queue",
    ]
    assert server.connections == 1


async def test_it_may_be_used_in_a_running_loop_and_in_the_background_loop_itself(
    logger: logging.Logger,
) -> None:
    portal = Portal()
    with FaultServer.serve_in_thread() as server:
        handler_for(logger, SyncMailer(server.url, portal=portal))

        async def fail() -> None:
            logger.error("in the background")

        await portal.call(fail())
        logger.error("in a loop")
        assert await asyncio.to_thread(portal.drain, 10) == 0
        assert len(server.messages) == 2
        await asyncio.to_thread(portal.close)


def test_a_handler_that_logs_itself_does_not_recurse(logger: logging.Logger) -> None:
    class Echoing(Outbox):
        def send_later(self, message: Message) -> None:
            super().send_later(message)
            logger.error("from within %s", message.subject)

    outbox = Echoing()
    handler_for(logger, outbox)
    logger.error("one")
    assert outbox.subjects == ["ERROR in shop: one"]


def test_at_exit_what_waits_is_sent() -> None:
    program = """
        import logging, sys
        from amail.logging import MailHandler

        logging.getLogger().addHandler(
            MailHandler(sys.argv[1], recipients="admin@example.com", sender="shop@example.com")
        )
        logging.getLogger("shop").error("last words")
    """
    with FaultServer.serve_in_thread() as server:
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert b"last words" in server.messages[0].content


def test_many_threads_log_at_once_and_each_kind_is_mailed_once(logger: logging.Logger) -> None:
    outbox = Outbox()
    handler_for(logger, outbox)

    def log() -> None:
        for number in range(10):
            for _ in range(20):
                logger.error(f"kind {number}")

    threads = [threading.Thread(target=log) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outbox.messages) == 10


@EXAMPLES
@given(st.text(), st.sampled_from([None, "Shop\r\nBcc: eve@example.net"]))
def test_nothing_that_is_logged_breaks_the_subject_or_who_logs(
    text: str, subject: str | None
) -> None:
    logger, outbox = logging.Logger("shop"), Outbox()
    logging.raiseExceptions, before = True, logging.raiseExceptions
    try:
        handler_for(logger, outbox, subject=subject)
        logger.error("%s", text)
    finally:
        logging.raiseExceptions = before
    (message,) = outbox.messages
    message.validate()
    header, _, _ = bytes(message).partition(b"\r\n\r\n")
    assert re.findall(rb"(?mi)^(subject|bcc)(?=:)", header) == [b"Subject"]


def test_what_goes_wrong_in_it_is_shown_as_logging_does_and_raised_to_nobody(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    handler_for(logger, Mail())  # there is no app here
    logger.error("order failed")
    assert "UsageError: there is no app here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"recipients": []}, MessageError),
        ({"recipients": "nobody"}, MessageError),
        ({"sender": "nobody"}, MessageError),
        ({"interval": 0}, ConfigError),
        ({"limit": 0}, ConfigError),
        ({"limit": True}, ConfigError),
        ({"drain_timeout": -1}, ConfigError),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(
    options: dict[str, t.Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        MailHandler("memory://", **{"recipients": ADMIN, "sender": "a@x.org", **options})


def test_errors_of_a_flask_app_are_mailed_by_its_mailer() -> None:
    with FaultServer.serve_in_thread() as server:
        app = Flask("shop")
        app.config.update(MAIL_URL=server.url, MAIL_DEFAULT_SENDER="shop@example.com")
        mail = Mail(app)
        handler = MailHandler(mail, recipients=[ADMIN], subject="Application error")
        app.logger.addHandler(handler)
        try:

            @app.get("/")
            def view() -> str:
                raise LookupError("no such order")

            assert app.test_client().get("/").status_code == 500
            with app.app_context():
                assert mail.drain(10) == 0
                mail.close()
        finally:
            app.logger.removeHandler(handler)
    (stored,) = server.messages
    assert b"Subject: Application error: Exception on / [GET]" in stored.content
    assert b"LookupError: no such order" in stored.content


def test_while_sending_is_suppressed_they_are_recorded() -> None:
    app = Flask("shop")
    app.config.update(TESTING=True, MAIL_DEFAULT_SENDER="shop@example.com")
    mail = Mail(app)
    handler = MailHandler(mail, recipients=[ADMIN])
    app.logger.addHandler(handler)
    try:
        with mail.record_messages() as outbox:
            app.logger.error("order failed")
    finally:
        app.logger.removeHandler(handler)
    assert [each.subject for each in outbox] == ["ERROR in shop: order failed"]
