"""How the public names are typed. Never run: mypy and pyright read it (tests/test_house.py).

What has to be refused carries an ignore, which both report when it is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import typing as t
from pathlib import Path

from amail import (
    Address,
    Attachment,
    Content,
    Envelope,
    Mailer,
    MemoryTransport,
    Message,
    Receipt,
    Reply,
    Result,
    SMTPSettings,
    SyncMailer,
)
from amail.errors import DeliveryUnknown, MailError, NotSent, Outcome, RecipientsRejected, SendError

if t.TYPE_CHECKING:
    from amail_flask import Mail


async def sending() -> None:
    async with Mailer("smtp://localhost", default_sender=("Ada", "ada@example.com")) as mailer:
        message = Message("Hello", ["bob@example.org"], "Hi")
        t.assert_type(await mailer.send(message), Receipt)
        both = await asyncio.gather(mailer.send(message), mailer.send(message))
        t.assert_type(both, tuple[Receipt, Receipt])
        async for result in mailer.send_many([message]):
            t.assert_type(result, Result)
            t.assert_type(result.receipt, Receipt | None)
            t.assert_type(result.error, MailError | None)
        async for _ in mailer.send_many(_messages(), concurrency=3, ordered=True):
            pass
        await mailer.send("Hello")  # type: ignore[arg-type]
        await mailer.send_raw(b"", sender="a@x.org", recipients=[Address("b@x.org")])
        async with mailer.connect() as connection:
            t.assert_type(await connection.send(message, "bounces@x.org"), Receipt)


async def forgetting_to_await(mailer: Mailer, mail: Mail) -> None:
    message = Message("Hello", ["bob@example.org"], "Hi")
    mailer.send(message)  # type: ignore[unused-coroutine]
    mailer.send_raw(b"", sender="a@x.org", recipients="b@x.org")  # type: ignore[unused-coroutine]
    mailer.connect().send(message)  # type: ignore[unused-coroutine]
    mail.send(message)  # type: ignore[unused-coroutine]
    mail.send_message("Hello")  # type: ignore[unused-coroutine]
    mail.connect().send(message)  # type: ignore[unused-coroutine]


def forgetting_it_where_none_can_be_awaited(mailer: Mailer, mail: Mail) -> None:
    mailer.send(Message())  # type: ignore[unused-coroutine]
    mail.send(Message())  # type: ignore[unused-coroutine]


async def _messages() -> t.AsyncIterator[Message]:
    yield Message()


def people() -> None:
    Message(sender="Ada <ada@x.org>", recipients="bob@x.org")
    Message(recipients=[("Bob", "b@x.org"), Address("c@x.org"), "d@x.org"], sender=("A", "a@x.org"))
    Message(recipients=Address("b@x.org"), cc=(each for each in ["c@x.org"]), bcc={"d@x.org"})
    Message(reply_to=["a@x.org", ("B", "b@x.org")])
    Message(reply_to=("B", "b@x.org"))
    Message(recipients=5)  # type: ignore[arg-type]
    Message(sender=b"a@x.org")  # type: ignore[arg-type]


def parts() -> None:
    message = Message()
    message.attach("a.txt", "text/plain", "text")
    message.attach("a.bin", data=b"octets")
    message.attach_file(Path("a.pdf"))
    t.assert_type(message.embed(b"png", "a.png"), str)
    t.assert_type(message.as_bytes(), bytes)
    t.assert_type(Message.from_dict(message.to_dict()), Message)
    t.assert_type(Message.from_bytes(b""), Message)
    Attachment("a.bin", "application/octet-stream", b"")


def settings() -> None:
    t.assert_type(SMTPSettings.from_url("smtp://h"), SMTPSettings)
    Mailer(host="h", port=587, tls="starttls", max_connections=3)
    Mailer("smtp://h", tls="maybe")  # type: ignore[arg-type]
    Mailer("smtp://h", no_such_option=1)  # type: ignore[call-arg]
    with SyncMailer("smtp://h") as mailer:
        t.assert_type(mailer.send(Message()), Receipt)


def outcomes(receipt: Receipt, error: SendError) -> None:
    t.assert_type(receipt.outcome, Outcome)
    t.assert_type(receipt.reply, Reply)
    t.assert_type(error.reply, Reply | None)
    if isinstance(error, RecipientsRejected):
        t.assert_type(error.refused, t.Mapping[str, Reply])
    if isinstance(error, DeliveryUnknown):
        t.assert_type(error.accepted, tuple[str, ...])
    caught: TimeoutError | ConnectionError | None = None
    if isinstance(error, NotSent) and isinstance(error, TimeoutError):
        caught = error
    assert caught is None


class Own:
    """A transport of one's own."""

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        return await MemoryTransport().send(envelope, content, deadline=deadline)

    async def aclose(self) -> None: ...


def transports() -> None:
    Mailer(Own())
    Mailer(object())  # type: ignore[arg-type]
