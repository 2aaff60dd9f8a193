"""Servers that take fewer recipients at once than a message has (row F54)."""

from __future__ import annotations

import asyncio
import logging
import typing as t

import pytest

from amail.errors import RecipientsRejected, Rejected, SenderRejected
from amail.testing import OK, Close, EachMessage, FaultServer, Hang, Say
from tests.messages import tokened
from tests.smtp.outcomes import (
    PIPELINING,
    accepted,
    assert_dropped,
    assert_kept,
    rejected,
    said,
    send,
    talking_to,
    unknown,
)

if t.TYPE_CHECKING:
    from amail.testing import Moment
    from amail.testing.script import Action
    from tests.musts import Musts

TOO_MANY = "452 4.5.3 too many recipients"


def only(count: int) -> EachMessage:
    """Take that many recipients a transaction."""
    return EachMessage(lambda moment: TOO_MANY if moment.nth > count else None)


@PIPELINING
async def test_f54_who_is_one_too_many_gets_it_in_a_next_transaction(
    musts: Musts, pipelining: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = FaultServer(rcpt=only(5))
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        receipt = accepted(await send(musts, mailer, 12))
        assert receipt.transactions == 3
        assert receipt.accepted == receipt.envelope.forward_paths
        assert not receipt.refused
        assert [len(message.forward_paths) for message in server.messages] == [5, 5, 2]
        assert len({message.content for message in server.messages}) == 1
        assert said(server).count("RCPT") == 12 + 5 + 2
        assert server.connections == 1
        assert mailer.stats().accepted == 1
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
        await assert_kept(musts, server, mailer)


async def test_f54_who_is_refused_in_any_transaction_is_named(musts: Musts) -> None:
    def script(moment: Moment) -> str | None:
        if "+2@" in moment.line or "+6@" in moment.line:
            return "550 5.1.1 no such user"
        return TOO_MANY if moment.nth > 3 else None

    async with talking_to(FaultServer(rcpt=EachMessage(script)), musts) as mailer:
        receipt = accepted(await send(musts, mailer, 7))
        paths = receipt.envelope.forward_paths
        assert {path: reply.code for path, reply in receipt.refused.items()} == {
            paths[1]: 550,
            paths[5]: 550,
        }
        assert sorted(receipt.accepted) == sorted({*paths} - {*receipt.refused})


async def test_f54_a_later_part_that_is_rejected_is_refused(musts: Musts) -> None:
    final = {2: "554 5.7.1 not that one"}
    async with talking_to(FaultServer(rcpt=only(2), final=final), musts) as mailer:
        receipt = accepted(await send(musts, mailer, 5))
        paths = receipt.envelope.forward_paths
        assert receipt.accepted == (*paths[:2], paths[4])
        assert {path: reply.code for path, reply in receipt.refused.items()} == {
            paths[2]: 554,
            paths[3]: 554,
        }


async def test_f54_a_later_part_that_is_not_sent_is_refused_for_now(musts: Musts) -> None:
    async with talking_to(FaultServer(rcpt=only(2), data=[OK, Close()]), musts) as mailer:
        receipt = accepted(await send(musts, mailer, 4))
        assert receipt.accepted == receipt.envelope.forward_paths[:2]
        assert {reply.code for reply in receipt.refused.values()} == {451}
        assert all(reply.text.startswith("not sent: ") for reply in receipt.refused.values())


async def test_f54_a_later_part_that_is_unknown_names_the_unknown_recipients_only(
    musts: Musts,
) -> None:
    async with talking_to(FaultServer(rcpt=only(2), final={2: Close()}), musts) as mailer:
        error = unknown(await send(musts, mailer, 6))
        first, second, third = (error.recipients, error.accepted, tuple(error.refused))
        paths = sorted([*first, *second, *third])
        assert (first, second, third) == (tuple(paths[2:4]), tuple(paths[:2]), tuple(paths[4:]))
        assert {reply.code for reply in error.refused.values()} == {451}
        assert "accepted for 2 of 6 recipients" in str(error)
        assert mailer.stats().unknown == 1


async def test_f54_a_stale_session_between_the_parts_is_replaced(musts: Musts) -> None:
    async with talking_to(FaultServer(rcpt=only(2), mail={2: Close()}), musts) as mailer:
        receipt = accepted(await send(musts, mailer, 4))
        assert (receipt.transactions, len(receipt.accepted)) == (2, 4)


async def test_f54_where_all_are_needed_one_too_many_is_one_refused(musts: Musts) -> None:
    server = FaultServer(rcpt=only(2))
    async with talking_to(server, musts, all_recipients=True) as mailer:
        result = await send(musts, mailer, 3)
        rejected(result, RecipientsRejected, stage="rcpt", retryable=True, code=452)
        assert not server.messages


async def test_f54_a_send_cancelled_in_a_later_part_says_for_how_many_it_was_accepted(
    musts: Musts,
) -> None:
    server = FaultServer(rcpt=only(2), data=[OK, Hang()])
    async with talking_to(server, musts) as mailer:
        token = musts.token()
        sending = asyncio.ensure_future(mailer.send(tokened(token, 4)))
        await server.reached("data", 2)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await sending
        assert any("accepted for 2 of 4 recipients" in note for note in caught.value.__notes__)
        musts.cancelled(token)
        assert mailer.stats().accepted == 1


async def test_f54_a_deadline_covers_all_parts(musts: Musts) -> None:
    async with talking_to(FaultServer(rcpt=only(1), mail={3: Hang()}), musts) as mailer:
        token = musts.token()
        async with musts.within(0.5):
            sending = mailer.send(tokened(token, 4), timeout=0.5)
            receipt = accepted(await musts.outcome_of(sending, token=token))
        assert len(receipt.accepted) == 2
        assert len(receipt.refused) == 2


Refusing = t.Literal["mail", "rcpt"]
Ending = t.Literal["rcpt", "data"]
CLOSING = Say("421 4.7.0 too many errors", then=Close())


@pytest.mark.parametrize("end", [CLOSING, Close()], ids=["421", "fin"])
@pytest.mark.parametrize(
    ("refusing", "ending", "kind"),
    [
        pytest.param("mail", "rcpt", SenderRejected, id="f40_a_sender"),
        pytest.param("rcpt", "data", RecipientsRejected, id="f50_all_recipients"),
    ],
)
async def test_f40_f50_what_was_refused_before_the_session_ended_stays_refused(
    musts: Musts, refusing: Refusing, ending: Ending, kind: type[Rejected], end: Action
) -> None:
    server = FaultServer({refusing: ["550 5.7.1 no", OK], ending: [end, OK]})
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer)
        rejected(result, kind, stage=refusing, retryable=False, code=550)
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)
