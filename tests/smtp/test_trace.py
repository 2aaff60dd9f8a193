"""What a trace shows of a session, and what it never does."""

from __future__ import annotations

import itertools
import logging
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import Mailer, Message
from amail.errors import ConnectError
from amail.smtp.trace import Trace
from amail.testing import OK, FaultServer
from tests.strategies import EXAMPLES

SECRET = "canary-pa55word"

# Client and server in turn, as (said by the client, octets).
OPENING = [
    (False, b"220 mx.example.com ESMTP\r\n"),
    (True, b"EHLO web.example.com\r\n"),
    (False, b"250-mx.example.com\r\n250-AUTH PLAIN LOGIN\r\n250 PIPELINING\r\n"),
    (True, b"AUTH LOGIN\r\n"),
    (False, b"334 VXNlcm5hbWU6\r\n"),
    (True, b"%s\r\n" % SECRET.encode()),
    (False, b"334 UGFzc3dvcmQ6\r\n"),
    (True, b"%s\r\n" % SECRET.encode()),
    (False, b"235 2.7.0 welcome %s\r\n" % SECRET.encode()),
]
WITH_DATA = [
    (True, b"MAIL FROM:<ada@example.com> SIZE=40\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"),
    (False, b"250 2.1.0 <ada@example.com> ok\r\n250 2.1.5 ok\r\n354 go on\r\n"),
    (True, b"Subject: %s\r\n\r\nAUTH PLAIN\r\n..\r\nRCPT TO:<eve@x.org>\r\n" % SECRET.encode()),
    # The next envelope stands behind the dot in one write.
    (True, b".\r\nMAIL FROM:<ada@example.com>\r\nRCPT TO:<carol@example.org>\r\n"),
    (False, b"250 2.0.0 queued as 1\r\n250 ok\r\n550 5.1.1 no carol@example.org here\r\n"),
]
WITH_BDAT = [
    (
        True,
        b"MAIL FROM:<>\r\nRCPT TO:<b@example.org>\r\nBDAT 12 LAST\r\n\r\n.\r\nDATA\r\n.BDAT 0\r\n",
    ),
    (False, b"250 ok\r\n250 ok\r\n250 2.0.0 ok\r\n250 ok\r\n"),
    (True, b"QUIT\r\n"),
]
WHOLE = [*OPENING, *WITH_DATA, *WITH_BDAT]

SHOWN = [
    "S: 220 mx.example.com ESMTP",
    "C: EHLO web.example.com",
    "S: 250-mx.example.com",
    "S: 250-AUTH PLAIN LOGIN",
    "S: 250 PIPELINING",
    "C: AUTH LOGIN",
    "S: 334 ***",
    "C: ***",
    "S: 334 ***",
    "C: ***",
    "S: 235 2.7.0 ***",
    "C: MAIL FROM:<a***@example.com> SIZE=40",
    "C: RCPT TO:<b***@example.org>",
    "C: DATA",
    "S: 250 2.1.0 <a***@example.com> ok",
    "S: 250 2.1.5 ok",
    "S: 354 go on",
    f"C: ({len(WITH_DATA[2][1])} octets of content)",
    "C: MAIL FROM:<a***@example.com>",
    "C: RCPT TO:<c***@example.org>",
    "S: 250 2.0.0 queued as 1",
    "S: 250 ok",
    "S: 550 5.1.1 no c***@example.org here",
    "C: MAIL FROM:<>",
    "C: RCPT TO:<b***@example.org>",
    "C: BDAT 12 LAST",
    "C: (12 octets of content)",
    "C: BDAT 0",
    "C: (0 octets of content)",
    "S: 250 ok",
    "S: 250 ok",
    "S: 250 2.0.0 ok",
    "S: 250 ok",
    "C: QUIT",
]


def traced(said: t.Iterable[tuple[bool, bytes]], **options: bool) -> list[str]:
    lines: list[str] = []
    trace = Trace(lines.append, **options)
    for by_client, octets in said:
        (trace.sent if by_client else trace.received)(octets)
    return lines


def test_a_trace_shows_what_both_sides_said_but_no_secret_no_content_and_no_address_in_full() -> (
    None
):
    assert traced(WHOLE) == SHOWN
    assert SECRET not in "".join(SHOWN)


@EXAMPLES
@given(st.data())
def test_it_makes_no_difference_how_the_octets_are_split(data: st.DataObject) -> None:
    pieces: list[tuple[bool, bytes]] = []
    for by_client, octets in WHOLE:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(octets) - 1), max_size=8)))
        bounds = [0, *cuts, len(octets)]
        pieces += [(by_client, octets[i:j]) for i, j in itertools.pairwise(bounds)]
    assert traced(pieces) == SHOWN


@EXAMPLES
@given(st.binary(max_size=60))
def test_no_octet_of_any_content_is_shown(content: bytes) -> None:
    stuffed = b"".join(
        b"." + line if line.startswith(b".") else line for line in content.splitlines(True)
    )
    stuffed += b"" if stuffed.endswith(b"\r\n") or not stuffed else b"\r\n"
    lines = traced(
        [(True, b"DATA\r\n"), (False, b"354 go on\r\n"), (True, stuffed + b".\r\nNOOP\r\n")]
    )
    assert lines[:2] + lines[3:] == ["C: DATA", "S: 354 go on", "C: NOOP"]
    chunk = b"BDAT %d LAST\r\n" % len(content)
    lines = traced([(True, chunk + content + b"NOOP\r\n")])
    assert lines[1:] == [f"C: ({len(content)} octets of content)", "C: NOOP"]


@EXAMPLES
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=30)), max_size=8))
def test_nothing_that_anybody_says_breaks_a_trace_or_a_line_of_the_log(
    said: list[tuple[bool, bytes]],
) -> None:
    assert all(line.isprintable() for line in traced(said))


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b'RCPT TO:<"a b"@example.org>\r\n', 'C: RCPT TO:<"***@example.org>'),
        (
            b"RCPT TO:<bob@x.org> ORCPT=rfc822;eve@y.org\r\n",
            "C: RCPT TO:<b***@x.org> ORCPT=rfc822;e***@y.org",
        ),
        ("RCPT TO:<jürgen@x.org>\r\n".encode(), "C: RCPT TO:<j***@x.org>"),
        (b"AUTH PLAIN AGFkYQBjYW5hcnk=\r\n", "C: AUTH PLAIN ***"),
        (b"auth xoauth2 dXNlcj1hZGE=\r\n", "C: auth xoauth2 ***"),
    ],
)
def test_a_command_is_shown_without_what_it_is_about(line: bytes, shown: str) -> None:
    assert traced([(True, line)]) == [shown]


def test_addresses_are_shown_where_that_is_asked_for() -> None:
    assert traced([(True, b"RCPT TO:<bob@x.org>\r\n")], show_addresses=True) == [
        "C: RCPT TO:<bob@x.org>"
    ]


def test_a_reply_that_was_read_elsewhere_is_shown_line_by_line() -> None:
    lines: list[str] = []
    Trace(lines.append).heard(250, "mx.example.com\nSIZE 10")
    assert lines == ["S: 250-mx.example.com", "S: 250 SIZE 10"]


# Over the wire


async def said_on_the_wire(
    caplog: pytest.LogCaptureFixture, *, fails: bool = False, **options: t.Any
) -> list[str]:
    """What the log has of one message that is sent with these options."""
    caplog.set_level(logging.DEBUG, "amail")
    script: dict[t.Any, t.Any] = {"greeting": "554 5.3.2 no"} if fails else {}
    async with (
        FaultServer(script, users={"ada": SECRET}) as server,
        Mailer(server.url, username="ada", password=SECRET, **options) as mailer,
    ):
        message = Message(SECRET, ["bob@example.org"], SECRET, sender="ada@example.com")
        if fails:
            with pytest.raises(ConnectError):
                await mailer.send(message)
        else:
            await mailer.send(message)
    assert SECRET not in caplog.text
    records = [each for each in caplog.records if each.name == "amail.smtp.trace"]
    assert all(each.levelno == logging.DEBUG for each in records)
    return [each.getMessage().split(" ", 2)[2] for each in records]


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("pipelining", [True, False])
async def test_a_session_is_traced_from_the_greeting_to_quit(
    caplog: pytest.LogCaptureFixture, chunking: bool, pipelining: bool
) -> None:
    lines = await said_on_the_wire(caplog, trace=True, chunking=chunking, pipelining=pipelining)
    said = [line.removeprefix("C: ") for line in lines if line.startswith("C: ")]
    assert said[0].startswith("EHLO ")
    assert said[1] == "AUTH PLAIN"
    assert any(line.startswith("MAIL FROM:<a***@example.com>") for line in said)
    assert "RCPT TO:<b***@example.org>" in said
    assert any(line.endswith(" octets of content)") for line in said)
    assert said[-1] == "QUIT"
    assert lines[0].startswith("S: 220 ")
    assert "bob@" not in caplog.text


async def test_a_greeting_that_refuses_is_traced(caplog: pytest.LogCaptureFixture) -> None:
    assert await said_on_the_wire(caplog, fails=True, trace=True) == ["S: 554 5.3.2 no"]


async def test_nothing_is_traced_unless_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    assert await said_on_the_wire(caplog) == []


@pytest.mark.parametrize("log_addresses", [True, False])
async def test_the_log_names_refused_recipients_in_full_only_where_that_is_asked_for(
    caplog: pytest.LogCaptureFixture, log_addresses: bool
) -> None:
    async with (
        FaultServer(rcpt=["550 5.1.1 no", OK]) as server,
        Mailer(server.url, log_addresses=log_addresses) as mailer,
    ):
        people = ["bob@example.org", "carol@example.org"]
        await mailer.send(Message("Hello", people, "Hi", sender="ada@example.com"))
    shown = "bob@example.org 550" if log_addresses else "b***@example.org 550"
    assert f"refused 1 of 2 recipients: {shown}" in caplog.text
