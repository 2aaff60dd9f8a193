"""A mailer as it comes, on the ports of a Postfix that punishes its clients, each in its way.

Each way is ordinary life of a pool and no error that the caller sees.
"""

from __future__ import annotations

import asyncio
import email
import smtplib
import typing as t
from collections import Counter

import pytest

from amail import Mailer, Message, MessageTooLarge, Receipt, RecipientsRejected, SenderRejected
from tests.servers.postfix import REFUSED
from tests.servers.programs import wait_until

if t.TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tests.musts import Musts
    from tests.servers.postfix import PostfixServer

pytestmark = pytest.mark.servers

ADA = "ada@example.com"
COUNT = 100


def mailer_for(postfix: PostfixServer, port: str, **options: t.Any) -> Mailer:
    return Mailer(f"smtp://{postfix.host}:{postfix.ports[port]}", default_sender=ADA, **options)


def letter(number: int, recipients: int = 1, **fields: t.Any) -> Message:
    to = [f"r{number}-{each}@example.org" for each in range(recipients)]
    return Message(f"Number {number}", to, **{"body": "Hi", **fields})


async def send_all(mailer: Mailer, messages: Iterable[Message]) -> list[Receipt | BaseException]:
    return await asyncio.gather(*map(mailer.send, messages), return_exceptions=True)


def all_accepted(
    results: list[Receipt | BaseException], *, attempts: Collection[int] = (1,)
) -> list[Receipt]:
    """Everything was accepted, as it seems to the caller at the first try."""
    errors = [each for each in results if not isinstance(each, Receipt)]
    assert errors == []
    receipts = [each for each in results if isinstance(each, Receipt)]
    assert [receipt.refused for receipt in receipts] == [{}] * len(results)
    # A session that is ended at RCPT costs a message one of its two tries.
    assert {receipt.attempts for receipt in receipts} <= set(attempts)
    return receipts


async def stored_copies(postfix: PostfixServer, count: int) -> Counter[tuple[str, str]]:
    """How often each (Message-ID, forward-path) is stored, once that many copies are."""

    def read() -> Counter[tuple[str, str]]:
        copies = map(email.message_from_bytes, postfix.wait_for_messages(count))
        return Counter((copy["Message-ID"], copy["X-Original-To"]) for copy in copies)

    return await asyncio.to_thread(read)


def once_each(receipts: Iterable[Receipt]) -> Counter[tuple[str, str]]:
    return Counter((each.message_id, path) for each in receipts for path in each.accepted)


def times(postfix: PostfixServer, port: str, words: str) -> int:
    """How often the server used these words about a client of that port."""
    return sum(words in line for line in postfix.log_of(port))


async def hung_up_by(postfix: PostfixServer, sessions: int, *, seen: bool) -> None:
    """Wait until Postfix has hung up that often; ``seen`` lets the mailer notice it meanwhile."""

    def wait() -> None:
        wait_until(
            lambda: (
                times(postfix, "idle", "timeout after END-OF-MESSAGE") >= sessions
                and times(postfix, "idle", "disconnect from")
                >= times(postfix, "idle", "]: connect")
            ),
            f"the end of {sessions} idle sessions",
        )

    if seen:
        await asyncio.to_thread(wait)
    else:
        wait()


@pytest.mark.parametrize("seen", [True, False], ids=["seen_while_idle", "found_out_by_mail"])
async def test_a_session_that_was_hung_up_on_while_idle_costs_no_attempt(
    musts: Musts, postfix: PostfixServer, seen: bool
) -> None:
    before = times(postfix, "idle", "timeout after END-OF-MESSAGE")
    async with mailer_for(postfix, "idle") as mailer:
        receipts = all_accepted(await send_all(mailer, map(letter, range(50))))
        sessions = mailer.stats().open
        with musts.not_counting():
            await hung_up_by(postfix, before + sessions, seen=seen)
        receipts += all_accepted(await send_all(mailer, map(letter, range(50, COUNT))))
    assert sessions == 5
    assert await stored_copies(postfix, COUNT) == once_each(receipts)


async def test_a_server_that_takes_two_sessions_gets_all_messages_over_them(
    musts: Musts, postfix: PostfixServer
) -> None:
    async with mailer_for(postfix, "two") as mailer:
        receipts = all_accepted(await send_all(mailer, map(letter, range(COUNT))))
        assert 1 <= mailer.stats().open <= 2
    assert times(postfix, "two", "Connection concurrency limit exceeded") > 0
    assert await stored_copies(postfix, COUNT) == once_each(receipts)


@pytest.mark.soak_short  # ten seconds at least
async def test_a_server_that_takes_5_messages_a_second_gets_50_and_nobody_sees_a_refusal(
    musts: Musts, postfix: PostfixServer
) -> None:
    async with mailer_for(postfix, "rate") as mailer:
        receipts = all_accepted(await send_all(mailer, map(letter, range(50))))
        assert mailer.stats().rejected == 0
    refusals = times(postfix, "rate", "Message delivery request rate limit exceeded")
    assert 0 < refusals <= 50  # it is asked, not beleaguered
    assert await stored_copies(postfix, 50) == once_each(receipts)


async def test_a_server_that_takes_5_recipients_gets_12_in_three_transactions(
    musts: Musts, postfix: PostfixServer
) -> None:
    async with mailer_for(postfix, "five") as mailer:
        messages = [letter(number, 12) for number in range(COUNT)]
        receipts = all_accepted(await send_all(mailer, messages))
    assert {receipt.transactions for receipt in receipts} == {3}
    assert {len(receipt.accepted) for receipt in receipts} == {12}
    assert len({receipt.message_id for receipt in receipts}) == COUNT
    assert await stored_copies(postfix, 12 * COUNT) == once_each(receipts)


def test_the_server_ends_a_session_of_nothing_but_junk(postfix: PostfixServer) -> None:
    with smtplib.SMTP(postfix.host, postfix.ports["junk"], timeout=10) as client:
        client.ehlo()
        replies = [client.rset()[0] for _ in range(3 + 6)]
        assert (replies, client.getreply()[0]) == ([250] * 9, 421)


@pytest.mark.parametrize("refused", ["sender", "recipient"])
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "one_by_one"])
@pytest.mark.parametrize("in_a_row", [1, 33], ids=["every_third", "a_third_in_a_row"])
async def test_a_server_that_counts_junk_and_errors_costs_nobody_else_a_message(
    musts: Musts, postfix: PostfixServer, refused: str, pipelining: bool, in_a_row: int
) -> None:
    def is_refused(number: int) -> bool:
        return number // in_a_row % 3 == 0 and number < 99

    def one(number: int) -> Message:
        if not is_refused(number):
            return letter(number)
        if refused == "sender":
            return letter(number, sender=REFUSED)
        return Message("Refused", [REFUSED], body="Hi")

    ended_before = times(postfix, "junk", "too many errors")
    async with mailer_for(postfix, "junk", pipelining=pipelining) as mailer:
        results = await send_all(mailer, map(one, range(COUNT)))
    kind = SenderRejected if refused == "sender" else RecipientsRejected
    errors = [results[number] for number in range(COUNT) if is_refused(number)]
    assert [type(error) for error in errors] == [kind] * 33
    receipts = all_accepted(
        [results[number] for number in range(COUNT) if not is_refused(number)], attempts={1, 2}
    )
    assert len(receipts) == 67
    ended = times(postfix, "junk", "too many errors") - ended_before
    assert in_a_row == 1 or ended > 0
    assert await stored_copies(postfix, 67) == once_each(receipts)


@pytest.mark.parametrize("refused", ["sender", "recipient"])
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "one_by_one"])
async def test_a_server_that_ends_a_session_at_the_first_error_refuses_none_of_the_others(
    musts: Musts, postfix: PostfixServer, refused: str, pipelining: bool
) -> None:
    def one(number: int) -> Message:
        if number % 3:
            return letter(number)
        if refused == "sender":
            return letter(number, sender=REFUSED)
        return Message("Refused", [REFUSED], body="Hi")

    async with mailer_for(postfix, "strict", pipelining=pipelining) as mailer:
        results = await send_all(mailer, map(one, range(COUNT)))
    kind = SenderRejected if refused == "sender" else RecipientsRejected
    assert Counter(map(type, results[::3])) == {kind: 34}
    receipts = all_accepted([each for number, each in enumerate(results) if number % 3])
    assert await stored_copies(postfix, 66) == once_each(receipts)


@pytest.mark.parametrize("port", ["small", "silent"])
async def test_one_message_too_large_is_refused_and_its_session_goes_on(
    musts: Musts, postfix: PostfixServer, port: str
) -> None:
    before = len(postfix.log_of(port))
    async with mailer_for(postfix, port, max_connections=1, max_messages=0) as mailer:
        receipts = all_accepted(await send_all(mailer, map(letter, range(COUNT // 2))))
        with pytest.raises(MessageTooLarge) as caught:
            await mailer.send(letter(0, body=("x" * 70 + "\n") * 290))
        receipts += all_accepted(await send_all(mailer, map(letter, range(COUNT // 2, COUNT))))
    assert await stored_copies(postfix, COUNT) == once_each(receipts)
    await asyncio.to_thread(
        wait_until, lambda: "disconnect from" in postfix.log_of(port)[-1], "QUIT"
    )
    (counted,) = [line for line in postfix.log_of(port)[before:] if "disconnect from" in line]
    if port == "small":  # SIZE is offered: nothing of the message goes out
        assert (caught.value.stage, caught.value.reply) == ("mail", None)
        assert f"mail={COUNT} rcpt={COUNT} bdat={COUNT} " in counted
    else:
        assert caught.value.stage == "final"
        assert str(caught.value.reply).startswith("552 5.3.4 ")
        assert f"mail={COUNT + 1} rcpt={COUNT + 1} bdat={COUNT}/{COUNT + 1} " in counted
