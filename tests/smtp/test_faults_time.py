"""Replies at the edge of a deadline, drop by drop, and long after; clocks that jump."""

from __future__ import annotations

import asyncio
import random
import time
import typing as t

import pytest

from amail import Receipt
from amail.errors import DeliveryUnknown, SendTimeout
from amail.testing import OK, Close, Delay, Drip, EachConnection, FaultServer, Hang, Say
from tests.smtp.outcomes import accepted, assert_kept, not_sent, said, send, talking_to, unknown

if t.TYPE_CHECKING:
    from amail.testing import Moment, Script
    from tests.musts import Musts

DEADLINE = 0.1


async def test_f68_a_reply_at_the_very_deadline_is_an_acceptance_or_unknown_and_never_both(
    musts: Musts,
) -> None:
    edge = random.Random(68)

    def about_the_deadline(moment: Moment) -> Script:
        return Delay(DEADLINE + edge.uniform(-0.001, 0.001))

    server = FaultServer(final=about_the_deadline)
    async with talking_to(server, musts, final_timeout=DEADLINE, max_connections=40) as mailer:
        results = await asyncio.gather(*(send(musts, mailer) for _ in range(200)))
        kinds = [type(result) for result in results]
        assert set(kinds) <= {Receipt, DeliveryUnknown}
        assert all(each.attempts == 1 for each in results if isinstance(each, Receipt))
        stats = mailer.stats()
        assert stats.accepted == kinds.count(Receipt)
        assert stats.unknown == kinds.count(DeliveryUnknown)
        assert said(server).count("MAIL") == 200


async def test_f69_a_reply_that_drips_in_time_is_one(musts: Musts) -> None:
    server = FaultServer(final=Drip("250 2.0.0 queued as A1B2C3", every=0.01))
    async with talking_to(server, musts) as mailer:
        assert accepted(await send(musts, mailer)).queue_id == "A1B2C3"
        await assert_kept(musts, server, mailer)


async def test_f69_a_reply_that_drips_past_the_deadline_leaves_delivery_unknown(
    musts: Musts,
) -> None:
    server = FaultServer(final=Drip("250 2.0.0 queued as A1B2C3", every=0.05))
    async with talking_to(server, musts, final_timeout=0.3) as mailer, musts.within(0.3):
        unknown(await send(musts, mailer))


async def test_f73_a_421_said_to_an_idle_session_costs_no_attempt(musts: Musts) -> None:
    goodbye = Say("421 4.4.2 idle for too long", then=Close())
    server = FaultServer(final=EachConnection([Say("250 2.0.0 ok", then=goodbye), OK]))
    async with talking_to(server, musts) as mailer:
        accepted(await send(musts, mailer))
        await server.all_closed()
        accepted(await send(musts, mailer))
        assert server.connections == 2
        assert mailer.stats().not_sent == 0


async def test_f73_a_session_whose_server_is_gone_without_a_word_is_replaced(
    musts: Musts,
) -> None:
    server = FaultServer(mail={2: Hang()})
    async with talking_to(server, musts, command_timeout=0.2) as mailer:
        accepted(await send(musts, mailer))
        async with musts.within(0.5):
            accepted(await send(musts, mailer), attempts=2)
        assert server.connections == 2


@pytest.mark.parametrize("hours", [1, -1])
async def test_f78_a_clock_that_jumps_changes_no_deadline(
    musts: Musts, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FaultServer(data=Hang())
    async with talking_to(server, musts, data_timeout=0.2, idle_timeout=60) as mailer:
        began = time.monotonic()
        sending = asyncio.ensure_future(send(musts, mailer))
        await server.reached("data")
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)
        async with musts.within(0.6):  # both tries and the pause between them
            error = not_sent(await sending, SendTimeout, stage="data", retryable=True)
        assert error.reply is None
        assert time.monotonic() - began >= 0.4
