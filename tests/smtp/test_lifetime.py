"""What a session, a send or a process must not keep, hold up or forget."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import pickle
import re
import subprocess
import sys
import textwrap
import time
import traceback
import typing as t
import weakref
from copy import deepcopy
from dataclasses import asdict

import pytest

from amail import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    Content,
    Envelope,
    Mailer,
    MailerClosed,
    MessageError,
    Receipt,
    RecipientsRejected,
    ServerBusy,
    SMTPSettings,
    SMTPTransport,
    UsageError,
)
from amail.testing import OK, EachConnection, FaultServer, Hang
from tests.messages import tokened

if t.TYPE_CHECKING:
    from amail.testing import Moment, Script
    from tests.musts import Musts

SECRET = "canary-pa55word"


async def test_f13_a_server_that_takes_two_sessions_gets_a_whole_crowd_through(
    musts: Musts,
) -> None:
    server = FaultServer()
    turned_away: set[int] = set()

    def two_at_a_time(moment: Moment) -> Script | None:
        # Those that are being opened count, as they do for Postfix and Exchange.
        here = {each.number for each in server._sessions if not each.wire.gone.done()} - turned_away
        if len(here) <= 2:
            return None
        turned_away.add(moment.connection)
        return "421 4.7.0 too many connections"

    async with server:
        server.change(greeting=two_at_a_time)
        musts.watch(server)
        async with Mailer(server.url) as mailer:
            tokens = [musts.token() for _ in range(200)]
            sends = [musts.outcome_of(mailer.send(tokened(each)), token=each) for each in tokens]
            results = await asyncio.gather(*sends)
            assert [result for result in results if not isinstance(result, Receipt)] == []
            assert mailer.stats().open <= 2
        assert len(server.messages) == 200


async def test_f13_waiting_for_another_session_costs_nothing_of_the_time_for_sending(
    musts: Musts,
) -> None:
    async with FaultServer(greeting=[OK, "421 4.7.0 busy"], final={1: Hang()}) as server:
        musts.watch(server)
        transport = SMTPTransport(SMTPSettings.from_url(server.url), timeout=0.3)
        async with Mailer(transport) as mailer:
            first, second = musts.token(), musts.token()
            one = asyncio.create_task(musts.outcome_of(mailer.send(tokened(first)), token=first))
            await server.reached("final")
            other = asyncio.create_task(
                musts.outcome_of(mailer.send(tokened(second)), token=second)
            )
            await server.reached("greeting", 2)
            await asyncio.wait({other}, timeout=0.5)
            server.release()
            assert isinstance(await one, Receipt)
            assert isinstance(await other, Receipt)
        assert [message.connection for message in server.messages] == [1, 1]


async def test_f32_refused_credentials_are_not_tried_again_for_every_sender(musts: Musts) -> None:
    async with FaultServer(users={"ada": "other"}) as server:
        musts.watch(server)
        async with Mailer(server.url, username="ada", password=SECRET, tls="none") as mailer:
            sends = [musts.outcome_of(mailer.send(tokened(musts.token()))) for _ in range(50)]
            results = await asyncio.gather(*sends)
        assert {type(result) for result in results} == {AuthenticationError}
        attempts = [each for each in server.commands if each.line.startswith("AUTH")]
        assert len(attempts) <= 5
        last = results[-1]
        assert isinstance(last, AuthenticationError)
        assert re.search(r"not asked again within (60|[67][0-9]) s", str(last))
        assert last.reply is not None
        assert last.reply.code == 535


async def test_c40_a_session_keeps_nothing_of_its_first_senders_context_alive(
    musts: Musts,
) -> None:
    class Request:
        pass

    request: contextvars.ContextVar[Request] = contextvars.ContextVar("request")

    async def view(mailer: Mailer) -> weakref.ref[Request]:
        current = Request()
        request.set(current)
        await mailer.send(tokened(musts.token()))
        return weakref.ref(current)

    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        reference = await asyncio.create_task(view(mailer))
        await asyncio.sleep(0)
        gc.collect()
        assert mailer.stats().idle == 1
        assert reference() is None


async def test_a_failed_send_leaves_no_cycle_around_its_content(musts: Musts) -> None:
    async with FaultServer(rcpt="550 5.1.1 no") as server, Mailer(server.url) as mailer:
        musts.watch(server)
        gc.collect()
        before = _contents()
        gc.disable()
        try:
            for _ in range(3):
                with contextlib.suppress(RecipientsRejected):
                    await mailer.send(tokened(musts.token()))
            left = [each for each in _contents() if not any(each is old for old in before)]
        finally:
            gc.enable()
        assert left == []


def _contents() -> list[Content]:
    return [each for each in gc.get_objects() if isinstance(each, Content)]


async def test_c11_a_send_cancelled_as_its_acceptance_comes_counts_as_accepted(
    musts: Musts,
) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        task = asyncio.create_task(mailer.send(tokened(musts.token())))
        await server.until(lambda: bool(server.messages))
        # The reply is on its way: look at each turn of the loop whether it was read.
        while mailer.stats().leased and not _is_answered(task):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert "the server had accepted the message" in caught.value.__notes__[0]
        assert (mailer.stats().accepted, mailer.stats().not_sent) == (1, 0)


def _is_answered(task: asyncio.Task[Receipt]) -> bool:
    """Whether what the task awaits in the end is done, so that it runs in the next turn."""
    coroutine: t.Any = task.get_coro()
    while hasattr(coroutine.cr_await, "cr_await"):
        coroutine = coroutine.cr_await
    run = coroutine.cr_frame.f_locals.get("run")
    return run is not None and bool(run.done.done())


async def test_a_closed_transport_says_what_became_of_each_send(musts: Musts) -> None:
    async with FaultServer(mail=EachConnection(Hang())) as server:
        musts.watch(server)
        transport = SMTPTransport(SMTPSettings.from_url(server.url, max_connections=1))
        mailer = Mailer(transport)
        tokens = [musts.token(), musts.token()]
        sends = [
            asyncio.create_task(musts.outcome_of(mailer.send(tokened(each)), token=each))
            for each in tokens
        ]
        await server.reached("mail")
        await transport.aclose(drain=0)
        results = await asyncio.gather(*sends)
        assert [type(result) for result in results] == [MailerClosed, MailerClosed]
        assert all(getattr(result, "message_id", None) for result in results)


async def test_closing_in_the_wrong_loop_changes_nothing(musts: Musts) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        mailer = Mailer(server.url)
        await mailer.send(tokened(musts.token()))

        def close_in_another_loop(transports: list[SMTPTransport]) -> None:
            with pytest.raises(UsageError, match="another event loop"):
                asyncio.run(transports.pop().aclose())

        transport = mailer.transport
        assert isinstance(transport, SMTPTransport)
        await asyncio.to_thread(close_in_another_loop, [transport])
        del mailer, transport
        with pytest.warns(ResourceWarning, match="was not closed"):
            gc.collect()
        await server.all_closed()


@pytest.mark.parametrize(
    "host", ["smtp..example.com", f"{'a' * 64}.example.com", "-a.com", "a-.com"]
)
def test_b100_a_host_with_a_label_dns_cannot_hold_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="host"):
        SMTPSettings(host=host)
    with pytest.raises(ConfigError, match="tls_server_name"):
        SMTPSettings(tls_server_name=host)


async def test_n7_whatever_the_resolver_raises_is_a_connect_error(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> t.NoReturn:
        raise UnicodeError("label too long")

    monkeypatch.setattr("socket.getaddrinfo", broken)
    async with Mailer("smtp://mail.test") as mailer:
        result = await musts.outcome_of(mailer.send(tokened(musts.token())))
    assert isinstance(result, ConnectError)
    assert result.stage == "dns"


async def test_an_ip_address_is_not_looked_up(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*_: object, **__: object) -> t.NoReturn:
        raise AssertionError("looked up")

    monkeypatch.setattr("socket.getaddrinfo", unwanted)
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        assert (await mailer.send(tokened(musts.token()))).outcome == "accepted"


async def test_a_receipt_can_be_pickled_copied_and_hashed(musts: Musts) -> None:
    async with FaultServer(rcpt=[OK, "550 5.1.1 no"]) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        receipt = await mailer.send(tokened(musts.token(), 2))
    assert receipt.refused
    assert pickle.loads(pickle.dumps(receipt)) == receipt
    assert deepcopy(receipt) == receipt
    assert asdict(receipt)["outcome"] == "accepted"
    assert hash(receipt) == hash(deepcopy(receipt))


def test_an_envelope_keeps_no_list_that_somebody_may_change() -> None:
    paths = ["bob@example.org"]
    envelope = Envelope("ada@example.com", paths)  # type: ignore[arg-type]
    paths.append("x> \r\nRSET")
    assert envelope.forward_paths == ("bob@example.org",)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mailer(f"smtp://ada:{SECRET}@mail.test?no_such=1"),
        lambda: Mailer(f"smtp://ada:{SECRET}@mail.test:99999"),
        lambda: Mailer("smtp://mail.test", username="ada", password=f"{SECRET}\n"),
        lambda: Mailer(host="mail.test", password=SECRET),
    ],
)
def test_n5_no_frame_of_a_refused_mailer_shows_the_password(make: t.Callable[[], Mailer]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    error: BaseException | None = caught.value
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if f"{sys.prefix}" not in frame.f_code.co_filename and "tests" not in (
                frame.f_code.co_filename
            ):
                assert SECRET not in repr(list(frame.f_locals.values()))
        error = error.__cause__ or error.__context__


def run(program: str, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.mark.parametrize(
    "send",
    [
        "asyncio.run(mailer.send(message))",
        "SyncMailer('smtp://mail.test', connect_timeout=0.2).send(message)",
    ],
)
def test_c35_a_resolver_that_never_answers_does_not_hold_the_exit(send: str) -> None:
    began = time.monotonic()
    done = run(
        f"""
        import asyncio, socket, time
        from amail import Mailer, Message, SendTimeout, SyncMailer

        socket.getaddrinfo = lambda *_, **__: time.sleep(15)
        message = Message("Hello", ["bob@example.org"], sender="ada@example.com")
        mailer = Mailer("smtp://mail.test", connect_timeout=0.2)
        try:
            {send}
        except SendTimeout as error:
            print(error.stage)
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("dns\n", "", 0)
    assert time.monotonic() - began < 10


def test_n7_sending_when_the_interpreter_is_going_is_an_error_of_ours() -> None:
    done = run(
        """
        import atexit
        from amail import MailError, Message, SyncMailer

        mailer = SyncMailer("smtp://127.0.0.1:1")
        message = Message("Hello", ["bob@example.org"], sender="ada@example.com")

        @atexit.register
        def report():
            try:
                mailer.send(message)
            except MailError as error:
                print("ours")
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ours\n", "", 0)


async def test_a_busy_server_alone_is_still_server_busy(musts: Musts) -> None:
    async with FaultServer(greeting="421 4.3.2 busy") as server, Mailer(server.url) as mailer:
        musts.watch(server)
        results = await asyncio.gather(
            *(musts.outcome_of(mailer.send(tokened(musts.token()))) for _ in range(20))
        )
    assert {type(result) for result in results} == {ServerBusy}


@pytest.mark.parametrize("size", [10, 200_000])
async def test_b98_content_with_a_bare_line_end_is_not_sent(size: int, musts: Musts) -> None:
    smuggled = b"Subject: x\r\n\r\n" + b"y" * 70 + b"\r\n" + b"z" * 70 + b"\r\n"
    lines = smuggled * max(1, size // len(smuggled))
    content = Content([lines + b"x\n.\nMAIL FROM:<evil@example.com>\r\n"], message_id="<1@x.org>")
    envelope = Envelope("ada@example.com", ("bob@example.org",))
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        with pytest.raises(MessageError, match="bare CR or LF"):
            await mailer.transport.send(envelope, content)
        await server.all_closed()
        assert server.messages == []
        assert mailer.stats().not_sent == 1


async def test_failing_to_connect_again_and_again_keeps_no_content_alive(musts: Musts) -> None:
    def held() -> int:
        return sum(type(each) is Content for each in gc.get_objects())

    async with FaultServer() as server:
        pass
    settings = SMTPSettings.from_url(server.url)
    # Without patience, so that those beyond the fifth hear of the outage at once.
    async with Mailer(SMTPTransport(settings, patience=0.0)) as mailer:
        before = held()
        gc.disable()
        try:
            for _ in range(10):
                await musts.outcome_of(mailer.send(tokened(musts.token())))
            assert held() <= before + 1
        finally:
            gc.enable()
