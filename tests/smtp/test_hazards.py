"""Concurrency and lifecycle: cancellation at every await, loops and processes that end or fork."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
import typing as t
from dataclasses import dataclass, field

import pytest

from amail import (
    Attachment,
    DeliveryUnknown,
    Mailer,
    MailerClosed,
    PoolTimeout,
    Receipt,
    SMTPSettings,
    SMTPTransport,
    UsageError,
)
from amail.testing import ByConnection, Close, Delay, EachMessage, FaultServer, Hang, Reset
from tests.messages import tokened
from tests.musts import PASSWORD, Stopwatch

if t.TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Mapping
    from pathlib import Path

    from amail import Message
    from amail.testing import Moment, Script, Stage
    from tests.musts import Musts
    from tests.servers.authority import Authority

AT_ONCE = 0.05


async def cancelled_at_once(task: asyncio.Task[t.Any]) -> asyncio.CancelledError:
    """Cancel a task; the CancelledError it ends with, without delay."""
    stopwatch = Stopwatch()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert stopwatch.seconds <= AT_ONCE
    return caught.value


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# C1 to C9: cancelled at each await


@dataclass(frozen=True)
class Place:
    """Where a server makes its first client wait, and how a client gets there."""

    name: str
    stage: Stage
    times: int = 1
    tls: str = "none"
    recipients: int = 1
    attached: int = 0
    options: Mapping[str, t.Any] = field(default_factory=dict)

    @property
    def script(self) -> Script:
        hang = Hang(after=100_000) if self.stage == "body" else Hang()
        return ByConnection({1: EachMessage({self.times: hang})})

    def message(self, token: str) -> Message:
        message = tokened(token, self.recipients)
        if self.attached:
            message.attachments = [Attachment("data.bin", data=bytes(self.attached))]
        return message


AUTH = {"username": "ada", "password": PASSWORD}
ONE_BY_ONE = {"pipelining": False}
PLACES = [
    Place("greeting", "greeting"),
    Place("EHLO", "ehlo"),
    Place("reply to STARTTLS", "starttls", tls="starttls"),
    Place("handshake after STARTTLS", "tls", tls="starttls"),
    Place("handshake of implicit TLS", "tls", tls="implicit"),
    Place("greeting inside TLS", "greeting", tls="implicit"),
    Place("AUTH", "auth", options=AUTH),
    Place("AUTH inside TLS", "auth", tls="starttls", options=AUTH),
    Place("MAIL", "mail"),
    Place("MAIL one by one", "mail", options=ONE_BY_ONE),
    Place("first RCPT", "rcpt", recipients=5),
    Place("third RCPT", "rcpt", times=3, recipients=5),
    Place("third RCPT one by one", "rcpt", times=3, recipients=5, options=ONE_BY_ONE),
    Place("DATA", "data"),
    Place("DATA one by one inside TLS", "data", tls="implicit", options=ONE_BY_ONE),
    Place("body", "body", attached=4_000_000),
    Place("body inside TLS", "body", tls="implicit", attached=4_000_000),
]
at_each_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)


@contextlib.asynccontextmanager
async def waiting_at(
    place: Place, musts: Musts, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> AsyncIterator[tuple[FaultServer, Mailer, asyncio.Task[Receipt], str]]:
    """A message of which the server makes the sender wait at that place, over the only slot."""
    users = {"ada": PASSWORD} if "username" in place.options else None
    secure = place.tls != "none"
    async with FaultServer(
        {place.stage: place.script},
        tls=server_tls if secure else None,
        implicit=place.tls == "implicit",
        users=users,
    ) as server:
        musts.watch(server, tls_required=secure)
        options: dict[str, t.Any] = {"tls": place.tls, **place.options}
        if secure:
            options["ssl_context"] = client_tls
        async with Mailer(server.url, max_connections=1, **options) as mailer:
            token = musts.token()
            with musts.not_counting():
                sending = mailer.send(place.message(token))
            task = asyncio.create_task(sending)
            await server.reached(place.stage, place.times)
            if place.stage == "body":
                # As much as goes into buffers has gone, and the rest waits.
                await settle()
            assert not task.done()
            yield server, mailer, task, token


@at_each_place
async def test_c2_to_c9_a_send_cancelled_anywhere_ends_at_once_with_its_session(
    place: Place, musts: Musts, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with waiting_at(place, musts, server_tls, client_tls) as (server, mailer, task, token):
        error = await cancelled_at_once(task)
        assert "delivery unknown" not in " ".join(getattr(error, "__notes__", []))
        stats = mailer.stats()
        assert (stats.leased, stats.waiting, stats.open, stats.not_sent) == (0, 0, 0, 1)
        await server.all_closed()
        second = musts.token()
        result = await musts.outcome_of(mailer.send(tokened(second)), token=second)
        assert isinstance(result, Receipt)
        assert [message.connection for message in server.messages] == [2]
        assert token.encode() not in server.messages[0].content
        assert mailer.stats().leased == 0
    await server.all_closed()


@at_each_place
async def test_c2_to_c9_the_next_waiter_is_served_on_a_fresh_connection(
    place: Place, musts: Musts, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with waiting_at(place, musts, server_tls, client_tls) as (server, mailer, task, _):
        tokens = [musts.token(), musts.token()]
        waiters = [
            asyncio.create_task(musts.outcome_of(mailer.send(tokened(token)), token=token))
            for token in tokens
        ]
        await settle()
        assert mailer.stats().waiting == 2
        await cancelled_at_once(task)
        for result in await asyncio.gather(*waiters):
            assert isinstance(result, Receipt)
        assert [message.connection for message in server.messages] == [2, 2]
        assert (mailer.stats().leased, mailer.stats().waiting, server.connections) == (0, 0, 2)


async def test_c1_a_send_cancelled_while_it_waits_for_a_slot_leaves_the_queue(
    musts: Musts,
) -> None:
    async with (
        FaultServer(mail={1: Hang()}) as server,
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        tokens = [musts.token() for _ in range(3)]
        sends = [
            asyncio.create_task(musts.outcome_of(mailer.send(tokened(token)), token=token))
            for token in tokens
        ]
        await server.reached("mail")
        assert (mailer.stats().leased, mailer.stats().waiting) == (1, 2)
        await cancelled_at_once(sends[1])
        assert (mailer.stats().leased, mailer.stats().waiting) == (1, 1)
        server.release()
        for each in (sends[0], sends[2]):
            assert isinstance(await each, Receipt)
        assert (mailer.stats().leased, server.connections, len(server.messages)) == (0, 1, 2)
        assert mailer.stats().not_sent == 1


async def one_is_cancelled_and_the_next_is_served(
    musts: Musts, server: FaultServer, mailer: Mailer, reached: asyncio.Event
) -> None:
    """Cancel the first of two sends where ``reached`` says that it stands."""
    task = asyncio.create_task(mailer.send(tokened(musts.token())))
    token = musts.token()
    waiter = asyncio.create_task(musts.outcome_of(mailer.send(tokened(token)), token=token))
    await reached.wait()
    await cancelled_at_once(task)
    assert isinstance(await waiter, Receipt)
    assert (mailer.stats().leased, server.connections) == (0, 1)
    await musts.outcome_of(mailer.send(tokened(token := musts.token())), token=token)
    assert len(server.messages) == 2


async def test_c2_a_send_cancelled_while_it_resolves_a_name_ends_at_once(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, reached, answered = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hang_once(host: str, port: int, **options: t.Any) -> list[t.Any]:
        if not reached.is_set():
            loop.call_soon_threadsafe(reached.set)
            answered.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", hang_once)
    async with (
        FaultServer() as server,
        Mailer(f"smtp://mail.test:{server.port}", max_connections=1) as mailer,
    ):
        musts.watch(server)
        try:
            await one_is_cancelled_and_the_next_is_served(musts, server, mailer, reached)
        finally:
            answered.set()


async def test_c2_a_send_cancelled_while_it_connects_ends_at_once(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, reached = asyncio.get_running_loop(), asyncio.Event()
    real = loop.sock_connect

    async def hang_once(*arguments: t.Any) -> t.Any:
        if reached.is_set():
            return await real(*arguments)
        reached.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(loop, "sock_connect", hang_once)
    async with FaultServer() as server, Mailer(server.url, max_connections=1) as mailer:
        musts.watch(server)
        await one_is_cancelled_and_the_next_is_served(musts, server, mailer, reached)


# C10 to C13: between the dot and the reply, in goodbyes, by deadlines of asyncio


async def test_c10_a_send_cancelled_between_dot_and_reply_notes_that_delivery_is_unknown(
    musts: Musts,
) -> None:
    async with (
        FaultServer(final={1: Hang()}) as server,
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        token, second = musts.token(), musts.token()
        message = tokened(token)
        task = asyncio.create_task(mailer.send(message))
        waiter = asyncio.create_task(musts.outcome_of(mailer.send(tokened(second)), token=second))
        await server.reached("final")
        error = await cancelled_at_once(task)
        musts.cancelled(token)
        (note,) = error.__notes__
        assert f"{message.message_id}: delivery unknown" in note
        assert isinstance(await waiter, Receipt)
        stats = mailer.stats()
        assert (stats.unknown, stats.not_sent, stats.leased) == (1, 0, 0)
        await server.until(lambda: server.open_connections == 1)
        assert [message.connection for message in server.messages] == [1, 2]


async def test_c10_a_deadline_between_dot_and_reply_is_delivery_unknown(musts: Musts) -> None:
    async with (
        FaultServer(final={1: Hang()}) as server,
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        token = musts.token()
        async with musts.within(0.3):
            result = await musts.outcome_of(mailer.send(tokened(token), timeout=0.3), token=token)
        assert isinstance(result, DeliveryUnknown)
        assert not isinstance(result, TimeoutError)
        assert (result.stage, result.retryable) == ("final", False)
        assert (mailer.stats().unknown, mailer.stats().leased, mailer.stats().open) == (1, 0, 0)
        await server.all_closed()
        assert len(server.messages) == 1
        await musts.outcome_of(mailer.send(tokened(token := musts.token())), token=token)
        assert [message.connection for message in server.messages] == [1, 2]


async def test_c12_closing_cancelled_while_the_server_is_silent_at_quit_aborts(
    musts: Musts,
) -> None:
    async with FaultServer(quit=Hang()) as server:
        musts.watch(server)
        mailer = Mailer(server.url)
        await musts.outcome_of(mailer.send(tokened(token := musts.token())), token=token)
        closing = asyncio.create_task(mailer.aclose())
        await server.reached("quit")
        await cancelled_at_once(closing)
        await server.all_closed()
        assert mailer.stats().open == 0


@pytest.mark.parametrize("stage", ["greeting", "mail", "body", "final"])
@pytest.mark.parametrize("how", ["timeout", "wait_for"])
async def test_c13_a_deadline_of_asyncio_around_a_send_is_kept(
    how: str, stage: Stage, musts: Musts
) -> None:
    async def limited(sending: Awaitable[Receipt]) -> Receipt:
        if how == "wait_for":
            return await asyncio.wait_for(sending, 0.2)
        async with asyncio.timeout(0.2):
            return await sending

    async with FaultServer({stage: Hang()}) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        token = musts.token()
        async with musts.within(0.2, slack=AT_ONCE):
            with pytest.raises(TimeoutError) as caught:
                await limited(mailer.send(tokened(token)))
        if stage in {"body", "final"}:  # a small content is written in one piece with its dot
            musts.cancelled(token)
            # Its session waits for the late reply, until the mailer is closed.
            assert (mailer.stats().unknown, mailer.stats().leased) == (1, 1)
            await mailer.aclose()
        else:
            assert mailer.stats().not_sent == 1
        if how == "timeout" and stage == "final":
            assert "delivery unknown" in " ".join(getattr(caught.value.__cause__, "__notes__", []))
        assert mailer.stats().leased == 0
        await server.all_closed()


# C14, C15, C18: many at once


def clients(server: FaultServer) -> int:
    """Connections whose client is still there, whether or not the server has seen it leave."""
    return sum(_is_there(session) for session in server._sessions)


def _is_there(session: t.Any) -> bool:
    if session.wire.gone.done():
        return False
    if not hasattr(socket, "TCP_INFO"):
        return True
    state: int = session.wire._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state == 1  # ESTABLISHED: no FIN and no RST has come


class Jitter:
    """A server that takes its time now and then, and counts its clients."""

    def __init__(self, seed: int) -> None:
        self.server: FaultServer
        self.peak = 0
        self._rng = random.Random(seed)

    def __call__(self, moment: Moment) -> Script | None:
        if moment.stage == "connect":
            self.peak = max(self.peak, clients(self.server))
        if self._rng.random() < 0.15:
            return Delay(self._rng.uniform(0, 0.004))
        return None


@dataclass
class Storm:
    """Sends of which most are cancelled at a random moment."""

    musts: Musts
    mailer: Mailer
    rng: random.Random
    accepted: int = 0
    cancelled: int = 0
    others: list[BaseException] = field(default_factory=list)

    async def send_and_cancel(self, times: int) -> None:
        for _ in range(times):
            token = self.musts.token()
            task = asyncio.create_task(self.mailer.send(tokened(token)))
            if self.rng.random() < 0.8:
                await self.a_moment()
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                self.musts.cancelled(token)
                self.cancelled += 1
            except Exception as error:
                self.others.append(error)
            else:
                self.accepted += 1

    async def a_moment(self) -> None:
        if self.rng.random() < 0.5:
            await asyncio.sleep(self.rng.uniform(0, 0.02))
        else:
            for _ in range(1 + self.rng.randrange(40)):
                await asyncio.sleep(0)


async def test_c14_a_storm_of_cancellations_leaves_nothing_behind(musts: Musts) -> None:
    jitter = Jitter(seed=14)
    stages: tuple[Stage, ...] = ("connect", "greeting", "ehlo", "mail", "rcpt", "data", "final")
    async with FaultServer(dict.fromkeys(stages, jitter)) as server:
        musts.watch(server)
        jitter.server = server
        async with Mailer(server.url, max_connections=4, max_messages=7) as mailer:
            storm = Storm(musts, mailer, random.Random(14))
            await asyncio.gather(*(storm.send_and_cancel(500) for _ in range(30)))
            assert storm.others == []
            assert storm.cancelled > 9_000
            assert storm.accepted > 500
            assert server.connections > 500
            while mailer.stats().leased:  # those whose late reply is still to come
                await asyncio.sleep(0.001)
            stats = mailer.stats()
            assert stats.waiting == 0
            assert stats.open == stats.idle <= 4
            assert stats.accepted >= storm.accepted
            assert stats.unknown + stats.not_sent + stats.accepted == 30 * 500
            tokens = [musts.token() for _ in range(8)]
            for result in await asyncio.gather(
                *(musts.outcome_of(mailer.send(tokened(token)), token=token) for token in tokens)
            ):
                assert isinstance(result, Receipt)
        await server.all_closed()
    assert jitter.peak == 4


async def test_c15_a_send_cancelled_when_it_was_just_handed_a_slot_gives_it_back(
    musts: Musts,
) -> None:
    async with (
        FaultServer(final={1: Hang()}) as server,
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        tokens = [musts.token() for _ in range(3)]
        second = asyncio.Event()
        waiters: list[asyncio.Task[Receipt]] = []

        async def first() -> Receipt:
            receipt = await mailer.send(tokened(tokens[0]))
            # The slot was handed on just now, and the one who got it has not run since.
            waiters[0].cancel()
            second.set()
            return receipt

        holder = asyncio.create_task(first())
        await server.reached("final")
        waiters += [asyncio.create_task(mailer.send(tokened(token))) for token in tokens[1:]]
        await settle()
        assert mailer.stats().waiting == 2
        server.release()
        await second.wait()
        assert mailer.stats().leased == 1
        with pytest.raises(asyncio.CancelledError):
            await waiters[0]
        for each in (holder, waiters[1]):
            assert isinstance(await musts.outcome_of(each), Receipt)
        assert (mailer.stats().leased, mailer.stats().waiting) == (0, 0)
        assert (server.connections, len(server.messages)) == (1, 2)
        assert not any(tokens[1].encode() in message.content for message in server.messages)


async def test_c18_five_thousand_senders_over_two_slow_sessions_are_served_in_order(
    musts: Musts,
) -> None:
    number = 5_000
    async with (
        FaultServer(final=Delay(0.001)) as server,
        Mailer(server.url, max_connections=2, max_messages=0) as mailer,
    ):
        musts.watch(server)
        tokens = [musts.token() for _ in range(number)]
        began = time.perf_counter()
        waits: list[float] = []

        async def send(token: str, sending: Awaitable[Receipt]) -> Receipt:
            result = await musts.outcome_of(sending, token=token)
            waits.append(time.perf_counter() - began)
            assert isinstance(result, Receipt)
            return result

        with musts.not_counting():
            sends = [send(token, mailer.send(tokened(token))) for token in tokens]
        with musts.not_counting():
            running = asyncio.gather(*sends)
        await server.reached("mail")
        assert mailer.stats().waiting == number - 2
        receipts = await running
        assert len(receipts) == len(server.messages) == number
        assert server.connections == 2
        assert (mailer.stats().accepted, mailer.stats().leased) == (number, 0)
        asked = [line for line in (each.line for each in server.commands) if line[:4] == "RCPT"]
        position = {token: place for place, token in enumerate(tokens)}
        served = [position[line[len("RCPT TO:<") :].partition("+")[0]] for line in asked]
        # Two sessions: one may be a step ahead of the other, and no more.
        assert max(abs(place - position) for place, position in enumerate(served)) <= 2
        assert max(waits) / statistics.median(waits) < 3


async def test_c19_who_waits_where_no_slot_is_given_back_gets_pool_timeout(musts: Musts) -> None:
    async with (
        FaultServer(mail={1: Hang()}) as server,
        Mailer(server.url, max_connections=1, pool_timeout=0.2) as mailer,
    ):
        musts.watch(server)
        tokens = [musts.token(), musts.token()]
        holder, waiter = (
            asyncio.create_task(musts.outcome_of(mailer.send(tokened(token)), token=token))
            for token in tokens
        )
        async with musts.within(0.2):
            error = await waiter
        assert isinstance(error, PoolTimeout)
        assert (error.stage, error.retryable) == ("pool", True)
        assert tokens[1] in error.recipients[0]
        server.release()
        assert isinstance(await holder, Receipt)
        assert (mailer.stats().leased, mailer.stats().waiting) == (0, 0)


async def test_c20_failures_do_not_change_the_order_of_service(musts: Musts) -> None:
    faults: dict[int, Script] = {3: "550 5.1.1 no", 5: Reset(), 9: "421 4.3.2 closing", 14: Close()}
    async with (
        FaultServer(rcpt=faults, final={4: "451 4.3.0 later", 7: Close()}) as server,
        Mailer(server.url, max_connections=1, max_messages=3) as mailer,
    ):
        musts.watch(server)
        tokens = [musts.token() for _ in range(20)]
        results = await asyncio.gather(
            *(musts.outcome_of(mailer.send(tokened(token)), token=token) for token in tokens)
        )
        came_to = [getattr(result, "outcome", None) for result in results]
        assert (came_to.count("accepted"), came_to.count("rejected")) == (17, 2)
        assert came_to.count("unknown") == 1
        asked = [each.line for each in server.commands if each.line.startswith("RCPT")]
        served = dict.fromkeys(line[len("RCPT TO:<") :].partition("+")[0] for line in asked)
        assert list(served) == tokens


# C23 to C25, C29: closing, and other loops


async def test_c23_closing_lets_finish_what_is_under_way_and_refuses_who_waits(
    musts: Musts,
) -> None:
    async with FaultServer(final={1: Hang()}) as server:
        musts.watch(server)
        mailer = Mailer(server.url, max_connections=1)
        tokens = [musts.token(), musts.token()]
        sends = [
            asyncio.create_task(musts.outcome_of(mailer.send(tokened(token)), token=token))
            for token in tokens
        ]
        await server.reached("final")
        closing = asyncio.create_task(mailer.aclose())
        assert isinstance(await sends[1], MailerClosed)
        assert not closing.done()
        server.release()
        await closing
        assert isinstance(await sends[0], Receipt)
        await server.all_closed()
        assert server.commands[-1].line == "QUIT"
        await mailer.aclose()
        async with mailer:
            await musts.outcome_of(mailer.send(tokened(token := musts.token())), token=token)
        assert [message.connection for message in server.messages] == [1, 2]


@pytest.mark.parametrize("stage", ["greeting", "mail", "final"])
async def test_c23_what_is_still_under_way_after_the_time_for_closing_is_ended_for_good(
    stage: Stage, musts: Musts
) -> None:
    async with FaultServer({stage: {1: Hang()}}) as server:
        musts.watch(server)
        transport = SMTPTransport(SMTPSettings.from_url(server.url))
        mailer = Mailer(transport)
        token = musts.token()
        task = asyncio.create_task(musts.outcome_of(mailer.send(tokened(token)), token=token))
        await server.reached(stage)
        async with musts.within(0.1):
            await transport.aclose(drain=0.1)
            result = await task
        expected = "unknown" if stage == "final" else "not_sent"
        assert getattr(result, "outcome", None) == expected
        await server.all_closed()
        assert server.connections == 1
        assert mailer.stats().leased == 0


async def test_c24_a_send_after_closing_is_refused_until_the_mailer_is_entered_again(
    musts: Musts,
) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        mailer = Mailer(server.url)
        await mailer.aclose()
        token = musts.token()
        result = await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert isinstance(result, MailerClosed)
        assert (result.outcome, result.stage, server.connections) == ("not_sent", "pool", 0)
        async with mailer:
            await musts.outcome_of(mailer.send(tokened(token := musts.token())), token=token)
        assert len(server.messages) == 1


async def test_c25_c29_another_running_loop_can_neither_send_nor_close(musts: Musts) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        mailer = Mailer(server.url)
        await musts.outcome_of(mailer.send(tokened(token := musts.token())), token=token)

        async def send() -> None:
            await mailer.send(tokened(musts.token()))

        with pytest.raises(UsageError, match="mailer for each loop, or share one through"):
            await asyncio.to_thread(lambda: asyncio.run(send()))
        with pytest.raises(UsageError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(mailer.aclose()))
        assert mailer.stats().idle == 1
        async with mailer:
            await musts.outcome_of(mailer.send(tokened(token := musts.token())), token=token)
        assert [message.connection for message in server.messages] == [1, 1]


# C26 to C28, C33, C35, C36: loops and processes


@dataclass
class Scripts:
    """Runs scripts in a Python of their own, with a server and its authority at hand."""

    folder: Path
    authority: Authority

    def command(self, script: str, *arguments: str, flags: tuple[str, ...]) -> list[str]:
        path = self.folder / "script.py"
        path.write_text(textwrap.dedent(_PROLOGUE) + textwrap.dedent(script))
        return [sys.executable, *flags, str(path), *arguments]

    def url(self, server: FaultServer) -> str:
        query = f"?ca_file={self.authority.file}" if server.tls else ""
        return f"{server.url}/{query}"

    async def run(
        self,
        script: str,
        server: FaultServer,
        *arguments: str,
        flags: tuple[str, ...] = ("-X", "dev"),
    ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end. It has ``url`` and ``letter()``."""
        if "-W" not in flags:
            # A fork is warned of on Python 3.12 and later; here it is what is tested.
            quiet = "ignore:This process:DeprecationWarning"
            flags = (*flags, "-W", "error", "-W", quiet)
        command = self.command(script, self.url(server), *arguments, flags=flags)
        return await asyncio.to_thread(
            subprocess.run, command, check=False, capture_output=True, text=True, timeout=50
        )


_PROLOGUE = """\
    import asyncio, gc, os, sys
    from amail import Mailer, Message, Portal, SyncMailer

    url = sys.argv[1]

    def letter(subject="Hello"):
        return Message(
            subject, sender="ada@example.com", recipients=["bob@example.org"], body="Hi Bob"
        )

    COUNTED = os.path.isdir("/proc/self/fd")

    def sockets():
        folder = "/proc/self/fd"
        links = []
        for name in os.listdir(folder) if COUNTED else ():
            try:
                links.append(os.readlink(f"{folder}/{name}"))
            except OSError:
                pass
        return sum(link.startswith("socket:") for link in links)

"""


@pytest.fixture
def scripts(tmp_path: Path, authority: Authority) -> Scripts:
    return Scripts(tmp_path, authority)


@pytest.fixture(params=["plain", "tls"])
async def server(
    request: pytest.FixtureRequest, musts: Musts, server_tls: ssl.SSLContext
) -> AsyncIterator[FaultServer]:
    """A server in good health, without and with TLS."""
    secure = request.param == "tls"
    async with FaultServer(tls=server_tls if secure else None, implicit=secure) as server:
        yield musts.watch(server, tls_required=secure)
        await server.all_closed()


def subjects(server: FaultServer) -> list[tuple[int, str]]:
    """Of each message: on which connection, and its subject."""
    return [
        (message.connection, message.content.partition(b"Subject: ")[2].split(b"\r\n")[0].decode())
        for message in server.messages
    ]


def words(server: FaultServer, connection: int) -> list[str]:
    """The verbs that were said on a connection."""
    return [each.line.split(" ")[0] for each in server.commands if each.connection == connection]


ONE_MESSAGE = ["EHLO", "MAIL", "RCPT", "DATA"]


async def test_c26_a_mailer_collected_without_being_closed_drops_its_sessions_and_says_so(
    musts: Musts,
) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        kept = [Mailer(server.url)]
        line = sys._getframe().f_lineno - 1
        await musts.outcome_of(kept[0].send(tokened(token := musts.token())), token=token)
        with pytest.warns(ResourceWarning, match=rf"made at {__file__}:{line} was not closed"):
            kept.clear()
        await server.all_closed()
        assert words(server, 1) == ONE_MESSAGE


@pytest.mark.parametrize("warnings", ["error", "always"])
async def test_c26_nothing_else_is_said_of_a_collected_mailer(
    warnings: str, scripts: Scripts, server: FaultServer
) -> None:
    ended = await scripts.run(
        """
        async def main():
            before = sockets()
            mailer = Mailer(url)  # here
            await asyncio.gather(mailer.send(letter()), mailer.send(letter()))
            assert sockets() == before + 2 * COUNTED, "no session is open"
            del mailer
            for _ in range(10):
                await asyncio.sleep(0)
            assert sockets() == before, "a session is still open"
            print("closed")

        asyncio.run(main())
        """,
        server,
        flags=("-X", "dev", "-W", warnings),
    )
    assert (ended.returncode, ended.stdout) == (0, "closed\n"), ended.stderr
    script = scripts.folder / "script.py"
    (line,) = (n for n, text in enumerate(script.read_text().split("\n"), 1) if "# here" in text)
    said = [text for text in ended.stderr.split("\n") if "Warning: " in text]
    assert len(said) == 1
    assert f"ResourceWarning: a mailer made at {script}:{line} was not closed" in said[0]
    for wrong in ("Task was destroyed", "loop is closed", "never awaited", "unclosed"):
        assert wrong not in ended.stderr


async def test_c27_one_mailer_in_three_loops_after_each_other_works_and_says_nothing(
    scripts: Scripts, server: FaultServer
) -> None:
    ended = await scripts.run(
        """
        mailer = Mailer(url)

        async def main(number):
            await mailer.send(letter(f"No {number}"))
            assert mailer.stats().idle == 1
            await mailer.send(letter(f"No {number} again"))

        before = sockets()
        for number in range(1, 4):
            asyncio.run(main(number))
            assert mailer.stats().open == 0
            gc.collect()
            assert sockets() == before
        """,
        server,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    await server.all_closed()
    assert subjects(server) == [
        (number, f"No {number}{again}") for number in (1, 2, 3) for again in ("", " again")
    ]
    for connection in (1, 2, 3):
        assert words(server, connection) == [*ONE_MESSAGE, *ONE_MESSAGE[1:]]


BY_HAND = """
    gc.disable()
    mailer = Mailer(url)
    before = sockets()
    in_order = "in good order" in sys.argv
    for number in range(1, 4):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(mailer.send(letter(f"No {number}")))
        loop.run_until_complete(loop.shutdown_default_executor())
        if in_order:
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        # At most the last one is left, which the next loop will see to.
        assert sockets() == before + (0 if in_order else COUNTED), "inherited"
    loop = asyncio.new_event_loop()
    loop.run_until_complete(mailer.aclose())
    loop.close()
    assert sockets() == before, "closed"
"""


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        pytest.param((), ("-W", "default::RuntimeWarning"), id="close alone"),
        pytest.param(("in good order",), ("-X", "dev"), id="in good order"),
    ],
)
async def test_c27_a_loop_closed_by_hand_leaves_sessions_that_are_dropped_without_an_octet(
    arguments: tuple[str, ...], flags: tuple[str, ...], scripts: Scripts, server: FaultServer
) -> None:
    ended = await scripts.run(BY_HAND, server, *arguments, flags=flags)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    await server.all_closed()
    assert subjects(server) == [(number, f"No {number}") for number in (1, 2, 3)]
    for connection in (1, 2, 3):
        assert words(server, connection) == ONE_MESSAGE


async def test_c28_a_thousand_short_loops_with_one_mailer_leave_nothing_behind(
    scripts: Scripts, musts: Musts
) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        ended = await scripts.run(
            """
            mailer = Mailer(url)

            def objects(loops):
                for _ in range(loops):
                    asyncio.run(mailer.send(letter()))
                gc.collect()
                return len(gc.get_objects()), sockets()

            (few, before), (many, after) = objects(50), objects(950)
            assert after == before, (before, after)
            print(many - few)
            """,
            server,
            flags=("-W", "error"),
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert int(ended.stdout) < 500
        assert len(server.messages) == 1_000
        await server.all_closed()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
async def test_c33_a_forked_child_opens_its_own_session_and_leaves_its_parents_alone(
    scripts: Scripts, server: FaultServer
) -> None:
    ended = await scripts.run(
        """
        async def main():
            mailer = Mailer(url)
            await mailer.send(letter("Parent"))
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    asyncio.run(child(mailer))
                    del mailer
                    gc.collect()
                    code = 0
                finally:
                    os._exit(code)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0, "the child failed"
            await mailer.send(letter("Parent again"))
            assert mailer.stats().reconnects == 0
            await mailer.aclose()

        async def child(mailer):
            assert mailer.stats().open == 0
            await mailer.send(letter("Child"))
            await mailer.send(letter("Child again"))
            await mailer.aclose()

        asyncio.run(main())
        """,
        server,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    await server.all_closed()
    assert subjects(server) == [
        (1, "Parent"),
        (2, "Child"),
        (2, "Child again"),
        (1, "Parent again"),
    ]
    for connection in (1, 2):
        assert words(server, connection) == [*ONE_MESSAGE, *ONE_MESSAGE[1:], "QUIT"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
async def test_c33_a_child_that_never_sends_leaves_its_parents_session_alone_when_it_exits(
    scripts: Scripts, server: FaultServer
) -> None:
    ended = await scripts.run(
        """
        mailer = SyncMailer(url)
        mailer.send(letter("Parent"))
        pid = os.fork()
        if pid == 0:
            sys.exit(5)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 5, status
        mailer.send(letter("Parent again"))
        assert mailer.stats().reconnects == 0
        mailer.close()
        """,
        server,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    await server.all_closed()
    assert subjects(server) == [(1, "Parent"), (1, "Parent again")]
    assert words(server, 1) == [*ONE_MESSAGE, *ONE_MESSAGE[1:], "QUIT"]


@pytest.mark.parametrize("stage", ["greeting", "mail", "final"])
async def test_c35_an_interrupt_ends_a_send_and_the_process_at_once(
    stage: Stage, scripts: Scripts, musts: Musts
) -> None:
    async with FaultServer({stage: Hang()}) as server:
        musts.watch(server)
        command = scripts.command(
            "asyncio.run(Mailer(url).send(letter()))",
            scripts.url(server),
            flags=("-X", "dev", "-W", "error"),
        )
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            await server.reached(stage)
            began = time.perf_counter()
            process.send_signal(2)
            _, said = await asyncio.to_thread(process.communicate, timeout=20)
            seconds = time.perf_counter() - began
        await server.all_closed()
    assert "\nKeyboardInterrupt\n" in said
    for wrong in ("Task was destroyed", "loop is closed", "unclosed", "never retrieved"):
        assert wrong not in said
    # Half a second is what it may take, and as much again for an interpreter on a busy machine.
    assert seconds < 1


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            """
            mailer = SyncMailer(url)
            mailer.send(letter())
            sys.exit(7)
            """,
            id="SyncMailer",
        ),
        pytest.param(
            """
            portal = Portal()
            mailer = Mailer(url)
            portal.call_sync(mailer.send(letter()))
            sys.exit(7)
            """,
            id="Portal and Mailer",
        ),
        pytest.param(
            """
            portal = Portal()
            mailer = Mailer(url)
            portal.submit(mailer.send(letter()))
            sys.exit(7)
            """,
            id="just submitted",
        ),
        pytest.param(
            """
            mailer = Mailer(url)
            asyncio.run(mailer.send(letter()))
            sys.exit(7)
            """,
            id="Mailer after asyncio.run",
        ),
        pytest.param(
            """
            def send():
                mailer = Mailer(url)
                asyncio.run(mailer.send(letter()))

            send()
            sys.exit(7)
            """,
            id="Mailer nobody has any more",
        ),
        pytest.param(
            """
            async def main():
                mailer = Mailer(url)
                await mailer.send(letter())
                sys.exit(7)

            asyncio.run(main())
            """,
            id="exit inside the loop",
        ),
    ],
)
async def test_c36_exit_with_something_not_closed_delivers_and_says_nothing(
    script: str, scripts: Scripts, server: FaultServer
) -> None:
    ended = await scripts.run(script, server)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "", "")
    await server.all_closed()
    assert subjects(server) == [(1, "Hello")]


async def test_c36_many_messages_submitted_just_before_exit_are_all_delivered(
    scripts: Scripts, musts: Musts
) -> None:
    async with FaultServer(final=Delay(0.005)) as server:
        musts.watch(server)
        ended = await scripts.run(
            """
            portal = Portal()
            mailer = Mailer(url.replace("127.0.0.1", "localhost"))
            for number in range(50):
                portal.submit(mailer.send(letter(f"No {number}")))
            """,
            server,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        await server.all_closed()
        held = sorted(subject for _, subject in subjects(server))
        assert held == sorted(f"No {number}" for number in range(50))
        assert server.connections <= 5
