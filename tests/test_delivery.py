"""The whole way, to servers that are not ours: Postfix, the strict one, and aiosmtpd."""

from __future__ import annotations

import asyncio
import typing as t
from collections import Counter

import pytest
from flask import Flask

from amail import Mailer, Message, Receipt, SyncMailer, TLSError
from amail_flask import Mail
from amail_flask import Message as FlaskMessage
from tests.servers.aiosmtpd_server import aiosmtpd_server
from tests.servers.postfix import REFUSED

if t.TYPE_CHECKING:
    from tests.musts import Musts
    from tests.servers.postfix import PostfixServer

ADA = ("Ada Lovelace", "ada@example.com")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


def flask_app(postfix: PostfixServer, **config: t.Any) -> tuple[Flask, Mail]:
    app = Flask(__name__)
    app.config.update(
        MAIL_SERVER=postfix.host,
        MAIL_PORT=postfix.port,
        MAIL_USE_TLS=True,
        MAIL_USERNAME=postfix.username,
        MAIL_PASSWORD=postfix.password,
        MAIL_DEFAULT_SENDER=ADA,
        **config,
    )
    return app, Mail(app)


def rich_message() -> FlaskMessage:
    message = FlaskMessage(
        "Grüße, 你好, مرحبا 🎉",
        recipients=[("李雷", "lei@example.org"), "bob@example.net"],
        bcc=["secret@example.org"],
        body=".a dot\nFrom here\n" + "a long line of text " * 100 + "\n\n",
        html="<p>你好</p>",
    )
    message.attach("报告.pdf", "application/pdf", PNG)
    return message


@pytest.mark.servers
def test_an_async_view_sends_through_postfix_with_starttls_and_auth_byte_for_byte(
    postfix: PostfixServer,
) -> None:
    app, mail = flask_app(postfix, MAIL_CA_FILE=str(postfix.ca_file))
    message = rich_message()

    @app.get("/")
    async def view() -> str:
        receipt = await mail.send(message)
        return f"{receipt.outcome} {len(receipt.accepted)} {receipt.queue_id}"

    answer = app.test_client().get("/").text
    with app.app_context():
        mail.close()
        sent = message.as_bytes()
    assert answer.startswith("accepted 3 ")
    stored = postfix.wait_for_messages(3)
    assert [postfix.strip_trace(copy) for copy in stored] == [sent] * 3
    assert b"secret@example.org" not in sent
    assert f"sasl_username={postfix.username}" in postfix.log
    assert answer.split()[-1] in postfix.log


@pytest.mark.servers
def test_without_trust_postfix_gets_neither_credentials_nor_message(
    postfix: PostfixServer,
) -> None:
    before = len(postfix.log)
    app, mail = flask_app(postfix)

    @app.get("/")
    async def view() -> str:
        try:
            await mail.send(rich_message())
        except TLSError as error:
            return f"{error.outcome} {error.stage} {error}"
        return "sent"

    answer = app.test_client().get("/").text
    with app.app_context():
        mail.close()
    assert answer.startswith("not_sent tls ")
    assert "ca_file" in answer
    assert "sasl_username" not in postfix.log[before:]
    assert postfix.maildir_messages() == []


@pytest.mark.servers
async def test_postfix_takes_100_messages_over_pipelined_sessions(
    musts: Musts, postfix: PostfixServer
) -> None:
    messages = [
        Message(f"Number {number}", [f"reader{number}@example.org"], body=f"{number}\n.\n..\n")
        for number in range(100)
    ]
    async with Mailer(
        f"smtp://{postfix.host}:{postfix.port}",
        tls="starttls",
        ca_file=postfix.ca_file,
        username=postfix.username,
        password=postfix.password,
        default_sender=ADA,
    ) as mailer:
        receipts = await asyncio.gather(*(mailer.send(message) for message in messages))
        assert mailer.stats().accepted == 100
    assert all(receipt.reply.code == 250 for receipt in receipts)
    stored = await asyncio.to_thread(postfix.wait_for_messages, 100)
    sent: Counter[bytes] = Counter()
    for message in messages:
        message.sender = ADA
        sent[message.as_bytes()] += 1
    assert Counter(postfix.strip_trace(copy) for copy in stored) == sent


@pytest.mark.servers
async def test_f52_postfix_refuses_one_of_two_and_takes_the_message_for_the_other(
    musts: Musts, postfix: PostfixServer
) -> None:
    async with Mailer(
        f"smtp://{postfix.host}:{postfix.port}",
        tls="starttls",
        ca_file=postfix.ca_file,
        username=postfix.username,
        password=postfix.password,
        default_sender=ADA,
    ) as mailer:
        receipt = await mailer.send(Message("Hello", ["bob@example.org", REFUSED], body="Hi"))
    assert receipt.accepted == ("bob@example.org",)
    assert str(receipt.refused[REFUSED]).startswith("550 5.1.1 ")


@pytest.mark.servers
def test_sync_mailer_sends_through_postfix(postfix: PostfixServer) -> None:
    with SyncMailer(
        f"smtp://{postfix.host}:{postfix.port}",
        tls="starttls",
        ca_file=postfix.ca_file,
        username=postfix.username,
        password=postfix.password,
        default_sender=ADA,
    ) as mailer:
        assert mailer.send(Message("Hello", ["bob@example.org"], body="Hi")).outcome == "accepted"
    assert len(postfix.wait_for_messages(1)) == 1


async def test_each_of_2000_messages_through_gather_arrives_once_over_5_sessions(
    musts: Musts,
) -> None:
    musts.loop_watch.limit = float("inf")  # gather itself composes 2,000 messages in one turn
    with aiosmtpd_server() as server:
        async with Mailer(server.url, default_sender=ADA, max_messages=0) as mailer:
            receipts = await asyncio.gather(
                *(mailer.send(Message("Hi", [f"r{n}@example.org"], body="x")) for n in range(2000))
            )
            stats = mailer.stats()
    assert len(receipts) == 2000
    assert Counter(message.forward_paths for message in server.messages) == {
        (f"r{n}@example.org",): 1 for n in range(2000)
    }
    assert server.sessions == 5
    assert (stats.accepted, stats.not_sent, stats.unknown, stats.rejected) == (2000, 0, 0, 0)
    assert (stats.open, stats.idle, stats.leased, stats.waiting) == (5, 5, 0, 0)


async def test_200_of_2000_cancelled_in_their_transaction_leave_the_others_and_nothing_behind(
    musts: Musts,
) -> None:
    musts.loop_watch.limit = float("inf")
    loop = asyncio.get_running_loop()
    tasks: dict[str, asyncio.Task[Receipt]] = {}
    cancelled = {f"r{n}@example.org" for n in range(0, 2000, 10)}

    async def cancel(address: str) -> None:
        """Cancel the sender of a recipient while the server is about to answer RCPT."""
        if address in cancelled:
            gone, here = asyncio.Event(), asyncio.get_running_loop()
            task = tasks[address]

            def cancel_and_tell() -> None:
                task.add_done_callback(lambda _: here.call_soon_threadsafe(gone.set))
                task.cancel()

            loop.call_soon_threadsafe(cancel_and_tell)
            await gone.wait()

    with aiosmtpd_server() as server:
        server.on_rcpt = cancel
        async with Mailer(server.url, default_sender=ADA) as mailer:
            for number in range(2000):
                address = f"r{number}@example.org"
                tasks[address] = asyncio.create_task(mailer.send(Message("Hi", [address])))
            results = await asyncio.gather(*tasks.values(), return_exceptions=True)
            stats = mailer.stats()
    ended = dict(zip(tasks, results, strict=True))
    assert {to for to, end in ended.items() if isinstance(end, asyncio.CancelledError)} == cancelled
    others = {to for to, end in ended.items() if isinstance(end, Receipt)}
    assert others == set(tasks) - cancelled
    assert Counter(message.forward_paths for message in server.messages) == {
        (to,): 1 for to in others
    }
    assert (stats.accepted, stats.not_sent, stats.unknown) == (1800, 200, 0)
    assert (stats.leased, stats.waiting) == (0, 0)
