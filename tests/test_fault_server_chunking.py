"""What FaultServer takes by BDAT (RFC 3030), seen from raw streams."""

from __future__ import annotations

import typing as t
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.testing import EXTENSIONS, OK, Bytes, Close, Early, FaultServer, Hang
from amail.testing.content import ChunkReader
from tests.strategies import EXAMPLES
from tests.test_fault_server import MAIL, RCPT, greeted

if t.TYPE_CHECKING:
    from tests.test_fault_server import Client

CONTENT = b"Subject: hi\r\n\r\n.a dot\r\n..\r\n.\r\n"


def chunking(*without: str, **script: t.Any) -> FaultServer:
    offered = [each for each in (*EXTENSIONS, "CHUNKING") if each not in without]
    return FaultServer(extensions=tuple(offered), **script)


async def begun(client: Client, *options: str) -> None:
    mail = b" ".join([MAIL.removesuffix(b"\r\n"), *(each.encode() for each in options)])
    assert (await client.say("EHLO client.test", mail, RCPT)).startswith("250")


async def chunk(client: Client, octets: bytes, *, last: bool = False) -> str:
    client.write(b"BDAT %d%s\r\n" % (len(octets), b" LAST" * last) + octets)
    return await client.reply()


# Taken


@pytest.mark.parametrize("cuts", [(), (1,), (0, 5), (11, 12, 13), (len(CONTENT),)])
async def test_chunks_make_one_content_wherever_they_were_cut(cuts: tuple[int, ...]) -> None:
    async with chunking() as server, greeted(server) as client:
        await begun(client)
        places = [0, *cuts, len(CONTENT)]
        pieces = [CONTENT[a:b] for a, b in pairwise(places)]
        for piece in pieces[:-1]:
            assert await chunk(client, piece) == f"250 2.0.0 {len(piece)} octets"
            assert server.messages == []
        assert await chunk(client, pieces[-1], last=True) == "250 2.0.0 ok, queued as F00001"
    (message,) = server.messages
    assert message.content == CONTENT
    assert (message.reverse_path, message.forward_paths) == (
        "ada@example.com",
        ("bob@example.org",),
    )
    assert server.violations == []


async def test_octets_of_a_chunk_may_come_one_by_one_and_commands_behind_them() -> None:
    async with chunking() as server, greeted(server) as client:
        await begun(client)
        for octet in b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT:
            client.write(bytes([octet]))
            await client.writer.drain()
        client.write(b"RSET\r\n" + MAIL + RCPT + b"BDAT 6 LAST\r\na: b\r\nNOOP\r\n")
        replies = [await client.reply() for _ in range(6)]
        assert [reply[:3] for reply in replies] == ["250"] * 6
    assert [message.content for message in server.messages] == [CONTENT, b"a: b\r\n"]
    assert server.violations == []


async def test_what_is_in_a_chunk_is_no_command() -> None:
    commands = b"QUIT\r\nRSET\r\n.\r\nBDAT 5\r\n"
    async with chunking() as server, greeted(server) as client:
        await begun(client)
        assert (await chunk(client, commands, last=True)).startswith("250")
        assert [each.line for each in server.commands][-1] == f"BDAT {len(commands)} LAST"
    assert server.messages[0].content == commands


async def test_rset_throws_away_the_chunks_that_came() -> None:
    async with chunking() as server, greeted(server) as client:
        await begun(client)
        await chunk(client, b"a: b\r\n")
        await client.say("RSET", MAIL, RCPT)
        await chunk(client, b"c: d\r\n", last=True)
    assert [message.content for message in server.messages] == [b"c: d\r\n"]


# Refused


async def test_the_chunk_of_a_refused_envelope_is_taken_off_the_wire_and_not_held() -> None:
    async with chunking(rcpt=["550 5.1.1 who?", OK]) as server, greeted(server) as client:
        await client.say("EHLO client.test")
        client.write(MAIL + RCPT + b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT + b"NOOP\r\n")
        replies = [(await client.reply())[:3] for _ in range(4)]
        assert replies == ["250", "550", "554", "250"]
        assert await chunk(client, CONTENT, last=True) == "554 5.5.1 no valid recipients"
        await client.say("RSET")
        assert await chunk(client, CONTENT, last=True) == "503 5.5.1 say MAIL first"
        assert await chunk(client, CONTENT) == "503 5.5.1 say MAIL first"
    assert server.messages == []
    assert server.violations == []


@pytest.mark.parametrize("final", [Close(), Bytes(b"25"), "250 2.0.0 taken all the same"])
async def test_content_for_nobody_is_held_for_nobody_whatever_is_said_of_it(final: t.Any) -> None:
    async with chunking(rcpt="550 5.1.1 who?", final=final) as server, greeted(server) as client:
        await client.say("EHLO client.test", MAIL, RCPT)
        client.write(b"BDAT 6 LAST\r\na: b\r\n")
        await server.reached("final")
    assert server.messages == []


@pytest.mark.parametrize("final", [Close(), "250 2.0.0 ok", Hang()])
async def test_what_came_as_a_whole_is_held_though_the_reply_does_not_come(final: t.Any) -> None:
    async with chunking(final=final) as server, greeted(server) as client:
        await begun(client)
        client.write(b"BDAT 6 LAST\r\na: b\r\n")
        await server.until(lambda: bool(server.messages))


async def test_a_chunk_can_be_refused_and_a_content_be_too_large() -> None:
    server = FaultServer(
        extensions=("SIZE 20", "PIPELINING", "CHUNKING"), chunk=["452 4.3.1 full", OK]
    )
    async with server, greeted(server) as client:
        await begun(client)
        assert await chunk(client, b"a: b\r\n") == "452 4.3.1 full"
        assert await chunk(client, b"a" * 18 + b"\r\n", last=True) == "552 5.3.4 message too large"
    assert server.messages == []


async def test_an_early_reply_is_the_only_one_to_a_chunk() -> None:
    early = [Early("552 5.3.4 no", after=10), OK]
    async with chunking(body=early) as server, greeted(server) as client:
        await begun(client)
        assert await chunk(client, CONTENT, last=True) == "552 5.3.4 no"
        assert (await client.say("NOOP")).startswith("250")
    assert server.messages == []


# Violations


@pytest.mark.parametrize(
    "line", ["BDAT", "BDAT x", "BDAT -1", "BDAT 5 FIRST", "BDAT  5", "BDAT 5 "]
)
async def test_bdat_with_bad_syntax_is_noted(line: str) -> None:
    async with chunking() as server, greeted(server) as client:
        await begun(client)
        assert (await client.say(line)).startswith("500")
    assert server.violations == ["connection 1: BDAT with bad syntax"]


async def test_bdat_that_is_not_offered_is_noted() -> None:
    async with FaultServer() as server, greeted(server) as client:
        await begun(client)
        assert (await client.say("BDAT 0 LAST")).startswith("500")
    assert server.violations == ["connection 1: BDAT is not offered"]


async def test_data_behind_bdat_is_noted() -> None:
    async with chunking() as server, greeted(server) as client:
        await begun(client)
        await chunk(client, b"a: b\r\n")
        assert (await client.say("DATA")).startswith("503")
    assert server.violations == ["connection 1: DATA behind BDAT"]


async def test_without_pipelining_a_command_behind_a_chunk_is_noted() -> None:
    async with chunking("PIPELINING") as server, greeted(server) as client:
        await begun(client)
        client.write(b"BDAT 6 LAST\r\na: b\r\nNOOP\r\n")
        assert [(await client.reply())[:3] for _ in range(2)] == ["250", "250"]
    assert server.violations == ["connection 1: command sent before the reply to 'BDAT'"]


async def test_eight_bit_chunks_need_8bitmime() -> None:
    octets = "é\r\n".encode()
    async with chunking() as server, greeted(server) as client:
        await begun(client)
        await chunk(client, octets, last=True)
        assert server.violations == ["connection 1: 8-bit content without BODY=8BITMIME"]
        await begun(client, "BODY=8BITMIME")
        await chunk(client, octets, last=True)
    assert len(server.violations) == 1


# The reader alone

_LINES = st.lists(st.text("ab.\x00é", max_size=5).map(str.encode))


@EXAMPLES
@given(_LINES, st.lists(st.integers(0, 60), max_size=5), st.integers(1, 7))
def test_a_content_is_read_the_same_in_chunks_and_pieces_of_any_size(
    lines: list[bytes], cuts: list[int], size: int
) -> None:
    content = b"".join(line + b"\r\n" for line in lines)
    places = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    reader = ChunkReader()
    for number, (begin, end) in enumerate(pairwise(places), 2):
        reader.expect(end - begin, last=number == len(places))
        wire, position = content[begin:end] + b"NOOP\r\n", 0
        rest = reader.feed(b"")
        assert (rest is None) == (begin < end)
        while rest is None:
            rest = reader.feed(wire[position : position + size])
            position += size
        assert rest + wire[position:] == b"NOOP\r\n"
    assert reader.content == content
    assert reader.received == len(content)
    assert reader.due == 0
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
        (b"a", "without CRLF"),
        (b"a\r\n.\r\nb", "without CRLF"),
    ],
)
def test_chunks_that_break_the_rules_are_objected_to(
    content: bytes, objection: str, size: int
) -> None:
    reader = ChunkReader()
    for start in range(0, len(content), size):
        piece = content[start : start + size]
        reader.expect(len(piece), last=start + size >= len(content))
        assert reader.feed(piece) == b""
    assert reader.content == content
    assert len(reader.objections) == 1
    assert objection in reader.objections[0]


@pytest.mark.parametrize("size", [1, 1000])
def test_a_content_that_ends_within_a_line_end_has_a_bare_one(size: int) -> None:
    reader = ChunkReader()
    content = b"a: b\r"
    for start in range(0, len(content), size):
        piece = content[start : start + size]
        reader.expect(len(piece), last=start + size >= len(content))
        reader.feed(piece)
    assert reader.content == content
    assert "bare CR in the content" in reader.objections


def test_lines_of_998_octets_are_no_offence_and_dots_are_not_looked_at() -> None:
    reader = ChunkReader()
    content = b"x" * 998 + b"\r\n.single\r\n.\r\n" + b"y" * 998 + b"\r\n"
    for start in range(0, len(content), 500):
        piece = content[start : start + 500]
        reader.expect(len(piece), last=start + 500 >= len(content))
        reader.feed(piece)
    assert reader.objections == []
