"""FAULTS.md, its rows from a name to the reply to EHLO that are not in test_faults_opening.py."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
import typing as t

import pytest

from amail import Mailer
from amail.errors import (
    ConfigError,
    ConnectError,
    ConnectionLost,
    ProtocolError,
    SendTimeout,
    ServerBusy,
)
from amail.testing import OK, Bytes, FaultServer, Hang, Partial, Say
from tests.smtp.outcomes import (
    accepted,
    assert_dropped,
    assert_kept,
    not_sent,
    said,
    send,
    talking_to,
)
from tests.smtp.test_faults_opening import black_hole

if t.TYPE_CHECKING:
    from tests.musts import Musts

NAMED = "smtp://mail.test:25"


class Resolver:
    """Stands for the system's: fails as it is told to, one time after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *results: BaseException | int) -> None:
        self.asked = 0
        self._results = list(results)
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, **options: t.Any) -> list[t.Any]:
        self.asked += 1
        result = self._results.pop(0) if len(self._results) > 1 else self._results[0]
        if isinstance(result, BaseException):
            raise result
        kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*kind, ("127.0.0.1", result))]


# DNS


async def test_f1_a_name_that_does_not_exist_is_permanent_after_being_asked_twice(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name not known"))
    async with Mailer(NAMED) as mailer:
        result = await send(musts, mailer)
    error = not_sent(result, ConnectError, stage="dns", retryable=False)
    assert "check the host name" in str(error)
    assert resolver.asked == 2


async def test_f1_a_name_that_exists_when_it_is_asked_again_is_used(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        Resolver(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name not known"), server.port)
        async with Mailer(NAMED) as mailer:
            accepted(await send(musts, mailer), attempts=2)


async def test_f2_a_resolver_that_cannot_answer_now_may_later(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch, socket.gaierror(socket.EAI_AGAIN, "Try again"))
    async with Mailer(NAMED) as mailer:
        not_sent(await send(musts, mailer), ConnectError, stage="dns", retryable=True)
    assert resolver.asked == 1


async def test_f3_a_resolver_that_never_answers_is_timed_out_and_its_thread_left_to_finish(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, asked, left = threading.Event(), [], threading.Semaphore(0)

    def hang(host: str, port: int, **options: t.Any) -> list[t.Any]:
        asked.append(host)
        release.wait(30)
        left.release()
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        async with Mailer(NAMED, connect_timeout=0.2) as mailer, musts.within(0.5):
            not_sent(await send(musts, mailer), SendTimeout, stage="dns", retryable=True)
        assert asked == ["mail.test", "mail.test"]
    finally:
        release.set()
    for _ in asked:
        assert await asyncio.to_thread(left.acquire, timeout=10)


# TCP


async def test_f5_a_black_hole_is_timed_out_at_connect_twice(musts: Musts) -> None:
    async with FaultServer() as server:
        pass
    with black_hole("127.0.0.1", server.port):
        async with Mailer(server.url, connect_timeout=0.2) as mailer, musts.within(0.5):
            not_sent(await send(musts, mailer), SendTimeout, stage="connect", retryable=True)


@pytest.fixture
def failing_connects(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[int], None]:
    def fail_with(number: int) -> None:
        def connect(self: object, *arguments: object) -> t.NoReturn:
            raise OSError(number, os.strerror(number))

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "sock_connect", connect, raising=False)

    return fail_with


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENETUNREACH, "Network is unreachable"),
        (errno.EHOSTUNREACH, "No route to host"),
        (errno.EMFILE, "too many files open"),
    ],
)
async def test_f7_what_the_system_refuses_is_a_connect_error_to_try_again_later(
    musts: Musts,
    failing_connects: t.Callable[[int], None],
    number: int,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing_connects(number)
    async with Mailer("smtp://127.0.0.1:25") as mailer:
        result = await send(musts, mailer)
    error = not_sent(result, ConnectError, stage="connect", retryable=True)
    assert words in str(error)
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert bool(errors) is (number == errno.EMFILE)


async def test_f8_a_source_address_this_machine_does_not_have_is_a_config_error(
    musts: Musts,
) -> None:
    async with (
        FaultServer() as server,
        Mailer(server.url, source_address="203.0.113.7") as mailer,
    ):
        result = await send(musts, mailer)
    assert isinstance(result, ConfigError), repr(result)
    assert "source_address" in str(result)


async def test_f8_a_source_address_it_has_is_used(musts: Musts) -> None:
    server = FaultServer()
    async with talking_to(server, musts, source_address="127.0.0.2") as mailer:
        accepted(await send(musts, mailer))
        (session,) = server._sessions
        assert session.wire._socket.getpeername()[0] == "127.0.0.2"


# Greeting and EHLO


@pytest.mark.parametrize("stage", ["greeting", "ehlo"])
async def test_f14_half_a_reply_and_the_end_is_a_connection_lost_after_two_tries(
    musts: Musts, stage: str
) -> None:
    script: t.Any = {stage: Partial("220 hel" if stage == "greeting" else "250-fau")}
    server = FaultServer(script)
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer)
        not_sent(result, ConnectionLost, stage=t.cast("t.Any", stage), retryable=True)
        assert server.connections == 2


async def test_f19_a_server_silent_at_ehlo_is_timed_out_twice(musts: Musts) -> None:
    server = FaultServer(ehlo=[Hang(), Hang(), OK])
    async with talking_to(server, musts, command_timeout=0.2) as mailer:
        async with musts.within(0.5):
            not_sent(await send(musts, mailer), SendTimeout, stage="ehlo", retryable=True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


async def test_f21_a_421_to_ehlo_is_a_busy_server(musts: Musts) -> None:
    server = FaultServer(ehlo=["421 4.3.2 closing", OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer)
        not_sent(result, ServerBusy, stage="ehlo", retryable=True, code=421)
        await assert_dropped(musts, server, mailer)


async def test_f21_an_ehlo_name_that_is_refused_is_named_with_what_to_set(musts: Musts) -> None:
    server = FaultServer(ehlo=["550 5.7.1 who are you", OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, ConnectError, stage="ehlo", retryable=False, code=550)
        assert "local_hostname" in str(error)
        await server.all_closed()
        assert server.connections == 1
        assert said(server) == ["EHLO", "QUIT"]


LONG = "250 fault.test\nPIPELINING\nSIZE 1000000\n"


@pytest.mark.parametrize(
    "reply",
    [
        LONG + "\n".join(f"X-EXTENSION-{number}" for number in range(120)),
        LONG + "X" * 200 + "\nX-" + "y" * 900,
        LONG + "X-\x1b[31mRED\x07\nX-\x00NUL\nX-\x85\x9b\nAUTH=\x7f",
    ],
    ids=["many", "long", "control_characters"],
)
async def test_f22_a_strange_list_of_extensions_is_understood_and_not_shown_as_it_is(
    musts: Musts, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = FaultServer(ehlo=Say(reply))
    async with talking_to(server, musts) as mailer:
        accepted(await send(musts, mailer))
        mail = next(each.line for each in server.commands if each.line.startswith("MAIL"))
        assert "SIZE=" in mail
        await assert_kept(musts, server, mailer)
    assert all(each.getMessage().isprintable() for each in caplog.records)


async def test_f22_more_than_any_server_has_to_say_is_no_reply(musts: Musts) -> None:
    reply = "250 fault.test\n" + "\n".join(f"X-EXTENSION-{number}" for number in range(5000))
    async with talking_to(FaultServer(ehlo=Say(reply)), musts) as mailer, musts.within(0.5):
        not_sent(await send(musts, mailer), ProtocolError, stage="ehlo", retryable=True)


@pytest.mark.parametrize("octets", [b"x", b"220-hello\r\n"], ids=["f17_one_line", "f18_many_lines"])
async def test_f17_f18_a_greeting_without_an_end_is_no_reply(musts: Musts, octets: bytes) -> None:
    server = FaultServer(greeting=Bytes(octets * 50_000, then=Hang()))
    async with talking_to(server, musts) as mailer:
        async with musts.within(1):
            result = await send(musts, mailer)
        not_sent(result, ProtocolError, stage="greeting", retryable=False)
        assert server.connections == 1
