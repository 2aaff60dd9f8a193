"""SyncMailer.send_later: a message is left in memory, and the background loop sends it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap

import pytest

from amail import Message, MessageError, Portal, QueueFull, SyncMailer
from amail.testing import FaultServer, Hang


def hello() -> Message:
    return Message("Hello", ["bob@example.org"], "Hi", sender="ada@example.com")


async def test_it_returns_at_once_and_in_a_running_loop_too() -> None:
    portal = Portal()
    with FaultServer.serve_in_thread(greeting=Hang()) as server:
        mailer = SyncMailer(server.url, portal=portal)
        queued = mailer.send_later(hello())
        assert server.messages == []
        assert await queued is queued
        server.change(greeting="220 now")
        server.release()
        await asyncio.to_thread(portal.close)
    (stored,) = server.messages
    assert f"Message-ID: {queued.message_id}".encode() in stored.content


def test_what_cannot_be_composed_is_raised_at_the_call() -> None:
    with pytest.raises(MessageError):
        SyncMailer("memory://").send_later(Message("Hello"))


def test_a_thousand_messages_may_wait() -> None:
    portal = Portal(drain_timeout=0)
    with FaultServer.serve_in_thread(greeting=Hang()) as server:
        mailer = SyncMailer(server.url, portal=portal)
        for _ in range(1000):
            mailer.send_later(hello())
        with pytest.raises(QueueFull):
            mailer.send_later(hello())
        logging.disable()
        try:
            portal.close()
        finally:
            logging.disable(logging.NOTSET)


def test_a_message_that_is_not_sent_is_an_error_in_the_log_that_names_no_recipient(
    caplog: pytest.LogCaptureFixture,
) -> None:
    portal = Portal()
    with FaultServer.serve_in_thread(rcpt="550 5.1.1 no such user") as server:
        mailer = SyncMailer(server.url, portal=portal)
        queued = mailer.send_later(hello())
        portal.close()
    (record,) = [each for each in caplog.records if each.name == "amail.queue"]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        f"{queued.message_id}: could not be sent in the background: rejected, "
        "RecipientsRejected at the stage rcpt, 550"
    )


def test_what_waits_is_sent_before_the_process_ends() -> None:
    program = """
        import sys
        from amail import Message, SyncMailer

        message = Message("Hello", ["bob@example.org"], "Hi", sender="ada@example.com")
        mailer = SyncMailer(sys.argv[1])
        mailer.send_later(message)
    """
    with FaultServer.serve_in_thread() as server:
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.messages) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_has_a_queue_of_its_own() -> None:
    program = """
        import os, sys, warnings
        warnings.simplefilter("ignore")
        from amail import Message, Portal, SyncMailer

        def hello():
            return Message("Hello", ["bob@example.org"], "Hi", sender="ada@example.com")

        mailer = SyncMailer("memory://")
        for _ in range(1000):
            mailer.send_later(hello())
        child = os.fork()
        if not child:
            mailer.send_later(hello())
            mailer.close()
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stderr) == (0, "")
