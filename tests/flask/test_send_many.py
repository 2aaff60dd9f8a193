"""mail.send_many: pulled and composed in the view's loop, sent in the background one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import typing as t

import pytest
from flask import Flask, current_app

from amail import MessageError, Portal, RecipientsRejected, Result, UsageError
from amail.testing import FaultServer, Hang
from amail_flask import Mail, Message, email_accepted, email_dispatched, email_failed
from tests.flask.test_lifetime import hello, make_app
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.servers.aiosmtpd_server import AiosmtpdServer

REFUSED = "refused@example.org"


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server(refused={REFUSED}) as running:
        yield running


def numbered(count: int) -> Iterator[Message]:
    for number in range(count):
        yield Message(str(number), ["bob@example.org"], "Hi")


def test_an_async_view_sends_them_over_the_sessions_of_the_app(server: AiosmtpdServer) -> None:
    app, mail = make_app(server, MAIL_MAX_CONNECTIONS=2)

    @app.get("/")
    async def view() -> str:
        results = [result async for result in mail.send_many(numbered(50))]
        return " ".join(sorted((each.message.subject for each in results), key=int))

    client = app.test_client()
    for _ in range(2):
        assert client.get("/").text == " ".join(map(str, range(50)))
    mail.close()
    assert len(server.messages) == 100
    assert server.sessions <= 2


def test_they_are_pulled_and_composed_in_the_views_thread_and_context(
    server: AiosmtpdServer,
) -> None:
    app, mail = make_app(server)
    seen: set[tuple[int, str]] = set()

    async def messages() -> AsyncIterator[Message]:
        for _ in range(5):
            seen.add((threading.get_ident(), current_app.name))
            await asyncio.sleep(0)
            yield hello()

    @app.get("/")
    async def view() -> str:
        async for result in mail.send_many(messages()):
            assert result.receipt is not None
        return str(threading.get_ident())

    assert app.test_client().get("/").text
    ((ident, name),) = seen
    assert name == app.name
    assert ident not in {each.ident for each in threading.enumerate() if each.name == "amail-loop"}
    mail.close()


async def test_one_that_fails_does_not_stop_the_others(server: AiosmtpdServer) -> None:
    _, mail = make_app(server)
    messages = [hello(), hello(recipients=[REFUSED]), Message("nobody"), hello()]
    results = [result async for result in mail.send_many(messages, ordered=True)]
    assert [result.message for result in results] == messages
    assert [type(result.error) for result in results[:2]] == [type(None), RecipientsRejected]
    assert isinstance(results[2].error, MessageError)
    assert results[3].outcome == "accepted"
    await asyncio.to_thread(mail.close)


async def test_each_message_is_signalled(server: AiosmtpdServer) -> None:
    app, mail = make_app(server)
    good, bad = hello(), hello(recipients=[REFUSED])
    told: list[tuple[str, object]] = []
    with contextlib.ExitStack() as stack:
        for signal in (email_dispatched, email_accepted, email_failed):

            def receiver(app: Flask, name: str = signal.name, **what: object) -> None:
                told.append((name, what["message"]))

            stack.enter_context(signal.connected_to(receiver, app))
        async for _ in mail.send_many([good, bad], ordered=True, concurrency=1):
            pass
    assert told == [("email-dispatched", good), ("email-accepted", good), ("email-failed", bad)]
    await asyncio.to_thread(mail.close)


async def test_while_sending_is_suppressed_each_is_recorded_and_none_sent(
    server: AiosmtpdServer,
) -> None:
    app, mail = make_app(server, TESTING=True)
    with app.app_context(), mail.record_messages() as outbox:
        results = [result async for result in mail.send_many([hello(), Message("nobody")])]
    assert sorted(result.outcome for result in results) == ["accepted", "not_sent"]
    assert len(outbox) == 1
    assert server.sessions == 0


async def test_those_that_begin_together_cross_together(monkeypatch: pytest.MonkeyPatch) -> None:
    crossed: list[object] = []
    submit = Portal.submit

    def counting(portal: Portal, coroutine: t.Any) -> t.Any:
        crossed.append(coroutine)
        return submit(portal, coroutine)

    monkeypatch.setattr(Portal, "submit", counting)
    with FaultServer.serve_in_thread(greeting=Hang()) as server:
        _, mail = make_app(server)
        async with contextlib.aclosing(mail.send_many(numbered(20), concurrency=20)) as results:
            first = asyncio.create_task(anext(results))
            while not crossed:
                await asyncio.sleep(0)
            assert len(crossed) <= 2  # there, and back
            server.change(greeting="220 now")
            server.release()
            assert (await first).outcome == "accepted"
        await asyncio.to_thread(mail.close)


@pytest.mark.parametrize(("concurrency", "at_once"), [(3, 3), (None, 4)])
async def test_no_more_are_pulled_than_are_sent_at_once(
    concurrency: int | None, at_once: int
) -> None:
    with FaultServer.serve_in_thread(greeting=Hang()) as server:
        _, mail = make_app(server, MAIL_MAX_CONNECTIONS=2)
        pulled = 0

        def messages() -> Iterator[Message]:
            nonlocal pulled
            for message in numbered(1000):
                pulled += 1
                yield message

        async with contextlib.aclosing(
            mail.send_many(messages(), concurrency=concurrency)
        ) as results:
            first: asyncio.Task[Result] = asyncio.create_task(anext(results))
            while pulled < at_once:
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
            assert pulled == at_once
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
        await asyncio.to_thread(mail.close)
    assert server.messages == []


def test_a_view_that_is_not_async_is_told_so(server: AiosmtpdServer) -> None:
    app, mail = make_app(server)
    with app.test_request_context(), pytest.raises(UsageError, match="async for"):
        mail.send_many([hello()])


def test_without_an_app_the_call_says_what_to_write() -> None:
    with pytest.raises(UsageError, match="there is no app here"):
        Mail().send_many([hello()])
