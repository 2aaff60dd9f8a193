"""The reply that comes when its sender has left (row C10): it settles what was unknown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import typing as t
import weakref

import pytest

from amail import Mailer, MessageRejected, Receipt, SyncMailer
from amail.errors import ConfigError, MailError
from amail.testing import OK, Close, Delay, FaultServer, Hang
from tests.messages import tokened
from tests.smtp.outcomes import accepted, send, talking_to, unknown

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from amail.testing.script import Step
    from tests.musts import Musts

SOON = 0.2


async def left_by_deadline(mailer: Mailer, musts: Musts) -> str:
    """Have a sender's time end between the last octet and the reply; return its Message-ID."""
    token = musts.token()
    sending = mailer.send(tokened(token), timeout=SOON)
    error = unknown(await musts.outcome_of(sending, token=token))
    return str(error.message_id)


async def left_by_cancelling(mailer: Mailer, musts: Musts, server: FaultServer) -> str:
    token = musts.token()
    message = tokened(token)
    sending = asyncio.ensure_future(mailer.send(message))
    await server.reached("final")
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    musts.cancelled(token)
    return str(message.message_id)


async def settled(mailer: Mailer) -> None:
    while mailer.stats().leased:
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def after_a_late(
    reply: Step, musts: Musts, on_resolved: Callable[[Receipt | MailError], object]
) -> AsyncIterator[tuple[FaultServer, Mailer, str]]:
    """A server whose first message got this reply when its sender had left, and its Message-ID."""
    server = FaultServer(final=[Hang(reply), OK])
    async with talking_to(server, musts, on_resolved=on_resolved) as mailer:
        message_id = await left_by_deadline(mailer, musts)
        server.release()
        await settled(mailer)
        yield server, mailer, message_id


@pytest.mark.parametrize("how", ["deadline", "cancelling"])
async def test_c10_a_late_acceptance_settles_what_was_unknown_and_the_session_is_used_again(
    musts: Musts, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    resolved: list[Receipt | MailError] = []
    server = FaultServer(final=[Hang(), OK])
    async with talking_to(server, musts, on_resolved=resolved.append) as mailer:
        if how == "deadline":
            message_id = await left_by_deadline(mailer, musts)
        else:
            message_id = await left_by_cancelling(mailer, musts, server)
        stats = mailer.stats()
        assert (stats.unknown, stats.accepted, stats.open, stats.leased) == (1, 0, 1, 1)
        server.release()
        await settled(mailer)
        (receipt,) = resolved
        assert isinstance(receipt, Receipt)
        assert receipt.message_id == message_id
        assert (mailer.stats().unknown, mailer.stats().accepted) == (0, 1)
        assert f"{message_id}: accepted by" in caplog.text
        accepted(await send(musts, mailer))
        assert server.connections == 1


async def test_c10_a_late_no_settles_it_too(musts: Musts) -> None:
    resolved: list[Receipt | MailError] = []
    no = "554 5.7.1 spam"
    async with after_a_late(no, musts, resolved.append) as (server, mailer, message_id):
        (error,) = resolved
        assert isinstance(error, MessageRejected)
        assert (error.message_id, error.reply and error.reply.code) == (message_id, 554)
        assert (mailer.stats().unknown, mailer.stats().rejected) == (0, 1)
        accepted(await send(musts, mailer))
        assert server.connections == 1


async def test_c10_a_connection_that_ends_without_a_reply_leaves_it_unknown(musts: Musts) -> None:
    resolved: list[Receipt | MailError] = []
    async with after_a_late(Close(), musts, resolved.append) as (_, mailer, _):
        assert not resolved
        assert (mailer.stats().unknown, mailer.stats().open) == (1, 0)
        accepted(await send(musts, mailer))


async def test_c10_the_final_timeout_ends_the_wait_for_a_late_reply(musts: Musts) -> None:
    server = FaultServer(final=Hang())
    async with talking_to(server, musts, final_timeout=2 * SOON) as mailer:
        async with musts.within(2 * SOON):
            await left_by_deadline(mailer, musts)
            await settled(mailer)
        assert (mailer.stats().unknown, mailer.stats().open) == (1, 0)
        await server.all_closed()


async def test_c10_half_of_the_sessions_wait_at_most_and_the_oldest_is_given_up(
    musts: Musts,
) -> None:
    server = FaultServer(final=[Hang()] * 4 + [OK])
    async with talking_to(server, musts, max_connections=4) as mailer:
        await asyncio.gather(*(left_by_deadline(mailer, musts) for _ in range(4)))
        while mailer.stats().leased > 2:
            await asyncio.sleep(0.001)
        assert mailer.stats().open == 2
        accepted(await send(musts, mailer))
        server.release()
        await settled(mailer)
        assert mailer.stats().unknown == 2


async def test_c10_closing_waits_for_no_late_reply(musts: Musts) -> None:
    async with FaultServer(final=Hang()) as server:
        musts.watch(server)
        async with Mailer(server.url) as mailer:
            await left_by_deadline(mailer, musts)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 1
        await server.all_closed()


async def test_c10_what_on_resolved_raises_is_logged_and_costs_nothing(
    musts: Musts, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(came_to: object) -> None:
        raise ZeroDivisionError

    async with after_a_late(OK, musts, fail) as (server, mailer, message_id):
        assert f"{message_id}: on_resolved failed" in caplog.text
        accepted(await send(musts, mailer))
        assert server.connections == 1


async def test_c10_two_replies_where_one_is_late_end_the_session(musts: Musts) -> None:
    """Else the second one would be taken for the next message's."""
    resolved: list[Receipt | MailError] = []
    twice = "250 2.0.0 ok\r\n250 2.0.0 ok"
    async with after_a_late(twice, musts, resolved.append) as (_, mailer, _):
        assert len(resolved) == 1
        accepted(await send(musts, mailer))


async def test_c10_a_large_content_may_be_settled_late_too(musts: Musts) -> None:
    resolved: list[Receipt | MailError] = []
    server = FaultServer(final=[Delay(3 * SOON), OK])
    async with talking_to(server, musts, on_resolved=resolved.append) as mailer:
        token = musts.token()
        message = tokened(token)
        message.attach("large.bin", data=bytes(300_000))
        unknown(await musts.outcome_of(mailer.send(message, timeout=2 * SOON), token=token))
        await settled(mailer)
        assert len(resolved) == 1


async def test_c26_a_mailer_that_waits_for_a_late_reply_can_be_collected(musts: Musts) -> None:
    async with FaultServer(final=Hang()) as server:
        musts.watch(server)
        mailers = [Mailer(server.url)]
        await left_by_deadline(mailers[0], musts)
        transport = weakref.ref(mailers[0].transport)
        gc.collect()
        with pytest.warns(ResourceWarning, match="was not closed"):
            mailers.clear()
        assert transport() is None
        await server.all_closed()


def test_c10_late_replies_reach_a_sync_mailer_too() -> None:
    resolved: list[Receipt | MailError] = []

    async def release(server: FaultServer) -> None:
        server.release()

    with asyncio.Runner() as runner:
        server = FaultServer(final=[Hang(), OK])
        runner.run(server.start())
        loop = runner.get_loop()

        async def use() -> None:
            mailer = SyncMailer(server.url, on_resolved=resolved.append)
            message = tokened("token-" + "0" * 32)
            with pytest.raises(MailError):
                await asyncio.to_thread(mailer.send, message, timeout=SOON)
            server.release()
            while not resolved:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(mailer.close)

        runner.run(use())
        assert loop is runner.get_loop()
        runner.run(server.aclose())
    assert isinstance(resolved[0], Receipt)


def test_on_resolved_needs_a_transport_that_can_tell() -> None:
    with pytest.raises(ConfigError, match="on_resolved: MemoryTransport"):
        Mailer("memory://", on_resolved=print)
