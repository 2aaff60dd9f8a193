"""FAULTS.md, its rows about TLS that are not about a certificate, in both modes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import typing as t

import pytest
import trustme

from amail import Mailer
from amail.errors import SendTimeout, TLSError
from amail.testing import OK, Bytes, Close, Delay, FaultServer, Hang, Reset
from tests.musts import PASSWORD
from tests.smtp.outcomes import accepted, assert_dropped, assert_kept, not_sent, said, send

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from amail.errors import Stage
    from amail.smtp.settings import TLSMode
    from amail.testing.script import Action
    from tests.musts import Musts
    from tests.servers.authority import Authority

MODES = pytest.mark.parametrize("mode", ["starttls", "implicit"])


def server_for(context: ssl.SSLContext, mode: TLSMode, **script: t.Any) -> FaultServer:
    users = {"ada": PASSWORD}
    stages = t.cast("t.Any", script.pop("stages", None))
    implicit = mode == "implicit"
    return FaultServer(stages, tls=context, implicit=implicit, users=users, **script)


def mailer_for(
    server: FaultServer, authority: Authority, mode: TLSMode, **options: t.Any
) -> Mailer:
    known: dict[str, t.Any] = {"ca_file": authority.file, "username": "ada", "password": PASSWORD}
    return Mailer(server.url, tls=mode, **{**known, **options})


@MODES
@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
async def test_f25_a_handshake_broken_off_is_a_tls_error_after_two_tries(
    musts: Musts, authority: Authority, mode: TLSMode, end: Action
) -> None:
    stages = {"tls": [end, end, OK]}
    async with (
        server_for(authority.server_context(), mode, stages=stages) as server,
        mailer_for(server, authority, mode) as mailer,
    ):
        musts.watch(server, tls_required=True)
        result = await send(musts, mailer)
        # What ends the connection may do so before the 220 was read.
        stage: Stage = "starttls" if getattr(result, "stage", "") == "starttls" else "tls"
        not_sent(result, TLSError, stage=stage, retryable=True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@MODES
async def test_f25_a_handshake_that_hangs_is_timed_out_twice(
    musts: Musts, authority: Authority, mode: TLSMode
) -> None:
    stages = {"tls": [Hang(), Hang(), OK]}
    async with (
        server_for(authority.server_context(), mode, stages=stages) as server,
        mailer_for(server, authority, mode, connect_timeout=0.2, command_timeout=0.2) as mailer,
    ):
        musts.watch(server, tls_required=True)
        async with musts.within(0.6):
            not_sent(await send(musts, mailer), SendTimeout, stage="tls", retryable=True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@pytest.mark.parametrize(
    "behind",
    [b"250-evil.test\r\n250 AUTH LOGIN\r\n", b"250 evil", b"235 2.7.0 ok\r\n250 ok\r\n"],
    ids=["a_reply", "part_of_a_line", "replies_to_what_comes"],
)
async def test_f26_what_stands_behind_the_220_in_its_segment_is_thrown_away(
    musts: Musts, authority: Authority, behind: bytes
) -> None:
    starttls = Bytes(b"220 2.0.0 go ahead\r\n" + behind)
    async with (
        server_for(authority.server_context(), "starttls", starttls=starttls) as server,
        mailer_for(server, authority, "starttls") as mailer,
    ):
        musts.watch(server, tls_required=True)
        accepted(await send(musts, mailer))
        assert said(server)[:5] == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL"]


@pytest.mark.parametrize("behind", [b"250 evil\r\n", b"250 ev"], ids=["a_reply", "part_of_a_line"])
async def test_f26_what_comes_in_clear_text_later_ends_the_session_before_auth(
    musts: Musts, authority: Authority, behind: bytes
) -> None:
    starttls = Bytes(b"220 2.0.0 go ahead\r\n", then=Delay(0.1, Bytes(behind)))
    async with (
        server_for(authority.server_context(), "starttls", starttls=starttls) as server,
        mailer_for(server, authority, "starttls") as mailer,
    ):
        musts.watch(server, tls_required=True)
        result = await send(musts, mailer)
        assert type(result) is TLSError, repr(result)
        assert (result.stage, result.outcome) == ("tls", "not_sent")
        assert set(said(server)) == {"EHLO", "STARTTLS"}
        await server.all_closed()
        assert mailer.stats().open == 0


@contextlib.contextmanager
def old_server(context: ssl.SSLContext, mode: TLSMode) -> Iterator[str]:
    """A server that blocks, for asyncio's closes before its alert is sent. Yields its URL."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            if mode == "starttls":
                connection.sendall(b"220 old.test\r\n")
                connection.recv(1000)
                connection.sendall(b"250-old.test\r\n250 STARTTLS\r\n")
                connection.recv(1000)
                connection.sendall(b"220 go ahead\r\n")
            with contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"smtp://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


@MODES
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_f28_a_server_that_only_speaks_old_tls_is_told_from_a_broken_one(
    musts: Musts, authority: Authority, mode: TLSMode
) -> None:
    old = authority.server_context()
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with old_server(old, mode) as url:
        async with Mailer(url, tls=mode, ca_file=authority.file) as mailer:
            error = not_sent(await send(musts, mailer), TLSError, stage="tls", retryable=False)
    assert "protocol version" in str(error)
    assert "TLS 1.2" in str(error)


async def test_f29_what_was_offered_before_tls_is_forgotten_after_it(
    musts: Musts, authority: Authority
) -> None:
    ehlo = ["250 fault.test\nSTARTTLS\nPIPELINING\nSIZE 10", "250 fault.test\n8BITMIME\nAUTH LOGIN"]
    async with (
        server_for(authority.server_context(), "starttls", ehlo=ehlo) as server,
        mailer_for(server, authority, "starttls") as mailer,
    ):
        musts.watch(server, tls_required=True)  # objects to pipelining that was not offered
        accepted(await send(musts, mailer, recipients=3))
        lines = [each.line for each in server.commands]
        assert lines[3].startswith("AUTH LOGIN")
        assert not any("SIZE" in line for line in lines)


@MODES
async def test_f30_an_end_without_close_notify_after_quit_is_nothing(
    musts: Musts, authority: Authority, mode: TLSMode, caplog: pytest.LogCaptureFixture
) -> None:
    async with server_for(authority.server_context(), mode, quit=Close(notify=False)) as server:
        musts.watch(server, tls_required=True)
        async with mailer_for(server, authority, mode) as mailer:
            accepted(await send(musts, mailer))
        await server.all_closed()
        assert said(server)[-1] == "QUIT"
    assert not [each for each in caplog.records if each.levelname in {"WARNING", "ERROR"}]


# What the settings ask for


@MODES
async def test_the_name_that_is_verified_is_said_in_sni(
    musts: Musts, authority: Authority, mode: TLSMode
) -> None:
    names: list[str | None] = []
    context = authority.server_context("mx.example.test")
    context.sni_callback = lambda _, name, __: names.append(name)
    async with (
        server_for(context, mode) as server,
        mailer_for(server, authority, mode, tls_server_name="mx.example.test") as mailer,
    ):
        musts.watch(server, tls_required=True)
        accepted(await send(musts, mailer))
    assert names == ["mx.example.test"]


@MODES
async def test_a_client_certificate_is_shown_where_the_server_wants_one(
    musts: Musts, authority: Authority, mode: TLSMode, tmp_path: Path
) -> None:
    ours = authority.ca.issue_cert("ada@example.org")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    ours.cert_chain_pems[0].write_to_path(str(certificate))
    ours.private_key_pem.write_to_path(str(key))
    context = authority.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority.ca.configure_trust(context)
    # In TLS 1.3 a server may refuse a certificate when the client is done with the handshake.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with server_for(context, mode) as server:
        musts.watch(server, tls_required=True)
        options = {"client_cert": certificate, "client_key": key}
        async with mailer_for(server, authority, mode, **options) as mailer:
            accepted(await send(musts, mailer))
        async with mailer_for(server, authority, mode) as mailer:
            result = await send(musts, mailer)
        assert isinstance(result, TLSError), repr(result)


@MODES
async def test_a_context_of_your_own_is_used_as_it_is(
    musts: Musts, authority: Authority, mode: TLSMode
) -> None:
    with musts.not_counting():
        mine = ssl.create_default_context()
        authority.ca.configure_trust(mine)
    async with (
        server_for(authority.server_context(), mode) as server,
        mailer_for(server, authority, mode, ssl_context=mine, ca_file=None) as mailer,
    ):
        musts.watch(server, tls_required=True)
        accepted(await send(musts, mailer))
        await assert_kept(musts, server, mailer)


@MODES
async def test_no_less_than_tls_12_is_spoken(
    musts: Musts, authority: Authority, mode: TLSMode
) -> None:
    context = authority.server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with (
        server_for(context, mode) as server,
        mailer_for(server, authority, mode) as mailer,
    ):
        musts.watch(server, tls_required=True)
        accepted(await send(musts, mailer))


@MODES
async def test_an_authority_nobody_knows_is_trusted_by_tls_verify_false_alone(
    musts: Musts, authority: Authority, mode: TLSMode
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("elsewhere.test").configure_cert(context)
    async with server_for(context, mode) as server:
        musts.watch(server, tls_required=True)
        async with mailer_for(server, authority, mode) as mailer:
            not_sent(await send(musts, mailer), TLSError, stage="tls", retryable=False)
        async with mailer_for(server, authority, mode, ca_file=None, tls_verify=False) as mailer:
            accepted(await send(musts, mailer))
