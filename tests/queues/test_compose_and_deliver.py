"""What queues need of a Mailer: to compose without sending, and to send what was composed."""

from __future__ import annotations

import time
import typing as t

import pytest

from amail import (
    ConfigError,
    Envelope,
    Limits,
    Mailer,
    MailerClosed,
    MemoryTransport,
    Message,
    MessageTooLarge,
    UsageError,
    Vetoed,
)
from amail.queues import handle, pack
from tests.messages import ADA
from tests.transports.ends import End


def hello(**fields: t.Any) -> Message:
    return Message("Hello", ["bob@example.org"], "Hi", **fields)


async def test_composing_makes_what_send_sends() -> None:
    memory = MemoryTransport()

    def prefixed(message: Message) -> Message:
        message.subject = f"[x] {message.subject}"
        return message

    mailer = Mailer(memory, default_sender=ADA, prepare=prefixed, all_recipients=True)
    message = hello()
    envelope, content = mailer.compose(message)
    assert memory.messages == []
    assert b"Subject: [x] Hello" in bytes(content)
    assert envelope == Envelope(ADA, ("bob@example.org",), all_recipients=True)
    message.subject = "Hello"
    await mailer.send(message)
    [sent] = memory.messages
    assert (sent.envelope, bytes(sent.content)) == (envelope, bytes(content))


def test_composing_refuses_what_send_refuses() -> None:
    def veto(message: Message) -> Message:
        raise Vetoed("no")

    with pytest.raises(Vetoed):
        Mailer("null://", prepare=veto).compose(hello(sender=ADA))
    with pytest.raises(MessageTooLarge):
        Mailer("null://", limits=Limits(message_size=10)).compose(hello(sender=ADA))
    with pytest.raises(UsageError, match="must be a Message"):
        Mailer("null://").compose(t.cast("Message", "Hello"))


async def test_what_was_composed_is_delivered_as_it_is_within_its_time() -> None:
    end = End("end")
    mailer = Mailer(end)
    envelope, content = Mailer("null://", default_sender=ADA).compose(hello())
    receipt = await mailer.deliver(envelope, content, timeout=30)
    [(sent_envelope, sent, deadline)] = end.tried
    assert (sent_envelope, bytes(sent)) == (envelope, bytes(content))
    assert receipt.message_id == content.message_id
    assert deadline == pytest.approx(time.monotonic() + 30, abs=10)
    with pytest.raises(ConfigError, match="timeout"):
        await mailer.deliver(envelope, content, timeout=0)
    await mailer.aclose()
    with pytest.raises(MailerClosed):
        await mailer.deliver(envelope, content)


async def test_a_large_job_is_sent_octet_for_octet() -> None:
    message = hello(sender=ADA)
    message.attach("a.bin", "application/octet-stream", bytes(range(256)) * 8000)
    memory = MemoryTransport()
    job = pack(message)
    await handle(job, Mailer(memory))
    [sent] = memory.messages
    assert bytes(sent.content) == job["mime"].encode()
