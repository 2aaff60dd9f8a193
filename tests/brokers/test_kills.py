"""What is lost and what is doubled when Celery's processes are killed, with a real broker.

A server that takes its time, 200 messages, and SIGKILL in the middle of them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import typing as t
from collections import Counter

import pytest

from amail import Mailer, MemoryTransport, Message
from amail.queues import key_of
from amail.testing import Delay, FaultServer
from tests.brokers.broker import OverRabbitMQ, is_stopped
from tests.brokers.workers import workers
from tests.messages import ADA
from tests.servers.programs import wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from amail.queues import Job
    from tests.brokers.broker import Broker, OverRedis
    from tests.brokers.workers import Workers

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(120)]

MESSAGES = 200
CHILDREN = 4
_MESSAGE_ID = re.compile(rb"^Message-ID: (<[^>]+>)\r$", re.MULTILINE)


@pytest.fixture
def slow_server() -> Iterator[FaultServer]:
    with FaultServer.serve_in_thread(
        mail=Delay(0.015), rcpt=Delay(0.015), data=Delay(0.015), final=Delay(0.05)
    ) as server:
        yield server


def queue_messages(broker: Broker, count: int = MESSAGES) -> dict[str, Job]:
    """Queue them. Returns the job of each recipient, of whom there is one a message."""
    queue, mailer = broker.queue(), Mailer(MemoryTransport())
    jobs = {}
    for number in range(count):
        to = f"bob+{number}@example.org"
        composed = mailer.compose(Message("Hello", [to], f"Number {number}", sender=ADA))
        jobs[to] = queue.pack(*composed)
        queue.put(jobs[to])
    return jobs


def copies(server: FaultServer) -> Counter[str]:
    return Counter(message.forward_paths[0] for message in server.messages)


def doubled(server: FaultServer) -> Counter[str]:
    return copies(server) - Counter(list(copies(server)))


def unsent(server: FaultServer, jobs: dict[str, Job]) -> set[str]:
    """The Message-IDs of what the server does not have."""
    return {job["id"] for to, job in jobs.items() if to not in copies(server)}


def after_a_third(server: FaultServer, *, when: str = "behind its content") -> None:
    """Wait for a third of them, and then for a moment at which one of them is there."""
    if when == "behind its content":
        wait_until(lambda: len(server.messages) > MESSAGES // 3, "a third of them", every=0.001)
    else:
        wait_until(lambda: rcpts(server) > MESSAGES // 3, "a third of them", every=0.001)


def rcpts(server: FaultServer) -> int:
    return sum(command.line.startswith("RCPT") for command in list(server.commands))


def all_of_them(server: FaultServer, running: Workers, count: int = MESSAGES) -> None:
    try:
        wait_until(lambda: len(copies(server)) == count, "all of them", seconds=30)
    except AssertionError as error:
        error.add_note(f"{len(copies(server))} are there; the workers say:\n{running.log[-4000:]}")
        raise


def are_what_was_queued(server: FaultServer, jobs: dict[str, Job]) -> bool:
    """Whether each copy has the octets, so the Message-ID, that were queued."""
    return all(
        message.content == jobs[message.forward_paths[0]]["mime"].encode()
        and _MESSAGE_ID.findall(message.content) == [jobs[message.forward_paths[0]]["id"].encode()]
        for message in server.messages
    )


@pytest.mark.parametrize("when", ["before its content", "behind its content"])
def test_no_message_is_lost_with_a_worker_and_all_its_children(
    broker: Broker, slow_server: FaultServer, tmp_path: Path, when: str
) -> None:
    jobs = queue_messages(broker)
    with workers(tmp_path, broker, slow_server) as running:
        worker = running.start(children=CHILDREN)
        after_a_third(slow_server, when=when)
        broker.kill(worker, lambda: unsent(slow_server, jobs))
        other = running.start(children=CHILDREN)
        all_of_them(slow_server, running)
        assert broker.is_done(other)
    assert set(copies(slow_server)) == set(jobs)
    assert doubled(slow_server).total() <= CHILDREN
    assert are_what_was_queued(slow_server, jobs)


def test_with_a_ledger_only_what_was_in_data_may_be_doubled(
    broker: Broker, slow_server: FaultServer, tmp_path: Path, ledger_url: str
) -> None:
    jobs = queue_messages(broker)
    with workers(tmp_path, broker, slow_server, ledger=ledger_url) as running:
        worker = running.start(children=CHILDREN)
        after_a_third(slow_server)
        broker.kill(worker, lambda: unsent(slow_server, jobs))
        known = sent_as_the_ledger_knows(ledger_url, jobs)
        in_data = set(copies(slow_server)) - known
        other = running.start(children=CHILDREN)
        all_of_them(slow_server, running)
        # What was in DATA is held until its lease has ended.
        wait_until(
            lambda: sent_as_the_ledger_knows(ledger_url, jobs) == set(jobs), "the ledger to know"
        )
        assert broker.is_done(other)
    assert set(copies(slow_server)) == set(jobs)
    assert len(in_data) <= CHILDREN
    assert set(doubled(slow_server)) <= in_data
    assert doubled(slow_server).total() <= CHILDREN
    assert are_what_was_queued(slow_server, jobs)


def test_no_message_is_lost_with_one_child(
    broker: Broker, slow_server: FaultServer, tmp_path: Path
) -> None:
    jobs = queue_messages(broker)
    with workers(tmp_path, broker, slow_server) as running:
        worker = running.start(children=CHILDREN)
        after_a_third(slow_server, when="before its content")
        os.kill(worker.children[-1], signal.SIGKILL)
        all_of_them(slow_server, running)
        assert broker.is_done(worker)
        assert "WorkerLostError" in worker.log
    assert set(copies(slow_server)) == set(jobs)
    assert doubled(slow_server).total() <= 1
    assert are_what_was_queued(slow_server, jobs)


@pytest.mark.parametrize("has_ledger", [False, True])
def test_what_redis_delivers_again_while_a_worker_has_it_is_doubled_but_for_a_ledger(
    over_redis: OverRedis,
    slow_server: FaultServer,
    tmp_path: Path,
    ledger_url: str,
    has_ledger: bool,
) -> None:
    """A worker that takes more than it sends within the visibility timeout."""
    over_redis.options["visibility_timeout"] = 1
    slow_server.change(final=Delay(0.4))
    jobs = queue_messages(over_redis, 48)
    ledger = ledger_url if has_ledger else ""
    with workers(tmp_path, over_redis, slow_server, ledger=ledger) as running:
        for _ in range(2):
            running.start("--prefetch-multiplier", "12", children=2)
        all_of_them(slow_server, running, len(jobs))
        wait_until(lambda: not over_redis.waiting(), "an empty queue", seconds=30)
    assert set(copies(slow_server)) == set(jobs)
    assert (doubled(slow_server).total() == 0) == has_ledger
    assert are_what_was_queued(slow_server, jobs)


def test_what_is_on_its_way_to_a_killed_worker_is_kept_by_rabbitmq_and_lost_by_redis(
    broker: Broker, slow_server: FaultServer, tmp_path: Path
) -> None:
    """Redis gives a job away before the worker can note that it has it; so does kombu over it."""
    with workers(tmp_path, broker, slow_server) as running:
        worker = running.start(children=1)
        worker.signal(signal.SIGSTOP)
        wait_until(lambda: is_stopped(worker.process.pid), "the worker to stop")
        jobs = queue_messages(broker, 1)
        worker.kill()
        other = running.start(children=1)
        queue_messages(broker, 2)
        wait_until(lambda: len(copies(slow_server)) == 2, "both others")
        assert broker.is_done(other)
    bodies = [message.content for message in slow_server.messages]
    [kept] = [job["mime"].encode() in bodies for job in jobs.values()]
    assert kept == isinstance(broker, OverRabbitMQ)


def sent_as_the_ledger_knows(url: str, jobs: dict[str, Job]) -> set[str]:
    import redis

    with redis.Redis.from_url(url) as client:
        found = {to: client.get(f"amail:ledger:{key_of(job)}") for to, job in jobs.items()}
    return {to for to, entry in found.items() if entry and json.loads(entry)[0] == "sent"}
