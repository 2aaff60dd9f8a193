"""A server that is down is not dialled by everybody, and everybody is served when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import typing as t

import pytest

from amail import Mailer, Receipt, SMTPSettings, SMTPTransport
from amail.errors import ConnectError, ConnectionLost, MailerClosed, SendError, TLSError
from amail.smtp.circuit import Circuit
from amail.testing import OK, Close, FaultServer, Hang
from tests.messages import tokened
from tests.smtp.outcomes import accepted, send

if t.TYPE_CHECKING:
    from tests.musts import Musts

LATER = 10_000.0
"""A deadline that no test reaches, on the loop's clock."""


def always(error: SendError) -> bool:
    return True


def never(error: SendError) -> bool:
    return False


async def fail(circuit: Circuit, error: SendError, deadline: float = LATER) -> None:
    """Ask, and have it fail."""
    with pytest.raises(SendError):
        async with circuit.attempt(deadline + time.monotonic(), always):
            raise error


@contextlib.asynccontextmanager
async def asking(circuit: Circuit, deadline: float = LATER) -> t.AsyncIterator[None]:
    async with circuit.attempt(deadline + asyncio.get_running_loop().time(), always):
        yield


def down(*, retryable: bool = True) -> ConnectError:
    return ConnectError("refused", stage="connect", retryable=retryable)


async def test_c21_a_circuit_opens_after_so_many_failures_in_a_row() -> None:
    circuit = Circuit(failures=3, seconds=60, longest=60)
    for _ in range(2):
        await fail(circuit, down())
    async with asking(circuit):
        pass
    for _ in range(3):
        assert not circuit.is_open
        await fail(circuit, down())
    assert circuit.is_open
    with pytest.raises(ConnectError, match=r"refused; not asked again within (60|[67]\d) s"):
        async with asking(circuit):
            raise AssertionError("it was asked")


async def test_c21_what_does_not_count_opens_nothing() -> None:
    circuit = Circuit(failures=1, seconds=60, longest=60)
    with pytest.raises(ConnectError):
        async with circuit.attempt(LATER, never):
            raise down()
    with pytest.raises(asyncio.CancelledError):
        async with asking(circuit):
            raise asyncio.CancelledError
    assert not circuit.is_open


async def test_c21_one_asks_when_the_time_is_over_and_what_comes_of_it_holds_for_all() -> None:
    circuit = Circuit(failures=1, seconds=0.01, longest=60, patience=30)
    await fail(circuit, down())
    inside = 0
    most = 0
    released = asyncio.Event()

    async def ask() -> None:
        nonlocal inside, most
        async with asking(circuit):
            inside += 1
            most = max(most, inside)
            await released.wait()
            inside -= 1

    tasks = [asyncio.ensure_future(ask()) for _ in range(10)]
    while not inside:
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert inside == 1
    released.set()
    await asyncio.gather(*tasks)
    assert not circuit.is_open


async def test_c21_a_probe_that_fails_doubles_the_time_up_to_the_longest() -> None:
    circuit = Circuit(failures=1, seconds=0.01, longest=60)
    waits = []
    began = time.monotonic()
    for _ in range(6):
        await until_it_may_be_asked(circuit)
        waits.append(time.monotonic() - began)
        began = time.monotonic()
        await fail(circuit, down())
    for number, waited in enumerate(waits[1:]):
        assert waited >= 0.01 * 2**number
    capped = Circuit(failures=1, seconds=0.01, longest=0.01)
    began = time.monotonic()
    for _ in range(20):
        await until_it_may_be_asked(capped)
        await fail(capped, down())
    assert time.monotonic() - began < 0.01 * 2**12


async def until_it_may_be_asked(circuit: Circuit) -> None:
    """Wait for the end of the time: a cancelled probe leaves the circuit as it is."""
    while True:
        try:
            async with asking(circuit):
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            return
        except ConnectError:
            await asyncio.sleep(0.001)


async def test_c21_a_cancelled_probe_lets_another_one_ask() -> None:
    circuit = Circuit(failures=1, seconds=0.01, longest=60)
    await fail(circuit, down())
    await until_it_may_be_asked(circuit)
    assert circuit.is_open
    async with asking(circuit):
        pass
    assert not circuit.is_open


async def test_c21_behind_a_probe_that_says_nothing_one_asks_and_only_a_moment_later() -> None:
    circuit = Circuit(failures=1, seconds=0.05, longest=60, patience=30)
    await fail(circuit, down())
    asked: list[float] = []
    inside = 0

    async def ask() -> None:
        nonlocal inside
        async with circuit.attempt(LATER + time.monotonic(), never):
            asked.append(time.monotonic())
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1
            raise ConnectError("421", stage="greeting", retryable=True)

    results = await asyncio.gather(*(ask() for _ in range(4)), return_exceptions=True)
    assert [str(each) for each in results] == ["421"] * 4
    assert all(late - early >= 0.05 for early, late in itertools.pairwise(asked))
    assert circuit.is_open


async def test_c21_a_probe_in_a_hurry_says_nothing_and_another_one_asks_at_once() -> None:
    circuit = Circuit(failures=1, seconds=0.05, longest=60, patience=30)
    await fail(circuit, down())
    await until_it_may_be_asked(circuit)
    with pytest.raises(ConnectError):
        async with circuit.attempt(asyncio.get_running_loop().time() + 0.01, never):
            await asyncio.sleep(0.02)
            raise down()
    async with asyncio.timeout(0.04), asking(circuit):
        pass


async def test_c21_who_has_news_asks_at_once_but_one_at_a_time() -> None:
    circuit = Circuit(failures=1, seconds=60, longest=60)
    await fail(circuit, down(retryable=False))
    answer = asyncio.Event()
    asked = []

    async def ask(name: str) -> None:
        async with circuit.attempt(LATER + time.monotonic(), always, has_news=lambda: True):
            asked.append(name)
            await answer.wait()

    tasks = [asyncio.ensure_future(ask(name)) for name in "ab"]
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked == ["a"]
    with pytest.raises(ConnectError, match="not asked again"):
        async with asking(circuit):
            pass
    answer.set()
    await asyncio.gather(*tasks)
    assert not circuit.is_open


async def test_c21_what_was_news_is_none_behind_a_probe_that_failed() -> None:
    circuit = Circuit(failures=1, seconds=60, longest=60)
    await fail(circuit, down(retryable=False))
    news = [True]

    async def ask() -> None:
        async with circuit.attempt(LATER + time.monotonic(), always, has_news=lambda: bool(news)):
            await asyncio.sleep(0)
            news.clear()
            raise ConnectError("no again", stage="connect", retryable=False)

    results = await asyncio.gather(*(ask() for _ in range(3)), return_exceptions=True)
    assert [str(each)[:20] for each in results] == ["no again", *["no again; not asked "] * 2]


async def test_c21_who_has_found_elsewhere_what_it_needs_asks_nothing_and_says_nothing() -> None:
    async def found(changed: asyncio.Future[None], seconds: float) -> bool:
        return True

    circuit = Circuit(failures=1, seconds=60, longest=60, patience=60)
    await fail(circuit, down())
    async with circuit.attempt(LATER + time.monotonic(), always, wait=found) as must_ask:
        assert not must_ask
    assert circuit.is_open


async def test_c21_who_waits_for_a_probe_waits_until_its_deadline() -> None:
    circuit = Circuit(failures=1, seconds=60, longest=60, patience=60)
    await fail(circuit, down())
    began = time.monotonic()
    with pytest.raises(ConnectError, match="not asked again"):
        async with asking(circuit, 0.1):
            pass
    assert 0.09 < time.monotonic() - began < 5


async def test_c21_nobody_waits_for_what_will_not_pass() -> None:
    circuit = Circuit(failures=1, seconds=60, longest=60, patience=60)
    await fail(circuit, TLSError("expired", stage="tls", retryable=False))
    with pytest.raises(TLSError, match="expired; not asked again"):
        async with asking(circuit):
            pass


async def test_c21_what_a_circuit_keeps_of_a_failure_holds_no_frame() -> None:
    circuit = Circuit(failures=1, seconds=60, longest=60)
    await fail(circuit, down())
    with pytest.raises(ConnectError) as caught:
        async with asking(circuit):
            pass
    assert caught.value.message_id is None
    frames = []
    traceback = caught.value.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "fail" not in frames


async def test_c21_a_thousand_senders_dial_a_server_that_refuses_them_a_few_times(
    musts: Musts, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FaultServer(greeting="554 5.7.1 not you") as server,
        Mailer(server.url) as mailer,
    ):
        musts.watch(server)
        results = await asyncio.gather(*(send(musts, mailer) for _ in range(1000)))
        assert {type(result) for result in results} == {ConnectError}
        assert server.connections <= 10
        last = results[-1]
        assert isinstance(last, ConnectError)
        assert last.reply is not None
        assert last.reply.code == 554
        assert last.message_id
        assert mailer.stats().not_sent == 1000
        warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        assert 1 <= len(warnings) <= server.connections
        assert all("not asked again for" in text for text in warnings)


async def test_c22_all_who_wait_are_served_when_the_server_is_back(musts: Musts) -> None:
    server = FaultServer()
    async with server:
        musts.watch(server)
    async with Mailer(server.url) as mailer:
        tokens = [musts.token() for _ in range(100)]
        sends = [
            asyncio.ensure_future(musts.outcome_of(mailer.send(tokened(token)), token=token))
            for token in tokens
        ]
        refused, pending = await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
        while mailer.stats().waiting > 90:
            more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            refused |= more
        assert {type(each.result()) for each in refused} == {ConnectError}
        async with server:
            assert all(isinstance(result, Receipt) for result in await asyncio.gather(*pending))
            accepted(await send(musts, mailer))


# Sessions that there are already


async def test_c22_who_waits_for_the_server_sends_over_a_session_that_becomes_free(
    musts: Musts, caplog: pytest.LogCaptureFixture
) -> None:
    # It takes one connection and no more.
    async with (
        FaultServer(connect=[OK, Close()], final=[Hang(), OK]) as server,
        Mailer(server.url, max_connections=3) as mailer,
    ):
        musts.watch(server)
        first = asyncio.ensure_future(send(musts, mailer))
        await server.reached("final")
        sends = [asyncio.ensure_future(send(musts, mailer)) for _ in range(12)]
        while "not asked again" not in caplog.text:
            await asyncio.sleep(0.001)
        server.release()
        accepted(await first)
        async with asyncio.timeout(0.9):  # before anybody asks again
            results = await asyncio.gather(*sends)
        lost = [result for result in results if isinstance(result, ConnectionLost)]
        assert len(lost) <= 3  # before the circuit was open
        assert len(server.messages) == 1 + len(results) - len(lost)
        assert {message.connection for message in server.messages} == {1}
        assert (mailer.stats().open, mailer.stats().leased) == (1, 0)


async def test_c23_who_waits_for_the_server_hears_at_once_that_the_mailer_is_closed(
    musts: Musts,
) -> None:
    server = FaultServer()
    async with server:
        musts.watch(server)
    transport = SMTPTransport(SMTPSettings.from_url(server.url), patience=60)
    mailer = Mailer(transport)
    sends = [asyncio.ensure_future(send(musts, mailer)) for _ in range(30)]
    await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
    async with musts.within(0.2):
        await transport.aclose(drain=0)
        results = await asyncio.gather(*sends)
    assert MailerClosed in {type(result) for result in results}
