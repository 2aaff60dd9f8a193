"""CHUNKING (RFC 3030): a message is one write and one round trip, where that is no risk."""

from __future__ import annotations

import asyncio
import typing as t

import pytest

from amail import Envelope, Mailer, Message
from amail.errors import (
    InvalidAttachment,
    MessageError,
    MessageRejected,
    MessageTooLarge,
    RecipientsRejected,
)
from amail.mime import Content
from amail.smtp.manners import WARY_SECONDS
from amail.smtp.protocol import FRESH_SECONDS
from amail.testing import (
    OK,
    ByConnection,
    Close,
    EachConnection,
    Early,
    FaultServer,
    Reset,
)
from tests.messages import ADA, tokened
from tests.smtp.flights import Silent
from tests.smtp.modes import OFFERS, Mode, in_every_mode
from tests.smtp.outcomes import (
    accepted,
    assert_kept,
    rejected,
    said,
    send,
    talking_to,
    unknown,
)
from tests.smtp.test_pool import Clock

if t.TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from amail.testing import Moment, Script
    from amail.testing.script import Action
    from tests.musts import Musts

LARGE = b"\r\n".join([b"x" * 70] * 3000) + b"\r\n"
PATIENT: dict[str, t.Any] = {"idle_timeout": 1000.0, "max_age": 10_000.0}


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def chunking(**script: t.Any) -> FaultServer:
    return FaultServer(extensions=OFFERS, **script)


def letter(body: str = "Hi\n.a dot\n") -> Message:
    return Message("Hi", ["bob@example.org"], body, sender=ADA)


def letters(count: int) -> list[Message]:
    return [letter() for _ in range(count)]


# One write


async def test_a_message_is_one_write_and_nothing_of_it_waits_for_a_reply() -> None:
    async with Silent(3).running() as server, Mailer(server.url, max_connections=1) as mailer:
        for _ in range(3):
            accepted(await mailer.send(letter()))
    assert server.lines == [
        *("EHLO", "MAIL", "RCPT", "BDAT"),
        *["RSET", "MAIL", "RCPT", "BDAT"] * 2,
        "QUIT",
    ]
    assert len(server.segments) == 1 + 3 + 1


async def test_the_content_is_counted_and_its_dots_stay_as_they_are() -> None:
    message = letter()
    async with Silent(1).running() as server, Mailer(server.url) as mailer:
        accepted(await mailer.send(message))
    assert server.contents == [message.as_bytes()]
    assert b"\r\n.a dot\r\n" in server.contents[0]


async def test_in_gather_and_in_send_many_a_session_has_one_message_in_flight_at_a_time() -> None:
    async with Silent(20).running() as server, Mailer(server.url, max_connections=1) as mailer:
        await asyncio.gather(*map(mailer.send, letters(10)))
        results = [each.outcome async for each in mailer.send_many(letters(10))]
    assert results == ["accepted"] * 10
    assert server.most_in_flight == 1
    assert len(server.segments) == 1 + 20 + 1


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"Subject: x\r\n\r\na\nb\r\n", "bare CR or LF"),
        (b"Subject: x\r\n\r\na\rb\r\n", "bare CR or LF"),
        (b"Subject: x\r\n\r\n\r\n.\n", "bare CR or LF"),
    ],
)
async def test_content_with_a_bare_line_end_is_refused_before_an_octet_of_it_is_said(
    musts: Musts, octets: bytes, why: str
) -> None:
    envelope = Envelope(ADA, ("bob@example.org",))
    bare = Content([octets, b"\r\n"], message_id="<1@example.com>")
    server = chunking()
    async with talking_to(server, musts) as mailer:
        with pytest.raises(MessageError, match=why):
            await mailer.transport.send(envelope, bare)
        assert said(server) == ["EHLO"]
        accepted(await send(musts, mailer))


# Where it waits


@pytest.mark.parametrize(
    "fields",
    [{"attach": LARGE}, {"recipients": 2, "all_recipients": True}],
    ids=["large", "all_recipients"],
)
async def test_f50_what_would_be_in_vain_waits_for_the_replies_to_its_recipients(
    musts: Musts, fields: dict[str, t.Any]
) -> None:
    server = chunking(rcpt=EachConnection(["550 5.1.1 who?"]))
    async with talking_to(server, musts) as mailer:
        message = tokened(token := musts.token(), fields.get("recipients", 1))
        if "attach" in fields:
            message.attach("a.bin", data=fields["attach"])
        sending = mailer.send(message, all_recipients=fields.get("all_recipients", False))
        result = await musts.outcome_of(sending, token=token)
        rejected(result, RecipientsRejected, stage="rcpt", retryable=False, code=550)
        assert "BDAT" not in said(server)
        assert "DATA" not in said(server)


async def test_a_large_content_is_one_chunk_behind_the_replies(musts: Musts) -> None:
    server = chunking()
    async with talking_to(server, musts) as mailer:
        message = tokened(token := musts.token())
        message.attach("a.bin", data=LARGE)
        accepted(await musts.outcome_of(mailer.send(message), token=token))
        assert said(server) == ["EHLO", "MAIL", "RCPT", "BDAT"]
        assert server.messages[0].content == message.as_bytes()
        await assert_kept(musts, server, mailer)


async def test_chunking_alone_is_said_in_lock_step(musts: Musts) -> None:
    """FaultServer objects to a command that comes before the reply to the one before."""
    alone = tuple(each for each in OFFERS if each != "PIPELINING")
    for options in ({"extensions": alone}, {"extensions": OFFERS}):
        pipelining = "PIPELINING" not in options["extensions"]
        server = FaultServer(**options)
        async with talking_to(server, musts, pipelining=pipelining) as mailer:
            accepted(await send(musts, mailer, 2))
            accepted(await send(musts, mailer))
        assert said(server) == [
            *("EHLO", "MAIL", "RCPT", "RCPT", "BDAT"),
            *("MAIL", "RCPT", "BDAT", "QUIT"),
        ]


async def test_in_lock_step_nothing_is_written_before_a_reply() -> None:
    """The silent server gets a MAIL, and no more."""
    server = Silent(1, extensions="CHUNKING")
    async with server.running(), Mailer(server.url, command_timeout=0.1) as mailer:
        with pytest.raises(TimeoutError):
            await mailer.send(letter())
    assert set(server.lines) == {"EHLO", "MAIL"}


@pytest.mark.parametrize(
    ("options", "verb"),
    [({"chunking": False}, "DATA"), ({"chunking": False, "pipelining": False}, "DATA")],
)
async def test_chunking_can_be_switched_off(
    musts: Musts, options: dict[str, t.Any], verb: str
) -> None:
    server = chunking()
    async with talking_to(server, musts, **options) as mailer:
        accepted(await send(musts, mailer))
        assert said(server)[1:] == ["MAIL", "RCPT", verb]


@pytest.mark.parametrize("offered", ["before", "after"])
async def test_f29_chunking_is_what_is_offered_after_tls(
    musts: Musts, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, offered: str
) -> None:
    ehlo = [
        "250 fault.test\nSTARTTLS\nPIPELINING" + "\nCHUNKING" * (offered == "before"),
        "250 fault.test\nPIPELINING" + "\nCHUNKING" * (offered == "after"),
    ]
    server = FaultServer(tls=server_tls, ehlo=ehlo)
    async with talking_to(server, musts, tls="starttls", ssl_context=client_tls) as mailer:
        accepted(await send(musts, mailer))
        assert said(server)[-1] == ("BDAT" if offered == "after" else "DATA")


# A session that may be gone


def second(action: Action) -> Script:
    """Do that at the second coming of the first connection."""
    return ByConnection({1: EachConnection({2: action})})


@in_every_mode
@pytest.mark.parametrize("end", [Reset(), Close()], ids=["rst", "fin"])
async def test_f45b_a_session_gone_without_a_word_costs_a_round_trip_and_no_message(
    musts: Musts, clock: Clock, mode: Mode, end: t.Any
) -> None:
    """It is gone when its first octets come, as the server of one that was rebooted is."""
    server = chunking(mail=second(end))
    async with talking_to(server, musts, **PATIENT, **mode.settings) as mailer:
        accepted(await send(musts, mailer))
        await clock.advance(FRESH_SECONDS + 0.1)
        accepted(await send(musts, mailer), attempts=1)
        assert (server.connections, len(server.messages)) == (2, 2)
        assert mailer.stats().reconnects == 1
        on_stale = [each.line for each in server.commands if each.connection == 1]
        bodies = [line for line in on_stale if line.startswith(("BDAT", "DATA"))]
        assert len(bodies) == 1, "nothing but the envelope was said on the stale one"


async def test_f45b_in_send_many_too(musts: Musts, clock: Clock) -> None:
    server = chunking(mail=second(Reset()))
    async with talking_to(server, musts, **PATIENT, pipeline_depth=8, max_connections=1) as mailer:
        accepted(await send(musts, mailer))
        await clock.advance(FRESH_SECONDS + 0.1)
        tokens = [musts.token() for _ in range(20)]
        async for result in mailer.send_many(map(tokened, tokens)):
            token = str(result.message.recipients[0]).partition("+")[0]
            await musts.outcome_of(_given(result), token=token)
        assert set(musts.outcomes.values()) == {"accepted"}
        assert len(server.messages) == 21


async def _given(result: t.Any) -> t.Any:
    if result.error is not None:
        raise result.error
    return result.receipt


async def test_a_server_heard_of_within_a_second_gets_it_at_once_and_may_leave_it_unknown(
    musts: Musts, clock: Clock
) -> None:
    """That is the price of the one round trip."""
    async with talking_to(chunking(mail=second(Reset())), musts, **PATIENT) as mailer:
        accepted(await send(musts, mailer))
        await clock.advance(FRESH_SECONDS - 0.5)
        unknown(await send(musts, mailer))
        assert mailer.stats().reconnects == 0


# A source that changes


class Changing:
    """Octets whose number is not what they said."""

    def __init__(self, announced: int, *pieces: bytes) -> None:
        self._announced, self._pieces = announced, pieces

    def __len__(self) -> int:
        return self._announced

    def chunks(self) -> Iterator[bytes]:
        yield from self._pieces


@pytest.mark.parametrize("size", [1000, 400_000])
@pytest.mark.parametrize("change", [-10, 10], ids=["shrinks", "grows"])
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "lock_step"])
async def test_f62b_of_content_that_changed_the_last_octet_is_never_written(
    musts: Musts, size: int, change: int, pipelining: bool
) -> None:
    block = (b"x" * 62 + b"\r\n") * 16
    pieces = [block] * (size // len(block)) + [b"y" * (size % len(block) - 2 + change) + b"\r\n"]
    content = Content(
        [b"Subject: x\r\n\r\n", Changing(size, *pieces)],
        message_id="<1@example.com>",
    )
    server = chunking()
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        with pytest.raises(InvalidAttachment):
            await mailer.transport.send(Envelope(ADA, ("bob@example.org",)), content)
        await server.all_closed()
        assert not server.messages
        assert not server.violations
        accepted(await send(musts, mailer))
        assert server.connections == 2


@pytest.mark.parametrize("size", [1000, 400_000])
async def test_f62b_a_source_that_fails_is_the_reason(musts: Musts, size: int) -> None:
    class Failing(Changing):
        def chunks(self) -> Iterator[bytes]:
            yield b"x\r\n" * 100
            raise OSError("the disk is gone")

    content = Content(
        [b"Subject: x\r\n\r\n", Failing(size)],
        message_id="<1@example.com>",
    )
    server = chunking()
    async with talking_to(server, musts) as mailer:
        with pytest.raises(InvalidAttachment) as caught:
            await mailer.transport.send(Envelope(ADA, ("bob@example.org",)), content)
        assert isinstance(caught.value.__cause__, OSError)
        await server.all_closed()
        assert not server.messages


# What the server says to the content


@pytest.mark.parametrize("attached", [0, 300_000], ids=["small", "large"])
@pytest.mark.parametrize(
    ("reply", "kind", "retryable"),
    [("552 5.3.4 too large", MessageTooLarge, False), ("451 4.3.0 later", MessageRejected, True)],
)
async def test_f60_an_early_reply_in_the_content_is_the_answer(
    musts: Musts, attached: int, reply: str, kind: type[MessageRejected], retryable: bool
) -> None:
    server = chunking(body=[Early(reply, after=100), OK])
    async with talking_to(server, musts) as mailer:
        message = tokened(token := musts.token())
        if attached:
            message.attach("a.bin", data=LARGE)
        result = await musts.outcome_of(mailer.send(message), token=token)
        # Of a small one the reply is indistinguishable from one to all of it.
        stages = {"final"} if not attached else {"body", "final"}
        assert type(result) is kind
        assert (result.stage in stages, result.retryable) == (True, retryable)
        accepted(await send(musts, mailer))


@pytest.mark.parametrize("code", [500, 502, 503, 504])
@pytest.mark.parametrize("attached", [False, True], ids=["small", "large"])
async def test_bdat_that_is_offered_and_not_known_is_said_once_in_the_life_of_a_pool(
    musts: Musts, code: int, attached: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def no_bdat(moment: Moment) -> Script | None:
        said_last = server.commands[-1].line
        return f"{code} 5.5.1 what?" if said_last.startswith("BDAT") else None

    server = chunking(final=no_bdat)
    async with talking_to(server, musts) as mailer:
        message = tokened(token := musts.token())
        if attached:
            message.attach("a.bin", data=LARGE)
        accepted(await musts.outcome_of(mailer.send(message), token=token), attempts=2)
        for _ in range(3):
            accepted(await send(musts, mailer))
        assert said(server).count("BDAT") == 1
        assert said(server).count("DATA") == 4
        assert server.connections == 2
        assert caplog.text.count("answers badly to BDAT") == 1
        await mailer.aclose()
        async with mailer:
            accepted(await send(musts, mailer), attempts=2)
        assert said(server).count("BDAT") == 2, "a new pool asks anew"


@pytest.mark.parametrize("reply", ["500 5.5.1 what?", "451 4.3.0 later"])
async def test_f71_a_refused_rset_costs_the_session_and_not_the_message(
    musts: Musts, reply: str
) -> None:
    server = chunking(rset=[reply, OK])
    async with talking_to(server, musts) as mailer:
        for _ in range(3):
            accepted(await send(musts, mailer))
        assert said(server).count("RSET") == 1
        assert server.connections == 2
        assert len(server.messages) == 3


# Refusals


def content_said(server: FaultServer) -> int:
    return said(server).count("BDAT")


async def test_after_a_refusal_envelopes_go_ahead_of_their_content_for_a_minute(
    musts: Musts, clock: Clock
) -> None:
    server = chunking(rcpt="550 5.1.1 who?")
    async with talking_to(server, musts, **PATIENT) as mailer:

        async def refused() -> int:
            before = content_said(server)
            result = await send(musts, mailer)
            rejected(result, RecipientsRejected, stage="rcpt", retryable=False, code=550)
            return content_said(server) - before

        async def taken() -> None:
            server.change(rcpt=OK)
            accepted(await send(musts, mailer))
            server.change(rcpt="550 5.1.1 who?")

        assert await refused() == 1, "nothing was known of it"
        for _ in range(5):
            assert await refused() == 0
            await taken()  # the next one does not wait only because an envelope was left open
            assert await refused() == 0
        await taken()
        await clock.advance(WARY_SECONDS - 1)
        await taken()  # and has just been heard of
        assert await refused() == 0
        await clock.advance(2)
        await taken()
        assert await refused() == 1
        await taken()
        assert await refused() == 0
        assert server.connections == 1


async def test_content_for_nobody_that_was_taken_is_unknown_and_bdat_is_said_no_more(
    musts: Musts,
) -> None:
    server = chunking(rcpt=["550 5.1.1 who?", OK], final=["250 2.0.0 ok", OK])
    async with talking_to(server, musts) as mailer:
        unknown(await send(musts, mailer))
        assert content_said(server) == 1
        await server.all_closed()
        accepted(await send(musts, mailer))
        assert content_said(server) == 1


# Servers that lose what they did not wait for


class Forgetful:
    """Takes the first line of each segment; what came behind it is lost."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = {"EHLO": "250-here\r\n250-PIPELINING\r\n250 CHUNKING", "DATA": "354 go"}
        writer.write(b"220 here\r\n")
        verb = ""
        while segment := await reader.read(1 << 20):
            verb = "." if verb == "DATA" else segment.split()[0].decode()
            if verb == "QUIT":
                break
            if verb in {".", "BDAT"}:
                self.contents.append(segment)
            writer.write(f"{answers.get(verb, '250 ok')}\r\n".encode())
        writer.close()


@pytest.mark.parametrize("options", [{}, {"chunking": False}], ids=["chunked", "pipelined"])
async def test_a_server_that_loses_pipelined_commands_is_spoken_to_one_at_a_time(
    options: dict[str, t.Any], caplog: pytest.LogCaptureFixture
) -> None:
    server = Forgetful()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"smtp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    waits: dict[str, t.Any] = {"command_timeout": 0.15, "final_timeout": 0.15}
    async with listener, Mailer(url, max_connections=1, **waits, **options) as mailer:
        first = (await asyncio.gather(mailer.send(letter()), return_exceptions=True))[0]
        # Content that went at once may have been taken; content that did not was not sent.
        assert getattr(first, "outcome", None) == ("accepted" if options else "unknown")
        for _ in range(3):
            accepted(await mailer.send(letter()))
        assert caplog.text.count("answers badly to several commands") == 1
        assert len(server.contents) == 3 + bool(options)
        await mailer.aclose()
        async with mailer:
            again = (await asyncio.gather(mailer.send(letter()), return_exceptions=True))[0]
            assert getattr(again, "outcome", None) == getattr(first, "outcome", None)
