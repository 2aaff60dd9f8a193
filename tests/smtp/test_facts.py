"""FACTS.md, its facts about transport and pool: 56 to 60.

What other files hold already: STARTTLS required and not offered (F23), a server that ends a session
after so many messages (F76), idle sessions that died (F45), several transactions (F54).
"""

from __future__ import annotations

import asyncio
import typing as t
from collections import Counter

import pytest

from amail import Mailer, Message, SMTPTransport
from amail.errors import (
    ConfigError,
    ConnectError,
    MailerClosed,
    MailError,
    MessageError,
    MessageRejected,
    RecipientsRejected,
    SenderRejected,
    SendTimeout,
)
from amail.smtp.settings import SMTPSettings
from amail.testing import OK, Bytes, Close, EachConnection, EachMessage, FaultServer, Hang, Say
from tests.messages import ADA
from tests.smtp.outcomes import (
    PIPELINING,
    accepted,
    not_sent,
    rejected,
    said,
    send,
    unknown,
)

if t.TYPE_CHECKING:
    from amail.receipt import Receipt
    from amail.testing import Moment
    from tests.musts import Musts
    from tests.servers.authority import Authority

REFUSED = "refused@example.com"


async def gather(
    musts: Musts, mailer: Mailer, count: int, **fields: t.Any
) -> list[Receipt | MailError]:
    return await asyncio.gather(*(send(musts, mailer, **fields) for _ in range(count)))


def refused_sender(moment: Moment) -> str | None:
    return "550 5.7.1 not from there" if REFUSED in moment.line else None


# 56


@pytest.mark.parametrize("people", [{}, {"recipients": []}, {"cc": [], "bcc": []}])
async def test_fact56_without_recipients_no_connection_is_opened(
    musts: Musts, people: dict[str, t.Any]
) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        with pytest.raises(MessageError, match="recipient"):
            await mailer.send(Message("Hello", sender=ADA, **people))
        assert server.connections == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mailer("smtps://mail.test?tls=starttls"),
        lambda: Mailer("smtps://mail.test?tls=none"),
        lambda: Mailer(host="mail.test", tls=t.cast("t.Any", "ssl+starttls")),
    ],
)
def test_fact56_two_tls_modes_at_once_are_a_config_error(make: t.Callable[[], Mailer]) -> None:
    with pytest.raises(ConfigError, match=r"(?i)tls"):
        make()


async def test_fact56_an_opening_that_failed_leaves_the_next_one_clean(musts: Musts) -> None:
    async with (
        FaultServer(greeting=["554 5.3.2 not now", OK]) as server,
        Mailer(server.url, max_connections=1) as mailer,
    ):
        musts.watch(server)
        result = await send(musts, mailer)
        not_sent(result, ConnectError, stage="greeting", retryable=False, code=554)
        accepted(await send(musts, mailer))
        assert server.connections == 2
        assert (mailer.stats().open, mailer.stats().leased) == (1, 0)


async def test_fact56_leaving_the_context_closes_once(musts: Musts) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        async with Mailer(server.url) as mailer:
            accepted(await send(musts, mailer))
        await mailer.aclose()
        await server.all_closed()
        assert said(server).count("QUIT") == 1
        assert server.connections == 1


# 57


@pytest.mark.parametrize(
    "behind",
    [b"250-evil.test\r\n250 AUTH PLAIN\r\n", b"250 evil", b"220 once more\r\n"],
    ids=["a_whole_reply", "part_of_a_line", "another_220"],
)
async def test_fact57_what_is_said_before_the_handshake_never_gets_into_the_tls_session(
    musts: Musts, authority: Authority, behind: bytes
) -> None:
    async with (
        FaultServer(
            tls=authority.server_context(), starttls=Bytes(b"220 2.0.0 go ahead\r\n" + behind)
        ) as server,
        Mailer(server.url, tls="starttls", ca_file=authority.file) as mailer,
    ):
        musts.watch(server, tls_required=True)
        accepted(await send(musts, mailer))
        assert said(server)[:4] == ["EHLO", "STARTTLS", "EHLO", "MAIL"]


async def test_fact57_capabilities_are_those_of_the_ehlo_inside_tls(
    musts: Musts, authority: Authority
) -> None:
    def less_in_the_clear(moment: Moment) -> str:
        if moment.encrypted:
            return "250 fault.test\n8BITMIME"
        return "250 fault.test\nSTARTTLS\nSIZE 10\nPIPELINING"

    async with (
        FaultServer(tls=authority.server_context(), ehlo=less_in_the_clear) as server,
        Mailer(server.url, tls="starttls", ca_file=authority.file) as mailer,
    ):
        musts.watch(server, tls_required=True)  # which objects to pipelining and to SIZE
        accepted(await send(musts, mailer, recipients=3))
        mail = next(each.line for each in server.commands if each.line.startswith("MAIL"))
        assert "SIZE" not in mail


# 58


@PIPELINING
@pytest.mark.parametrize("whose", ["ours", "the_servers"])
async def test_fact58_with_5_messages_a_connection_100_go_over_20(
    musts: Musts, whose: str, pipelining: bool
) -> None:
    ours: dict[str, t.Any] = {"max_messages": 5} if whose == "ours" else {}
    sixth = EachConnection({6: Say("421 4.7.0 too many messages", then=Close())})
    async with (
        FaultServer(mail=OK if ours else sixth) as server,
        Mailer(server.url, max_connections=1, pipelining=pipelining, **ours) as mailer,
    ):
        musts.watch(server)
        for result in await gather(musts, mailer, 100):
            accepted(result, attempts=1)
        assert Counter(each.connection for each in server.messages) == dict.fromkeys(
            range(1, 21), 5
        )


@PIPELINING
async def test_fact58_every_second_sender_refused_is_50_accepted_and_50_errors_of_their_own(
    musts: Musts, pipelining: bool
) -> None:
    async with (
        FaultServer(mail=refused_sender) as server,
        Mailer(server.url, max_connections=1, pipelining=pipelining, max_messages=0) as mailer,
    ):
        musts.watch(server)
        senders = [ADA, REFUSED] * 50
        results = await asyncio.gather(*(send(musts, mailer, sender=each) for each in senders))
        for result in results[::2]:
            accepted(result, attempts=1)
        errors = [
            rejected(result, SenderRejected, stage="mail", retryable=False, code=550)
            for result in results[1::2]
        ]
        assert len({error.message_id for error in errors}) == 50
        assert len({error.recipients for error in errors}) == 50
        assert (len(server.messages), server.connections) == (50, 1)


# 59


async def test_fact59_a_second_burst_goes_over_new_sessions_where_the_server_closed_the_old(
    musts: Musts,
) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        for result in await gather(musts, mailer, 50):
            accepted(result)
        first = server.connections
        await server.aclose()
        await server.start()
        for result in await gather(musts, mailer, 50):
            accepted(result, attempts=1)
        assert len(server.messages) == 100
        assert {each.connection for each in server.messages[50:]}.isdisjoint(range(1, first + 1))


@pytest.mark.parametrize("stage", ["mail", "final"])
async def test_fact59_a_timeout_of_one_message_is_an_error_of_that_caller_alone(
    musts: Musts, stage: t.Literal["mail", "final"]
) -> None:
    hung = {7, 8} if stage == "mail" else {7}  # MAIL is tried once more, over a fresh session
    async with (
        FaultServer({stage: lambda moment: Hang() if moment.message in hung else None}) as server,
        Mailer(server.url, command_timeout=0.3, final_timeout=0.3, max_connections=1) as mailer,
    ):
        musts.watch(server)
        results = await gather(musts, mailer, 20)
    (error,) = [each for each in results if isinstance(each, MailError)]
    if stage == "mail":
        not_sent(error, SendTimeout, stage="mail", retryable=True)
    else:
        unknown(error)
    for result in results:
        assert result is error or accepted(result, attempts=1)


async def test_fact59_closing_with_100_pending_gives_each_caller_an_error(musts: Musts) -> None:
    async with FaultServer(mail=Hang()) as server:
        musts.watch(server)
        transport = SMTPTransport(SMTPSettings.from_url(server.url))
        mailer = Mailer(transport)
        sends = [asyncio.create_task(send(musts, mailer)) for _ in range(100)]
        await server.reached("mail", 5)
        async with musts.within(0.2):
            await transport.aclose(drain=0.1)
            results = await asyncio.gather(*sends)
        assert {getattr(result, "outcome", None) for result in results} == {"not_sent"}
        assert sum(type(result) is MailerClosed for result in results) >= 95
        await server.all_closed()
        assert server.connections == 5


# 60


async def test_fact60_the_others_get_it_and_each_refusal_is_reported(musts: Musts) -> None:
    refusals = EachMessage({2: "550 5.1.1 nobody here", 4: "452 4.2.2 mailbox full"})
    async with FaultServer(rcpt=refusals) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        receipt = accepted(await send(musts, mailer, recipients=5))
        paths = receipt.envelope.forward_paths
        assert {path: str(reply) for path, reply in receipt.refused.items()} == {
            paths[1]: "550 5.1.1 nobody here",
            paths[3]: "452 4.2.2 mailbox full",
        }
        assert server.messages[0].forward_paths == receipt.accepted == paths[::2]


async def test_fact60_all_refused_is_an_error_that_holds_each_refusal(musts: Musts) -> None:
    refusals = ["550 5.1.1 nobody here", "550 5.1.2 nothing there"]
    async with FaultServer(rcpt=refusals) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        result = await send(musts, mailer, recipients=2)
        error = rejected(result, RecipientsRejected, stage="rcpt", retryable=False, code=550)
        assert list(map(str, error.refused.values())) == refusals
        assert tuple(error.refused) == error.recipients
        assert server.messages == []


@pytest.mark.parametrize("stage", ["greeting", "ehlo", "mail", "rcpt", "data", "final"])
async def test_fact60_utf8_in_a_reply_is_readable_in_the_error(
    musts: Musts, stage: t.Literal["greeting", "ehlo", "mail", "rcpt", "data", "final"]
) -> None:
    said = "Postfach überfüllt, 邮箱已满 🎉"
    async with FaultServer({stage: f"554 5.2.2 {said}"}) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        error = await send(musts, mailer)
    assert isinstance(error, ConnectError | SenderRejected | RecipientsRejected | MessageRejected)
    assert error.reply
    assert error.reply.text == said
    assert said in str(error)
