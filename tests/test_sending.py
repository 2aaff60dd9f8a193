"""A message that nobody awaits the sending of is named in the log, and no other."""

from __future__ import annotations

import asyncio
import gc
import logging
import typing as t
import warnings

import pytest
from flask import Flask

from amail import Mailer, Message
from amail.testing import FaultServer, Hang
from amail_flask import Mail

if t.TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from amail import Receipt

    Send = Callable[[Message], Coroutine[t.Any, t.Any, Receipt]]


def hello() -> Message:
    return Message(
        "Hello", ["bob@example.org"], "Hi", sender="ada@example.com", message_id="<1@example.com>"
    )


def over_amail() -> Send:
    return Mailer("memory://").send


def raw_over_amail() -> Send:
    def send(message: Message) -> Coroutine[t.Any, t.Any, Receipt]:
        mailer = Mailer("memory://")
        return mailer.send_raw(bytes(message), sender="a@x.org", recipients="b@x.org")

    return send


def over_flask() -> Send:
    app = Flask(__name__)
    app.config["MAIL_URL"] = "memory://"
    return Mail(app).send


def suppressed_by_flask() -> Send:
    app = Flask(__name__)
    app.testing = True
    return Mail(app).send


def connected_over_flask() -> Send:
    app = Flask(__name__)
    app.config["MAIL_URL"] = "memory://"
    return Mail(app).connect().send


WAYS = pytest.mark.parametrize(
    "way", [over_amail, raw_over_amail, over_flask, suppressed_by_flask, connected_over_flask]
)


@pytest.fixture(autouse=True)
def _python_warns_too() -> t.Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
        yield
        gc.collect()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    gc.collect()
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


@WAYS
async def test_what_is_never_awaited_is_an_error_in_the_log_that_says_not_sent(
    way: Callable[[], Send], caplog: pytest.LogCaptureFixture
) -> None:
    way()(hello())  # type: ignore[unused-coroutine]
    assert errors(caplog) == ["<1@example.com>: not sent: what send() returned was never awaited"]


@WAYS
async def test_what_is_awaited_or_ended_knowingly_is_none(
    way: Callable[[], Send], caplog: pytest.LogCaptureFixture
) -> None:
    send = way()
    await send(hello())
    await asyncio.create_task(send(hello()))
    await asyncio.gather(send(hello()), send(hello()))
    await asyncio.wait_for(send(hello()), 10)
    send(hello()).close()
    cancelled = asyncio.create_task(send(hello()))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert errors(caplog) == []


def test_a_task_that_its_loop_never_came_to_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(over_amail()(hello()))
    loop.close()
    assert "coro=<Mailer.send()" in repr(task)
    del task, loop
    assert "<1@example.com>: not sent: what send() returned was never awaited" in errors(caplog)


async def test_one_that_is_cancelled_on_its_way_is_none(caplog: pytest.LogCaptureFixture) -> None:
    async with FaultServer(mail=Hang()) as server, Mailer(server.url) as mailer:
        task = asyncio.create_task(mailer.send(hello()))
        await server.reached("mail")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert errors(caplog) == []


async def test_what_it_returns_is_a_coroutine_to_asyncio_and_may_be_driven_by_hand() -> None:
    sending = over_amail()(hello())
    assert asyncio.iscoroutine(sending)
    with pytest.raises(ZeroDivisionError):
        sending.throw(ZeroDivisionError())
