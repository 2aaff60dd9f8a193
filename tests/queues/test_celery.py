"""CeleryQueue, over Celery's own broker in memory: what a job comes to, and when.

What a killed process leaves is in tests/brokers, with real ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import typing as t
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from amail import (
    AuthenticationError,
    ConfigError,
    ConnectionLost,
    DeliveryUnknown,
    Mailer,
    MailError,
    MemoryTransport,
    Message,
    MessageRejected,
    MessageTooLarge,
    NotSent,
    Receipt,
    Reply,
    UsageError,
)
from amail.queues.celery import CeleryQueue
from amail.queues.due import due_at
from amail.queues.folder_ledger import FolderLedger
from amail.queues.gate import Gate
from amail.queues.job import Handled
from amail.queues.ledger import Entry
from tests.messages import ADA, tokened
from tests.servers.programs import free_port
from tests.transports.ends import End

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from amail.queues.celery import Mailers

BUSY, GONE = Reply(450, "4.2.0", "greylisted"), Reply(550, "5.1.1", "no such user")


class Waiting(t.NamedTuple):
    """A job in the broker, and when Celery hands it to a worker."""

    task_id: str
    job: t.Any
    tries: int
    due: float
    eta: float
    about: str


class Shop:
    """An app with a queue, and what waits in it; ``work`` does what a worker does."""

    def __init__(self, mailers: Mailers, **options: t.Any) -> None:
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.app.conf.task_default_queue = f"mail-{id(self)}"
        self.came_to: list[Handled | MailError] = []
        self.queue = CeleryQueue(self.app, mailers, on_done=self.came_to.append, **options)

    def take(self) -> list[Waiting]:
        """Take what waits out of the broker."""
        taken = []
        with self.app.connection_for_read() as connection:
            channel = connection.default_channel
            while (message := channel.basic_get(self.app.conf.task_default_queue)) is not None:
                (job, tries, due), _, _ = message.decode()
                eta = message.headers["eta"]
                taken.append(
                    Waiting(
                        message.headers["id"],
                        job,
                        tries,
                        due,
                        0.0 if eta is None else datetime.fromisoformat(eta).timestamp(),
                        message.headers["argsrepr"],
                    )
                )
                channel.basic_ack(message.delivery_tag)
        return taken

    def do(self, waiting: Waiting) -> str:
        """Have a worker do it. Returns Celery's state for it."""
        task = self.app.tasks["amail.send"]
        done = task.apply((waiting.job, waiting.tries, waiting.due), task_id=waiting.task_id)
        return str(done.state)

    def work(self) -> str:
        """Have a worker do the one that waits."""
        [waiting] = self.take()
        return self.do(waiting)


def a_message(*to: str) -> Message:
    return Message("Hello", list(to) or ["bob@example.org"], "Hi", sender=ADA)


# What a job comes to


def test_what_is_queued_is_sent_by_a_worker_as_it_was() -> None:
    memory, message = MemoryTransport(), a_message()
    shop = Shop(Mailer(memory))
    message_id = shop.queue.send_later(message)
    message.subject = "Changed meanwhile"
    assert shop.work() == "SUCCESS"
    [sent] = memory.messages
    assert message_id == message.message_id
    assert sent.content.message_id == message_id
    assert b"Subject: Hello\r\n" in bytes(sent.content)
    [handled] = shop.came_to
    assert isinstance(handled, Handled)
    assert handled.receipt is not None
    assert shop.take() == []


def test_a_worker_uses_the_mailer_that_the_job_names() -> None:
    usual, bulk = MemoryTransport(), MemoryTransport()
    shop = Shop({"": Mailer(usual), "bulk": Mailer(bulk)})
    shop.queue.send_later(a_message("a@x.org"), mailer="bulk")
    shop.work()
    shop.queue.send_later(a_message("b@x.org"))
    shop.work()
    assert [each.envelope.forward_paths for each in bulk.messages] == [("a@x.org",)]
    assert [each.envelope.forward_paths for each in usual.messages] == [("b@x.org",)]


@pytest.mark.parametrize(
    "error",
    [ConnectionLost("lost", retryable=True), AuthenticationError("no"), NotSent("?")],
    ids=lambda error: type(error).__name__,
)
def test_what_was_not_taken_is_tried_again_with_longer_pauses(error: MailError) -> None:
    end = End("end", *[error] * 6, lambda receipt: receipt)
    shop = Shop(Mailer(end), first=30, longest=120)
    shop.queue.send_later(a_message())
    [waiting] = shop.take()
    first = waiting
    for longest in (30, 60, 120, 120, 120, 120):
        before = time.time()
        assert shop.do(waiting._replace(due=0.0)) == "SUCCESS"
        [waiting] = shop.take()
        assert (waiting.task_id, waiting.job) == (first.task_id, first.job)
        assert longest / 2 <= waiting.due - before <= longest + 5
        assert waiting.eta == pytest.approx(waiting.due, abs=2)
        assert shop.came_to == []
    shop.do(waiting._replace(due=0.0))
    assert [type(each) for each in shop.came_to] == [Handled]


def test_pauses_differ() -> None:
    """Else all that failed at once comes back at once."""
    shop = Shop(Mailer(End("end", *[ConnectionLost("lost", retryable=True)] * 20)))
    for _ in range(20):
        shop.queue.send_later(a_message())
    dues = []
    for waiting in shop.take():
        shop.do(waiting)
        dues.append(round(shop.take()[0].due, 1))
    assert len(set(dues)) > 10


def test_what_is_unknown_is_never_sent_again_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(Mailer(End("end", DeliveryUnknown("bob@example.org?", retryable=True))))
    message_id = shop.queue.send_later(a_message())
    assert shop.work() == "SUCCESS"
    assert shop.take() == []
    [error] = shop.came_to
    assert isinstance(error, DeliveryUnknown)
    [said] = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert message_id in said
    assert "may have been sent or not" in said
    assert "bob" not in said


def test_what_was_refused_for_good_is_given_up_and_said(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(Mailer(End("end", MessageRejected("no bob@example.org", reply=GONE))))
    message_id = shop.queue.send_later(a_message())
    assert shop.work() == "SUCCESS"
    assert shop.take() == []
    [error] = shop.came_to
    assert isinstance(error, MessageRejected)
    [said] = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert message_id in said
    assert "550" in said
    assert "bob" not in said


def test_who_was_refused_for_now_is_left_for_later_and_nobody_else() -> None:
    def some(receipt: Receipt) -> Receipt:
        return replace(receipt, accepted=("a@x.org",), refused={"b@x.org": GONE, "c@x.org": BUSY})

    end = End("end", some, lambda receipt: receipt)
    shop = Shop(Mailer(end))
    shop.queue.send_later(a_message("a@x.org", "b@x.org", "c@x.org"))
    shop.work()
    [waiting] = shop.take()
    assert waiting.job["env"]["to"] == ["c@x.org"]
    shop.do(waiting._replace(due=0.0))
    assert [each.forward_paths for each, *_ in end.tried] == [
        ("a@x.org", "b@x.org", "c@x.org"),
        ("c@x.org",),
    ]
    assert [type(each) for each in shop.came_to] == [Handled, Handled]


def test_a_job_that_is_under_way_elsewhere_is_left_for_later() -> None:
    class Busy:
        lease = 900.0

        async def begin(self, key: str, token: str) -> Entry:
            return Entry("busy")

    end = End("end")
    shop = Shop(Mailer(end), ledger=t.cast("t.Any", Busy()))
    shop.queue.send_later(a_message())
    shop.work()
    assert len(shop.take()) == 1
    assert end.tried == []


def test_what_the_ledger_knows_is_not_sent_again() -> None:
    class Sent:
        lease = 900.0

        async def begin(self, key: str, token: str) -> Entry:
            return Entry("sent")

    end = End("end")
    shop = Shop(Mailer(end), ledger=t.cast("t.Any", Sent()))
    shop.queue.send_later(a_message())
    shop.work()
    assert (end.tried, shop.take()) == ([], [])


def test_a_ledger_whose_lease_ends_during_a_try_is_refused() -> None:
    class Short:
        lease = 600.0

    with pytest.raises(ConfigError, match="lease"):
        Shop(Mailer(MemoryTransport()), ledger=t.cast("t.Any", Short()))


@pytest.mark.parametrize(
    "job",
    [None, [], {}, {"id": 5, "mailer": 7}, {"v": 2, "id": "<a@x.org>", "mailer": ""}],
    ids=repr,
)
def test_what_is_no_job_is_said_and_gone(job: t.Any, caplog: pytest.LogCaptureFixture) -> None:
    end = End("end")
    shop = Shop(Mailer(end))
    assert shop.do(Waiting("1", job, 0, 0.0, 0.0, "")) == "SUCCESS"
    assert (end.tried, shop.take()) == ([], [])
    assert [type(each).__name__ for each in shop.came_to] == ["MessageError"]
    assert "is given up" in caplog.text


def test_a_worker_that_does_not_know_the_mailer_leaves_the_job_to_another() -> None:
    shop = Shop({"bulk": Mailer(MemoryTransport()), "other": Mailer(MemoryTransport())})
    shop.queue.send_later(a_message(), mailer="bulk")
    [waiting] = shop.take()
    stranger = Shop({"": Mailer(MemoryTransport())})
    stranger.do(waiting)
    [left] = stranger.take()
    assert left.job == waiting.job
    assert stranger.came_to == []
    with pytest.raises(ConfigError, match="no mailer 'news'"):
        shop.queue.send_later(a_message(), mailer="news")


def test_what_on_done_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(Mailer(MemoryTransport()))
    queue = CeleryQueue(
        shop.app, Mailer(MemoryTransport()), on_done=lambda ended: 1 / 0, task_name="other.send"
    )
    queue.send_later(a_message())
    [waiting] = shop.take()
    done = shop.app.tasks["other.send"].apply((waiting.job,))
    assert done.state == "SUCCESS"
    assert "on_done failed" in caplog.text


# When


def test_what_is_for_later_is_held_by_a_worker_no_longer_than_the_broker_lets_it() -> None:
    memory = MemoryTransport()
    shop = Shop(Mailer(memory), longest=600)
    before = time.time()
    shop.queue.send_later(a_message(), countdown=86_400)
    [waiting] = shop.take()
    for _ in range(3):
        assert waiting.due == pytest.approx(before + 86_400, abs=5)
        assert waiting.eta == pytest.approx(time.time() + 600, abs=5)
        shop.do(waiting)
        [waiting] = shop.take()
        assert waiting.tries == 0
    assert not memory.messages
    shop.do(waiting._replace(due=time.time()))
    assert len(memory.messages) == 1


def test_eta_is_a_time_in_some_time_zone() -> None:
    shop = Shop(Mailer(MemoryTransport()))
    eta = datetime.now(UTC) + timedelta(minutes=5)
    shop.queue.send_later(a_message(), eta=eta)
    [waiting] = shop.take()
    assert waiting.due == eta.timestamp()
    assert waiting.eta == pytest.approx(eta.timestamp(), abs=2)


@pytest.mark.parametrize(
    ("countdown", "eta"),
    [
        (5, datetime.now(UTC)),
        (-1, None),
        (float("nan"), None),
        (float("inf"), None),
        ("5", None),
        (True, None),
        (None, datetime(2030, 1, 1)),  # noqa: DTZ001 - that is what is wrong
        (None, 5),
    ],
)
def test_a_time_that_cannot_be_meant_is_refused(countdown: t.Any, eta: t.Any) -> None:
    with pytest.raises(UsageError, match=r"countdown|eta"):
        due_at(countdown, eta)


def test_what_has_expired_is_not_sent_and_said(caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryTransport()
    shop = Shop(Mailer(memory))
    shop.queue.send_later(a_message(), expires=time.time() - 1)
    shop.work()
    assert (list(memory.messages), shop.take()) == ([], [])
    [error] = shop.came_to
    assert isinstance(error, NotSent)
    assert "is given up" in caplog.text


def test_a_try_is_the_last_one_if_the_next_would_come_too_late() -> None:
    error = ConnectionLost("lost", retryable=True)
    shop = Shop(Mailer(End("end", error)), first=30)
    shop.queue.send_later(a_message(), expires=time.time() + 10)
    shop.work()
    assert shop.take() == []
    assert [type(each) for each in shop.came_to] == [ConnectionLost]


def test_recipients_who_were_refused_until_it_expired_are_given_up_by_name() -> None:
    def some(receipt: Receipt) -> Receipt:
        return replace(receipt, accepted=("a@x.org",), refused={"b@x.org": BUSY})

    shop = Shop(Mailer(End("end", some)), first=30)
    shop.queue.send_later(a_message("a@x.org", "b@x.org"), expires=time.time() + 10)
    shop.work()
    handled, error = shop.came_to
    assert isinstance(handled, Handled)
    assert isinstance(error, NotSent)
    assert error.recipients == ("b@x.org",)


def test_without_saying_so_a_message_expires_after_five_days_from_when_it_is_due() -> None:
    shop = Shop(Mailer(MemoryTransport()))
    shop.queue.send_later(a_message())
    shop.queue.send_later(a_message(), countdown=7 * 86_400)
    now = time.time()
    days = [round((waiting.job["exp"] - now) / 86_400, 2) for waiting in shop.take()]
    assert days == [5, 12]


# Into the broker


def test_who_watches_the_workers_sees_no_message() -> None:
    shop = Shop(Mailer(MemoryTransport()))
    message_id = shop.queue.send_later(tokened("token"))
    [waiting] = shop.take()
    assert waiting.about == f"({message_id!r},)"


def test_a_message_that_is_too_large_is_refused_with_what_to_do() -> None:
    shop = Shop(Mailer(MemoryTransport()), limit=1000)
    with pytest.raises(MessageTooLarge, match="send a link"):
        shop.queue.send_later(Message("Hi", ["b@x.org"], "x" * 2000, sender=ADA))
    assert shop.take() == []


async def test_in_an_event_loop_it_says_what_to_write() -> None:
    shop = Shop(Mailer(MemoryTransport()))
    with pytest.raises(UsageError, match=r"asyncio\.to_thread"):
        shop.queue.send_later(a_message())
    await asyncio.to_thread(shop.queue.send_later, a_message())
    assert len(await asyncio.to_thread(shop.take)) == 1


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_cannot_be_reached_has_nothing(scheme: str) -> None:
    app = Celery("shop", broker=f"{scheme}://127.0.0.1:{free_port()}//", set_as_current=False)
    app.conf.broker_transport_options = {"confirm_publish": True}
    queue = CeleryQueue(app, Mailer(MemoryTransport()))
    message = a_message()
    with pytest.raises(NotSent, match="broker cannot be reached") as caught:
        queue.send_later(message)
    assert caught.value.retryable
    assert caught.value.message_id == message.message_id
    assert caught.value.__cause__ is not None


def test_a_job_that_cannot_be_queued_for_later_stays_in_the_broker() -> None:
    """Where Celery's own Task.retry would reject it for good."""
    queued = Shop(Mailer(MemoryTransport()))
    queued.queue.send_later(a_message())
    [waiting] = queued.take()
    app = Celery("shop", broker=f"amqp://127.0.0.1:{free_port()}//", set_as_current=False)
    CeleryQueue(app, Mailer(End("end", ConnectionLost("lost", retryable=True))))
    done = app.tasks["amail.send"].apply((waiting.job,))
    assert done.state == "REJECTED"
    assert done.result.requeue


@pytest.mark.parametrize("outcome", ["sent", "unknown"])
@pytest.mark.parametrize("has_ledger", [False, True])
def test_a_rest_that_cannot_be_queued_does_not_have_the_others_sent_again(
    outcome: str, has_ledger: bool, tmp_path: Path
) -> None:
    """Only a ledger knows that they were sent: then the broker may have the whole job back."""
    message = a_message("a@x.org", "b@x.org")

    def some(receipt: Receipt) -> Receipt:
        if outcome == "unknown":
            raise DeliveryUnknown("?", refused={"b@x.org": BUSY})
        return replace(receipt, accepted=("a@x.org",), refused={"b@x.org": BUSY})

    queued = Shop(Mailer(MemoryTransport()))
    queued.queue.send_later(message)
    [waiting] = queued.take()
    app = Celery("shop", broker=f"amqp://127.0.0.1:{free_port()}//", set_as_current=False)
    came_to: list[t.Any] = []
    ledger = FolderLedger(tmp_path / "ledger") if has_ledger else None
    CeleryQueue(app, Mailer(End("end", some)), ledger=ledger, on_done=came_to.append)
    done = app.tasks["amail.send"].apply((waiting.job,))
    if has_ledger:
        assert (done.state, came_to) == ("REJECTED", [])
    else:
        assert done.state == "SUCCESS"
        given_up, ended = came_to
        assert given_up.recipients == ("b@x.org",)
        assert isinstance(ended, DeliveryUnknown if outcome == "unknown" else Handled)


def test_two_queues_of_an_app_need_names_of_their_own() -> None:
    shop = Shop(Mailer(MemoryTransport()))
    shop.queue.send_later(a_message())
    other = CeleryQueue(shop.app, Mailer(MemoryTransport()))
    with (
        pytest.warns(UserWarning, match="already registered"),  # Celery's own
        pytest.raises(UsageError, match="task_name"),
    ):
        other.send_later(a_message())


def test_an_app_that_is_eager_sends_at_once_and_raises() -> None:
    memory = MemoryTransport()
    shop = Shop(Mailer(End("end", lambda receipt: receipt, MessageRejected("no"))))
    shop.app.conf.task_always_eager = True
    shop.queue.send_later(a_message(), countdown=3600)
    with pytest.raises(MessageRejected):
        shop.queue.send_later(a_message())
    assert [type(each) for each in shop.came_to] == [Handled, MessageRejected]
    assert list(memory.messages) == []


# Interrupted


@pytest.mark.parametrize("went_out", [True, False])
def test_what_a_soft_time_limit_ends_is_sent_again_only_if_it_cannot_have_been_sent(
    went_out: bool, celerys_signal: None, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging(MemoryTransport):
        async def send(self, envelope: t.Any, content: t.Any, **options: t.Any) -> Receipt:
            if went_out:
                bytes(content)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.Event().wait()
            raise AssertionError

    shop = Shop(Mailer(Hanging()))
    shop.queue.send_later(a_message())
    assert shop.work() == "SUCCESS"
    assert len(shop.take()) == (0 if went_out else 1)
    assert [type(each) for each in shop.came_to] == ([DeliveryUnknown] if went_out else [])
    assert "SoftTimeLimitExceeded" in caplog.text


@pytest.fixture
def celerys_signal() -> Iterator[None]:
    """Have SIGUSR1 do to the main thread what it does in a worker of Celery."""

    def raise_it(number: int, frame: object) -> t.NoReturn:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_gate_that_is_shut_lets_nothing_pass() -> None:
    gate = Gate()
    assert not gate.shut()
    with pytest.raises(NotSent):
        gate.let_pass()
    assert not gate.shut()
    passed = Gate()
    passed.let_pass()
    assert passed.shut()


# The settings


KEPT = {"visibility_timeout": 1800, "unacked_restore_interval": 10, "unacked_restore_throttle": 1}


def complaints(broker: str, **conf: t.Any) -> str:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update(conf)
    return "\n".join(CeleryQueue(app, Mailer(MemoryTransport())).warnings())


def test_settings_that_keep_mail_are_not_complained_of() -> None:
    assert complaints("redis://localhost", broker_transport_options=KEPT) == ""
    assert complaints("amqp://", broker_transport_options={"confirm_publish": True}) == ""


@pytest.mark.parametrize(
    ("broker", "options", "said"),
    [
        ("redis://localhost", {}, "visibility_timeout is not set"),
        ("redis://localhost", {**KEPT, "visibility_timeout": 1260}, "visibility_timeout is 1260 s"),
        *(
            ("redis://localhost", {k: v for k, v in KEPT.items() if k != name}, f"{name} not set")
            for name in KEPT
            if name != "visibility_timeout"
        ),
        ("amqp://", {}, "confirm_publish is off"),
        ("memory://", {}, "no other process"),
        ("filesystem://", {}, "RabbitMQ and Redis only"),
    ],
)
def test_a_broker_that_loses_mail_is_complained_of(
    broker: str, options: dict[str, t.Any], said: str
) -> None:
    assert said in complaints(broker, broker_transport_options=options)


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"task_annotations": {"*": {"acks_late": False}}}, "acks_late is off"),
        (
            {"task_annotations": {"amail.send": {"reject_on_worker_lost": False}}},
            "reject_on_worker_lost is off",
        ),
        ({"task_annotations": {"*": {"acks_on_timeout": True}}}, "acks_on_timeout is on"),
        ({"task_annotations": {"*": {"serializer": "pickle"}}}, "serializer is 'pickle'"),
        ({"task_time_limit": 300}, "task_soft_time_limit is 300 s"),
        ({"task_soft_time_limit": 60, "task_time_limit": 3000}, "is 60 s"),
        ({"accept_content": ["yaml"]}, 'without "json"'),
        ({"accept_content": ["json", "pickle"]}, '"pickle"'),
        ({"task_always_eager": True}, "task_always_eager is on"),
        ({"task_default_delivery_mode": "transient"}, "delivery_mode is transient"),
    ],
)
def test_settings_that_lose_mail_are_complained_of(conf: dict[str, t.Any], said: str) -> None:
    kept = complaints("redis://localhost", broker_transport_options=KEPT, **conf)
    assert said in kept
    assert len(kept.splitlines()) == 1


@pytest.mark.parametrize(
    "conf",
    [{"task_acks_late": False, "task_reject_on_worker_lost": False}, {"task_serializer": "pickle"}],
)
def test_what_is_set_for_other_tasks_changes_nothing_about_this_one(conf: dict[str, t.Any]) -> None:
    assert complaints("redis://localhost", broker_transport_options=KEPT, **conf) == ""


def test_complaints_are_logged_once_by_who_queues(caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(Mailer(MemoryTransport()))
    assert "memory://" not in caplog.text
    for _ in range(3):
        shop.queue.send_later(a_message())
    assert caplog.text.count("the broker is memory://") == 1
