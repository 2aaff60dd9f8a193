"""``verify()`` goes all the way to an open session, and says nothing of a message."""

from __future__ import annotations

import typing as t

import pytest

from amail import (
    AuthenticationError,
    ConnectError,
    Mailer,
    MailerClosed,
    MemoryTransport,
    Reply,
    ServerInfo,
    SMTPSettings,
    SMTPTransport,
    SyncMailer,
    UsageError,
)
from amail.testing import FaultServer
from amail.transports.redirected import Redirected
from amail.transports.retrying import Retrying
from amail.transports.throttled import Throttled
from tests.musts import PASSWORD
from tests.smtp.outcomes import said
from tests.transports.ends import letter

if t.TYPE_CHECKING:
    from tests.musts import Musts
    from tests.servers.authority import Authority


async def test_it_tells_what_the_server_says_of_itself_and_sends_no_message(musts: Musts) -> None:
    offered = ("PIPELINING", "SIZE 10240", "8BITMIME")
    async with FaultServer(extensions=offered) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        assert await mailer.verify() == ServerInfo(
            relay=f"{server.host}:{server.port}",
            extensions={"PIPELINING": "", "SIZE": "10240", "8BITMIME": ""},
            size=10240,
            addresses=("127.0.0.1",),
            address="127.0.0.1",
            greeting=Reply(220, None, "fault.test ESMTP ready"),
        )
        assert said(server) == ["EHLO"]


async def test_its_session_is_used_by_the_next_message(musts: Musts) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        await mailer.verify()
        assert (mailer.stats().open, mailer.stats().idle) == (1, 1)
        await mailer.transport.send(*letter())
        assert server.connections == 1
        assert mailer.stats().accepted == 1


async def test_it_goes_through_tls_and_auth(musts: Musts, authority: Authority) -> None:
    users = {"ada": PASSWORD}
    async with (
        FaultServer(tls=authority.server_context(), users=users) as server,
        Mailer(
            server.url, tls="starttls", ca_file=authority.file, username="ada", password=PASSWORD
        ) as mailer,
    ):
        musts.watch(server, tls_required=True)
        info = await mailer.verify()
        assert (info.tls, info.authenticated) == ("TLSv1.3", True)
        assert str(info.cipher).startswith("TLS_")
        assert {"PLAIN", "LOGIN"} <= set(info.auth)
        assert "MAIL" not in said(server)


async def test_a_session_that_cannot_be_had_is_the_error_a_message_would_get(musts: Musts) -> None:
    async with FaultServer() as server:
        pass
    async with Mailer(server.url) as mailer:
        with pytest.raises(ConnectError) as caught:
            await mailer.verify()
        assert (caught.value.stage, caught.value.outcome) == ("connect", "not_sent")
        assert mailer.stats().not_sent == 0  # there was no message
    async with (
        FaultServer(users={"ada": "another"}) as server,
        Mailer(server.url, username="ada", password=PASSWORD) as mailer,
    ):
        with pytest.raises(AuthenticationError):
            await mailer.verify()


async def test_every_wrapper_passes_it_through(musts: Musts) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        inner = SMTPTransport(SMTPSettings.from_url(server.url))
        wrapped = Redirected(Throttled(Retrying(inner), "5/s"), allowed="example.org")
        async with Mailer(wrapped) as mailer:
            assert (await mailer.verify()).relay == f"{server.host}:{server.port}"


async def test_of_several_relays_each_is_asked_and_one_that_is_down_is_found_out() -> None:
    async with FaultServer() as first, FaultServer() as second:
        async with Mailer([first.url, second.url]) as mailer:
            assert (await mailer.verify()).relay == f"{first.host}:{first.port}"
            assert (first.connections, second.connections) == (1, 1)
        await second.aclose()
        async with Mailer([first.url, second.url]) as mailer:
            with pytest.raises(ConnectError):
                await mailer.verify()


async def test_where_there_is_no_server_there_is_nothing_to_ask() -> None:
    async with Mailer("memory://") as mailer:
        assert await mailer.verify() == ServerInfo(relay="MemoryTransport")


async def test_a_closed_mailer_opens_nothing() -> None:
    mailer = Mailer(MemoryTransport())
    await mailer.aclose()
    with pytest.raises(MailerClosed):
        await mailer.verify()


async def test_the_sync_mailer_has_it_and_refuses_in_a_loop() -> None:
    mailer = SyncMailer("memory://")
    with pytest.raises(UsageError, match=r"SyncMailer\.verify"):
        mailer.verify()


def test_the_sync_mailer_waits_for_it() -> None:
    with SyncMailer("memory://") as mailer:
        assert mailer.verify().relay == "MemoryTransport"


def test_server_infos_are_values() -> None:
    info = ServerInfo("a:25", {"SIZE": "5"}, 5)
    assert hash(info) == hash(ServerInfo("a:25", {"SIZE": "6"}, 5))
    assert info != ServerInfo("a:25", {"SIZE": "6"}, 5)
