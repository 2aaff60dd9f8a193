"""Mailer: what an application calls, from where messages go to what comes of them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
import typing as t

import aiosmtplib
import pytest

from amail import (
    Address,
    AuthenticationError,
    ConfigError,
    ConnectError,
    Envelope,
    InvalidAddress,
    InvalidHeader,
    Limits,
    Mailer,
    MailerClosed,
    MailError,
    MemoryTransport,
    Message,
    MessageError,
    MessageTooLarge,
    NotSent,
    ProtocolError,
    Receipt,
    RecipientsRejected,
    Reply,
    SMTPSettings,
    SMTPTransport,
    UsageError,
    Vetoed,
)
from amail.smtp import session
from amail.testing import OK, Bytes, EachMessage, FaultServer
from amail.transports.base import PoolStats, Transport
from tests.messages import ADA, tokened
from tests.musts import PASSWORD, assert_no_canary

if t.TYPE_CHECKING:
    from amail.mime import Content
    from tests.musts import Musts

BOB = "bob@example.org"


def hello(**fields: t.Any) -> Message:
    return Message(
        **{"subject": "Hello", "sender": ADA, "recipients": [BOB], "body": "Hi Bob", **fields}
    )


class Recorder:
    """A Transport of the test's own, with no more than a Transport must have."""

    def __init__(self) -> None:
        self.sent: list[tuple[Envelope, Content, float | None]] = []
        self.closed = 0

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        self.sent.append((envelope, content, deadline))
        return Receipt(content.message_id, envelope, Reply(250, None, "ok"), envelope.forward_paths)

    async def aclose(self) -> None:
        self.closed += 1


def kept(mailer: Mailer) -> list[tuple[Envelope, Content]]:
    assert isinstance(mailer.transport, MemoryTransport)
    return [(each.envelope, each.content) for each in mailer.transport.messages]


def smtp_settings(mailer: Mailer) -> SMTPSettings:
    assert isinstance(mailer.transport, SMTPTransport)
    return mailer.transport.settings


# Where


async def test_a_memory_url_keeps_what_is_sent() -> None:
    async with Mailer("memory://") as mailer:
        receipt = await mailer.send(hello())
    ((envelope, content),) = kept(mailer)
    assert envelope == Envelope(ADA, (BOB,))
    assert b"Subject: Hello\r\n" in bytes(content)
    assert (receipt.outcome, receipt.accepted) == ("accepted", (BOB,))
    assert (receipt.relay, receipt.message_id) == ("memory", content.message_id)


async def test_an_smtp_url_sends_to_a_server(musts: Musts) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        token = musts.token()
        receipt = await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert isinstance(receipt, Receipt)
        assert receipt.relay == f"127.0.0.1:{server.port}"
        assert receipt.queue_id == "F00001"
        assert len(server.messages) == 1


async def test_settings_send_to_a_server(musts: Musts) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        settings = SMTPSettings("127.0.0.1", server.port)
        async with Mailer(settings) as mailer:
            token = musts.token()
            await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert smtp_settings(mailer) is settings
        assert len(server.messages) == 1


async def test_a_transport_of_ones_own_gets_envelope_content_and_deadline() -> None:
    recorder = Recorder()
    assert isinstance(recorder, Transport)
    async with Mailer(recorder) as mailer:
        await mailer.send(hello())
        before = time.monotonic()
        await mailer.send(hello(), timeout=60)
        after = time.monotonic()
    (first, second) = recorder.sent
    assert first[0] == Envelope(ADA, (BOB,))
    assert b"Hi Bob" in bytes(first[1])
    assert first[2] is None
    assert second[2] is not None
    assert before + 60 <= second[2] <= after + 60
    assert recorder.closed == 1


def test_options_beside_a_url_are_settings_and_win_over_it() -> None:
    mailer = Mailer("smtp://mx.example.org?max_connections=3", max_connections=7, tls="starttls")
    assert smtp_settings(mailer).max_connections == 7
    assert smtp_settings(mailer).relay == "mx.example.org:587"


def test_options_alone_are_a_place_if_they_name_one() -> None:
    mailer = Mailer(host="mx.example.org", username="u", password=PASSWORD)
    assert smtp_settings(mailer) == SMTPSettings("mx.example.org", username="u", password=PASSWORD)
    for options in ({}, {"port": 25}):
        with pytest.raises(ConfigError, match=r"^where: is missing"):
            Mailer(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "where",
    [
        *(5, b"smtp://h", object(), "", "smtp.example.com", "mx.example.org:25", "smtp:"),
        *("http://mx.example.org", "memory://x", "://", "smtp://", "smtp:/h", []),
    ],
)
def test_a_place_that_is_none_is_a_config_error(where: t.Any) -> None:
    with pytest.raises(ConfigError, match=r"^(where|url): "):
        Mailer(where)


def test_half_a_transport_is_none() -> None:
    class NoEnd:
        async def send(self) -> None:
            """Not enough."""

    with pytest.raises(ConfigError, match="an object with send and aclose"):
        Mailer(t.cast("Transport", NoEnd()))


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("max_conections", "max_connections"),
        ("usernam", "username"),
        ("conect_timeout", "connect_timeout"),
        ("zzz", None),
    ],
)
def test_an_unknown_keyword_is_refused_with_what_may_have_been_meant(
    option: str, meant: str | None
) -> None:
    options: dict[str, t.Any] = {option: PASSWORD}
    for where in ("smtp://mx.example.org", "memory://"):
        with pytest.raises(ConfigError, match=rf"^{option}: there is no such option") as caught:
            Mailer(where, **options)
        assert ("did you mean" in str(caught.value)) == (meant is not None)
        assert meant is None or f"did you mean {meant}?" in str(caught.value)
        assert_no_canary(str(caught.value), "the error")


@pytest.mark.parametrize("where", ["memory://", SMTPSettings(), Recorder(), MemoryTransport()])
def test_smtp_options_that_would_have_no_effect_are_refused(where: t.Any) -> None:
    with pytest.raises(ConfigError, match=r"^max_connections: SMTP options go with"):
        Mailer(where, max_connections=3)


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("smtp://u@mx.example.org", {}),
        ("smtp://mx.example.org", {"username": "u"}),
        ("smtp://mx.example.org", {"password": PASSWORD}),
    ],
)
def test_a_username_without_a_password_or_the_other_way_is_refused(
    where: str, options: dict[str, t.Any]
) -> None:
    with pytest.raises(ConfigError, match="is missing, while") as caught:
        Mailer(where, **options)
    assert_no_canary(str(caught.value), "the error")


@pytest.mark.parametrize("where", ["smtp://mx.example.org", "memory://"])
@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), None, "30", True])
def test_b107_a_timeout_that_is_none_is_refused(where: str, timeout: t.Any) -> None:
    with pytest.raises(ConfigError, match=r"^timeout: must be"):
        Mailer(where, timeout=timeout)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "30", True])
def test_b107_a_timeout_of_a_call_that_is_none_is_refused_at_the_call(timeout: t.Any) -> None:
    mailer = Mailer("memory://")
    with pytest.raises(ConfigError, match=r"^timeout: must be"):
        _ = mailer.send(hello(), timeout=timeout)
    assert kept(mailer) == []


async def test_from_env_reads_a_url_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_URL", "memory://")
    monkeypatch.setenv("OTHER_URL", f"smtp://u:{PASSWORD}@mx.example.org")
    async with Mailer.from_env(default_sender=ADA) as mailer:
        await mailer.send(hello(sender=None))
    assert kept(mailer)[0][0].reverse_path == ADA
    other = Mailer.from_env("OTHER_URL", max_connections=2)
    assert smtp_settings(other).password == PASSWORD
    assert smtp_settings(other).max_connections == 2


@pytest.mark.parametrize("value", [None, ""])
def test_from_env_without_the_variable_says_what_to_write(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("MAIL_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("MAIL_URL", value)
    with pytest.raises(ConfigError, match="write MAIL_URL=smtp://"):
        Mailer.from_env()


def test_no_repr_holds_credentials() -> None:
    mailer = Mailer(f"smtp://user:{PASSWORD}@mx.example.org")
    for text in (repr(mailer), str(mailer), repr(mailer.transport)):
        assert_no_canary(text, "a repr")
        assert "mx.example.org:587" in text


async def test_the_constructor_does_no_io_and_needs_no_loop() -> None:
    async with FaultServer() as server:
        mailer = await asyncio.to_thread(Mailer, server.url)
        assert server.connections == 0
        assert mailer.stats() == PoolStats()


# What is sent


@pytest.mark.parametrize(
    "sender", ["Ada <ada@example.com>", ("Ada", ADA), Address(ADA, name="Ada")]
)
async def test_the_default_sender_writes_what_names_no_sender(sender: t.Any) -> None:
    async with Mailer("memory://", default_sender=sender) as mailer:
        await mailer.send(hello(sender=None))
        await mailer.send(hello(sender="carl@example.org"))
    (first, second) = kept(mailer)
    assert first[0].reverse_path == ADA
    assert b"From: Ada <ada@example.com>\r\n" in bytes(first[1])
    assert second[0].reverse_path == "carl@example.org"


@pytest.mark.parametrize("sender", ["", "ada", "a@b, c@d", "a\r\n@b.c", ("a",), 5])
def test_a_default_sender_that_is_no_mailbox_is_a_config_error(sender: t.Any) -> None:
    with pytest.raises(ConfigError, match=r"^default_sender: "):
        Mailer("memory://", default_sender=sender)


async def test_what_is_sent_is_the_message_as_it_was_at_the_call() -> None:
    async with Mailer("memory://") as mailer:
        message = hello()
        message.attach("a.txt", "text/plain", b"first")
        sending = mailer.send(message)
        message.subject, message.body, message.sender = "Other", "Other", "eve@example.net"
        message.recipients.append("eve@example.net")
        message.bcc.append("eve@example.net")
        message.attachments.clear()
        message.extra_headers = {"X-Other": "1"}
        await sending
    ((envelope, content),) = kept(mailer)
    assert envelope == Envelope(ADA, (BOB,))
    octets = bytes(content)
    assert b"Subject: Hello\r\n" in octets
    assert b"Hi Bob" in octets
    assert b"a.txt" in octets
    assert b"ther" not in octets
    assert b"eve" not in octets


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"sender": None}, MessageError),
        ({"recipients": []}, MessageError),
        ({"recipients": ["bob"]}, InvalidAddress),
        ({"extra_headers": {"X-A": "a\r\nBcc: eve@example.net"}}, InvalidHeader),
        ({"body": "x" * 3000}, MessageTooLarge),
    ],
)
async def test_what_cannot_be_composed_is_refused_at_the_call_before_any_io(
    musts: Musts, fields: dict[str, t.Any], kind: type[MailError]
) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        async with Mailer(server.url, limits=Limits(message_size=2000)) as mailer:
            with pytest.raises(kind) as caught:
                _ = mailer.send(hello(**fields))
            assert isinstance(caught.value, MessageError)
            assert server.connections == 0
            assert mailer.stats() == PoolStats()


async def test_an_envelope_of_the_call_sends_elsewhere_than_the_message_says() -> None:
    async with Mailer("memory://") as mailer:
        await mailer.send(hello(), envelope=Envelope("", ("carl@example.org",)))
    ((envelope, content),) = kept(mailer)
    assert envelope == Envelope("", ("carl@example.org",))
    assert b"To: bob@example.org\r\n" in bytes(content)


@pytest.mark.parametrize(
    ("of_the_mailer", "of_the_call", "expected"),
    [
        (False, None, False),
        (True, None, True),
        (False, True, True),
        (True, False, False),
    ],
)
@pytest.mark.parametrize("envelope", [None, Envelope(ADA, (BOB,))])
async def test_all_recipients_is_said_for_a_mailer_or_for_a_call(
    of_the_mailer: bool, of_the_call: bool | None, expected: bool, envelope: Envelope | None
) -> None:
    async with Mailer("memory://", all_recipients=of_the_mailer) as mailer:
        await mailer.send(hello(), envelope=envelope, all_recipients=of_the_call)
    assert kept(mailer)[0][0].all_recipients is expected


async def test_with_all_recipients_one_refusal_stops_the_message(musts: Musts) -> None:
    async with FaultServer(rcpt=EachMessage([OK, "550 5.1.1 no", OK])) as server:
        musts.watch(server)
        async with Mailer(server.url) as mailer:
            token = musts.token()
            error = await musts.outcome_of(
                mailer.send(tokened(token, 3), all_recipients=True), token=token
            )
            assert isinstance(error, RecipientsRejected)
            assert [*error.refused] == [f"{token}+2@example.org"]
            token = musts.token()
            receipt = await musts.outcome_of(mailer.send(tokened(token, 3)), token=token)
            assert isinstance(receipt, Receipt)
            assert len(receipt.accepted) == 2


async def test_prepare_may_change_the_message_or_send_another() -> None:
    another = hello(subject="Another")

    def prepare(message: Message) -> Message:
        if message.subject == "Hello":
            return another
        message.subject = f"[staging] {message.subject}"
        return message

    async with Mailer("memory://", prepare=prepare) as mailer:
        await mailer.send(hello())
        await mailer.send(hello(subject="Other"))
    first, second = [bytes(content) for _, content in kept(mailer)]
    assert b"Subject: Another\r\n" in first
    assert b"Subject: [staging] Other\r\n" in second


async def test_prepare_stops_a_message_at_the_call_by_raising_vetoed() -> None:
    def prepare(message: Message) -> Message:
        raise Vetoed("not on a Sunday")

    async with Mailer("memory://", prepare=prepare) as mailer:
        with pytest.raises(Vetoed, match="not on a Sunday") as caught:
            _ = mailer.send(hello())
        assert caught.value.outcome == "not_sent"
        assert kept(mailer) == []


# One after another


async def test_connect_sends_over_one_session(musts: Musts) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        async with mailer.connect() as connection:
            for _ in range(5):
                token = musts.token()
                await musts.outcome_of(connection.send(tokened(token)), token=token)
            assert mailer.stats().leased == 0
        assert server.connections == 1
        assert len(server.messages) == 5


async def test_connect_takes_where_bounces_go_and_keeps_the_message_as_it_is() -> None:
    async with Mailer("memory://") as mailer, mailer.connect() as connection:
        message = hello()
        receipt = await connection.send(message, envelope_from="bounces@example.com")
        assert message.envelope_from is None
        assert receipt.message_id == message.message_id
        again = await connection.send(message)
        await connection.send(message, envelope_from="")
    first, second, third = kept(mailer)
    assert first[0].reverse_path == "bounces@example.com"
    assert b"From: ada@example.com\r\n" in bytes(first[1])
    assert second[0].reverse_path == ADA
    assert third[0].reverse_path == ""
    assert receipt.message_id == again.message_id
    assert bytes(first[1]) == bytes(second[1]) == bytes(third[1])


# The numbers


async def test_stats_count_sessions_and_outcomes(musts: Musts) -> None:
    async with FaultServer(final=[OK, "550 no", OK]) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        assert mailer.stats() == PoolStats()
        for _ in range(3):
            token = musts.token()
            await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert mailer.stats() == PoolStats(open=1, idle=1, accepted=2, rejected=1)
    assert mailer.stats() == PoolStats(accepted=2, rejected=1)


async def test_stats_are_all_zero_where_a_transport_keeps_none() -> None:
    async with Mailer(Recorder()) as mailer:
        await mailer.send(hello())
        assert mailer.stats() == PoolStats()
    async with Mailer("memory://") as mailer:
        await mailer.send(hello())
        assert mailer.stats() == PoolStats(accepted=1)


# Its end


async def test_c24_a_closed_mailer_sends_nothing_until_it_is_entered_again(musts: Musts) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        mailer = Mailer(server.url)
        token = musts.token()
        await musts.outcome_of(mailer.send(tokened(token)), token=token)
        await mailer.aclose()
        await mailer.aclose()
        await server.all_closed()
        token = musts.token()
        error = await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert isinstance(error, MailerClosed)
        assert error.outcome == "not_sent"
        assert error.recipients == (f"{token}+1@example.org",)
        assert server.connections == 1
        async with mailer:
            token = musts.token()
            await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert (server.connections, len(server.messages)) == (2, 2)
        await server.all_closed()


async def test_c29_a_second_running_loop_is_told_what_to_do(musts: Musts) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        token = musts.token()
        await musts.outcome_of(mailer.send(tokened(token)), token=token)

        def elsewhere() -> MailError | None:
            try:
                asyncio.run(mailer.send(hello()))
            except MailError as error:
                return error
            return None

        error = await asyncio.to_thread(elsewhere)
        assert isinstance(error, UsageError)
        assert "one mailer for each loop, or share one through amail.Portal" in str(error)
        token = musts.token()
        assert isinstance(await musts.outcome_of(mailer.send(tokened(token)), token=token), Receipt)
        assert server.connections == 1
        assert len(server.messages) == 2


# Wrong places


async def test_f1_a_host_name_that_does_not_exist_is_a_connect_error(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unknown(host: str, *_: object, **__: object) -> t.NoReturn:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with Mailer("smtp://mx.example.invalid") as mailer:
        error = await musts.outcome_of(mailer.send(hello()))
    assert isinstance(error, ConnectError)
    assert (error.stage, error.retryable, error.outcome) == ("dns", False, "not_sent")
    assert "mx.example.invalid:25" in str(error)
    assert "check the host name" in str(error)
    assert error.message_id is not None
    assert error.recipients == (BOB,)
    assert isinstance(error.__cause__, socket.gaierror)
    assert set(asked) == {"mx.example.invalid"}
    assert mailer.stats() == PoolStats(not_sent=1)


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"* OK IMAP4rev1 ready\r\n",
        b"+OK POP3 ready\r\n",
    ],
)
async def test_f15_a_port_of_another_protocol_is_said_to_be_one(
    musts: Musts, greeting: bytes
) -> None:
    async with FaultServer(greeting=Bytes(greeting)) as server, Mailer(server.url) as mailer:
        error = await musts.outcome_of(mailer.send(hello()))
        assert isinstance(error, ProtocolError)
        assert error.stage == "greeting"
        assert "is it the right one?" in str(error)
        assert error.relay == f"127.0.0.1:{server.port}"
        assert server.commands == []


# Credentials over clear text

USER = "ada"


def reached_at(monkeypatch: pytest.MonkeyPatch, peer: str) -> None:
    """Let the server seem to have that address."""
    original = aiosmtplib.SMTP.get_transport_info

    def get_transport_info(self: aiosmtplib.SMTP, key: str) -> t.Any:
        return (peer, 25) if key == "peername" else original(self, key)

    monkeypatch.setattr(aiosmtplib.SMTP, "get_transport_info", get_transport_info)


def asks_for_credentials() -> FaultServer:
    return FaultServer(users={USER: PASSWORD}, auth_required=True)


def url_of(server: FaultServer) -> str:
    return server.url.replace("//", f"//{USER}:{PASSWORD}@")


def said(server: FaultServer) -> set[str]:
    return {command.line.partition(" ")[0] for command in server.commands}


async def test_credentials_go_in_the_clear_to_a_loopback_peer(
    musts: Musts, caplog: pytest.LogCaptureFixture
) -> None:
    async with asks_for_credentials() as server, Mailer(url_of(server)) as mailer:
        musts.watch(server)
        token = musts.token()
        await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert [message.authenticated_as for message in server.messages] == [USER]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "peer", ["203.0.113.5", "192.0.2.5", "8.8.8.8", "172.32.0.1", "100.64.0.1", "2001:db8::5", "::"]
)
@pytest.mark.parametrize("tls", ["none", None])
async def test_credentials_do_not_go_in_the_clear_to_a_public_peer(
    musts: Musts, monkeypatch: pytest.MonkeyPatch, peer: str, tls: t.Any
) -> None:
    reached_at(monkeypatch, peer)
    async with asks_for_credentials() as server, Mailer(url_of(server), tls=tls) as mailer:
        musts.watch(server)
        error = await musts.outcome_of(mailer.send(hello()))
        assert isinstance(error, ConfigError)
        lines = str(error).splitlines()
        assert [line.split("(")[0].strip() for line in lines[1:]] == [
            'tls="starttls"',
            "allow_insecure_auth=True",
        ]
        assert said(server) <= {"EHLO", "QUIT"}
        assert mailer.stats().not_sent == 1


_PRIVATE = ["10.1.2.3", "172.31.0.1", "192.168.1.1", "169.254.9.9", "fd00::1", "fe80::1%eth0"]


@pytest.mark.parametrize("peer", _PRIVATE)
async def test_credentials_go_in_the_clear_to_a_private_peer_where_tls_none_is_written(
    musts: Musts,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    peer: str,
) -> None:
    reached_at(monkeypatch, peer)
    session._warn_of_clear_text.cache_clear()  # it warns once a process
    async with asks_for_credentials() as server:
        musts.watch(server)
        async with Mailer(url_of(server), tls="none", max_messages=1) as mailer:
            for _ in range(2):
                token = musts.token()
                await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert server.connections == 2
        assert len(server.messages) == 2
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "in the clear" in warnings[0].getMessage()


@pytest.mark.parametrize("peer", _PRIVATE)
async def test_credentials_do_not_go_in_the_clear_to_a_private_peer_where_it_is_not_written(
    musts: Musts, monkeypatch: pytest.MonkeyPatch, peer: str
) -> None:
    reached_at(monkeypatch, peer)
    async with asks_for_credentials() as server, Mailer(url_of(server)) as mailer:
        musts.watch(server)
        assert isinstance(await musts.outcome_of(mailer.send(hello())), ConfigError)
        assert said(server) <= {"EHLO", "QUIT"}


async def test_credentials_go_in_the_clear_anywhere_where_that_is_allowed(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached_at(monkeypatch, "203.0.113.5")
    async with asks_for_credentials() as server:
        musts.watch(server)
        async with Mailer(url_of(server), allow_insecure_auth=True) as mailer:
            token = musts.token()
            await musts.outcome_of(mailer.send(tokened(token)), token=token)
        assert [message.authenticated_as for message in server.messages] == [USER]


async def test_wrong_credentials_are_an_error_that_does_not_hold_them(musts: Musts) -> None:
    async with FaultServer(users={USER: "other"}) as server, Mailer(url_of(server)) as mailer:
        musts.watch(server)
        error = await musts.outcome_of(mailer.send(hello()))
        assert isinstance(error, AuthenticationError)
        assert isinstance(error, NotSent)
        assert (error.stage, error.retryable) == ("auth", False)
        assert error.reply is not None
        assert (error.reply.code, error.reply.enhanced) == (535, "5.7.8")
