"""What FaultServer promises, seen from raw streams: nothing here is sent by amail itself."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import smtplib
import ssl
import time
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.testing import (
    OK,
    ByConnection,
    ByMessage,
    Bytes,
    Close,
    Delay,
    Drip,
    EachConnection,
    EachMessage,
    Early,
    FaultServer,
    HalfClose,
    Hang,
    Moment,
    Partial,
    Reset,
    Say,
    Script,
    Slow,
)
from amail.testing.content import ContentReader
from amail.testing.script import due, wire_form

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator

CANARY = "canary-pa55word"
MAIL, RCPT = b"MAIL FROM:<ada@example.com>\r\n", b"RCPT TO:<bob@example.org>\r\n"


class Client:
    """A client as blunt as tests need it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def write(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def reply(self) -> str:
        lines = []
        while True:
            line = (await self.reader.readuntil(b"\n")).decode()
            lines.append(line.rstrip("\r\n"))
            if line[3:4] != "-":
                return "\n".join(lines)

    async def say(self, *lines: bytes | str) -> str:
        """Send lines one after another; the reply to the last."""
        reply = ""
        for line in lines:
            octets = line.encode() if isinstance(line, str) else line.removesuffix(b"\r\n")
            self.write(octets + b"\r\n")
            reply = await self.reply()
        return reply

    async def to_data(self) -> str:
        return await self.say("EHLO client.test", MAIL, RCPT, "DATA")

    async def rest(self) -> bytes:
        return await self.reader.read()


@contextlib.asynccontextmanager
async def connected(
    server: FaultServer, context: ssl.SSLContext | None = None
) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        client.writer.transport.abort()
        with contextlib.suppress(OSError, TimeoutError):
            # A stream whose TLS handshake was cut off never says that it is closed.
            async with asyncio.timeout(1):
                await client.writer.wait_closed()


@contextlib.asynccontextmanager
async def greeted(server: FaultServer) -> AsyncIterator[Client]:
    async with connected(server) as client:
        assert (await client.reply()).startswith("220 ")
        yield client


# In good health


async def test_a_message_is_held_without_its_dot_stuffing() -> None:
    async with FaultServer() as server, greeted(server) as client:
        assert (await client.to_data()).startswith("354 ")
        reply = await client.say(b"Subject: hi\r\n\r\n..dots\r\n...\r\n.")
        assert reply == "250 2.0.0 ok, queued as F00001"
        assert (await client.say("QUIT")).startswith("221 ")
        assert await client.rest() == b""
        await server.all_closed()
    (message,) = server.messages
    assert message.content == b"Subject: hi\r\n\r\n.dots\r\n..\r\n"
    assert (message.reverse_path, message.forward_paths) == (
        "ada@example.com",
        ("bob@example.org",),
    )
    assert [command.line for command in server.commands][-2:] == ["DATA", "QUIT"]
    assert server.violations == []


async def test_smtplib_is_served_from_a_thread_of_its_own() -> None:
    with FaultServer.serve_in_thread() as server:
        with smtplib.SMTP(server.host, server.port, timeout=10) as client:
            client.sendmail("ada@example.com", ["bob@example.org"], "Subject: hi\n\nhello")
        assert server.messages[0].content == b"Subject: hi\r\n\r\nhello\r\n"
    assert server.open_connections == 0


async def test_pipelined_commands_are_answered_in_order() -> None:
    async with FaultServer(rcpt={2: "550 5.1.1 no such user"}) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        client.write(MAIL + RCPT + b"RCPT TO:<no@example.org>\r\nDATA\r\n")
        replies = [await client.reply() for _ in range(4)]
        assert [reply[:3] for reply in replies] == ["250", "250", "550", "354"]
        client.write(b"one\r\n.\r\n" + MAIL + RCPT + b"DATA\r\n")
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "250", "354"]
        await client.say(b"two\r\n.")
    assert [message.content for message in server.messages] == [b"one\r\n", b"two\r\n"]
    assert server.messages[0].forward_paths == ("bob@example.org",)
    assert server.violations == []


async def test_ehlo_offers_exactly_the_extensions_asked_for() -> None:
    async with FaultServer(extensions=("SIZE 100", "X-ODD")) as server, greeted(server) as client:
        lines = (await client.say("EHLO client.test")).split("\n")
    assert [line[4:] for line in lines[1:]] == ["SIZE 100", "X-ODD"]


async def test_a_message_over_the_offered_size_is_refused_at_mail_and_at_the_end() -> None:
    async with FaultServer(extensions=("SIZE 10",)) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        assert (await client.say("MAIL FROM:<a@example.com> SIZE=11")).startswith("552 5.3.4")
        assert (await client.to_data()).startswith("354")
        assert (await client.say(b"more than ten\r\n.")).startswith("552 5.3.4")
    assert server.messages == []


# Which action is due


def moment(**numbers: int) -> Moment:
    given = {"connection": 1, "message": 1, "nth": 1, "nth_in_connection": 1, "nth_in_message": 1}
    return Moment(stage="rcpt", line="", encrypted=False, **{**given, **numbers})


def test_a_list_goes_on_with_its_last_action() -> None:
    script: Script = ["421 busy", OK]
    assert [due(script, moment(nth=nth)) for nth in (1, 2, 3)] == [Say("421 busy"), OK, OK]


def test_a_mapping_names_the_times_that_are_different() -> None:
    assert [due({2: "450 no"}, moment(nth=nth)) for nth in (1, 2, 3)] == [OK, Say("450 no"), OK]


def test_scripts_count_in_each_message_or_connection_and_nest() -> None:
    third = EachMessage({3: "550 no"})
    assert due(third, moment(nth=9, nth_in_message=3)) == Say("550 no")
    assert due(third, moment(nth=3, nth_in_message=1)) == OK
    assert due(EachConnection({3: "421 no"}), moment(nth=9, nth_in_connection=3)) == Say("421 no")
    assert due(ByMessage({5: "550 no"}), moment(nth=9, message=5)) == Say("550 no")
    nested = ByConnection({2: third})
    assert due(nested, moment(connection=2, nth_in_message=3)) == Say("550 no")
    assert due(nested, moment(connection=1, nth_in_message=3)) == OK


def test_a_function_sees_the_moment_and_may_leave_it_at_ok() -> None:
    def script(at: Moment) -> str | None:
        return "550 no" if "bad" in at.line else None

    assert due(script, moment()) == OK
    bad = Moment("rcpt", 1, 1, 1, 1, 1, "RCPT TO:<bad@x>", encrypted=False)
    assert due(script, bad) == Say("550 no")


async def test_numbers_are_counted_by_connection_message_and_stage() -> None:
    seen: list[Moment] = []
    async with FaultServer(rcpt=seen.append) as server:
        for _ in range(2):
            async with greeted(server) as client:
                await client.say("EHLO client.test", MAIL, RCPT, RCPT, "RSET", MAIL, RCPT)
    numbers = [
        (at.connection, at.message, at.nth, at.nth_in_connection, at.nth_in_message) for at in seen
    ]
    assert numbers == [
        (1, 1, 1, 1, 1),
        (1, 1, 2, 2, 2),
        (1, 2, 3, 3, 1),
        (2, 3, 4, 1, 1),
        (2, 3, 5, 2, 2),
        (2, 4, 6, 3, 1),
    ]


def test_a_stage_that_does_not_exist_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match=r"no such stage: 'mial'.*mail, rcpt"):
        FaultServer({"mial": OK})  # type: ignore[dict-item]


def test_a_reply_without_a_code_is_an_error_that_names_bytes() -> None:
    with pytest.raises(ValueError, match=r"Bytes\("):
        Say("hello")


@given(
    st.integers(200, 599),
    st.lists(st.text(st.characters(codec="ascii", exclude_characters="\r\n"), min_size=1)),
)
def test_every_line_of_a_reply_carries_its_code_and_only_the_last_a_space(
    code: int, texts: list[str]
) -> None:
    lines = wire_form(f"{code} first\n" + "\n".join(texts) if texts else f"{code} first")
    *before, last, nothing = lines.decode().split("\r\n")
    assert nothing == ""
    assert last.startswith(f"{code} ")
    assert all(line.startswith(f"{code}-") for line in before)
    assert len(before) == len(texts)


async def test_a_script_can_be_changed_while_the_server_runs() -> None:
    async with FaultServer(mail="421 4.3.2 busy") as server, greeted(server) as client:
        assert (await client.say("EHLO client.test", MAIL)).startswith("421")
        server.change(mail=OK)
        assert (await client.say(MAIL)).startswith("250")


async def test_a_failing_script_is_raised_when_the_server_closes() -> None:
    def script(at: Moment) -> str:
        raise KeyError(at.stage)

    with pytest.raises(KeyError, match="greeting"):
        async with FaultServer(greeting=script) as server, connected(server) as client:
            assert await client.rest() == b""


def test_a_failing_script_is_raised_where_a_server_in_a_thread_is_left() -> None:
    def script(at: Moment) -> str:
        raise KeyError(at.stage)

    with pytest.raises(KeyError, match="noop"), FaultServer.serve_in_thread(noop=script) as server:
        client = smtplib.SMTP(server.host, server.port, timeout=10)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()


def test_a_server_in_a_thread_says_why_it_cannot_start() -> None:
    with FaultServer.serve_in_thread() as first, pytest.raises(OSError, match="in use"):

        class Second(FaultServer):
            async def start(self) -> None:
                self.port = first.port
                await super().start()

        with Second.serve_in_thread():
            pass


# What actions do


async def test_close_is_an_end_and_reset_an_error() -> None:
    async with FaultServer(mail=[Close(), Reset()]) as server:
        async with greeted(server) as client:
            await client.say("EHLO client.test")
            client.write(MAIL)
            assert await client.rest() == b""
        async with greeted(server) as client:
            await client.say("EHLO client.test")
            client.write(MAIL)
            with pytest.raises(ConnectionResetError):
                await client.rest()
        await server.all_closed()
    assert server.connections == 2


async def test_half_close_ends_its_side_and_reads_on() -> None:
    async with FaultServer(mail=HalfClose()) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        client.write(MAIL)
        assert await client.rest() == b""
        client.write(b"still talking\r\n" * 1000)
        await client.writer.drain()
        assert server.open_connections == 1
        client.writer.close()
        await server.all_closed()


async def test_partial_is_cut_off_in_the_middle_of_a_line() -> None:
    async with FaultServer(greeting=Partial("220 hel")) as server, connected(server) as client:
        assert await client.rest() == b"220 hel"


async def test_two_replies_come_in_one_segment() -> None:
    raw = b"250 ok\r\n421 and bye\r\n"
    async with FaultServer(mail=Bytes(raw)) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        client.write(MAIL)
        assert await client.reader.read(1000) == raw
        assert (await client.say(RCPT)).startswith("250")  # the first of the two counts


async def test_drip_comes_octet_by_octet_and_is_one_reply() -> None:
    async with FaultServer(noop=Drip("250 slow", every=0.001)) as server, greeted(server) as client:
        client.write(b"NOOP\r\n")
        assert await client.reader.read(1000) == b"2"
        assert await client.reply() == "50 slow"


async def test_a_delay_comes_before_what_it_delays() -> None:
    async with FaultServer(noop=Delay(0.05, then="451 late")) as server, greeted(server) as client:
        began = time.monotonic()
        assert await client.say("NOOP") == "451 late"
        assert time.monotonic() - began >= 0.05


async def test_an_action_is_followed_by_its_then() -> None:
    say = Say("421 4.3.2 closing", then=Close())
    async with FaultServer(mail=say) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        client.write(MAIL)
        assert await client.rest() == b"421 4.3.2 closing\r\n"


async def test_a_hanging_stage_goes_on_when_released() -> None:
    async with FaultServer(final=Hang()) as server, greeted(server) as client:
        await client.to_data()
        client.write(b"hello\r\n.\r\n")
        await server.reached("final")
        assert len(server.messages) == 1
        server.release()
        assert (await client.reply()).startswith("250")


async def test_a_client_that_leaves_ends_a_hang() -> None:
    async with FaultServer(mail=Hang()) as server:
        async with greeted(server) as client:
            await client.say("EHLO client.test")
            client.write(MAIL)
            await server.reached("mail")
            assert server.open_connections == 1
        await server.all_closed()


async def test_reached_waits_for_the_how_manieth_time() -> None:
    async with FaultServer() as server, greeted(server) as client:
        waiting = asyncio.create_task(server.reached("noop", times=2))
        await client.say("NOOP")
        assert not waiting.done()
        await client.say("NOOP")
        await waiting


# The content


async def test_an_early_reply_comes_once_and_the_rest_is_thrown_away() -> None:
    early = Early("552 5.3.4 enough", after=1000)
    async with FaultServer(body=early) as server, greeted(server) as client:
        await client.to_data()
        client.write(b"x" * 998 + b"\r\n")
        assert await client.reply() == "552 5.3.4 enough"
        client.write(b"the rest\r\n.\r\n")
        assert (await client.say("NOOP")).startswith("250")
    assert server.messages == []


@pytest.mark.parametrize("after", [0, 1, 70_000])
async def test_a_reset_in_the_body_comes_after_that_many_octets(after: int) -> None:
    async with FaultServer(body=Reset(after=after)) as server, greeted(server) as client:
        await client.to_data()
        if after:
            client.write(b"x" * (after - 1))
            await asyncio.sleep(0)
            client.write(b"x")
        with pytest.raises(ConnectionResetError):
            await client.rest()
        assert server.messages == []


async def test_an_action_in_the_body_comes_first_though_the_dot_has_arrived() -> None:
    async with FaultServer(body=Close(after=1)) as server, greeted(server) as client:
        await client.to_data()
        client.write(b"hello\r\n.\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == b""
    assert server.messages == []


async def test_an_action_beyond_the_end_of_the_content_never_comes() -> None:
    async with FaultServer(body=Close(after=1000)) as server, greeted(server) as client:
        await client.to_data()
        assert (await client.say(b"hello\r\n.")).startswith("250")


async def test_a_client_that_has_said_all_still_gets_its_replies() -> None:
    async with FaultServer() as server, greeted(server) as client:
        await client.to_data()
        client.write(b"hello\r\n.\r\nQUIT\r\n")
        client.writer.write_eof()
        assert (await client.rest()).decode().split("\r\n")[0].startswith("250 2.0.0 ok")
    assert len(server.messages) == 1


async def test_a_hang_in_the_body_closes_the_window_until_released() -> None:
    content = (b"x" * 70 + b"\r\n") * 200_000
    server = FaultServer(body=Hang(after=1000), receive_buffer=1 << 16)
    async with server, greeted(server) as client:
        await client.to_data()
        client.writer.transport.set_write_buffer_limits(high=0)
        client.write(content)
        await server.reached("body")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.writer.drain()
        server.release()
        client.write(b".\r\n")
        assert (await client.reply()).startswith("250")
    assert server.messages[0].content == content


async def test_a_stage_in_the_body_is_reached_when_its_octets_are_read() -> None:
    async with FaultServer(body=Hang(after=10)) as server, greeted(server) as client:
        await client.to_data()
        reached = asyncio.create_task(server.reached("body"))
        client.write(b"x" * 9)
        await client.writer.drain()
        assert not (await asyncio.wait({reached}, timeout=0.05))[0]
        client.write(b"x")
        await reached


async def test_all_closed_sees_the_end_of_a_client_it_was_not_reading() -> None:
    async with FaultServer(body=Hang(), receive_buffer=1 << 16) as server:
        async with greeted(server) as client:
            await client.to_data()
            client.write(b"x" * 1_000_000)
            await server.reached("body")
        await server.all_closed()


async def test_a_slow_body_takes_its_time() -> None:
    async with FaultServer(body=Slow(100_000)) as server, greeted(server) as client:
        await client.to_data()
        began = time.monotonic()
        await client.say((b"x" * 98 + b"\r\n") * 100 + b".")
        assert time.monotonic() - began >= 0.08


@pytest.mark.parametrize(
    ("final", "held"),
    [
        (OK, 1),
        (Close(), 1),
        (Partial("25"), 1),
        (Bytes(b"garbage\r\n", then=Close()), 1),
        ("451 4.3.0 later", 0),
        (Delay(0, then="554 5.7.1 no"), 0),
        (Bytes(b"250 ok\r\n421 bye\r\n"), 1),
    ],
)
async def test_a_message_is_held_unless_its_reply_says_no(final: t.Any, held: int) -> None:
    async with FaultServer(final=[final, OK]) as server:
        async with greeted(server) as client:
            await client.to_data()
            client.write(b"hello\r\n.\r\n")
            await client.reader.read(100)
        assert len(server.messages) == held


async def test_a_message_without_recipients_is_not_held_even_after_a_354() -> None:
    async with FaultServer(rcpt="550 no", data="354 go") as server, greeted(server) as client:
        await client.to_data()
        assert (await client.say(".")).startswith("554")
    assert server.messages == []


@given(st.data())
def test_a_content_is_read_the_same_in_pieces_of_any_size(data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.text("ab.\x00é", max_size=5).map(str.encode)))
    content = b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join((b"." if x.startswith(b".") else b"") + x + b"\r\n" for x in lines)
    wire = stuffed + b".\r\nNOOP\r\n"
    reader, rest, position = ContentReader(), None, 0
    while rest is None:
        size = data.draw(st.integers(1, 7))
        rest = reader.feed(wire[position : position + size])
        position += size
    assert reader.content == content
    assert rest + wire[position:] == b"NOOP\r\n"
    assert reader.objections == []
    assert reader.eight_bit == (not content.isascii())


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("content", "objection"),
    [
        (b"a\nb\r\n", "bare LF"),
        (b"\na\r\n", "bare LF"),
        (b"a\rb\r\n", "bare CR"),
        (b"a\r\r\n", "bare CR"),
        (b"x" * 999 + b"\r\n", "over 998"),
        (b"a\r\n.single\r\n", "single dot"),
    ],
)
def test_a_content_that_breaks_the_rules_is_objected_to(
    content: bytes, objection: str, size: int
) -> None:
    reader = ContentReader()
    wire = content + b".\r\n"
    pieces = [wire[i : i + size] for i in range(0, len(wire), size)]
    assert [reader.feed(piece) for piece in pieces][-1] == b""
    assert len(reader.objections) == 1
    assert objection in reader.objections[0]


def test_a_line_of_998_octets_is_no_offence() -> None:
    reader = ContentReader()
    reader.feed(b"x" * 500)
    reader.feed(b"x" * 498 + b"\r\n" + b"y" * 998 + b"\r\n.\r\n")
    assert reader.objections == []


# Violations


@pytest.mark.parametrize(
    ("sent", "violation"),
    [
        (b"EHLO client.test\nNOOP\r\n", "bare LF in a command"),
        (b"EHLO client\rtest\r\n", "bare CR in a command"),
        (b"MAIL FROM:<ada@example.com>\r\n", "MAIL before EHLO"),
        (b"NOOP\r\nNOOP\r\n", "before the reply to 'NOOP'"),
        (b"EHLO client.test\r\nNOOP\r\n", "before the reply to 'EHLO'"),
        (b"QUIT\r\nNOOP\r\n", "behind QUIT"),
        (b"WHAT\r\n", "unknown command"),
        (b"NOOP " + b"x" * 2000 + b"\r\n", "too long"),
    ],
)
async def test_what_a_client_does_wrong_is_noted(sent: bytes, violation: str) -> None:
    async with FaultServer() as server, greeted(server) as client:
        client.write(sent)
        await server.until(lambda: bool(server.violations))
    assert violation in server.violations[0]
    assert server.violations[0].startswith("connection 1: ")


@pytest.mark.parametrize(
    ("line", "violation"),
    [
        ("MAIL FROM: <ada@example.com>", "bad syntax"),
        ("MAIL FROM:<ada@example.com> BODY=8BITMIME", "parameter BODY, which is not offered"),
        ("MAIL FROM:<ada@example.com> RET=HDRS", "parameter RET, which is not offered"),
        ("MAIL FROM:<ädä@example.com>", "non-ASCII octets in MAIL"),
    ],
)
async def test_a_mail_command_that_breaks_the_rules_is_noted(line: str, violation: str) -> None:
    async with FaultServer(extensions=()) as server, greeted(server) as client:
        await client.say("EHLO client.test", line)
    assert [violation in sentence for sentence in server.violations] == [True]


async def test_content_sent_before_the_354_is_noted() -> None:
    async with FaultServer() as server, greeted(server) as client:
        await client.say("EHLO client.test", MAIL, RCPT)
        client.write(b"DATA\r\nhello\r\n.\r\n")
        await client.reply()
        assert (await client.reply()).startswith("250")
    assert "connection 1: content before the reply to DATA" in server.violations


async def test_eight_bit_content_needs_8bitmime() -> None:
    async with FaultServer() as server, greeted(server) as client:
        await client.to_data()
        await client.say("é\r\n.")
        assert server.violations == ["connection 1: 8-bit content without BODY=8BITMIME"]
        await client.say("MAIL FROM:<ada@example.com> BODY=8BITMIME", RCPT, "DATA", "é\r\n.")
    assert len(server.violations) == 1


# TLS and AUTH


def plain(user: str, password: str) -> str:
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


async def test_starttls_begins_the_session_anew(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with FaultServer(tls=server_tls, users={"ada": CANARY}) as server:
        async with greeted(server) as client:
            clear = await client.say("EHLO client.test")
            assert "STARTTLS" in clear
            assert "AUTH" not in clear
            assert (await client.say("STARTTLS")).startswith("220")
            await client.writer.start_tls(client_tls, server_hostname=server.host)
            assert (await client.say(MAIL)).startswith("503")
            encrypted = await client.say("EHLO client.test")
            assert "STARTTLS" not in encrypted
            assert "AUTH PLAIN LOGIN" in encrypted
            assert (await client.say("AUTH PLAIN " + plain("ada", CANARY))).startswith("235")
            await client.say(MAIL, RCPT, "DATA", "hello\r\n.")
        await server.all_closed()
    assert server.messages[0].encrypted
    assert server.messages[0].authenticated_as == "ada"
    assert [(line, encrypted) for _, line, encrypted in server.commands][:3] == [
        ("EHLO client.test", False),
        ("STARTTLS", False),
        (MAIL.decode().strip(), True),
    ]


async def test_implicit_tls_speaks_before_the_greeting(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    late = {"connect": Delay(0.02)}  # the ClientHello is there before the server looks
    async with FaultServer(t.cast("t.Any", late), tls=server_tls, implicit=True) as server:
        assert server.url == f"smtps://127.0.0.1:{server.port}"
        async with connected(server, client_tls) as client:
            assert (await client.reply()).startswith("220 ")
            assert (await client.say("QUIT")).startswith("221 ")
            assert await client.rest() == b""
        await server.all_closed()


@pytest.mark.parametrize("action", [Close(), Reset(), Hang()])
async def test_a_handshake_can_fail(server_tls: ssl.SSLContext, action: t.Any) -> None:
    async with FaultServer({"tls": action}, tls=server_tls) as server:
        async with greeted(server) as client:
            assert (await client.say("EHLO client.test", "STARTTLS")).startswith("220")
            await server.reached("tls")
            client.write(b"\x16\x03\x01")
            if not isinstance(action, Hang):
                with contextlib.suppress(ConnectionResetError):
                    assert await client.rest() == b""
        await server.all_closed()


async def test_a_client_that_does_not_trust_the_certificate_leaves_nothing_behind(
    server_tls: ssl.SSLContext,
) -> None:
    async with FaultServer(tls=server_tls, implicit=True) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            async with connected(server, ssl.create_default_context()):
                pass
        await server.all_closed()
        assert server.commands == []


async def test_clear_text_behind_starttls_is_noted_and_thrown_away(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with FaultServer(tls=server_tls) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        client.write(b"STARTTLS\r\nNOOP\r\n")
        assert (await client.reply()).startswith("220")
        assert any("behind STARTTLS" in sentence for sentence in server.violations)
        await client.writer.start_tls(client_tls, server_hostname=server.host)
        assert (await client.say("QUIT")).startswith("221")
    assert [command.line for command in server.commands] == ["EHLO client.test", "STARTTLS", "QUIT"]


async def test_a_client_hello_that_comes_early_is_kept_for_the_handshake(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    server = FaultServer({"tls": Delay(0.02)}, tls=server_tls)
    async with server, greeted(server) as client:
        await client.say("EHLO client.test", "STARTTLS")
        await client.writer.start_tls(client_tls, server_hostname=server.host)
        assert (await client.say("QUIT")).startswith("221")


async def test_tls_can_end_with_and_without_a_close_notify(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    endings = [Say("221 bye", then=Close()), Say("221 bye", then=Close(notify=False))]
    async with FaultServer(quit=endings, tls=server_tls, implicit=True) as server:
        for _ in endings:
            async with connected(server, client_tls) as client:
                await client.reply()
                await client.say("QUIT")
                assert await client.rest() == b""
        await server.all_closed()


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["AUTH PLAIN " + plain("ada", CANARY)], "235"),
        (["AUTH PLAIN", plain("ada", CANARY)], "235"),
        (["AUTH PLAIN " + plain("ada", "wrong")], "535"),
        (["AUTH PLAIN !"], "501"),
        (["AUTH PLAIN " + base64.b64encode(b"ada").decode()], "501"),
        (["AUTH XOAUTH2 eA=="], "504"),
        (
            [
                "AUTH LOGIN",
                base64.b64encode(b"ada").decode(),
                base64.b64encode(CANARY.encode()).decode(),
            ],
            "235",
        ),
    ],
)
async def test_auth_is_checked_and_its_secrets_are_not_kept(lines: list[str], code: str) -> None:
    async with FaultServer(users={"ada": CANARY}) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        assert (await client.say(*lines)).startswith(code)
    noted = " ".join(command.line for command in server.commands)
    assert all(secret.split(" ")[-1] not in noted for secret in lines if secret[-1] in "=!")
    assert noted.count("<redacted>") == len(lines) - (len(lines[0].split(" ")) == 2)


def bearer(token: str, *, rfc: bool = False) -> str:
    """The initial response of XOAUTH2, or that of RFC 7628."""
    start = "n,a=ada,\x01host=127.0.0.1\x01port=25" if rfc else "user=ada"
    return base64.b64encode(f"{start}\x01auth=Bearer {token}\x01\x01".encode()).decode()


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["AUTH XOAUTH2 " + bearer(CANARY)], "235"),
        (["AUTH xoauth2", bearer(CANARY)], "235"),
        (["AUTH OAUTHBEARER " + bearer(CANARY, rfc=True)], "235"),
        (["AUTH XOAUTH2 " + bearer("wrong")], "334"),
        (["AUTH XOAUTH2 " + bearer("wrong"), ""], "535"),
        (["AUTH OAUTHBEARER " + bearer("wrong", rfc=True), "AQ=="], "535"),
        (["AUTH XOAUTH2 " + bearer(CANARY, rfc=True)], "501"),
        (["AUTH OAUTHBEARER " + bearer(CANARY)], "501"),
        (["AUTH PLAIN " + plain("ada", CANARY)], "504"),
    ],
)
async def test_a_token_is_checked(lines: list[str], code: str) -> None:
    async with FaultServer(tokens={"ada": CANARY}) as server, greeted(server) as client:
        assert "AUTH XOAUTH2 OAUTHBEARER" in await client.say("EHLO client.test")
        assert (await client.say(*lines)).startswith(code)
        assert server.violations == []


async def test_only_the_mechanisms_written_into_the_extensions_are_offered() -> None:
    server = FaultServer(extensions=("AUTH LOGIN",), users={"ada": CANARY})
    async with server, greeted(server) as client:
        assert "AUTH LOGIN" in (await client.say("EHLO client.test")).split("\n")[-1]
        assert (await client.say("AUTH PLAIN " + plain("ada", CANARY))).startswith("504")


@pytest.mark.parametrize(
    ("lines", "violation"),
    [
        (["AUTH XOAUTH2 " + bearer("wrong"), "AQ=="], "XOAUTH2 is not answered with ''"),
        (["AUTH XOAUTH2 " + bearer("x" * 500), ""], "too long for a command"),
        (["AUTH XOAUTH2", bearer("x" * 10_000), ""], "response to a challenge too long"),
    ],
)
async def test_what_a_client_does_wrong_with_a_token_is_noted(
    lines: list[str], violation: str
) -> None:
    async with FaultServer(tokens={"ada": CANARY}) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        assert (await client.say(*lines)).startswith("535")
        assert [violation in sentence for sentence in server.violations] == [True]


async def test_mail_is_refused_before_a_required_auth() -> None:
    server = FaultServer(users={"ada": CANARY}, auth_required=True)
    async with server, greeted(server) as client:
        assert (await client.say("EHLO client.test", MAIL)).startswith("530")


async def test_a_scripted_challenge_is_repeated_for_each_line_of_the_client() -> None:
    server = FaultServer(auth=["334 !!", "334 !!", "535 5.7.8 no"])
    async with server, greeted(server) as client:
        reply = await client.say("EHLO client.test", "AUTH XOAUTH2 dG9rZW4=", "", "")
        assert reply == "535 5.7.8 no"
        assert (await client.say("NOOP")).startswith("250")


# Leaving


async def test_closing_leaves_no_task_and_no_connection_whatever_clients_do() -> None:
    before = asyncio.all_tasks()
    async with FaultServer(mail=Hang(), noop=Delay(60)) as server:
        clients = [await asyncio.open_connection(server.host, server.port) for _ in range(3)]
        clients[1][1].write(b"EHLO client.test\r\n" + MAIL)
        clients[2][1].write(b"NOOP\r\n")
        await server.reached("mail")
        await server.reached("noop")
    assert asyncio.all_tasks() == before
    assert server.open_connections == 0
    for _, writer in clients:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_closing_ends_a_handshake_that_never_ends(
    server_tls: ssl.SSLContext, hello: bytes
) -> None:
    before = asyncio.all_tasks()
    async with FaultServer(tls=server_tls, implicit=True) as server, connected(server) as client:
        client.write(hello)
        await server.reached("tls")
        async with asyncio.timeout(1):
            await server.aclose()
        assert asyncio.all_tasks() == before


async def test_a_server_comes_back_on_the_same_port() -> None:
    server = FaultServer()
    await server.start()
    port = server.port
    await server.aclose()
    await server.aclose()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(server.host, port)
    async with server, greeted(server):
        assert server.port == port
