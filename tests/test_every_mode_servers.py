"""Real servers, in every way of sending: nothing arrives under another message's envelope.

Every tenth recipient is refused, which is where one envelope may run into the next: Exim answers
the MAIL behind such a message with 503, and takes RCPT and BDAT under the sender before.
"""

from __future__ import annotations

import asyncio
import email
import typing as t
from collections import Counter

import pytest

from amail import Mailer, Message, Receipt, RecipientsRejected
from tests.servers.exim import exim_server
from tests.servers.postfix import REFUSED, postfix_server
from tests.smtp.modes import in_every_mode

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail import MailError, Result
    from tests.musts import Musts
    from tests.servers.exim import EximServer
    from tests.servers.postfix import PostfixServer
    from tests.smtp.modes import Mode

pytestmark = pytest.mark.servers

COUNT, SESSIONS = 120, 2

WAYS = ["gather", "send_many"]

ways = pytest.mark.parametrize("way", WAYS)


def letter(number: int) -> Message:
    """A message whose sender, recipient and body belong together; every tenth is refused."""
    to = REFUSED if number % 10 == 7 else f"to{number}@example.org"
    return Message(
        f"Number {number}",
        [to],
        sender=f"from{number}@example.com",
        body=body(number).decode().replace("\r\n", "\n"),
    )


def body(number: int) -> bytes:
    return b"number %d of them\r\n.a dot\r\n..\r\n" % number + b"x\r\n" * (number * 10)


async def all_of_them(
    mailer: Mailer, way: str, messages: list[Message]
) -> dict[str, Receipt | MailError]:
    """Send them; what each came to, by Message-ID."""
    if way == "send_many":
        results: list[Result] = [each async for each in mailer.send_many(messages)]
        assert len(results) == len(messages)
        return {str(each.message.message_id): _came_to(each) for each in results}
    ends = await asyncio.gather(*map(mailer.send, messages), return_exceptions=True)
    return dict(
        zip((str(each.message_id) for each in messages), t.cast("t.Any", ends), strict=True)
    )


def _came_to(result: Result) -> Receipt | MailError:
    came_to = result.receipt or result.error
    assert came_to is not None
    return came_to


def check(messages: list[Message], came_to: dict[str, Receipt | MailError]) -> Counter[str]:
    """Each message for somebody is accepted, each for nobody refused; who is to be held."""
    held: Counter[str] = Counter()
    for number, message in enumerate(messages):
        message_id = str(message.message_id)
        result = came_to[message_id]
        if number % 10 == 7:
            assert isinstance(result, RecipientsRejected), repr(result)
            assert result.recipients == (REFUSED,)
            assert result.reply is not None
            assert result.reply.code == 550
        else:
            assert isinstance(result, Receipt), repr(result)
            assert result.accepted == (f"to{number}@example.org",)
            assert result.attempts == 1
            held[message_id] += 1
    return held


@pytest.fixture(scope="module")
def postfix() -> Iterator[PostfixServer]:
    with postfix_server({"open": {"smtpd_relay_restrictions": "reject_unauth_destination"}}) as it:
        yield it


@pytest.fixture(scope="module")
def exim() -> Iterator[EximServer]:
    with exim_server() as it:
        yield it


@in_every_mode
@ways
async def test_postfix_gets_every_message_under_its_own_envelope(
    musts: Musts, postfix: PostfixServer, mode: Mode, way: str
) -> None:
    with musts.not_counting():
        postfix.clear()
        messages = [letter(number) for number in range(COUNT)]
    url = f"smtp://{postfix.host}:{postfix.ports['open']}"
    async with Mailer(url, max_connections=SESSIONS, **mode.settings) as mailer:
        came_to = await all_of_them(mailer, way, messages)
    held = check(messages, came_to)
    stored = await asyncio.to_thread(postfix.wait_for_messages, held.total())
    with musts.not_counting():
        copies = [(email.message_from_bytes(octets), octets) for octets in stored]
        assert Counter(str(copy["Message-ID"]) for copy, _ in copies) == held
        for copy, octets in copies:
            number = int(str(copy["Subject"]).split()[1])
            assert copy["Message-ID"] == messages[number].message_id
            assert copy["Return-Path"] == f"<from{number}@example.com>"
            assert copy["X-Original-To"] == f"to{number}@example.org"
            assert body(number) in octets


@in_every_mode
@ways
async def test_exim_gets_every_message_under_its_own_envelope(
    musts: Musts, exim: EximServer, mode: Mode, way: str
) -> None:
    with musts.not_counting():
        exim.clear()
        messages = [letter(number) for number in range(COUNT)]
    async with Mailer(exim.url, max_connections=SESSIONS, **mode.settings) as mailer:
        came_to = await all_of_them(mailer, way, messages)
    held = check(messages, came_to)
    with musts.not_counting():
        stored = exim.messages()
        assert Counter(each.message_id for each in stored) == held
        numbers = {str(message.message_id): number for number, message in enumerate(messages)}
        for each in stored:
            number = numbers[each.message_id]
            assert each.reverse_path == f"from{number}@example.com"
            assert each.forward_paths == (f"to{number}@example.org",)
            assert each.body.replace(b"\n", b"\r\n") == body(number)


@in_every_mode
async def test_exim_that_hangs_up_after_a_few_contents_for_nobody_takes_all_the_others(
    musts: Musts, exim: EximServer, mode: Mode
) -> None:
    """It ends a session in which ten commands in a row were for no message that it took."""
    with musts.not_counting():
        exim.clear()
        messages = [letter(number) for number in [7] * 30 + list(range(20))]
    async with Mailer(exim.url, max_connections=1, **mode.settings) as mailer:
        results = [each async for each in mailer.send_many(messages, ordered=True)]
    outcomes = [each.outcome for each in results]
    assert outcomes[:30] == ["rejected"] * 30
    assert (
        outcomes[30:]
        == ["accepted"] * 7 + ["rejected"] + ["accepted"] * 9 + ["rejected"] + ["accepted"] * 2
    )
    with musts.not_counting():
        assert len(exim.messages()) == 18
