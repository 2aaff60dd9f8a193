"""Celery over a broker: the settings with which it keeps mail, and what waits in its queue."""

from __future__ import annotations

import ast
import itertools
import json
import signal
import time
import typing as t
from pathlib import Path

from celery import Celery

from amail import Mailer, MemoryTransport
from amail.queues.celery import CeleryQueue
from tests.servers.programs import wait_until

if t.TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from tests.brokers.workers import Worker


class Broker:
    """A broker at ``url``, and one queue there that no other test has."""

    def __init__(self, url: str, name: str, **options: t.Any) -> None:
        self.url = url
        self.name = name
        self.options = options
        self.conf: dict[str, t.Any] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def settings(self) -> Mapping[str, t.Any]:
        """What the Celery app has, of those who queue and of those who send."""
        return {
            "broker_transport_options": self.options,
            "broker_connection_retry_on_startup": True,
            "task_default_queue": self.name,
            **self.conf,
        }

    def queue(self, **options: t.Any) -> CeleryQueue:
        """A queue, as a process has it that queues; it sends nothing itself."""
        return CeleryQueue(self.app(), Mailer(MemoryTransport()), **options)

    def app(self) -> Celery:
        """An app that queues."""
        app = Celery("shop", broker=self.url, set_as_current=False)
        app.conf.update(self.settings)
        return app

    def kill(self, worker: Worker, unsent: Callable[[], Collection[str]]) -> None:
        """Kill a worker with all its children; ``unsent`` are the ids of what no server has."""
        worker.kill()

    def is_done(self, worker: Worker) -> bool:
        """End the worker when it has done what it can, and tell whether nothing waits then."""
        raise NotImplementedError


class OverRabbitMQ(Broker):
    """RabbitMQ gives to another worker at once what one had that is gone."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, name, confirm_publish=True)

    def is_done(self, worker: Worker) -> bool:
        worker.stop()
        with self.app().connection_for_read() as connection:
            _, waiting, _ = connection.default_channel.queue_declare(self.name, passive=True)
        return bool(waiting == 0)


class OverRedis(Broker):
    """With Redis the workers look for what one of them has had for longer than a timeout."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(
            url,
            name,
            visibility_timeout=5,
            unacked_restore_interval=1,
            unacked_restore_throttle=1,
            unacked_mutex_expire=2,
            # Of each queue its own, as if there were no other.
            unacked_key=f"{name}-unacked",
            unacked_index_key=f"{name}-index",
            unacked_mutex_key=f"{name}-mutex",
        )

    def waiting(self) -> set[str]:
        """The ids of all that Redis has, whether a worker has it too or not."""
        import redis

        with redis.Redis.from_url(self.url) as client:
            in_list = t.cast("list[bytes]", client.lrange(self.name, 0, -1))
            taken = t.cast("list[bytes]", client.hvals(self.options["unacked_key"]))
        messages = itertools.chain(
            map(json.loads, in_list), (json.loads(each)[0] for each in taken)
        )
        return {ast.literal_eval(each["headers"]["argsrepr"])[0] for each in messages}

    def kill(self, worker: Worker, unsent: Callable[[], Collection[str]]) -> None:
        """Kill it while Redis has all that was not sent.

        It has not what it has just given to a worker, until that has noted it (kombu's BRPOP, and
        then its HSET). What a kill does to that is another test.
        """
        for _ in range(5):
            worker.signal(signal.SIGSTOP)
            wait_until(lambda: is_stopped(worker.process.pid), "the worker to stop", every=0.001)
            if self.waiting() >= set(unsent()):
                worker.kill()
                return
            worker.signal(signal.SIGCONT)
            time.sleep(0.002)
        raise AssertionError("Redis does not have what was not sent")

    def is_done(self, worker: Worker) -> bool:
        wait_until(lambda: not self.waiting(), "an empty queue")
        worker.stop()
        return not self.waiting()


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
