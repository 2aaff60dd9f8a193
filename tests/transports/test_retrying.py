"""What is tried again, for whom, when, and what is never."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import typing as t
import weakref
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import (
    ConfigError,
    ConnectError,
    Content,
    DeliveryUnknown,
    InvalidAttachment,
    Mailer,
    MailerClosed,
    MailError,
    MessageRejected,
    Receipt,
    RecipientsRejected,
    Reply,
    SenderRejected,
    SendTimeout,
    ServerBusy,
    SMTPSettings,
    SMTPTransport,
    TLSError,
)
from amail.testing import OK, Close, FaultServer
from amail.transports.base import PoolStats
from amail.transports.redirected import Redirected
from amail.transports.retrying import Retrying, RetryPolicy, is_retryable
from tests.smtp.outcomes import accepted, said, send, unknown
from tests.strategies import EXAMPLES
from tests.transports.ends import Clock, End, letter, run_in_virtual_time

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail import Envelope
    from tests.musts import Musts

SOON = RetryPolicy(attempts=5, first=0.01)
GREY, NOBODY = Reply(450, "4.2.0", "greylisted"), Reply(550, "5.1.1", "no such user")
PATHS = ("a@example.org", "b@example.org", "c@example.org")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def refusing(**replies: Reply) -> Callable[[Receipt], Receipt]:
    """Have an end accept all recipients but these, named by their local part."""

    def outcome(receipt: Receipt) -> Receipt:
        refused = {f"{name}@example.org": reply for name, reply in replies.items()}
        paths = receipt.envelope.forward_paths
        taken = tuple(path for path in paths if path not in refused)
        return replace(receipt, accepted=taken, refused=refused)

    return outcome


def refused(**replies: Reply) -> RecipientsRejected:
    named = {f"{name}@example.org": reply for name, reply in replies.items()}
    retryable = any(reply.transient for reply in replies.values())
    return RecipientsRejected("refused", stage="rcpt", refused=named, retryable=retryable)


def down() -> ConnectError:
    return ConnectError("refused", stage="connect", retryable=True)


def tried(end: End) -> list[str]:
    """To whom each try went, by the first letters."""
    return ["".join(path[0] for path in envelope.forward_paths) for envelope, _, _ in end.tried]


# What


@pytest.mark.parametrize(
    "error",
    [
        down(),
        ServerBusy("421", stage="mail", retryable=True),
        SendTimeout("late", stage="greeting", retryable=True),
        SenderRejected("450", stage="mail", reply=GREY, retryable=True),
        MessageRejected("451", stage="final", reply=GREY, retryable=True),
        refused(b=GREY),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_succeed_later_is_tried_again_with_the_same_octets(error: MailError) -> None:
    end = End("end", error, error, lambda receipt: receipt)
    envelope, content = letter("b@example.org")
    receipt = await Retrying(end, SOON).send(envelope, content)
    assert (receipt.attempts, receipt.accepted) == (3, ("b@example.org",))
    assert receipt.refused == {}
    assert [(each[0], each[1] is content) for each in end.tried] == [(envelope, True)] * 3


@pytest.mark.parametrize(
    "error",
    [
        DeliveryUnknown("no reply", stage="final"),
        TLSError("not trusted", stage="tls"),
        MailerClosed("closed", stage="pool"),
        MessageRejected("554", stage="final", reply=NOBODY),
        refused(b=NOBODY),
        InvalidAttachment("the file has changed"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_else_is_raised_at_once(error: MailError) -> None:
    end = End("end", error)
    with pytest.raises(type(error)):
        await Retrying(end, SOON).send(*letter("b@example.org"))
    assert len(end.tried) == 1
    assert not is_retryable(error)


async def test_the_last_error_is_raised_when_no_try_is_left() -> None:
    end = End("end", down(), SendTimeout("late", stage="greeting", retryable=True))
    with pytest.raises(SendTimeout):
        await Retrying(end, RetryPolicy(attempts=3, first=0.01)).send(*letter())
    assert len(end.tried) == 3


def test_the_predicate_is_one_for_any_exception() -> None:
    assert is_retryable(down())
    assert not is_retryable(ValueError())
    assert not is_retryable(DeliveryUnknown("", retryable=True))
    assert not is_retryable(asyncio.CancelledError())


# For whom


async def test_f53_those_refused_for_the_time_being_are_tried_again_and_they_alone() -> None:
    end = End("end", refusing(b=GREY, c=NOBODY), refused(b=GREY), lambda receipt: receipt)
    envelope, content = letter(*PATHS)
    receipt = await Retrying(end, SOON).send(envelope, content)
    assert tried(end) == ["abc", "b", "b"]
    assert (receipt.accepted, receipt.refused) == (PATHS[:2], {PATHS[2]: NOBODY})
    assert (receipt.envelope, receipt.attempts, receipt.transactions) == (envelope, 3, 2)
    assert receipt.message_id == content.message_id


async def test_f53_those_still_refused_at_the_end_stand_in_the_receipt_with_the_last_reply() -> (
    None
):
    later = Reply(450, "4.2.0", "still greylisted")
    end = End("end", refusing(b=GREY, c=GREY), refused(b=later, c=NOBODY), refused(b=later))
    receipt = await Retrying(end, RetryPolicy(attempts=4, first=0.01)).send(*letter(*PATHS))
    assert tried(end) == ["abc", "bc", "b", "b"]
    assert receipt.accepted == PATHS[:1]
    assert receipt.refused == {PATHS[1]: later, PATHS[2]: NOBODY}


async def test_f51_all_refused_at_first_and_some_for_good() -> None:
    end = End("end", refused(a=GREY, b=NOBODY, c=GREY), lambda receipt: receipt)
    receipt = await Retrying(end, SOON).send(*letter(*PATHS))
    assert tried(end) == ["abc", "ac"]
    assert (receipt.accepted, receipt.refused) == (PATHS[::2], {PATHS[1]: NOBODY})
    end = End("end", refused(a=GREY, b=NOBODY, c=GREY), refused(a=NOBODY, c=NOBODY))
    with pytest.raises(RecipientsRejected) as caught:
        await Retrying(end, SOON).send(*letter(*PATHS))
    assert caught.value.refused == dict.fromkeys(PATHS, NOBODY)


async def test_where_all_or_nobody_shall_get_it_all_are_tried_again() -> None:
    envelope, content = letter(*PATHS)
    envelope = replace(envelope, all_recipients=True)
    end = End("end", refused(b=GREY), lambda receipt: receipt)
    receipt = await Retrying(end, SOON).send(envelope, content)
    assert (tried(end), receipt.accepted) == (["abc", "abc"], PATHS)
    end = End("end", refused(a=GREY, b=NOBODY))
    with pytest.raises(RecipientsRejected):
        await Retrying(end, SOON).send(envelope, content)
    assert len(end.tried) == 1


@pytest.mark.parametrize(
    "error",
    [down(), MessageRejected("554", stage="final", reply=NOBODY), InvalidAttachment("changed")],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_after_some_were_accepted_leaves_a_receipt(error: MailError) -> None:
    end = End("end", refusing(b=GREY), error)
    receipt = await Retrying(end, RetryPolicy(attempts=2, first=0.01)).send(*letter(*PATHS))
    assert receipt.accepted == PATHS[::2]
    last = NOBODY if isinstance(error, MessageRejected) else GREY
    assert receipt.refused == {PATHS[1]: last}


# Unknown


async def test_the_unknown_after_some_were_accepted_says_of_each_what_is_known() -> None:
    lost = DeliveryUnknown("no reply", stage="final", recipients=("b@example.org",))
    end = End("end", refusing(b=GREY, c=NOBODY), lost)
    with pytest.raises(DeliveryUnknown) as caught:
        await Retrying(end, SOON).send(*letter(*PATHS))
    assert caught.value.accepted == PATHS[:1]
    assert caught.value.recipients == PATHS[1:2]
    assert caught.value.refused == {PATHS[2]: NOBODY}
    assert tried(end) == ["abc", "b"]


async def test_the_unknown_is_tried_again_only_where_a_policy_says_so() -> None:
    policy = RetryPolicy(first=0.01, on_unknown="retry")
    lost = DeliveryUnknown("no reply", stage="final", accepted=PATHS[:1], refused={PATHS[1]: GREY})
    end = End("end", lost, lambda receipt: receipt)
    receipt = await Retrying(end, policy).send(*letter(*PATHS))
    assert tried(end) == ["abc", "bc"]
    assert (receipt.accepted, receipt.refused) == (PATHS, {})


@pytest.mark.parametrize("error", [down(), refused(a=NOBODY, b=NOBODY, c=NOBODY)])
async def test_what_was_unknown_once_stays_unknown_whatever_is_said_later(error: MailError) -> None:
    policy = RetryPolicy(attempts=3, first=0.01, on_unknown="retry")
    end = End("end", DeliveryUnknown("no reply", stage="final"), error)
    with pytest.raises(DeliveryUnknown) as caught:
        await Retrying(end, policy).send(*letter(*PATHS))
    assert caught.value.recipients == PATHS


OUTCOMES: t.Final = ("ok", "grey", "gone", "all_grey", "all_gone", "down", "unknown", "rejected")


class Random(End):
    """Does what was drawn; knows who ``surely`` and who ``perhaps`` has a copy."""

    def __init__(self, drawn: list[tuple[str, int]]) -> None:
        super().__init__("end")
        self.surely: list[str] = []
        self.perhaps: list[str] = []
        self._drawn = drawn

    async def send(self, envelope: Envelope, content: Content, **_: t.Any) -> Receipt:
        kind, mask = self._drawn.pop(0) if self._drawn else ("ok", 0)
        paths = envelope.forward_paths
        assert paths
        match kind:
            case "down":
                raise down()
            case "unknown":
                self.perhaps += paths
                raise DeliveryUnknown("lost", stage="final", recipients=paths)
            case "rejected":
                raise MessageRejected("451", stage="final", reply=GREY, retryable=True)
        return self._split(kind, mask, envelope, content)

    def _split(self, kind: str, mask: int, envelope: Envelope, content: Content) -> Receipt:
        paths = envelope.forward_paths
        reply = GREY if kind.endswith("grey") else NOBODY
        chosen = [path for path in paths if mask & 1 << PATHS.index(path)]
        refused = dict.fromkeys({"ok": (), "all": paths}.get(kind[:3].strip("_"), chosen), reply)
        if len(refused) == len(paths):
            raise RecipientsRejected("no", stage="rcpt", refused=refused, retryable=reply.transient)
        taken = tuple(path for path in paths if path not in refused)
        self.surely += taken
        return Receipt(content.message_id, envelope, Reply(250, None, "ok"), taken, refused)


@given(
    drawn=st.lists(st.tuples(st.sampled_from(OUTCOMES), st.integers(0, 7)), max_size=6),
    on_unknown=st.sampled_from(["raise", "retry"]),
)
@EXAMPLES
def test_no_recipient_is_tried_again_once_accepted_and_each_has_one_fate(
    drawn: list[tuple[str, int]], on_unknown: t.Any
) -> None:
    server = Random(drawn)
    retrying = Retrying(server, RetryPolicy(attempts=8, first=1e-9, on_unknown=on_unknown))

    async def outcome() -> Receipt | MailError:
        try:
            return await retrying.send(*letter(*PATHS))
        except MailError as error:
            return error

    result = asyncio.run(outcome())
    surely, perhaps = set(server.surely), set(server.perhaps)
    assert len(surely) == len(server.surely)
    if on_unknown == "raise":
        assert not surely & perhaps
    if isinstance(result, Receipt):
        assert sorted([*result.accepted, *result.refused]) == list(PATHS)
        assert perhaps <= set(result.accepted) == surely
    elif isinstance(result, DeliveryUnknown):
        fates = [*result.accepted, *result.recipients, *result.refused]
        assert sorted(fates) == list(PATHS)
        assert set(result.accepted) == surely
        assert set(result.recipients) == perhaps - surely
    else:
        assert surely | perhaps == set()


# When


def test_pauses_grow_to_the_longest_and_are_anything_below(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", uniform)
    policy = RetryPolicy(attempts=8, first=1, longest=10, total=1000)
    end = End("end", down())

    async def main() -> None:
        with pytest.raises(ConnectError):
            await Retrying(end, policy).send(*letter())

    began = time.monotonic()
    run_in_virtual_time(main(), clock)
    assert bounds == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 10), (0, 10), (0, 10)]
    assert 45 <= time.monotonic() - began < 46


@pytest.mark.parametrize("by", ["deadline", "total"])
def test_no_try_begins_beyond_the_deadline_or_the_total_and_nobody_waits_for_one_that_would(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    end = End("end", down())

    async def main() -> None:
        began = time.monotonic()
        policy = RetryPolicy(attempts=100, first=4, total=20 if by == "total" else 1000)
        deadline = began + 20 if by == "deadline" else None
        with pytest.raises(ConnectError):
            await Retrying(end, policy).send(*letter(), deadline=deadline)
        assert 12 <= time.monotonic() - began < 13
        assert [each[2] for each in end.tried] == [deadline] * 3

    run_in_virtual_time(main(), clock)


def test_the_pause_after_any_number_of_tries_is_finite() -> None:
    policy = RetryPolicy(attempts=10**6, first=1e-3, longest=60)
    assert policy.longest_pause(10**6) == 60


async def test_cancelling_between_tries_says_how_far_it_got() -> None:
    end = End("end", refusing(b=GREY))
    sending = asyncio.ensure_future(
        Retrying(end, RetryPolicy(first=3600, longest=3600, total=10**5)).send(*letter(*PATHS))
    )
    while not end.tried:
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await sending
    assert "it had been accepted for 2 of 3 recipients" in caught.value.__notes__[0]


async def test_an_error_at_the_end_keeps_no_content_alive() -> None:
    class Down(End):
        async def send(self, *args: t.Any, **kwargs: t.Any) -> t.NoReturn:
            raise down()

    class Marked(Content):
        pass

    retrying = Retrying(Down("end"), RetryPolicy(attempts=2, first=0.001))

    async def fail() -> weakref.ref[Marked]:
        content = Marked([b"Subject: Hi\r\n\r\n"], message_id="<x@example.com>")
        gone = weakref.ref(content)
        try:
            await retrying.send(letter()[0], content)
        except ConnectError:
            return gone
        raise AssertionError

    gc.collect()
    gc.disable()
    try:
        assert (await fail())() is None
    finally:
        gc.enable()


# Over the wire


async def test_f51_a_greylisted_recipient_gets_the_message_later_and_nobody_gets_it_twice(
    musts: Musts,
) -> None:
    async with FaultServer(rcpt=[OK, "450 4.7.1 greylisted", OK]) as server:
        musts.watch(server)
        transport = SMTPTransport(SMTPSettings.from_url(server.url))
        async with Mailer(Retrying(transport, SOON)) as mailer:
            result = accepted(await send(musts, mailer, recipients=3), attempts=2)
            assert (len(result.accepted), result.refused, result.transactions) == (3, {}, 2)
            assert mailer.stats().accepted == 1
        first, second = server.messages
        assert first.content == second.content
        assert (len(first.forward_paths), len(second.forward_paths)) == (2, 1)


async def test_f64_what_is_unknown_is_not_tried_again_over_the_wire(musts: Musts) -> None:
    async with FaultServer(final=Close()) as server:
        musts.watch(server)
        transport = SMTPTransport(SMTPSettings.from_url(server.url))
        async with Mailer(Retrying(transport, SOON)) as mailer:
            unknown(await send(musts, mailer))
        assert said(server).count("MAIL") == 1


async def test_a_message_counts_once_however_often_it_was_tried(musts: Musts) -> None:
    async with FaultServer(mail=["451 4.3.0 later", "451 4.3.0 later", OK]) as server:
        musts.watch(server)
        transport = SMTPTransport(SMTPSettings.from_url(server.url))
        async with Mailer(Retrying(transport, SOON)) as mailer:
            accepted(await send(musts, mailer), attempts=3)
            stats = mailer.stats()
            assert replace(stats, open=0, idle=0) == PoolStats(accepted=1)
            assert transport.stats().rejected == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("attempts", value) for value in (0, 1.5, True, None)),
        *((name, value) for name in ("first", "longest", "total") for value in (0, -1, "1")),
        ("total", float("inf")),
        ("on_unknown", "ignore"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_by_name(name: str, value: t.Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        RetryPolicy(**{name: value})


async def test_who_gets_it_instead_of_others_gets_it_once() -> None:
    """Retrying over Redirected: the redirection was accepted, one who is allowed comes later."""
    later = {"ok@example.com": Reply(450, "4.2.0", "later")}

    def first(receipt: Receipt) -> Receipt:
        accepted = tuple(path for path in receipt.accepted if path not in later)
        return replace(receipt, accepted=accepted, refused=later)

    end = End("relay", first, lambda receipt: receipt)
    redirected = Redirected(end, redirect_to="catch@example.com", allowed=["ok@example.com"])
    retrying = Retrying(redirected, RetryPolicy(first=0.001, longest=0.001))
    receipt = await retrying.send(*letter("ok@example.com", "other@example.org"))
    assert [each.forward_paths for each, _, _ in end.tried] == [
        ("ok@example.com", "catch@example.com"),
        ("ok@example.com",),
    ]
    assert receipt.accepted == ("ok@example.com", "catch@example.com")
    assert receipt.suppressed == ("other@example.org",)
