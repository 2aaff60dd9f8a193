"""Several relays: which one a message is given to, and that no message is given to two of them."""

from __future__ import annotations

import asyncio
import gc
import time
import typing as t
import weakref

import pytest

from amail import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    Content,
    DeliveryUnknown,
    InvalidAttachment,
    Mailer,
    MailerClosed,
    MailError,
    MemoryTransport,
    MessageRejected,
    NotSent,
    PoolTimeout,
    ProtocolError,
    RecipientsRejected,
    Reply,
    RoundRobin,
    SenderRejected,
    SendTimeout,
    ServerBusy,
    SMTPSettings,
    SMTPTransport,
    TLSError,
    UTF8Required,
    Vetoed,
)
from amail.testing import ByMessage, Close, Delay, FaultServer, Hang
from amail.transports.base import PoolStats, Transport, reply_until
from amail.transports.failover import Failover
from amail.transports.retrying import Retrying
from amail.transports.throttled import Throttled
from tests.messages import tokened
from tests.musts import PASSWORD
from tests.smtp.outcomes import accepted, rejected, said, send, unknown
from tests.transports.ends import Clock, End, letter

if t.TYPE_CHECKING:
    from amail import Envelope, Receipt
    from tests.musts import Musts

COOLDOWN = 60.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def down(*, retryable: bool = True) -> ConnectError:
    return ConnectError("refused", stage="connect", retryable=retryable)


async def relays_of(transport: Transport, count: int = 1) -> list[str | None]:
    """By which relay each of so many messages is accepted, one after another."""
    return [(await transport.send(*letter())).relay for _ in range(count)]


# Over the wire


@pytest.mark.parametrize(
    "fault",
    [{"greeting": Hang()}, {"greeting": "421 4.3.2 too many connections"}, {"connect": Close()}],
    ids=["f9", "f13", "f10"],
)
async def test_f74_what_the_first_relay_could_not_take_the_second_takes(
    musts: Musts, fault: dict[str, t.Any]
) -> None:
    async with (
        FaultServer(**fault) as first,
        FaultServer() as second,
        Mailer([first.url, second.url], command_timeout=0.1) as mailer,
    ):
        musts.watch(first)
        musts.watch(second)
        receipt = accepted(await send(musts, mailer), attempts=2)
        assert receipt.relay == f"{second.host}:{second.port}"
        connections = first.connections
        accepted(await send(musts, mailer))
        assert first.connections == connections  # it is cooling
    assert len(second.messages) == 2


async def test_f74_a_first_relay_that_refuses_connections_costs_no_error(musts: Musts) -> None:
    async with FaultServer() as first:
        pass
    async with FaultServer() as second, Mailer([first.url, second.url]) as mailer:
        musts.watch(second)
        began = time.monotonic()
        receipts = await asyncio.gather(*(send(musts, mailer) for _ in range(50)))
        assert {accepted(each, attempts=each.attempts).relay for each in receipts} == {  # type: ignore[union-attr]
            f"{second.host}:{second.port}"
        }
        assert time.monotonic() - began < 5  # nobody waited for the first one to come back
        assert (mailer.stats().accepted, mailer.stats().not_sent) == (50, 0)
    assert len(second.messages) == 50


async def test_f74_a_first_relay_that_hangs_leaves_time_of_a_deadline_for_the_second(
    musts: Musts,
) -> None:
    async with (
        FaultServer(greeting=Hang()) as first,
        FaultServer() as second,
        Mailer([first.url, second.url]) as mailer,
    ):
        musts.watch(first)
        musts.watch(second)
        token, began = musts.token(), time.monotonic()
        sending = mailer.send(tokened(token), timeout=2.0)
        receipt = accepted(await musts.outcome_of(sending, token=token), attempts=2)
        assert receipt.relay == f"{second.host}:{second.port}"
        assert 1.0 <= time.monotonic() - began < 2.0


async def test_f75_the_reply_to_the_last_octet_has_all_the_time_and_not_the_share_of_a_relay(
    musts: Musts,
) -> None:
    async with (
        FaultServer(final=Delay(0.8, "250 2.0.0 ok")) as first,
        FaultServer() as second,
        Mailer([first.url, second.url]) as mailer,
    ):
        musts.watch(first)
        token, began = musts.token(), time.monotonic()
        sending = mailer.send(tokened(token), timeout=1.2)
        receipt = accepted(await musts.outcome_of(sending, token=token))
        assert receipt.relay == f"{first.host}:{first.port}"
        assert time.monotonic() - began > 0.6  # its share
        assert second.connections == 0


async def test_f75_a_reply_that_does_not_come_is_unknown_at_the_deadline_and_not_before(
    musts: Musts,
) -> None:
    async with (
        FaultServer(final=Hang()) as first,
        FaultServer() as second,
        Mailer([first.url, second.url]) as mailer,
    ):
        musts.watch(first)
        token, began = musts.token(), time.monotonic()
        sending = mailer.send(tokened(token), timeout=0.4)
        async with musts.within(0.4):
            unknown(await musts.outcome_of(sending, token=token))
        assert time.monotonic() - began >= 0.4
        assert second.connections == 0
        first.release()


async def test_f75_what_is_unknown_is_never_given_to_the_second_relay(musts: Musts) -> None:
    async with (
        FaultServer(final=Close()) as first,
        FaultServer() as second,
        Mailer([first.url, second.url]) as mailer,
    ):
        musts.watch(first)
        musts.watch(second)
        unknown(await send(musts, mailer))
        assert mailer.stats().unknown == 1
    assert (second.connections, second.messages) == (0, [])


@pytest.mark.parametrize(
    ("stage", "reply", "kind"),
    [
        ("mail", "550 5.7.1 not from there", SenderRejected),
        ("rcpt", "550 5.1.1 no such user", RecipientsRejected),
        ("rcpt", "450 4.7.1 greylisted", RecipientsRejected),
        ("final", "554 5.7.1 spam", MessageRejected),
        ("final", "451 4.3.0 try later", MessageRejected),
    ],
)
async def test_what_one_relay_refuses_is_not_tried_on_another(
    musts: Musts, stage: t.Any, reply: str, kind: t.Any
) -> None:
    async with (
        FaultServer({stage: reply}) as first,
        FaultServer() as second,
        Mailer([first.url, second.url]) as mailer,
    ):
        musts.watch(first)
        code = int(reply[:3])
        rejected(await send(musts, mailer), kind, stage=stage, retryable=code < 500, code=code)
        assert said(first).count("MAIL") == 1
        assert second.connections == 0


@pytest.mark.parametrize("stage", ["mail", "final"])
async def test_a_relay_that_is_out_of_storage_said_no_to_the_next_one_it_may_go(
    musts: Musts, stage: t.Any
) -> None:
    async with (
        FaultServer({stage: "452 4.3.1 insufficient system storage"}) as first,
        FaultServer() as second,
        Mailer([first.url, second.url]) as mailer,
    ):
        musts.watch(first)
        musts.watch(second)
        receipt = accepted(await send(musts, mailer), attempts=2)
        assert receipt.relay == f"{second.host}:{second.port}"
        assert (mailer.stats().accepted, mailer.stats().rejected) == (1, 0)


async def test_a_relay_that_closes_in_the_middle_hands_its_messages_over(musts: Musts) -> None:
    async with (
        FaultServer(data=ByMessage({2: Close(), 3: Close()})) as first,
        FaultServer() as second,
        Mailer([first.url, second.url], max_connections=1, pipelining=False) as mailer,
    ):
        musts.watch(first)
        musts.watch(second)
        for _ in range(4):
            result = await send(musts, mailer)
            assert not isinstance(result, MailError)
    assert len(first.messages) + len(second.messages) == 4
    assert len(second.messages) >= 1


# Which one


@pytest.mark.parametrize(
    "error",
    [
        ConnectError("554 no", stage="greeting", reply=Reply(554, None, "no")),
        ConnectionLost("lost", stage="data", retryable=True),
        ServerBusy("421", stage="mail", retryable=True),
        TLSError("the certificate is not trusted", stage="tls"),
        AuthenticationError("535", stage="auth"),
        ProtocolError("no SMTP", stage="greeting"),
        SendTimeout("no answer", stage="greeting", retryable=True),
        PoolTimeout("no session became free", stage="pool", retryable=True),
        SenderRejected("full", stage="mail", reply=Reply(452, "4.3.1", "full")),
        MessageRejected("down", stage="final", reply=Reply(450, "4.3.2", "going down")),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_fault_of_the_relay_sends_the_message_on_and_the_relay_cools(
    error: MailError,
) -> None:
    first, second = End("first", error), End("second")
    failover = Failover([first, second])
    assert await relays_of(failover, 3) == ["second"] * 3
    assert (len(first.tried), len(second.tried)) == (1, 3)
    assert first.tried[0][1] is second.tried[0][1]  # the same octets


@pytest.mark.parametrize(
    "error",
    [
        DeliveryUnknown("no reply", stage="final"),
        MessageRejected("spam", stage="final", reply=Reply(554, "5.7.1", "spam")),
        MessageRejected("later", stage="final", reply=Reply(451, "4.3.0", "later"), retryable=True),
        RecipientsRejected("nobody", stage="rcpt", reply=Reply(452, "4.3.1", "full")),
        SenderRejected("no", stage="mail", reply=Reply(552, "5.3.1", "full")),
        InvalidAttachment("the file has changed"),
        UTF8Required("no SMTPUTF8", stage="mail"),
        MailerClosed("closed", stage="pool"),
        Vetoed("no"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}",
)
async def test_whatever_else_ends_the_message_and_says_nothing_against_the_relay(
    error: MailError,
) -> None:
    first, second = End("first", error), End("second")
    failover = Failover([first, second])
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            await failover.send(*letter())
        assert not hasattr(caught.value, "__notes__")
    assert (len(first.tried), second.tried) == (2, [])


async def test_a_relay_that_cooled_is_tried_by_one_message_and_used_again_once_it_is_back(
    clock: Clock,
) -> None:
    first, second = End("first", down()), End("second")
    failover = Failover([first, second], cooldown=COOLDOWN)
    assert await relays_of(failover) == ["second"]
    clock.ahead += COOLDOWN * 1.2
    results = await asyncio.gather(*(relays_of(failover) for _ in range(10)))
    assert results == [["second"]] * 10
    assert len(first.tried) == 2
    clock.ahead += COOLDOWN * 1.2
    first.from_now_on()
    results = await asyncio.gather(*(relays_of(failover) for _ in range(10)))
    assert results == [["first"], *([["second"]] * 9)]
    assert await relays_of(failover, 5) == ["first"] * 5


async def test_a_cooling_relay_is_left_alone_for_its_time_and_no_more_than_a_fifth_longer(
    clock: Clock,
) -> None:
    first, second = End("first", down()), End("second")
    failover = Failover([first, second], cooldown=COOLDOWN)
    await relays_of(failover)
    clock.ahead += COOLDOWN - 1
    await relays_of(failover)
    assert len(first.tried) == 1
    clock.ahead += 1 + COOLDOWN * 0.2
    await relays_of(failover)
    assert len(first.tried) == 2


async def test_a_probe_that_was_cancelled_leaves_the_relay_to_the_next_one(clock: Clock) -> None:
    first, second = End("first", down()), End("second")
    failover = Failover([first, second], cooldown=COOLDOWN)
    await relays_of(failover)
    clock.ahead += COOLDOWN * 1.2
    probe = asyncio.ensure_future(failover.send(*letter()))
    await asyncio.sleep(0)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    first.from_now_on()
    assert await relays_of(failover) == ["first"]


async def test_where_all_are_cooling_the_one_that_is_done_first_is_tried_and_no_other(
    clock: Clock,
) -> None:
    first, second = End("first", down()), End("second", down())
    failover = Failover([first, second], cooldown=COOLDOWN)
    with pytest.raises(ConnectError):
        await failover.send(*letter())
    first.from_now_on()
    second.from_now_on()
    # Which of them is first is the jitter's to say.
    (name,) = await relays_of(failover)
    assert len(first.tried) + len(second.tried) == 3
    assert await relays_of(failover, 2) == [name] * 2


async def test_where_all_are_down_a_message_asks_one_of_them_and_no_more() -> None:
    ends = [End(name, down()) for name in "abc"]
    failover = Failover(ends)
    for tries in (3, 4, 5):
        with pytest.raises(ConnectError):
            await failover.send(*letter())
        assert sum(len(end.tried) for end in ends) == tries


async def test_a_cooling_relay_is_the_last_resort_of_those_that_are_not() -> None:
    first, second = End("first", down()), End("second")
    failover = Failover([first, second])
    assert await relays_of(failover) == ["second"]
    first.from_now_on()
    second.from_now_on(down())
    assert await relays_of(failover) == ["first"]


async def test_a_refusal_shows_that_a_relay_is_back(clock: Clock) -> None:
    first, second = End("first", down()), End("second")
    failover = Failover([first, second], cooldown=COOLDOWN)
    await relays_of(failover)
    clock.ahead += COOLDOWN * 1.2
    first.from_now_on(RecipientsRejected("nobody", stage="rcpt", reply=Reply(550, "5.1.1", "no")))
    with pytest.raises(RecipientsRejected):
        await failover.send(*letter())
    first.from_now_on()
    assert await relays_of(failover) == ["first"]


# Deadlines


async def test_one_deadline_holds_for_all_relays_and_none_is_tried_behind_it(clock: Clock) -> None:
    class Late(End):
        async def send(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            clock.ahead += 6
            return await super().send(*args, **kwargs)

    late = SendTimeout("no answer", stage="greeting", retryable=True)
    first, second, third = Late("1", late), Late("2", late), End("3")
    with pytest.raises(SendTimeout) as caught:
        await Failover([first, second, third]).send(*letter(), deadline=time.monotonic() + 10)
    assert (len(first.tried), len(second.tried)) == (1, 1)
    assert third.tried == []
    assert caught.value.__notes__ == ["another relay: SendTimeout: no answer"]


async def test_each_relay_but_the_last_has_a_fair_share_of_what_is_left(clock: Clock) -> None:
    class Quick(End):
        async def send(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            clock.ahead += 2
            return await super().send(*args, **kwargs)

    ends = [Quick(name, down()) for name in "abc"]
    deadline = time.monotonic() + 12
    with pytest.raises(ConnectError):
        await Failover(ends).send(*letter(), deadline=deadline)
    left = [deadline - t.cast("float", end.tried[0][2]) for end in ends]
    # A third of 12 seconds, half of 10, all of 8.
    assert left == pytest.approx([8, 5, 0], abs=0.1)


async def test_without_a_deadline_each_relay_has_the_time_it_takes() -> None:
    ends = [End("a", down()), End("b")]
    await Failover(ends).send(*letter())
    assert [end.tried[0][2] for end in ends] == [None, None]


async def test_a_share_of_a_share_leaves_the_reply_the_time_of_the_whole() -> None:
    heard: list[tuple[float | None, float | None]] = []

    class Asked(End):
        async def send(
            self, envelope: Envelope, content: Content, *, deadline: float | None = None
        ) -> Receipt:
            heard.append((deadline, reply_until.get()))
            return await super().send(envelope, content, deadline=deadline)

    inner = Failover([Asked("a", down()), Asked("b")])
    began = time.monotonic()
    await Failover([inner, End("c")]).send(*letter(), deadline=began + 16)
    deadlines, reply_deadlines = zip(*heard, strict=True)
    assert deadlines == pytest.approx([began + 4, began + 8], abs=0.1)
    assert reply_deadlines == (began + 16, began + 16)
    assert reply_until.get() is None


async def test_a_relay_that_lets_several_in_a_hurry_wait_in_vain_cools(clock: Clock) -> None:
    class Late(End):
        async def send(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            clock.ahead += 2
            return await super().send(*args, **kwargs)

    first = Late("first", SendTimeout("no answer", stage="greeting", retryable=True))
    failover = Failover([first, End("second")])
    for tries in (1, 2, 3, 3):
        await failover.send(*letter(), deadline=time.monotonic() + 4)
        assert len(first.tried) == tries


async def test_a_relay_that_answers_in_between_does_not_cool(clock: Clock) -> None:
    class Late(End):
        async def send(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            clock.ahead += 2
            return await super().send(*args, **kwargs)

    late = SendTimeout("no answer", stage="greeting", retryable=True)
    first = Late("first", late, late, lambda receipt: receipt, late)
    failover = Failover([first, End("second")])
    for tries in (1, 2, 3, 4, 5):
        await failover.send(*letter(), deadline=time.monotonic() + 4)
        assert len(first.tried) == tries


async def test_many_at_once_that_wait_in_vain_for_a_moment_are_but_a_moment(clock: Clock) -> None:
    class Late(End):
        async def send(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            await asyncio.sleep(0)
            clock.ahead = 2  # for all of them
            return await super().send(*args, **kwargs)

    first = Late("first", SendTimeout("no answer", stage="greeting", retryable=True))
    failover = Failover([first, End("second")])
    deadline = time.monotonic() + 4
    await asyncio.gather(*(failover.send(*letter(), deadline=deadline) for _ in range(10)))
    first.from_now_on()
    assert await relays_of(failover) == ["first"]


@pytest.mark.parametrize(("seconds", "cools"), [(1.0, False), (10.0, True)])
async def test_a_deadline_says_something_about_a_relay_that_had_some_seconds(
    clock: Clock, seconds: float, cools: bool
) -> None:
    class Late(End):
        async def send(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
            clock.ahead += seconds
            return await super().send(*args, **kwargs)

    first = Late("first", SendTimeout("no answer", stage="greeting", retryable=True))
    failover = Failover([first, End("second")])
    with pytest.raises(SendTimeout):
        await failover.send(*letter(), deadline=time.monotonic() + seconds)
    first.from_now_on()
    assert await relays_of(failover) == ["second" if cools else "first"]


# All fail


async def test_when_all_fail_the_error_says_what_each_of_them_had_to_say() -> None:
    ends = [
        End("1", down()),
        End("2", AuthenticationError("535 no", stage="auth")),
        End("3", down(retryable=False)),
    ]
    failover = Failover(ends)
    with pytest.raises(ConnectError) as caught:
        await failover.send(*letter())
    assert caught.value.retryable  # by one of them it may succeed later
    assert caught.value.__notes__ == [
        "another relay: AuthenticationError: 535 no",
        "another relay: ConnectError: refused",
    ]


async def test_errors_of_relays_keep_no_content_alive() -> None:
    class Down(End):
        async def send(self, *args: t.Any, **kwargs: t.Any) -> t.NoReturn:
            raise down()

    failover = Failover([Down("1"), Down("2")])

    async def fail() -> weakref.ref[Marked]:
        gone = weakref.ref(marked := Marked(letter()[1]))
        try:
            await failover.send(letter()[0], marked)
        except ConnectError:
            return gone
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        assert (await fail())() is None
    finally:
        gc.enable()


class Marked(Content):
    """Content that can be watched."""

    def __init__(self, content: Content) -> None:
        super().__init__([bytes(content)], message_id=content.message_id)


# Round robin


async def test_messages_are_shared_out_in_turn() -> None:
    ends = [End(name) for name in "abc"]
    assert await relays_of(RoundRobin(ends), 7) == list("abcabca")


async def test_the_share_of_a_relay_that_cools_goes_to_all_others() -> None:
    ends = [End("a"), End("b", down()), End("c")]
    relays = await relays_of(RoundRobin(ends), 41)
    assert len(ends[1].tried) == 1
    assert {relays.count("a"), relays.count("c")} <= {20, 21}


async def test_a_round_of_relays_sends_on_what_one_could_not_take(musts: Musts) -> None:
    async with (
        FaultServer(greeting="421 4.3.2 busy") as first,
        FaultServer() as second,
        Mailer(RoundRobin([first.url, second.url])) as mailer,
    ):
        musts.watch(first)
        musts.watch(second)
        results = [await send(musts, mailer) for _ in range(4)]
        assert not any(isinstance(each, MailError) for each in results)
    assert len(second.messages) == 4


# As a Transport


async def test_their_numbers_add_up_and_each_message_counts_once() -> None:
    failing = SMTPTransport(SMTPSettings(port=1))
    memory = MemoryTransport()
    failover = Failover([failing, memory])
    await relays_of(failover, 3)
    assert failing.stats().not_sent == 1
    assert failover.stats() == PoolStats(accepted=3)
    alone = Failover([SMTPTransport(SMTPSettings(port=1)), SMTPTransport(SMTPSettings(port=1))])
    with pytest.raises(ConnectError):
        await alone.send(*letter())
    assert alone.stats() == PoolStats(not_sent=1)
    await failover.aclose()
    await alone.aclose()


def test_as_many_sends_are_worth_having_as_the_relays_have_room_for() -> None:
    settings = [SMTPSettings(max_connections=3), SMTPSettings(max_connections=5)]
    assert Failover(settings).concurrency == 5
    assert RoundRobin(settings).concurrency == 8


async def test_closing_closes_all_also_where_one_fails_to() -> None:
    class Stuck(End):
        async def aclose(self) -> None:
            await super().aclose()
            raise MailerClosed("stuck")

    ends = [Stuck("a"), End("b")]
    with pytest.raises(MailerClosed):
        await Failover(ends).aclose()
    assert [end.closed for end in ends] == [1, 1]


def test_who_hears_of_late_replies_is_told_to_whatever_has_them() -> None:
    def heard(came_to: object) -> None:
        """Hear."""

    settings = [SMTPSettings(), SMTPSettings()]
    mailer = Mailer(
        Retrying(Throttled(Failover([*settings, MemoryTransport()]), "5/s")), on_resolved=heard
    )
    failover = t.cast("t.Any", mailer.transport)._transport._transport
    told = [getattr(each, "_on_resolved", None) for each in failover.transports]
    assert told == [heard, heard, None]
    with pytest.raises(ConfigError, match="on_resolved"):
        Mailer(Retrying(Failover([MemoryTransport()])), on_resolved=heard)


# Made


def test_a_list_given_to_a_mailer_is_failover_in_that_order_with_the_options_for_each() -> None:
    mailer = Mailer(["smtp://a.example", SMTPSettings("b.example"), MemoryTransport()])
    assert isinstance(mailer.transport, Failover)
    assert [type(each).__name__ for each in mailer.transport.transports] == [
        "SMTPTransport",
        "SMTPTransport",
        "MemoryTransport",
    ]
    mailer = Mailer(("smtp://a.example", "smtp://b.example"), max_connections=2)
    assert isinstance(mailer.transport, Failover)
    for each in mailer.transport.transports:
        assert isinstance(each, SMTPTransport)
        assert each.settings.max_connections == 2


@pytest.mark.parametrize(
    ("relays", "options", "text"),
    [
        ([], {}, "where: there is no relay"),
        ("smtp://a.example", {}, "where: must be a list of URLs, not str"),
        (["smtp://a.example", "ftp://b"], {}, "where: relay 2: there is nothing for 'ftp'"),
        ([None], {}, "where: relay 1: must be"),
        ([MemoryTransport()], {"max_connections": 2}, "where: relay 1: max_connections: "),
        ([["smtp://a.example"]], {}, "where: relay 1: must be"),
        (["memory://"], {"cooldown": 0}, "cooldown: "),
    ],
)
def test_relays_that_cannot_work_are_refused_by_their_number(
    relays: t.Any, options: dict[str, t.Any], text: str
) -> None:
    for kind in (Failover, RoundRobin):
        with pytest.raises(ConfigError, match=text):
            kind(relays, **options)


def test_a_refused_list_shows_no_password() -> None:
    url = f"smtp://ada:{PASSWORD}@a.example"
    with pytest.raises(ConfigError) as caught:
        Mailer([url, "smtp://"])
    from tests.musts import assert_keeps_secrets

    assert_keeps_secrets(caught.value)
    assert PASSWORD not in repr(Mailer([url, "memory://"]))


async def test_a_relay_without_an_extension_that_one_message_needs_is_not_left_out() -> None:
    lacks = NotSent("the content has 8-bit octets", stage="mail", retryable=False)
    first, second = End("first", lacks, lambda receipt: receipt), End("second")
    failover = Failover([first, second])
    assert (await failover.send(*letter("bob@example.org"))).relay == "second"
    assert (await failover.send(*letter("bob@example.org"))).relay == "first"
