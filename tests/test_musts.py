"""The checker of the must-nevers sees what it is there to see."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import gc
import logging
import os
import smtplib
import socket
import time
import typing as t

import pytest

from amail.envelope import Envelope
from amail.errors import ConnectionLost, DeliveryUnknown, MailError, MessageRejected
from amail.receipt import Receipt, Reply
from amail.testing import Close, FaultServer
from tests.musts import (
    BODY,
    PASSWORD,
    LogWatch,
    Musts,
    assert_keeps_secrets,
    assert_no_canary,
    watching,
)

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator

RECEIPT = Receipt("<1@example.com>", Envelope("", ("bob@example.org",)), Reply(250, None, "ok"), ())


async def returns(result: Receipt | BaseException) -> Receipt:
    if isinstance(result, BaseException):
        raise result
    return result


@contextlib.asynccontextmanager
async def fails(caplog: pytest.LogCaptureFixture, match: str) -> AsyncIterator[Musts]:
    with pytest.raises(AssertionError, match=match):
        async with watching(caplog) as musts:
            yield musts


async def store(server: FaultServer, envelope_token: str, content_token: str) -> None:
    def send() -> None:
        with smtplib.SMTP(server.host, server.port, timeout=10) as client:
            content = f"Subject: {content_token}\r\n\r\nhello\r\n"
            client.sendmail("ada@example.com", [f"{envelope_token}@example.org"], content)

    await asyncio.to_thread(send)


async def test_nothing_is_found_where_nothing_is_wrong(musts: Musts) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        token = musts.token()
        await store(server, token, token)
        assert await musts.outcome_of(returns(RECEIPT), token=token) is RECEIPT
        refused = MessageRejected("554 no", stage="final")
        assert await musts.outcome_of(returns(refused), token=musts.token()) is refused


async def test_n1_sees_a_second_copy(caplog: pytest.LogCaptureFixture) -> None:
    async with fails(caplog, "N1: 2 copies") as musts, FaultServer() as server:
        musts.watch(server)
        token = musts.token()
        await store(server, token, token)
        await store(server, token, token)


async def test_n2_sees_a_body_under_another_envelope(caplog: pytest.LogCaptureFixture) -> None:
    async with fails(caplog, "N2: ") as musts, FaultServer() as server:
        musts.watch(server)
        await store(server, musts.token(), musts.token())


@pytest.mark.parametrize(
    ("result", "stored", "match"),
    [
        (RECEIPT, False, "accepted and no server holds it"),
        (ConnectionLost("gone"), True, "not_sent and a server holds it"),
        (MessageRejected("554"), True, "rejected and a server holds it"),
    ],
)
async def test_n3_sees_an_outcome_that_is_not_true(
    caplog: pytest.LogCaptureFixture, result: Receipt | MailError, stored: bool, match: str
) -> None:
    async with fails(caplog, match) as musts, FaultServer() as server:
        musts.watch(server)
        token = musts.token()
        if stored:
            await store(server, token, token)
        await musts.outcome_of(returns(result), token=token)


@pytest.mark.parametrize("fate", ["accepted", "refused"])
async def test_n3_sees_what_is_not_true_of_one_recipient(
    caplog: pytest.LogCaptureFixture, fate: str
) -> None:
    async with fails(caplog, f"N3: {fate} for ") as musts, FaultServer() as server:
        musts.watch(server)
        token = musts.token()
        await store(server, token, token)
        held, missing = f"{token}@example.org", f"{token}+2@example.org"
        receipt = dataclasses.replace(RECEIPT, accepted=(held, missing))
        if fate == "refused":
            receipt = dataclasses.replace(RECEIPT, refused={held: Reply(550, None, "no")})
        await musts.outcome_of(returns(receipt), token=token)


@pytest.mark.parametrize(
    ("note", "stored", "match"),
    [
        (None, True, "not_sent and a server holds it"),
        ("<1@x>: not sent", True, "not_sent and a server holds it"),
        ("<1@x>: the server had accepted the message", False, "accepted and no server holds it"),
    ],
)
async def test_n3_sees_a_cancelled_send_whose_note_is_not_true(
    caplog: pytest.LogCaptureFixture, note: str | None, stored: bool, match: str
) -> None:
    error = asyncio.CancelledError()
    if note is not None:
        error.add_note(note)
    async with fails(caplog, match) as musts, FaultServer() as server:
        musts.watch(server)
        token = musts.token()
        if stored:
            await store(server, token, token)
        musts.cancelled(token, error)


@pytest.mark.parametrize(
    ("late", "match"),
    [
        (RECEIPT, "N3: accepted for bob@example.org"),
        (MessageRejected("554", recipients=("bob@example.org",)), None),
    ],
)
async def test_n3_sees_a_late_reply_that_is_not_true(
    caplog: pytest.LogCaptureFixture, late: Receipt | MailError, match: str | None
) -> None:
    if isinstance(late, Receipt):
        late = dataclasses.replace(late, accepted=late.envelope.forward_paths)
    expected = (
        contextlib.nullcontext() if match is None else pytest.raises(AssertionError, match=match)
    )
    with expected:
        async with watching(caplog) as musts, FaultServer() as server:
            musts.watch(server)
            token = musts.token()
            await musts.outcome_of(returns(DeliveryUnknown("lost")), token=token)
            musts.resolved(token, late)


async def test_n3_sees_a_late_reply_where_there_was_an_outcome(musts: Musts) -> None:
    token = musts.token()
    await musts.outcome_of(returns(ConnectionLost("gone")), token=token)
    with pytest.raises(AssertionError, match="N3: there was an outcome"):
        musts.resolved(token, RECEIPT)


@pytest.mark.parametrize("stored", [False, True])
async def test_n3_takes_an_unknown_either_way(musts: Musts, stored: bool) -> None:
    async with FaultServer(final=Close()) as server:
        musts.watch(server)
        token = musts.token()
        if stored:
            with pytest.raises(smtplib.SMTPServerDisconnected):
                await store(server, token, token)
        await musts.outcome_of(returns(DeliveryUnknown("lost")), token=token)


async def test_n4_sees_a_task_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    task: asyncio.Task[None]
    async with fails(caplog, "N4: left behind: .*Event.wait"):
        task = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    task.cancel()


async def test_n4_sees_a_socket_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as kept:
        async with fails(caplog, r"N4: left behind: .*socket:\["):
            duplicate = os.dup(kept.fileno())
    os.close(duplicate)


async def test_n4_sees_an_exception_nobody_retrieved(caplog: pytest.LogCaptureFixture) -> None:
    async with fails(caplog, "N4: asyncio complains: Task exception was never retrieved"):
        asyncio.create_task(returns(KeyError("lost")))  # noqa: RUF006 - that is the fault
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def hidden(before: bytes) -> str:
    return base64.b64encode(before + PASSWORD.encode() + b"\0after").decode()


@pytest.mark.parametrize(
    "text",
    [PASSWORD, f"...{BODY}...", hidden(b""), hidden(b"\0"), hidden(b"\0a"), hidden(b"\0ada\0")],
)
def test_n5_sees_a_canary_in_clear_and_in_base64(text: str) -> None:
    with pytest.raises(AssertionError, match="N5"):
        assert_no_canary(f"AUTH PLAIN {text}", "a text")


def test_n5_sees_canaries_in_causes_attributes_notes_and_locals() -> None:
    outer = ConnectionLost("gone")
    assert_keeps_secrets(outer)
    outer.__context__ = KeyError(PASSWORD)
    with pytest.raises(AssertionError, match="N5"):
        assert_keeps_secrets(outer)
    outer = ConnectionLost("gone", relay=PASSWORD)
    with pytest.raises(AssertionError, match=r"N5.*attributes"):
        assert_keeps_secrets(outer)
    outer = ConnectionLost("gone")
    outer.add_note(f"sent: {BODY}")
    with pytest.raises(AssertionError, match="N5"):
        assert_keeps_secrets(outer)
    try:
        namespace: dict[str, t.Any] = {}
        source = "def login(password):\n    raise KeyError('user')\n"
        exec(compile(source, "/site-packages/client.py", "exec"), namespace)
        namespace["login"](PASSWORD)
    except KeyError as error:
        with pytest.raises(AssertionError, match=r"N5.*local 'password' of login"):
            assert_keeps_secrets(error)


async def test_n5_sees_a_canary_in_the_log(
    caplog: pytest.LogCaptureFixture, log_watch: LogWatch
) -> None:
    async with fails(caplog, "N5: .*log record of amail.smtp"):
        logging.getLogger("amail.smtp").debug("AUTH %s", PASSWORD)
    log_watch.take()


@pytest.mark.parametrize("logger", ["amail", "amail.smtp", "asyncio", "any.other"])
def test_n5_is_looked_for_in_the_log_of_every_test(logger: str, log_watch: LogWatch) -> None:
    level = logging.WARNING if "amail" not in logger else logging.DEBUG
    logging.getLogger(logger).log(level, "AUTH PLAIN %s", hidden(b"\0ada\0"))
    logging.getLogger(logger).log(level, "nothing")
    with pytest.raises(AssertionError, match=f"N5: .*log record of {logger}$"):
        log_watch.check()
    log_watch.check()


def test_n5_is_looked_for_in_logged_exceptions(log_watch: LogWatch) -> None:
    error = ConnectionLost("gone")
    error.__cause__ = KeyError(PASSWORD)
    logging.getLogger("amail").error("it failed", exc_info=error)
    assert len(log_watch.take()) == 1


async def test_n6_sees_a_command_in_the_clear(caplog: pytest.LogCaptureFixture) -> None:
    async with fails(caplog, r"N6: .*(mail|MAIL) (from|FROM)") as musts, FaultServer() as server:
        musts.watch(server, tls_required=True)
        token = musts.token()
        await store(server, token, token)


async def test_what_a_server_objects_to_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    async with fails(caplog, "objects: .*unknown command") as musts, FaultServer() as server:
        musts.watch(server)
        _, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"WHAT\r\n")
        await server.until(lambda: bool(server.violations))
        writer.close()
        await writer.wait_closed()


async def test_n7_sees_an_exception_outside_the_tree(musts: Musts) -> None:
    with pytest.raises(AssertionError, match="N7: KeyError"):
        await musts.outcome_of(returns(KeyError("x")))
    with pytest.raises(asyncio.CancelledError):
        await musts.outcome_of(returns(asyncio.CancelledError()))


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("hold_up", [busy, time.sleep])
async def test_n8_sees_a_callback_that_holds_up_the_loop(
    caplog: pytest.LogCaptureFixture, hold_up: t.Callable[[float], None]
) -> None:
    async with fails(caplog, "N8: held up: .* ms in"):
        asyncio.get_running_loop().call_soon(hold_up, 0.07)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_n8_leaves_out_garbage_collection(musts: Musts) -> None:
    class Slow:
        def __del__(self) -> None:
            busy(0.07)

    cycle: list[object] = [Slow()]
    cycle.append(cycle)
    del cycle
    gc.collect()


async def test_n8_leaves_out_what_the_test_does_itself(musts: Musts) -> None:
    await asyncio.sleep(0)
    with musts.not_counting():
        busy(0.07)


async def test_n9_sees_a_wait_past_its_deadline(musts: Musts) -> None:
    async with musts.within(0.01):
        await asyncio.sleep(0.01)
    with pytest.raises(AssertionError, match=r"N9: 0\.\d+ s, deadline 0\.01 s"):
        async with musts.within(0.01, slack=0.01):
            await asyncio.sleep(0.05)
