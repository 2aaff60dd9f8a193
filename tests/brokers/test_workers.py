"""Celery's workers as they are run: what a message comes to with them, and how they end."""

from __future__ import annotations

import time
import typing as t

import pytest

from amail import Message
from amail.testing import OK, Close, FaultServer, Hang
from tests.brokers.flask_app import create_app, mail
from tests.brokers.workers import workers
from tests.messages import ADA
from tests.servers.programs import require_module, wait_until

if t.TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers.broker import Broker

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(120)]


def a_message(to: str = "bob@example.org") -> Message:
    return Message("Hello", [to], "Hi", sender=ADA)


def test_each_child_has_one_session_and_ends_it_with_quit(broker: Broker, tmp_path: Path) -> None:
    with FaultServer.serve_in_thread() as server, workers(tmp_path, broker, server) as running:
        queue = broker.queue()
        worker = running.start(children=2)
        for number in range(30):
            queue.send_later(a_message(f"bob+{number}@example.org"))
        wait_until(lambda: len(server.messages) == 30, "all of them")
        worker.stop()
        commands = [command.line for command in server.commands]
        assert server.connections <= 2
        assert commands.count("QUIT") == server.connections
        assert "Traceback" not in worker.log


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_workers_of_every_pool_send_and_end_their_sessions_with_quit(
    over_redis: Broker, tmp_path: Path, pool: str
) -> None:
    if pool == "gevent":
        require_module("gevent")
    with FaultServer.serve_in_thread() as server, workers(tmp_path, over_redis, server) as running:
        queue = over_redis.queue()
        worker = running.start("-P", pool, children=4)
        for number in range(20):
            queue.send_later(a_message(f"bob+{number}@example.org"))
        wait_until(lambda: len(server.messages) == 20, "all of them")
        worker.stop()
        assert server.connections == 1  # max_connections of the app
        assert [command.line for command in server.commands].count("QUIT") == 1
        assert "Traceback" not in worker.log


def test_what_is_refused_for_now_is_sent_later_and_what_is_unknown_never_again(
    broker: Broker, tmp_path: Path
) -> None:
    refused = {"busy@example.org": 2}

    def rcpt(moment: t.Any) -> t.Any:
        for path in refused:
            if path in moment.line and refused[path]:
                refused[path] -= 1
                return "450 4.2.0 later"
        return OK

    def final(moment: t.Any) -> t.Any:
        return Close() if moment.message == 1 else OK

    with (
        FaultServer.serve_in_thread(rcpt=rcpt, final=final) as server,
        workers(tmp_path, broker, server) as running,
    ):
        queue = broker.queue()
        worker = running.start(children=1)
        unknown = queue.send_later(a_message("lost@example.org"))
        wait_until(lambda: "may have been sent or not" in worker.log, "the first one")
        busy = queue.send_later(a_message("busy@example.org"))
        begun = time.monotonic()
        queue.send_later(a_message("later@example.org"), countdown=2.5)
        wait_until(lambda: len(server.messages) == 3, "the others")
        assert time.monotonic() - begun >= 2.4
        assert broker.is_done(worker)
        paths = [message.forward_paths[0] for message in server.messages]
        assert paths == ["lost@example.org", "busy@example.org", "later@example.org"]
        assert refused == {"busy@example.org": 0}
        assert f"{unknown}: may have been sent or not" in worker.log
        assert worker.log.count(f"{busy}: left for later after try") == 2
        for path in paths:
            assert path not in worker.log


def test_what_a_hard_time_limit_ends_is_not_lost(over_rabbitmq: Broker, tmp_path: Path) -> None:
    """As it would be with Celery's own acks_on_failure_or_timeout."""
    over_rabbitmq.conf["task_annotations"] = {"amail.send": {"time_limit": 1}}
    with (
        FaultServer.serve_in_thread(rcpt=[Hang(), OK]) as server,
        workers(tmp_path, over_rabbitmq, server) as running,
    ):
        worker = running.start(children=1)
        assert "task_time_limit or task_soft_time_limit is 1 s" in worker.log
        over_rabbitmq.queue().send_later(a_message())
        wait_until(lambda: len(server.messages) == 1, "the second try")
        assert "Hard time limit" in worker.log
        assert over_rabbitmq.is_done(worker)
    assert len(server.messages) == 1


def test_a_flask_app_leaves_its_mail_to_workers_and_hears_there_what_came_of_it(
    broker: Broker, tmp_path: Path
) -> None:
    with (
        FaultServer.serve_in_thread(rcpt=[OK, "550 5.1.1 no such user"]) as server,
        workers(tmp_path, broker, server) as running,
    ):
        running.app = "tests.brokers.flask_app"
        app = create_app(broker.url, server.url, dict(broker.settings))

        @app.post("/")
        async def view() -> str:
            return (await mail.send_later(a_message())).message_id

        sent, refused = (app.test_client().post("/").text for _ in range(2))
        assert server.connections == 0
        worker = running.start(children=1)
        wait_until(lambda: "shop heard" in worker.log, "the second one")
        assert broker.is_done(worker)
        [received] = server.messages
        assert f"Message-ID: {sent}\r\n".encode() in received.content
        assert f"shop heard that {refused} came to RecipientsRejected" in worker.log
        assert worker.log.count("shop heard") == 1
        assert "QUIT" in [command.line for command in server.commands]


def test_a_worker_warns_when_it_starts_of_settings_that_do_not_keep_mail(
    over_rabbitmq: Broker, tmp_path: Path
) -> None:
    over_rabbitmq.options["confirm_publish"] = False
    with (
        FaultServer.serve_in_thread() as server,
        workers(tmp_path, over_rabbitmq, server) as running,
    ):
        worker = running.start(children=1)
        assert worker.log.count("confirm_publish is off") == 1
