"""FAULTS.md, its rows from MAIL to QUIT, against a scripted server."""

from __future__ import annotations

import asyncio
import typing as t

import pytest

from amail import Attachment, Mailer
from amail.errors import (
    AuthenticationError,
    ConnectionLost,
    MessageRejected,
    MessageTooLarge,
    ProtocolError,
    RecipientsRejected,
    Rejected,
    SenderRejected,
    SendTimeout,
    ServerBusy,
)
from amail.testing import (
    OK,
    Bytes,
    Close,
    EachConnection,
    EachMessage,
    Early,
    FaultServer,
    HalfClose,
    Hang,
    Partial,
    Reset,
    Say,
    Slow,
)
from tests.messages import tokened
from tests.smtp.outcomes import (
    PIPELINING,
    accepted,
    assert_dropped,
    assert_kept,
    not_sent,
    rejected,
    said,
    send,
    talking_to,
    unknown,
)

if t.TYPE_CHECKING:
    from tests.musts import Musts

MEGABYTE = 1 << 20

ENDS = pytest.mark.parametrize(
    "end", [pytest.param(Close(), id="fin"), pytest.param(Reset(), id="rst")]
)


def large(octets: int) -> dict[str, t.Any]:
    """Fields of a message whose content has about that many octets."""
    data = bytes(range(256)) * (octets * 3 // 4 // 256)
    return {"attachments": [Attachment("large.bin", "application/octet-stream", data)]}


# MAIL


@PIPELINING
async def test_f38_a_421_to_mail_is_tried_once_more_over_a_fresh_session(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(mail=["421 4.3.2 closing", "421 4.3.2 closing", OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        not_sent(result, ServerBusy, stage="mail", retryable=True, code=421)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@PIPELINING
async def test_f38_the_fresh_session_is_accepted_as_a_second_attempt(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(mail=[Say("421 4.3.2 closing", Close()), OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        accepted(await send(musts, mailer), attempts=2)
        assert server.connections == 2
        await assert_kept(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize("code", [450, 451, 452])
async def test_f39_a_sender_refused_for_now_may_be_taken_later(
    musts: Musts, code: int, pipelining: bool
) -> None:
    server = FaultServer(mail=[f"{code} 4.7.1 not now", OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        rejected(result, SenderRejected, stage="mail", retryable=True, code=code)
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize("code", [550, 553, 501])
async def test_f40_a_sender_refused_for_good_is_rejected(
    musts: Musts, code: int, pipelining: bool
) -> None:
    server = FaultServer(mail=[f"{code} 5.1.8 never", OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        error = rejected(result, SenderRejected, stage="mail", retryable=False, code=code)
        assert "ada@example.com" in str(error)
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize("reply", ["552 5.3.4 too large", "552 too large", "554 5.2.3 too large"])
async def test_f41_a_sender_refused_for_the_size_is_a_message_too_large(
    musts: Musts, reply: str, pipelining: bool
) -> None:
    server = FaultServer(mail=[reply, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        rejected(result, MessageTooLarge, stage="mail", retryable=False, code=int(reply[:3]))
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


async def test_f41_what_is_larger_than_the_size_offered_never_gets_to_mail(musts: Musts) -> None:
    server = FaultServer(extensions=("SIZE 5000",))
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer, **large(10_000))
        rejected(result, MessageTooLarge, stage="mail", retryable=False, code=None)
        assert said(server) == ["EHLO"]
        await assert_kept(musts, server, mailer)


@PIPELINING
async def test_f42_a_session_that_lost_its_authentication_is_replaced_once(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(mail=["530 5.7.0 who are you?", "530 5.7.0 who are you?", OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        not_sent(result, AuthenticationError, stage="mail", retryable=False, code=530)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@PIPELINING
async def test_f43_a_bad_sequence_is_replaced_by_a_fresh_session_once(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(mail=["503 5.5.1 nested MAIL", "503 5.5.1 nested MAIL", OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        not_sent(result, ProtocolError, stage="mail", retryable=True, code=503)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize("reply", ["530 5.7.0 who are you?", "503 5.5.1 nested MAIL"])
async def test_f42_f43_the_fresh_session_is_accepted_as_a_second_attempt(
    musts: Musts, reply: str, pipelining: bool
) -> None:
    server = FaultServer(mail=[reply, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        accepted(await send(musts, mailer), attempts=2)
        assert server.connections == 2


@PIPELINING
@ENDS
async def test_f45_a_session_that_died_idle_is_replaced_without_counting_an_attempt(
    musts: Musts, end: Close | Reset, pipelining: bool
) -> None:
    server = FaultServer(mail=[OK, end, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        accepted(await send(musts, mailer))
        assert mailer.stats().reconnects == 0
        accepted(await send(musts, mailer), attempts=1)
        assert mailer.stats().reconnects == 1
        assert server.connections == 2
        await assert_kept(musts, server, mailer)


@PIPELINING
@ENDS
async def test_f45_behind_the_session_that_died_idle_two_attempts_are_made(
    musts: Musts, end: Close | Reset, pipelining: bool
) -> None:
    server = FaultServer(mail=[OK, end, end, end, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        accepted(await send(musts, mailer))
        result = await send(musts, mailer)
        error = not_sent(result, ConnectionLost, stage="mail", retryable=True)
        assert isinstance(error, ConnectionError)
        assert mailer.stats().reconnects == 1
        assert server.connections == 3
        await assert_dropped(musts, server, mailer)


@PIPELINING
async def test_f45_a_session_whose_end_was_seen_while_idle_costs_no_attempt(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(final=[Say("250 2.0.0 ok", Close()), OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        accepted(await send(musts, mailer))
        await server.all_closed()
        accepted(await send(musts, mailer), attempts=1)
        assert server.connections == 2


@PIPELINING
@ENDS
async def test_f45_many_sessions_that_died_idle_are_replaced_at_once(
    musts: Musts, end: Close | Reset, pipelining: bool
) -> None:
    server = FaultServer(mail=EachConnection([OK, end]), final={1: Hang(), 2: Hang(), 3: Hang()})
    async with talking_to(server, musts, pipelining=pipelining, max_connections=3) as mailer:
        for _ in range(2):
            async with asyncio.TaskGroup() as senders:
                sending = [senders.create_task(send(musts, mailer)) for _ in range(3)]
                await server.reached("final", 3)
                server.release()
            for each in sending:
                accepted(each.result(), attempts=1)
        assert mailer.stats().reconnects == 3
        assert server.connections == 6


# Replies that are none


@PIPELINING
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data"])
async def test_f46_two_replies_in_one_segment_end_the_session_before_the_content(
    musts: Musts, stage: t.Literal["mail", "rcpt", "data"], pipelining: bool
) -> None:
    code = b"354" if stage == "data" else b"250"
    twice = Bytes(code + b" ok\r\n250 2.0.0 ok, queued\r\n")
    server = FaultServer({stage: [twice, twice, OK]})
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        assert type(result) is ProtocolError, repr(result)
        assert (result.outcome, result.retryable) == ("not_sent", True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)
        assert len(server.messages) == 1


@PIPELINING
async def test_f46_replies_to_commands_that_were_not_said_yet_are_not_believed(
    musts: Musts, pipelining: bool
) -> None:
    all_at_once = Bytes(b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n250 2.0.0 ok\r\n")
    server = FaultServer(mail=[all_at_once, all_at_once, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        assert type(result) is ProtocolError, repr(result)
        assert "more replies than commands" in str(result)
        assert server.connections == 2
        if not pipelining:
            assert said(server) == ["EHLO", "MAIL"] * 2
        await assert_dropped(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize(
    "behind", [b"250 2.0.0 ok again\r\n", b"garbage\r\n", b"2", b"421 4.4.2 closing\r\n"]
)
async def test_f46_f70_what_comes_behind_the_250_to_the_dot_costs_the_session_only(
    musts: Musts, behind: bytes, pipelining: bool
) -> None:
    server = FaultServer(final=[Bytes(b"250 2.0.0 ok, queued as A1B2C3\r\n" + behind), OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        receipt = accepted(await send(musts, mailer))
        assert receipt.queue_id == "A1B2C3"
        await assert_dropped(musts, server, mailer)
        assert server.connections == 2


NO_REPLIES = pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"hello there\r\n", id="garbage"),
        pytest.param(b"\r\n", id="empty"),
        pytest.param(b"25 ok\r\n", id="two_digits"),
        pytest.param(b"050 ok\r\n", id="0xx"),
        pytest.param(b"150 ok\r\n", id="1xx"),
        pytest.param(b"650 ok\r\n", id="6xx"),
        pytest.param(b"999 ok\r\n", id="9xx"),
        pytest.param(b"\0\0\0 ok\r\n", id="nul"),
        pytest.param(b"\xff\xfe\xfd ok\r\n", id="8bit"),
        pytest.param(b"250-ok\r\nhello\r\n", id="garbage_in_the_second_line"),
    ],
)


@PIPELINING
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data"])
@NO_REPLIES
async def test_f47_what_is_no_reply_before_the_content_is_a_protocol_error_tried_twice(
    musts: Musts, octets: bytes, stage: t.Literal["mail", "rcpt", "data"], pipelining: bool
) -> None:
    wrong = Bytes(octets)
    server = FaultServer({stage: [wrong, wrong, OK]})
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        not_sent(result, ProtocolError, stage=stage, retryable=True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@PIPELINING
@NO_REPLIES
async def test_f47_what_is_no_reply_to_the_dot_leaves_delivery_unknown(
    musts: Musts, octets: bytes, pipelining: bool
) -> None:
    server = FaultServer(final=[Bytes(octets), OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        unknown(await send(musts, mailer))
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


@PIPELINING
async def test_f47_the_last_line_of_a_reply_has_the_code_that_counts(
    musts: Musts, pipelining: bool
) -> None:
    mixed = {1: Bytes(b"250-well\r\n550 5.1.1 no\r\n"), 2: Bytes(b"550-no\r\n250 2.1.5 well\r\n")}
    server = FaultServer(rcpt=mixed)
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        receipt = accepted(await send(musts, mailer, 2))
        first, second = receipt.envelope.forward_paths
        assert receipt.accepted == (second,)
        assert [(path, reply.code) for path, reply in receipt.refused.items()] == [(first, 550)]
        await assert_kept(musts, server, mailer)


UNTIDY_END = pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["crlf", "bare_lf"])


@PIPELINING
@UNTIDY_END
@pytest.mark.parametrize("text", [b" ok", b" caf\xe9 \0\f ok", b" "])
async def test_f48_a_reply_that_is_only_untidy_is_taken(
    musts: Musts, text: bytes, end: bytes, pipelining: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fine, go_on = Bytes(b"250" + text + end), Bytes(b"354" + text + end)
    server = FaultServer(mail=fine, rcpt=fine, data=go_on, final=fine)
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        receipt = accepted(await send(musts, mailer))
        assert receipt.reply.code == 250
        await assert_kept(musts, server, mailer)
    assert ("a reply without CR" in caplog.text) is (end == b"\n")


@PIPELINING
@UNTIDY_END
@pytest.mark.parametrize("text", [b"ok", b"", b"=queued"])
async def test_f48_an_acceptance_without_a_space_behind_its_code_is_one(
    musts: Musts, text: bytes, end: bytes, pipelining: bool
) -> None:
    server = FaultServer(final=Bytes(b"250" + text + end))
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        receipt = accepted(await send(musts, mailer))
        assert receipt.reply.code == 250
        await assert_kept(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("mail", "354 go ahead"),
        ("rcpt", "354 go ahead"),
        ("rcpt", "334 VXNlcm5hbWU6"),
        ("data", "250 ok"),
        ("data", "334 VXNlcm5hbWU6"),
    ],
)
async def test_f49_a_positive_reply_of_the_wrong_kind_is_a_protocol_error_tried_twice(
    musts: Musts, stage: t.Literal["mail", "rcpt", "data"], reply: str, pipelining: bool
) -> None:
    server = FaultServer({stage: [reply, reply, OK]})
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        not_sent(result, ProtocolError, stage=stage, retryable=True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


# RCPT


@PIPELINING
@pytest.mark.parametrize("recipients", [1, 3])
async def test_f50_all_recipients_refused_for_good_is_one_rejection(
    musts: Musts, recipients: int, pipelining: bool
) -> None:
    refusals = ["550 5.1.1 no such user"] * recipients
    server = FaultServer(rcpt=[*refusals, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer, recipients)
        error = rejected(result, RecipientsRejected, stage="rcpt", retryable=False, code=550)
        assert len(error.refused) == recipients
        assert {reply.enhanced for reply in error.refused.values()} == {"5.1.1"}
        assert error.recipients == tuple(error.refused)
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


@PIPELINING
async def test_f50_a_server_that_goes_on_with_nobody_gets_an_empty_content(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(rcpt=["550 5.1.1 no such user", OK], data=["354 go ahead", OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        rejected(result, RecipientsRejected, stage="rcpt", retryable=False, code=550)
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize("recipients", [1, 3])
async def test_f51_all_recipients_deferred_may_be_taken_later(
    musts: Musts, recipients: int, pipelining: bool
) -> None:
    refusals = ["450 4.2.1 greylisted"] * recipients
    server = FaultServer(rcpt=[*refusals, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer, recipients)
        error = rejected(result, RecipientsRejected, stage="rcpt", retryable=True, code=450)
        assert [reply.transient for reply in error.refused.values()] == [True] * recipients
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


@PIPELINING
async def test_f52_some_recipients_refused_is_a_success_that_names_them(
    musts: Musts, pipelining: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = FaultServer(rcpt={2: "550 5.1.1 no such user"})
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        receipt = accepted(await send(musts, mailer, 3))
        first, second, third = receipt.envelope.forward_paths
        assert receipt.accepted == (first, third)
        assert {path: reply.code for path, reply in receipt.refused.items()} == {second: 550}
        assert server.messages[0].forward_paths == (first, third)
        warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        assert len(warnings) == 1
        assert "refused 1 of 3 recipients" in warnings[0]
        await assert_kept(musts, server, mailer)


@PIPELINING
async def test_f52_where_all_are_needed_one_refusal_stops_before_data_and_rset_comes_next(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(rcpt={2: "550 5.1.1 no such user"})
    async with talking_to(server, musts, pipelining=pipelining, all_recipients=True) as mailer:
        result = await send(musts, mailer, 3)
        error = rejected(result, RecipientsRejected, stage="rcpt", retryable=False, code=550)
        (path,) = error.refused
        assert path.partition("@")[0].endswith("+2")
        assert error.recipients == (path,)
        assert said(server) == ["EHLO", "MAIL", "RCPT", "RCPT", "RCPT"]
        await assert_kept(musts, server, mailer)
        assert said(server)[5:] == ["RSET", "MAIL", "RCPT", "DATA"]
        # Once is enough.
        await assert_kept(musts, server, mailer)
        assert said(server)[9:] == ["MAIL", "RCPT", "DATA"]


@PIPELINING
async def test_f56_a_421_to_a_recipient_means_nobody_gets_it_and_a_fresh_session_is_tried(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(rcpt=EachMessage({2: "421 4.3.2 closing"}))
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer, 3)
        error = not_sent(result, ServerBusy, stage="rcpt", retryable=True, code=421)
        assert len(error.recipients) == 3
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@PIPELINING
async def test_f56_all_get_it_over_the_fresh_session(musts: Musts, pipelining: bool) -> None:
    server = FaultServer(rcpt={2: "421 4.3.2 closing"})
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        receipt = accepted(await send(musts, mailer, 3), attempts=2)
        assert len(receipt.accepted) == 3
        assert not receipt.refused
        assert server.messages[0].forward_paths == receipt.accepted


@PIPELINING
async def test_f57_no_reply_to_the_third_recipient_means_nobody_gets_it(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(rcpt=EachMessage({3: Hang()}))
    async with talking_to(server, musts, pipelining=pipelining, command_timeout=0.2) as mailer:
        async with musts.within(0.5):
            result = await send(musts, mailer, 5)
        error = not_sent(result, SendTimeout, stage="rcpt", retryable=True)
        assert isinstance(error, TimeoutError)
        assert len(error.recipients) == 5
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


# DATA


@PIPELINING
@pytest.mark.parametrize(
    ("reply", "kind", "retryable"),
    [
        ("451 4.3.0 try later", MessageRejected, True),
        ("452 4.3.1 disk full", MessageRejected, True),
        ("554 5.7.1 no", MessageRejected, False),
        ("552 5.3.4 too large", MessageTooLarge, False),
    ],
)
async def test_f58_a_no_to_data_is_a_rejection_and_rset_comes_next(
    musts: Musts, reply: str, kind: type[Rejected], retryable: bool, *, pipelining: bool
) -> None:
    server = FaultServer(data=[reply, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        rejected(result, kind, stage="data", retryable=retryable, code=int(reply[:3]))
        assert server.connections == 1
        await assert_kept(musts, server, mailer)
        assert said(server) == ["EHLO", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA"]


@PIPELINING
async def test_f59_no_reply_to_data_is_timed_out_twice(musts: Musts, pipelining: bool) -> None:
    server = FaultServer(data=[Hang(), Hang(), OK])
    async with talking_to(server, musts, pipelining=pipelining, data_timeout=0.2) as mailer:
        async with musts.within(0.5):
            result = await send(musts, mailer)
        not_sent(result, SendTimeout, stage="data", retryable=True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@PIPELINING
@ENDS
async def test_f59_a_connection_that_ends_at_data_is_lost_after_two_tries(
    musts: Musts, end: Close | Reset, pipelining: bool
) -> None:
    server = FaultServer(data=[end, end, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        not_sent(result, ConnectionLost, stage="data", retryable=True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


# The content


@pytest.mark.parametrize(
    ("reply", "kind", "retryable"),
    [
        ("552 5.3.4 too large", MessageTooLarge, False),
        ("552 5.2.2 mailbox full", MessageRejected, False),
        ("554 5.7.1 spam", MessageRejected, False),
        ("451 4.3.0 try later", MessageRejected, True),
    ],
)
async def test_f60_an_early_no_stops_the_content_and_is_the_answer(
    musts: Musts, reply: str, kind: type[Rejected], retryable: bool
) -> None:
    server = FaultServer(body=[Early(reply, after=100_000), OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer, **large(16 * MEGABYTE))
        rejected(result, kind, stage="body", retryable=retryable, code=int(reply[:3]))
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


async def test_f60_an_early_421_stops_the_content_and_is_not_tried_again_at_once(
    musts: Musts,
) -> None:
    server = FaultServer(body=[Early("421 4.3.2 closing", after=100_000), OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer, **large(16 * MEGABYTE))
        not_sent(result, ServerBusy, stage="body", retryable=True, code=421)
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


async def test_f60_an_early_yes_is_not_believed(musts: Musts) -> None:
    early = Early("250 2.0.0 ok", after=100_000)
    server = FaultServer(body=[early, early, OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer, **large(16 * MEGABYTE))
        not_sent(result, ProtocolError, stage="body", retryable=True)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


@pytest.mark.parametrize("after", [1, 64 * 1024, 8 * MEGABYTE], ids=["1", "64_KiB", "half"])
@pytest.mark.parametrize("kind", [Close, HalfClose, Reset])
async def test_f61_a_large_content_cut_short_is_not_sent_after_two_tries(
    musts: Musts, kind: type[Close | HalfClose | Reset], after: int
) -> None:
    musts.loop_watch.limit = 0.2
    cut = kind(after=after)
    server = FaultServer(body=[cut, cut, OK])
    async with talking_to(server, musts) as mailer:
        result = await send(musts, mailer, **large(16 * MEGABYTE))
        not_sent(result, ConnectionLost, stage="body", retryable=True)
        assert server.connections == 2
        assert server.messages == []
        await assert_dropped(musts, server, mailer)


@ENDS
async def test_f61_the_second_try_sends_the_whole_of_a_large_content(
    musts: Musts, end: Close | Reset
) -> None:
    musts.loop_watch.limit = 0.2
    cut = type(end)(after=8 * MEGABYTE)
    server = FaultServer(body=[cut, OK])
    async with talking_to(server, musts) as mailer:
        receipt = accepted(await send(musts, mailer, **large(16 * MEGABYTE)), attempts=2)
        assert server.connections == 2
        (message,) = server.messages
        assert len(message.content) > 16 * MEGABYTE
        assert receipt.message_id.encode() in message.content
        await assert_kept(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize("kind", [Close, HalfClose, Reset])
async def test_f61_a_small_content_cut_short_behind_its_dot_leaves_delivery_unknown(
    musts: Musts, kind: type[Close | HalfClose | Reset], pipelining: bool
) -> None:
    server = FaultServer(body=[kind(after=1), OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        unknown(await send(musts, mailer))
        assert server.connections == 1
        assert server.messages == []
        await assert_dropped(musts, server, mailer)


async def test_f62_a_server_that_stops_reading_is_timed_out_without_progress(
    musts: Musts,
) -> None:
    server = FaultServer(body=[Hang(after=100_000), Hang(after=100_000), OK], receive_buffer=65_536)
    async with talking_to(server, musts, data_timeout=0.3) as mailer:
        async with musts.within(1.0):
            result = await send(musts, mailer, **large(16 * MEGABYTE))
        error = not_sent(result, SendTimeout, stage="body", retryable=True)
        assert isinstance(error, TimeoutError)
        assert server.connections == 2
        await assert_dropped(musts, server, mailer)


async def test_f63_a_slow_but_steady_reader_is_waited_for(musts: Musts) -> None:
    musts.loop_watch.limit = 0.2
    server = FaultServer(body=Slow(4_000_000), receive_buffer=65_536)
    async with talking_to(server, musts, command_timeout=0.5, data_timeout=0.5) as mailer:
        loop = asyncio.get_running_loop()
        began = loop.time()
        accepted(await send(musts, mailer, **large(10_000_000)))
        assert loop.time() - began > 2
        await assert_kept(musts, server, mailer)


# The reply to the dot


@PIPELINING
async def test_f64_no_reply_to_the_dot_leaves_delivery_unknown_after_the_final_timeout(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(final=[Hang(), OK])
    async with talking_to(server, musts, pipelining=pipelining, final_timeout=0.3) as mailer:
        async with musts.within(0.3):
            unknown(await send(musts, mailer))
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


async def test_f64_an_explicit_deadline_ends_the_wait_for_the_reply_earlier(
    musts: Musts,
) -> None:
    server = FaultServer(final=[Hang(), OK])
    async with talking_to(server, musts) as mailer:
        token = musts.token()
        async with musts.within(0.3):
            sending = mailer.send(tokened(token), timeout=0.3)
            unknown(await musts.outcome_of(sending, token=token))
        assert server.connections == 1
        assert mailer.stats().open == 1


async def test_f64_the_final_timeout_ends_the_wait_before_a_later_deadline(musts: Musts) -> None:
    server = FaultServer(final=[Hang(), OK])
    async with talking_to(server, musts, final_timeout=0.3) as mailer:
        token = musts.token()
        async with musts.within(0.3):
            sending = mailer.send(tokened(token), timeout=30)
            unknown(await musts.outcome_of(sending, token=token))
        assert server.connections == 1


async def test_f64_the_time_for_sending_does_not_shorten_the_wait_for_the_reply(
    musts: Musts,
) -> None:
    server = FaultServer(final=Hang())
    async with talking_to(server, musts, timeout=0.2, final_timeout=0.6) as mailer:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with musts.within(0.6):
            unknown(await send(musts, mailer))
        assert loop.time() - began >= 0.6


@PIPELINING
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(Close(), id="fin"),
        pytest.param(HalfClose(), id="half_close"),
        pytest.param(Reset(), id="rst"),
        pytest.param(Partial("25"), id="partial"),
        pytest.param(Bytes(b"250 2.0.0 ok", Reset()), id="no_line_end"),
        pytest.param(Bytes(b"451-4.3.0 well\r\n", Close()), id="part_of_a_no"),
    ],
)
async def test_f65_a_connection_lost_before_the_reply_to_the_dot_leaves_delivery_unknown(
    musts: Musts, end: Close | HalfClose | Reset | Partial | Bytes, pipelining: bool
) -> None:
    server = FaultServer(final=[end, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        error = unknown(await send(musts, mailer))
        assert "probably it was accepted" not in str(error)
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize("begun", [b"250-", b"250-2.0.0 ok\r\n", b"250-2.0.0 ok\r\n250-queu"])
async def test_f65_the_beginning_of_a_yes_is_unknown_too_and_probably_one(
    musts: Musts, begun: bytes, pipelining: bool
) -> None:
    server = FaultServer(final=[Bytes(begun, Close()), OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        error = unknown(await send(musts, mailer))
        assert "probably it was accepted" in str(error)
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize("code", [450, 451, 452])
async def test_f66_a_transient_no_to_the_dot_may_be_a_yes_later(
    musts: Musts, code: int, pipelining: bool
) -> None:
    server = FaultServer(final=[f"{code} 4.3.0 try later", OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        rejected(result, MessageRejected, stage="final", retryable=True, code=code)
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


@PIPELINING
async def test_f66_a_421_to_the_dot_is_a_no_that_costs_the_session(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(final=["421 4.3.2 closing", OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        rejected(result, MessageRejected, stage="final", retryable=True, code=421)
        assert server.connections == 1
        await assert_dropped(musts, server, mailer)


@PIPELINING
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("552 5.3.4 too large", MessageTooLarge),
        ("552 mailbox full", MessageRejected),
        ("554 5.7.1 spam", MessageRejected),
        ("550 5.7.26 policy", MessageRejected),
    ],
)
async def test_f67_a_permanent_no_to_the_dot_is_a_rejection(
    musts: Musts, reply: str, kind: type[Rejected], pipelining: bool
) -> None:
    server = FaultServer(final=[reply, OK])
    async with talking_to(server, musts, pipelining=pipelining) as mailer:
        result = await send(musts, mailer)
        rejected(result, kind, stage="final", retryable=False, code=int(reply[:3]))
        assert server.connections == 1
        await assert_kept(musts, server, mailer)


# The end of a session


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(Hang(), id="hang"),
        pytest.param(Close(), id="fin"),
        pytest.param(Say("500 5.5.2 what?"), id="500"),
        pytest.param(Reset(), id="rst"),
    ],
)
async def test_f72_whatever_becomes_of_quit_closing_ends_within_two_seconds(
    musts: Musts, end: Hang | Close | Say | Reset
) -> None:
    async with FaultServer(quit=end) as server:
        musts.watch(server)
        mailer = Mailer(server.url)
        accepted(await send(musts, mailer))
        async with musts.within(2.0):
            await mailer.aclose()
        await server.all_closed()
        assert said(server)[-1] == "QUIT"
        assert mailer.stats().open == 0


@PIPELINING
@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(Say("421 4.7.0 too many messages"), id="open"),
        pytest.param(Say("421 4.7.0 too many messages", Close()), id="closing"),
    ],
)
async def test_f76_a_server_that_takes_two_messages_a_connection_gets_a_new_one_for_each_third(
    musts: Musts, refusal: Say, pipelining: bool
) -> None:
    server = FaultServer(mail=EachConnection([OK, OK, refusal]))
    async with talking_to(server, musts, pipelining=pipelining, max_connections=1) as mailer:
        for _ in range(7):
            accepted(await send(musts, mailer), attempts=1)
        assert [message.connection for message in server.messages] == [1, 1, 2, 2, 3, 3, 4]
        assert mailer.stats().reconnects == 3


@PIPELINING
async def test_f76_a_421_behind_the_last_reply_costs_the_session_and_no_message(
    musts: Musts, pipelining: bool
) -> None:
    server = FaultServer(
        final=EachConnection([OK, Bytes(b"250 2.0.0 ok\r\n421 4.7.0 bye\r\n", Close())])
    )
    async with talking_to(server, musts, pipelining=pipelining, max_connections=1) as mailer:
        for _ in range(5):
            accepted(await send(musts, mailer), attempts=1)
        assert [message.connection for message in server.messages] == [1, 1, 2, 2, 3]


async def test_f71_an_rset_that_is_refused_costs_the_session_and_no_message(musts: Musts) -> None:
    server = FaultServer(data=["554 5.7.1 no", OK], rset=["450 4.3.0 not now", OK])
    async with talking_to(server, musts, max_connections=1) as mailer:
        rejected(
            await send(musts, mailer), MessageRejected, stage="data", retryable=False, code=554
        )
        # Pipelined behind the RSET, MAIL comes inside the old transaction, in good faith.
        accepted(await send(musts, mailer), attempts=2)
        assert server.connections == 2
