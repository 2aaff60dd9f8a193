"""FAULTS.md, its rows from the first SYN to the reply to AUTH, against a scripted server."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import ipaddress
import re
import socket
import ssl
import typing as t

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from amail import Mailer
from amail.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLost,
    NotSent,
    ProtocolError,
    SendTimeout,
    ServerBusy,
    TLSError,
)
from amail.testing import (
    OK,
    ByConnection,
    Bytes,
    Close,
    FaultServer,
    Hang,
    Reset,
    Say,
)
from tests.messages import tokened
from tests.musts import PASSWORD
from tests.smtp.outcomes import (
    accepted,
    assert_dropped,
    assert_kept,
    not_sent,
    said,
    send,
    talking_to,
)

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from amail.smtp.settings import TLSMode
    from amail.testing import Script
    from tests.musts import Musts
    from tests.servers.authority import Authority


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


# TCP


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name resolve to these addresses, in this order."""

    def getaddrinfo(host: str, port: int, **options: t.Any) -> list[t.Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@contextlib.contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """Let SYNs to that place go unanswered: a listener whose backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect((address, port))
        yield


async def test_f4_a_refused_connection_is_a_connect_error_to_try_again_later(musts: Musts) -> None:
    async with FaultServer() as server:
        pass
    async with Mailer(server.url) as mailer, musts.within(1):
        error = not_sent(await send(musts, mailer), ConnectError, stage="connect", retryable=True)
    assert isinstance(error, ConnectionError)
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert error.relay == f"127.0.0.1:{server.port}"
    assert "refused" in str(error)


async def test_f4_the_next_address_is_tried_where_the_first_refuses(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer() as server, Mailer(f"smtp://mail.test:{server.port}") as mailer:
        musts.watch(server)
        resolves_to(monkeypatch, "127.0.0.2", "127.0.0.1")
        async with musts.within(0.2):
            accepted(await send(musts, mailer))
        await assert_kept(musts, server, mailer)


async def test_f6_a_black_holed_address_costs_a_quarter_of_a_second(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        FaultServer() as server,
        Mailer(f"smtp://mail.test:{server.port}", connect_timeout=1) as mailer,
    ):
        musts.watch(server)
        with black_hole("127.0.0.2", server.port):
            resolves_to(monkeypatch, "127.0.0.2")
            result = await send(musts, mailer)
            not_sent(result, SendTimeout, stage="connect", retryable=True)
            resolves_to(monkeypatch, "127.0.0.2", "127.0.0.1")
            async with musts.within(0.3):
                accepted(await send(musts, mailer))
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


# Greeting


async def test_f9_a_server_that_never_greets_is_timed_out_at_the_greeting_twice(
    musts: Musts,
) -> None:
    server = FaultServer(connect=[Hang(), Hang(), OK])
    async with talking_to(server, musts, command_timeout=0.2) as mailer:
        async with musts.within(0.5):
            result = await send(musts, mailer)
        error = not_sent(result, SendTimeout, stage="greeting", retryable=True)
        assert isinstance(error, TimeoutError)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


async def test_f9_the_second_try_is_accepted_where_the_server_greets_it(musts: Musts) -> None:
    server = FaultServer(connect=[Hang(), OK])
    async with talking_to(server, musts, command_timeout=0.2) as mailer:
        accepted(await send(musts, mailer), attempts=2)
        assert server.connections == 2


@pytest.mark.parametrize(
    "end", [pytest.param(Close(), id="f10_fin"), pytest.param(Reset(), id="f11_rst")]
)
@pytest.mark.parametrize("stage", ["connect", "greeting"])
async def test_f10_f11_a_connection_that_ends_before_the_greeting_is_lost_after_two_tries(
    musts: Musts, end: Close | Reset, stage: t.Literal["connect", "greeting"]
) -> None:
    server = FaultServer({stage: [end, end, OK]})
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, ConnectionLost, stage="greeting", retryable=True)
        assert isinstance(error, ConnectionError)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@pytest.mark.parametrize(
    "end", [pytest.param(Close(), id="f10_fin"), pytest.param(Reset(), id="f11_rst")]
)
async def test_f10_f11_the_second_try_is_accepted_where_the_server_stays(
    musts: Musts, end: Close | Reset
) -> None:
    server = FaultServer(connect=[end, OK])
    async with talking_to(server, musts) as mailer:
        accepted(await send(musts, mailer), attempts=2)
        assert server.connections == 2


async def test_f11_an_rst_that_comes_before_we_can_look_is_tried_again_too(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connect, resets = loop.sock_connect, [ConnectionResetError(errno.ECONNRESET, "reset")]

    async def reset_once(*arguments: t.Any) -> None:
        if resets:
            raise resets.pop()
        await connect(*arguments)

    monkeypatch.setattr(loop, "sock_connect", reset_once)
    async with talking_to(FaultServer(), musts) as mailer:
        accepted(await send(musts, mailer), attempts=2)


async def test_f12_a_greeting_of_554_is_a_connect_error_with_its_reply_and_not_tried_again(
    musts: Musts,
) -> None:
    server = FaultServer(greeting=["554 5.3.2 no mail here", OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, ConnectError, stage="greeting", retryable=False, code=554)
        assert error.reply
        assert (error.reply.enhanced, error.reply.text) == ("5.3.2", "no mail here")
        assert server.connections == 1
        await server.all_closed()
        assert mailer.stats().open == 0
        assert "MAIL" not in said(server)


async def test_f13_too_many_connections_leave_the_only_sender_with_a_busy_server(
    musts: Musts,
) -> None:
    server = FaultServer(greeting=["421 4.7.0 too many connections", OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer)
        not_sent(result, ServerBusy, stage="greeting", retryable=True, code=421)
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


async def test_f13_with_another_session_open_the_sender_waits_for_it_before_all_others(
    musts: Musts,
) -> None:
    server = FaultServer(
        greeting=ByConnection({2: "421 4.7.0 too many connections"}), mail={1: Hang()}
    )
    async with talking_to(server, musts, max_connections=2) as mailer:
        tokens = [musts.token() for _ in range(3)]
        async with asyncio.TaskGroup() as senders:
            sending = []
            for token in tokens:
                one = musts.outcome_of(mailer.send(tokened(token)), token=token)
                sending.append(senders.create_task(one))
                # The first has a session, the second asks for one, the third waits in the queue.
                await server.reached("mail")
            await server.reached("greeting", 2)
            await server.until(lambda: server.open_connections == 1)
            assert mailer.stats().waiting == 2
            server.release()
        for each in sending:
            accepted(each.result())
        assert server.connections == 2
        paths = [message.forward_paths[0] for message in server.messages]
        assert paths == [f"{token}+1@example.org" for token in tokens]


class End(t.NamedTuple):
    """What a fault comes to."""

    kind: type[NotSent]
    retryable: bool
    code: int | None
    connections: int


@pytest.mark.parametrize(
    ("greeting", "end"),
    [
        pytest.param(Hang(), End(SendTimeout, True, None, 2), id="f9"),
        pytest.param(Close(), End(ConnectionLost, True, None, 2), id="f10"),
        pytest.param(Reset(), End(ConnectionLost, True, None, 2), id="f11"),
        pytest.param(Say("554 5.3.2 no mail here"), End(ConnectError, False, 554, 1), id="f12"),
        pytest.param(Say("421 4.7.0 too many"), End(ServerBusy, True, 421, 1), id="f13"),
    ],
)
async def test_f9_to_f13_inside_tls_a_fault_of_the_greeting_is_told_from_one_of_the_handshake(
    musts: Musts, authority: Authority, greeting: Hang | Close | Reset | Say, end: End
) -> None:
    tls = authority.server_context()
    async with (
        FaultServer(greeting=greeting, tls=tls, implicit=True) as server,
        Mailer(server.url, ca_file=authority.file, command_timeout=0.4) as mailer,
    ):
        musts.watch(server, tls_required=True)
        result = await send(musts, mailer)
        not_sent(result, end.kind, stage="greeting", retryable=end.retryable, code=end.code)
        assert server.connections == end.connections
        await server.all_closed()
        assert mailer.stats().open == 0


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", id="http"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", id="ssh"),
        pytest.param(b"\x00\x01\x02\xff\xfe\r\n", id="binary"),
        pytest.param(b"* OK [CAPABILITY IMAP4rev1] ready\r\n", id="imap"),
    ],
)
async def test_f15_another_protocol_on_the_port_is_named_and_not_tried_again(
    musts: Musts, octets: bytes
) -> None:
    server = FaultServer(greeting=[Bytes(octets, Hang()), OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, ProtocolError, stage="greeting", retryable=False)
        assert "does not speak SMTP on this port" in str(error)
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


@pytest.mark.parametrize("octets", [b"220 fault.test ESMTP\n", b"220fault.test\r\n", b"220\r\n"])
async def test_f48_a_greeting_that_is_only_untidy_is_taken(musts: Musts, octets: bytes) -> None:
    server = FaultServer(greeting=Bytes(octets))
    async with talking_to(server, musts) as mailer:
        accepted(await send(musts, mailer))
        await assert_kept(musts, server, mailer)


# TLS


async def test_f16_tls_from_the_start_towards_a_plain_port_names_the_other_way(
    musts: Musts,
) -> None:
    # What the server makes of a ClientHello is no fault of ours, so it is not watched.
    async with FaultServer() as server, Mailer(f"smtps://127.0.0.1:{server.port}") as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, TLSError, stage="tls", retryable=False)
        assert "use smtp:// and STARTTLS" in str(error)
        assert server.connections == 1
        await server.all_closed()
        assert "MAIL" not in said(server)


async def test_f16_a_port_that_waits_for_tls_is_named_where_no_greeting_comes(
    musts: Musts, authority: Authority
) -> None:
    tls = authority.server_context()
    async with (
        FaultServer(tls=tls, implicit=True) as server,
        Mailer(f"smtp://127.0.0.1:{server.port}", command_timeout=0.2) as mailer,
    ):
        musts.watch(server)
        async with musts.within(0.5):
            result = await send(musts, mailer)
        error = not_sent(result, SendTimeout, stage="greeting", retryable=True)
        assert "if that port speaks TLS first (465 does), use smtps://" in str(error)
        await server.all_closed()
        assert server.commands == []


@pytest.mark.parametrize("refusal", ["500 5.5.1 what?", "502 5.5.1 no EHLO here"])
async def test_f20_a_server_that_knows_only_helo_gets_the_message_without_extensions(
    musts: Musts, refusal: str
) -> None:
    server = FaultServer(ehlo=refusal)
    async with talking_to(server, musts) as mailer:
        accepted(await send(musts, mailer))
        assert said(server) == ["EHLO", "HELO", "MAIL", "RCPT", "DATA"]
        assert server.messages[0].mail_options == ()
        await assert_kept(musts, server, mailer)


async def test_f20_helo_does_not_do_where_tls_is_required(musts: Musts) -> None:
    async with (
        FaultServer(ehlo="502 5.5.1 no EHLO here") as server,
        Mailer(server.url, tls="starttls") as mailer,
    ):
        musts.watch(server, tls_required=True)
        not_sent(await send(musts, mailer), TLSError, stage="starttls", retryable=False)
        assert server.connections == 1
        await server.all_closed()


async def test_f20_helo_does_not_do_where_credentials_are_set(musts: Musts) -> None:
    server = FaultServer(ehlo="502 5.5.1 no EHLO here")
    async with talking_to(server, musts, username="ada", password=PASSWORD) as mailer:
        not_sent(await send(musts, mailer), AuthenticationError, stage="auth", retryable=False)
        assert server.connections == 1
        assert "MAIL" not in said(server)


async def test_f23_nothing_is_said_in_the_clear_where_starttls_is_not_offered(
    musts: Musts,
) -> None:
    async with (
        FaultServer(users={"ada": PASSWORD}) as server,
        Mailer(server.url, tls="starttls", username="ada", password=PASSWORD) as mailer,
    ):
        musts.watch(server, tls_required=True)
        error = not_sent(await send(musts, mailer), TLSError, stage="starttls", retryable=False)
        assert "does not offer STARTTLS" in str(error)
        await server.all_closed()
        assert server.connections == 1
        assert said(server) == ["EHLO"]


async def test_f24_starttls_refused_for_now_may_do_later(
    musts: Musts, authority: Authority
) -> None:
    starttls: Script = ["454 4.7.0 TLS not available", OK]
    async with (
        FaultServer(tls=authority.server_context(), starttls=starttls) as server,
        Mailer(server.url, tls="starttls", ca_file=authority.file) as mailer,
    ):
        musts.watch(server, tls_required=True)
        result = await send(musts, mailer)
        not_sent(result, TLSError, stage="starttls", retryable=True, code=454)
        assert server.connections == 1
        assert said(server) == ["EHLO", "STARTTLS"]
        await assert_dropped(musts, server, mailer)
        assert server.messages[0].encrypted


# Certificates


def untrusted(ca: trustme.CA) -> ssl.SSLContext:
    return server_context(trustme.CA().issue_cert("127.0.0.1"))


def expired(ca: trustme.CA) -> ssl.SSLContext:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    return server_context(ca.issue_cert("127.0.0.1", not_after=yesterday))


def not_yet_valid(ca: trustme.CA) -> ssl.SSLContext:
    tomorrow = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    return server_context(ca.issue_cert("127.0.0.1", not_before=tomorrow))


def of_another_host(ca: trustme.CA) -> ssl.SSLContext:
    return server_context(ca.issue_cert("mail.example.com", "127.0.0.2"))


def with_the_address_as_common_name_only(ca: trustme.CA) -> ssl.SSLContext:
    return server_context(ca.issue_cert("localhost", common_name="127.0.0.1"))


def self_signed(ca: trustme.CA) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    leaf = trustme.LeafCert(private, certificate.public_bytes(Encoding.PEM), [])
    return server_context(leaf)


CERTIFICATES = pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(untrusted, "unable to get local issuer certificate", id="untrusted"),
        pytest.param(expired, "certificate has expired", id="expired"),
        pytest.param(of_another_host, "IP address mismatch", id="wrong_host"),
        pytest.param(self_signed, "self[- ]signed certificate", id="self_signed"),
        pytest.param(with_the_address_as_common_name_only, "IP address mismatch", id="ip_not_san"),
        pytest.param(not_yet_valid, "not yet valid", id="not_yet_valid"),
    ],
)


@CERTIFICATES
@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_f27_a_bad_certificate_ends_the_session_before_a_secret_is_said(
    musts: Musts,
    authority: Authority,
    bad: Callable[[trustme.CA], ssl.SSLContext],
    reason: str,
    mode: TLSMode,
) -> None:
    with musts.not_counting():
        tls = bad(authority.ca)
    async with (
        FaultServer(tls=tls, implicit=mode == "implicit", users={"ada": PASSWORD}) as server,
        Mailer(
            server.url, tls=mode, ca_file=authority.file, username="ada", password=PASSWORD
        ) as mailer,
    ):
        musts.watch(server, tls_required=True)
        error = not_sent(await send(musts, mailer), TLSError, stage="tls", retryable=False)
        assert re.search(reason, str(error)), str(error)
        await server.all_closed()
        assert mailer.stats().open == 0
        assert server.connections == 1
        assert said(server) == (["EHLO", "STARTTLS"] if mode == "starttls" else [])


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_f27_a_good_certificate_is_the_only_difference(
    musts: Musts, authority: Authority, mode: TLSMode
) -> None:
    tls = authority.server_context()
    async with (
        FaultServer(
            tls=tls, implicit=mode == "implicit", users={"ada": PASSWORD}, auth_required=True
        ) as server,
        Mailer(
            server.url, tls=mode, ca_file=authority.file, username="ada", password=PASSWORD
        ) as mailer,
    ):
        musts.watch(server, tls_required=True)
        accepted(await send(musts, mailer))
        await assert_kept(musts, server, mailer)
        assert [message.authenticated_as for message in server.messages] == ["ada", "ada"]
        assert all(message.encrypted for message in server.messages)


# AUTH


async def test_f31_credentials_that_the_server_does_not_want_are_an_error_with_a_hint(
    musts: Musts,
) -> None:
    server = FaultServer()
    async with talking_to(server, musts, username="ada", password=PASSWORD) as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, AuthenticationError, stage="auth", retryable=False)
        assert "set tls" in str(error)
        await server.all_closed()
        assert server.connections == 1
        assert said(server) == ["EHLO", "QUIT"]
        assert mailer.stats().open == 0


async def test_f32_wrong_credentials_are_tried_once(musts: Musts) -> None:
    server = FaultServer(users={"ada": "another"})
    async with talking_to(server, musts, username="ada", password=PASSWORD) as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
        assert error.reply
        assert error.reply.enhanced == "5.7.8"
        await server.all_closed()
        assert server.connections == 1
        assert said(server) == ["EHLO", "AUTH", "QUIT"]
        assert mailer.stats().open == 0
