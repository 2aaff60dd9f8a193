"""send_many: the next envelope is said while the reply to the last octet is on its way.

So a message takes one round trip, and of each session at most one message can be unknown.
"""

from __future__ import annotations

import asyncio
import functools
import time
import typing as t
from collections import Counter

import pytest

from amail import Mailer, Message, SendTimeout
from amail.testing import Close, EachMessage, FaultServer, Say
from amail.transports.base import when_written
from tests.messages import ADA, tokened
from tests.shuffled import ShuffledLoop
from tests.transports.ends import letter

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amail import MailError, Receipt
    from amail.testing import Moment, Script
    from tests.musts import Musts


def letters(musts: Musts, count: int) -> list[Message]:
    return [tokened(musts.token(), 1) for _ in range(count)]


async def outcomes(musts: Musts, mailer: Mailer, messages: list[Message]) -> list[str]:
    """Send them, let each outcome be compared with what the server holds; in their order."""
    with musts.not_counting():
        results = [each async for each in mailer.send_many(messages, ordered=True)]
    return [each.outcome for each in results]


async def in_bulk(sending: t.Awaitable[Receipt]) -> Receipt:
    """Wait for it as one of many: the next one may follow."""
    when_written.set(lambda: None)
    return await sending


class Stubborn:
    """Answers the last octet of a message when the next command has come, or nothing else can."""

    def __init__(self, extensions: str, messages: int) -> None:
        self.extensions = extensions
        self.left = messages
        self.lines: list[str] = []
        self.is_owing = asyncio.Event()  # a reply, and knows of a further command
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        answers = {"EHLO": f"250-here\r\n250 {self.extensions}", "DATA": "354 go", "QUIT": "221 by"}
        owed = b""
        while line := await reader.readline():
            verb = line.decode().split()[0].upper()
            self.lines.append(verb)
            if owed:
                self.is_owing.set()
                await self.may_answer.wait()
            writer.write(owed + f"{answers.get(verb, '250 ok')}\r\n".encode())
            owed = b""
            if verb == "QUIT":
                break
            if verb == "DATA":
                await reader.readuntil(b"\r\n.\r\n")
                self.left -= 1
                if self.left:
                    owed = b"250 taken\r\n"
                else:
                    writer.write(b"250 taken\r\n")
        writer.close()


@pytest.fixture
async def served() -> AsyncIterator[t.Callable[[Stubborn], t.Awaitable[str]]]:
    servers = []

    async def serve(stubborn: Stubborn) -> str:
        servers.append(await asyncio.start_server(stubborn.serve, "127.0.0.1", 0))
        return f"smtp://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"

    yield serve
    for each in servers:
        each.close()


async def test_the_next_envelope_is_said_before_the_reply_to_the_last_octet_has_come(
    served: t.Callable[[Stubborn], t.Awaitable[str]],
) -> None:
    server = Stubborn("PIPELINING", 20)
    messages = [Message("Hi", ["bob@example.org"], "Hi", sender=ADA) for _ in range(20)]
    async with Mailer(await served(server), max_connections=1, final_timeout=10) as mailer:
        results = [each.outcome async for each in mailer.send_many(messages)]
    assert results == ["accepted"] * 20
    assert server.lines == ["EHLO", *["MAIL", "RCPT", "DATA"] * 20, "QUIT"]


@pytest.mark.parametrize(
    ("extensions", "options"),
    [("SIZE", {}), ("PIPELINING", {"pipelining": False})],
    ids=["not_offered", "switched_off"],
)
async def test_without_pipelining_nothing_is_said_before_the_reply(
    served: t.Callable[[Stubborn], t.Awaitable[str]], extensions: str, options: dict[str, t.Any]
) -> None:
    server = Stubborn(extensions, 2)
    messages = [Message("Hi", ["bob@example.org"], "Hi", sender=ADA) for _ in range(2)]
    url = await served(server)
    async with Mailer(url, max_connections=1, final_timeout=0.2, **options) as mailer:
        results = [each.outcome async for each in mailer.send_many(messages)]
    assert sorted(results) == ["accepted", "unknown"]


async def test_gather_says_an_envelope_when_the_message_before_has_its_reply(
    served: t.Callable[[Stubborn], t.Awaitable[str]],
) -> None:
    server = Stubborn("PIPELINING", 2)
    messages = [Message("Hi", ["bob@example.org"], "Hi", sender=ADA) for _ in range(2)]
    url = await served(server)
    async with Mailer(url, max_connections=1, final_timeout=0.2) as mailer:
        results = await asyncio.gather(*map(mailer.send, messages), return_exceptions=True)
    assert sum(isinstance(each, Exception) for each in results) == 1


async def test_who_sends_one_message_beside_very_many_is_served_in_its_turn(musts: Musts) -> None:
    sent = 0

    async def bulk(mailer: Mailer) -> None:
        nonlocal sent
        endless = (Message("Hi", ["bob@example.org"], "Hi", sender=ADA) for _ in range(10_000))
        async for _ in mailer.send_many(endless):
            sent += 1

    async with FaultServer() as server, Mailer(server.url, max_connections=2) as mailer:
        musts.watch(server)
        task = asyncio.create_task(bulk(mailer))
        await server.until(lambda: len(server.messages) > 20)
        for _ in range(5):
            before = sent
            await musts.outcome_of(mailer.send(tokened(token := musts.token())), token=token)
            assert sent - before <= 10
        task.cancel()
        await asyncio.wait({task})


# What happens to one does not happen to the next


@pytest.mark.parametrize(
    ("stage", "script", "expected", "held"),
    [
        ("final", {2: "554 5.6.0 spam"}, "rejected", 5),
        ("final", {2: Say("421 4.3.2 closing", then=Close())}, "rejected", 5),
        ("final", {2: Close()}, "unknown", 6),
        ("mail", {2: "550 5.7.1 not you"}, "rejected", 5),
        ("rcpt", {2: "550 5.1.1 who?"}, "rejected", 5),
        ("data", {2: "554 5.5.1 no"}, "rejected", 5),
        ("mail", {2: Close()}, "accepted", 6),
        ("mail", {2: "421 4.3.2 closing"}, "accepted", 6),
        ("rcpt", {2: Close()}, "accepted", 6),
        ("data", {2: Close()}, "accepted", 6),
        ("body", {2: Close()}, "unknown", 5),
    ],
)
async def test_whatever_becomes_of_the_second_the_others_are_accepted(
    musts: Musts, stage: str, script: dict[int, t.Any], expected: str, held: int
) -> None:
    async with (
        FaultServer({stage: script}) as server,  # type: ignore[dict-item]
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        messages = letters(musts, 6)
        results = await outcomes(musts, mailer, messages)
        assert results == ["accepted", expected, *["accepted"] * 4]
        assert len(server.messages) == len(set(server.messages)) == held
        assert mailer.stats().leased == 0


async def test_of_each_session_at_most_one_message_is_unknown(musts: Musts) -> None:
    def dies(moment: Moment) -> Script | None:
        return Close() if moment.nth % 5 == 0 else None

    async with FaultServer(final=dies) as server, Mailer(server.url, max_connections=3) as mailer:
        musts.watch(server)
        results = await outcomes(musts, mailer, letters(musts, 50))
        assert set(results) == {"accepted", "unknown"}
        assert results.count("unknown") == 50 // 5
        assert len(server.messages) == 50  # held, although not always said so


async def test_an_envelope_behind_one_that_was_refused_is_not_taken_for_its_own(
    musts: Musts,
) -> None:
    refused = EachMessage({2: "550 5.1.1 who?"})
    async with FaultServer(rcpt=refused) as server, Mailer(server.url, max_connections=1) as mailer:
        musts.watch(server)
        messages = [tokened(musts.token(), 2) for _ in range(10)]
        assert await outcomes(musts, mailer, messages) == ["accepted"] * 10
    for message, received in zip(messages, server.messages, strict=True):
        assert str(message.message_id).encode() in received.content
        assert len(received.forward_paths) == 1


@pytest.mark.parametrize("seed", range(20))
def test_an_envelope_left_open_is_reset_in_whatever_order_their_senders_hear(seed: int) -> None:
    async def main() -> None:
        def refused(moment: Moment) -> Script | None:
            return "550 5.1.1 who?" if moment.message % 3 == 0 else None

        async with FaultServer(rcpt=refused) as server, Mailer(server.url) as mailer:
            messages = [Message("Hi", ["bob@example.org"], "Hi", sender=ADA) for _ in range(60)]
            results = [each.outcome async for each in mailer.send_many(messages, concurrency=2)]
            assert Counter(results) == {"accepted": 40, "rejected": 20}
        assert server.violations == []
        assert len(server.messages) == 40

    with asyncio.Runner(loop_factory=functools.partial(ShuffledLoop, seed)) as runner:
        runner.run(main())


# Who leaves


async def test_c16_who_leaves_behind_the_last_octet_still_hears_of_it_later(
    served: t.Callable[[Stubborn], t.Awaitable[str]],
) -> None:
    resolved: list[Receipt | MailError] = []
    server = Stubborn("PIPELINING", 9)
    server.may_answer.clear()
    messages = [Message("Hi", ["bob@example.org"], "Hi", sender=ADA) for _ in range(9)]
    async with Mailer(
        await served(server), max_connections=2, on_resolved=resolved.append
    ) as mailer:

        async def bulk() -> None:
            async for _ in mailer.send_many(messages, concurrency=1):
                raise AssertionError("nothing was answered")

        task = asyncio.create_task(bulk())
        await server.is_owing.wait()
        task.cancel()
        await asyncio.wait({task})
        assert (mailer.stats().unknown, mailer.stats().not_sent) == (1, 1)
        server.may_answer.set()
        while not resolved:
            await asyncio.sleep(0.001)
        assert [getattr(each, "message_id", None) for each in resolved] == [messages[0].message_id]
        assert (mailer.stats().unknown, mailer.stats().accepted) == (0, 1)
        while mailer.stats().open:
            await asyncio.sleep(0.001)  # an envelope was said that nobody sends the content of
        assert mailer.stats().leased == 0


async def test_one_whose_turn_does_not_come_in_time_is_sent_by_nobody(
    served: t.Callable[[Stubborn], t.Awaitable[str]],
) -> None:
    server = Stubborn("PIPELINING", 9)
    server.may_answer.clear()
    async with Mailer(await served(server), max_connections=1) as mailer:
        first = asyncio.create_task(in_bulk(mailer.transport.send(*letter())))
        while not server.lines.count("DATA"):
            await asyncio.sleep(0.001)
        soon = time.monotonic() + 0.2
        second = asyncio.create_task(in_bulk(mailer.transport.send(*letter(), deadline=soon)))
        await server.is_owing.wait()
        with pytest.raises(SendTimeout) as caught:
            await second
        assert caught.value.outcome == "not_sent"
        server.may_answer.set()
        assert (await first).outcome == "accepted"
