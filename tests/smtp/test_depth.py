"""``pipeline_depth``: several whole messages in flight over one session, and what that costs."""

from __future__ import annotations

import asyncio
import time
import typing as t
from collections import Counter

import pytest

from amail import Envelope, Mailer, Message
from amail.errors import DeliveryUnknown, NotSent
from amail.mime import Content
from amail.smtp.extensions import Extensions
from amail.smtp.protocol import Deadlines, SMTPProtocol, Waits
from amail.smtp.transaction import Transaction
from amail.testing import EXTENSIONS, OK, Close, FaultServer, Say
from tests.messages import ADA, tokened
from tests.smtp.flights import Silent
from tests.smtp.modes import DEPTH, OFFERS
from tests.smtp.outcomes import accepted, said, talking_to
from tests.smtp.test_following import in_bulk, outcomes
from tests.transports.ends import letter

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amail.errors import MailError
    from amail.receipt import Receipt
    from amail.testing import Moment, Script
    from tests.musts import Musts


def chunking(**script: t.Any) -> FaultServer:
    return FaultServer(extensions=OFFERS, **script)


def letters(count: int) -> list[Message]:
    return [Message("Hi", ["bob@example.org"], "Hi", sender=ADA) for _ in range(count)]


def deep(url: str, **options: t.Any) -> Mailer:
    return Mailer(url, **{"max_connections": 1, "pipeline_depth": DEPTH, **options})


# How many


@pytest.mark.parametrize("depth", [1, 2, DEPTH])
async def test_so_many_messages_are_in_flight_and_not_one_more(depth: int) -> None:
    server = Silent(40, hold=depth)
    async with server.running(), deep(server.url, pipeline_depth=depth) as mailer:
        results = [each.outcome async for each in mailer.send_many(letters(40))]
    assert results == ["accepted"] * 40
    assert server.most_in_flight == depth
    assert len(server.connections) == 1


async def test_with_more_sessions_each_has_so_many() -> None:
    server = Silent(60, hold=DEPTH)
    async with server.running(), deep(server.url, max_connections=3) as mailer:
        assert t.cast("t.Any", mailer.transport).concurrency == 3 * DEPTH
        results = Counter([each.outcome async for each in mailer.send_many(letters(60))])
    assert results == {"accepted": 60}
    assert server.most_in_flight == DEPTH
    assert 1 < len(server.connections) <= 3


async def test_gather_has_one_in_flight_whatever_the_depth() -> None:
    server = Silent(10)
    async with server.running(), deep(server.url) as mailer:
        await asyncio.gather(*map(mailer.send, letters(10)))
    assert server.most_in_flight == 1


@pytest.mark.parametrize(
    ("extensions", "options"),
    [
        (EXTENSIONS, {}),
        (OFFERS, {"chunking": False}),
        (tuple({*OFFERS} - {"PIPELINING"}), {}),
        (OFFERS, {"pipelining": False}),
    ],
    ids=["no_chunking", "chunking_off", "no_pipelining", "pipelining_off"],
)
async def test_without_both_extensions_the_depth_is_nothing(
    musts: Musts, extensions: tuple[str, ...], options: dict[str, t.Any]
) -> None:
    """FaultServer objects to content before the 354, and to commands where they must wait."""
    server = FaultServer(extensions=extensions)
    async with talking_to(
        server, musts, pipeline_depth=DEPTH, max_connections=1, **options
    ) as mailer:
        messages = [tokened(musts.token()) for _ in range(20)]
        assert await outcomes(musts, mailer, messages) == ["accepted"] * 20


async def test_rset_is_said_before_every_envelope_but_the_first(musts: Musts) -> None:
    server = chunking()
    async with talking_to(server, musts, pipeline_depth=DEPTH, max_connections=1) as mailer:
        messages = [tokened(musts.token()) for _ in range(20)]
        assert await outcomes(musts, mailer, messages) == ["accepted"] * 20
        assert said(server) == [
            *("EHLO", "MAIL", "RCPT", "BDAT"),
            *["RSET", "MAIL", "RCPT", "BDAT"] * 19,
        ]


async def test_a_large_content_among_small_ones_waits_for_its_recipients(musts: Musts) -> None:
    async with talking_to(chunking(), musts, pipeline_depth=DEPTH, max_connections=1) as mailer:
        messages = [tokened(musts.token()) for _ in range(20)]
        for message in messages[3::4]:
            message.attach("a.bin", data=b"x" * 200_000)
        assert await outcomes(musts, mailer, messages) == ["accepted"] * 20


async def test_a_session_has_no_more_messages_than_it_may(musts: Musts) -> None:
    server = chunking()
    async with talking_to(
        server, musts, pipeline_depth=DEPTH, max_connections=1, max_messages=5
    ) as mailer:
        messages = [tokened(musts.token()) for _ in range(22)]
        assert await outcomes(musts, mailer, messages) == ["accepted"] * 22
    sizes = Counter(each.connection for each in server.messages)
    assert sorted(sizes.values()) == [2, 5, 5, 5, 5]


# What happens to one, and what to the others


async def test_of_a_session_that_dies_exactly_those_in_flight_are_unknown() -> None:
    server = Silent(20, hold=DEPTH)
    server.is_answering.clear()
    async with server.running(), deep(server.url) as mailer:
        messages = letters(20)

        async def bulk() -> list[str]:
            return [each.outcome async for each in mailer.send_many(messages, ordered=True)]

        sending = asyncio.create_task(bulk())
        await server.has_got(DEPTH)
        server.connections[0].stop()
        server.is_answering.set()
        assert await sending == ["unknown"] * DEPTH + ["accepted"] * 12
        assert len(server.contents) == 20
        assert (mailer.stats().unknown, mailer.stats().leased) == (DEPTH, 0)


@pytest.mark.parametrize(
    ("stage", "script", "outcome"),
    [
        ("mail", "550 5.7.1 not you", "rejected"),
        ("rcpt", "550 5.1.1 who?", "rejected"),
        ("final", "554 5.7.1 spam", "rejected"),
        ("final", "451 4.3.0 later", "rejected"),
    ],
)
async def test_each_of_those_in_flight_has_its_own_answer(
    musts: Musts, stage: str, script: str, outcome: str
) -> None:
    def every_third(moment: Moment) -> Script | None:
        return script if moment.message % 3 == 0 else None

    server = chunking(**{stage: every_third})
    async with talking_to(server, musts, pipeline_depth=DEPTH, max_connections=1) as mailer:
        messages = [tokened(musts.token()) for _ in range(30)]
        results = await outcomes(musts, mailer, messages)
        assert results == ["accepted", "accepted", outcome] * 10
        assert len(server.messages) == 20
        assert server.connections == 1


@pytest.mark.parametrize("stage", ["rset", "mail"])
@pytest.mark.parametrize(
    "end", ["421 4.3.2 closing", Say("421 4.3.2 closing", then=Close())], ids=["421", "421_fin"]
)
async def test_f76_a_server_that_closes_after_some_messages_gets_each_once(
    musts: Musts, stage: str, end: t.Any
) -> None:
    """What it says 421 to is sent again; what was behind that in flight, nobody can tell."""

    def after_five(moment: Moment) -> Script | None:
        return end if moment.nth_in_connection == 5 else None

    server = chunking(**{stage: after_five})
    async with talking_to(server, musts, pipeline_depth=DEPTH, max_connections=1) as mailer:
        messages = [tokened(musts.token()) for _ in range(40)]
        results = Counter(await outcomes(musts, mailer, messages))
        assert set(results) <= {"accepted", "unknown"}
        assert mailer.stats().leased == 0


async def test_content_taken_for_nobody_ends_the_session_and_chunking(musts: Musts) -> None:
    server = chunking(
        rcpt=[OK, OK, "550 5.1.1 who?", OK], final=[OK, OK, "250 2.0.0 taken all the same", OK]
    )
    async with talking_to(server, musts, pipeline_depth=DEPTH, max_connections=1) as mailer:
        messages = [tokened(musts.token()) for _ in range(DEPTH + 10)]
        results = await outcomes(musts, mailer, messages)
        assert results[:3] == ["accepted", "accepted", "unknown"]
        assert set(results[3:DEPTH]) <= {"accepted", "unknown"}
        assert results[DEPTH:] == ["accepted"] * 10
        assert "DATA" in said(server)


# Who leaves


class InFlight(t.NamedTuple):
    """Five messages in flight to a server that does not answer yet; what was resolved later."""

    server: Silent
    mailer: Mailer
    tasks: list[asyncio.Task[Receipt]]
    resolved: list[Receipt | MailError]


@pytest.fixture
async def in_flight() -> AsyncIterator[InFlight]:
    server = Silent(5, hold=5)
    server.is_answering.clear()
    resolved: list[Receipt | MailError] = []
    async with (
        server.running(),
        deep(server.url, max_connections=2, on_resolved=resolved.append) as mailer,
    ):
        first = asyncio.create_task(in_bulk(mailer.transport.send(*letter())))
        tasks = [first]
        for number in range(1, 5):
            await server.has_got(number)
            tasks.append(asyncio.create_task(in_bulk(mailer.transport.send(*letter()))))
        await server.has_got(5)
        assert len(server.connections) == 1
        yield InFlight(server, mailer, tasks, resolved)
        server.is_answering.set()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_free(mailer: Mailer) -> None:
    while mailer.stats().leased:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("who", range(5))
async def test_c10_one_who_leaves_amid_the_others_hears_of_it_later(
    in_flight: InFlight, who: int
) -> None:
    server, mailer, tasks, resolved = in_flight
    tasks[who].cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await tasks[who]
    assert "delivery unknown" in str(caught.value.__notes__)
    assert (mailer.stats().unknown, mailer.stats().accepted) == (1, 0)
    server.is_answering.set()
    others = [task for task in tasks if task is not tasks[who]]
    for receipt in await asyncio.gather(*others):
        accepted(receipt)
    await until_free(mailer)
    (late,) = resolved
    message_id = caught.value.__notes__[0].partition(":")[0]
    assert accepted(late).message_id == message_id
    assert (mailer.stats().unknown, mailer.stats().accepted) == (0, 5)
    assert len(server.contents) == 5


async def test_c10_where_all_leave_all_are_told_later(
    in_flight: InFlight,
) -> None:
    server, mailer, tasks, resolved = in_flight
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert mailer.stats().unknown == 5
    server.is_answering.set()
    await until_free(mailer)
    assert len(resolved) == 5
    assert (mailer.stats().unknown, mailer.stats().accepted, mailer.stats().idle) == (0, 5, 1)


@pytest.mark.parametrize("left", [(), (1, 3), (0, 1, 2, 3, 4)])
async def test_a_session_that_dies_settles_nothing_and_frees_its_slot(
    in_flight: InFlight, left: tuple[int, ...]
) -> None:
    server, mailer, tasks, resolved = in_flight
    for number in left:
        tasks[number].cancel()
    await asyncio.sleep(0)
    server.connections[0].stop()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    for number, end in enumerate(ends):
        assert isinstance(end, asyncio.CancelledError if number in left else DeliveryUnknown)
    await until_free(mailer)
    assert resolved == []
    assert (mailer.stats().unknown, mailer.stats().open) == (5, 0)


@pytest.mark.parametrize("ahead", [1, 3])
async def test_a_deadline_behind_others_is_kept_and_the_reply_still_told(ahead: int) -> None:
    """Its last octet is on the wire: nobody can tell, until the reply comes."""
    server = Silent(ahead + 1, hold=ahead + 1)
    server.is_answering.clear()
    resolved: list[Receipt | MailError] = []
    async with (
        server.running(),
        deep(server.url, max_connections=2, on_resolved=resolved.append) as mailer,
    ):
        tasks = []
        for number in range(ahead):
            tasks.append(asyncio.create_task(in_bulk(mailer.transport.send(*letter()))))
            await server.has_got(number + 1)
        began = time.monotonic()
        with pytest.raises(DeliveryUnknown):
            await in_bulk(mailer.transport.send(*letter(), deadline=began + 0.2))
        assert time.monotonic() - began < 0.45
        assert not any(task.done() for task in tasks)
        server.is_answering.set()
        for receipt in await asyncio.gather(*tasks):
            accepted(receipt)
        await until_free(mailer)
        assert len(resolved) == 1
        assert (mailer.stats().unknown, mailer.stats().accepted) == (0, ahead + 1)


async def test_a_deadline_before_there_is_room_is_not_sent(
    in_flight: InFlight,
) -> None:
    server, mailer, tasks, _ = in_flight
    more = [
        asyncio.create_task(in_bulk(mailer.transport.send(*letter()))) for _ in range(2 * DEPTH)
    ]
    await server.has_got(5)
    soon = time.monotonic() + 0.2
    with pytest.raises(NotSent):
        await in_bulk(mailer.transport.send(*letter(), deadline=soon))
    for task in [*tasks, *more]:
        task.cancel()
    await asyncio.wait([*tasks, *more])


async def test_the_final_timeout_ends_the_wait_of_those_in_flight_one_and_all() -> None:
    server = Silent(100, hold=100)
    async with server.running(), deep(server.url, final_timeout=0.2) as mailer:
        began = time.monotonic()
        results = [each.outcome async for each in mailer.send_many(letters(6))]
        assert results == ["unknown"] * 6
        assert time.monotonic() - began < 1
        await until_free(mailer)


# Beside others


async def test_who_sends_one_message_beside_very_many_in_flight_is_served_in_its_turn(
    musts: Musts,
) -> None:
    sent = 0

    async def bulk(mailer: Mailer) -> None:
        nonlocal sent
        endless = (Message("Hi", ["bob@example.org"], "Hi", sender=ADA) for _ in range(100_000))
        async for _ in mailer.send_many(endless):
            sent += 1

    server = chunking()
    async with talking_to(server, musts, max_connections=2, pipeline_depth=DEPTH) as mailer:
        task = asyncio.create_task(bulk(mailer))
        await server.until(lambda: len(server.messages) > 50)
        for _ in range(5):
            before = sent
            sending = mailer.send(tokened(token := musts.token()))
            accepted(t.cast("Receipt", await musts.outcome_of(sending, token=token)))
            assert sent - before <= 4 * 2 * DEPTH
            stats = mailer.stats()
            assert stats.leased <= 2
            assert server.open_connections <= 2
        task.cancel()
        await asyncio.wait({task})


# A connection that is about to be lost


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and is closing when told so."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing


async def test_who_leaves_while_the_transport_closes_holds_up_nobody_who_left_before() -> None:
    """Between a write that fails and connection_lost anybody may be cancelled."""
    wire = Wire()
    protocol = SMTPProtocol(wire, Waits(30, 30, 30), DEPTH)
    tasks = []
    for number in range(3):
        transaction = Transaction(
            Envelope(ADA, ("bob@example.org",)),
            Content([b"Subject: x\r\n\r\n"], message_id=f"<{number}@example.com>"),
            Extensions(pipelining=True, chunking=True),
            pipelined=True,
            chunked=True,
        )
        run = protocol.run(transaction, Deadlines(float("inf"), float("inf")), at_once=True)
        tasks.append(asyncio.create_task(run))
        await asyncio.sleep(0)
    assert wire.written.count(b"BDAT") == 3
    for closing, task in zip([False, True, True], tasks, strict=True):
        wire.closing = closing
        task.cancel()
        await asyncio.wait({task})
    assert protocol.unsettled is not None
    assert protocol.unsettled.done()
    assert {type(each.outcome) for each in protocol.settle()} == {DeliveryUnknown}
    protocol.connection_lost(None)
