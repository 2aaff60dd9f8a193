"""MAIL_QUEUE="folder:///...": send_later leaves jobs there, and the app's processes send them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import time
import typing as t

import pytest
from flask import Flask, current_app

from amail import ConfigError, DeliveryUnknown, MessageError, QueueFull, Receipt
from amail.queues import pack
from amail.queues.folder import FolderQueue
from amail_flask import Mail, Message, email_accepted, email_dispatched, email_failed
from tests.musts import PASSWORD
from tests.queues.test_folder import rooms
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers.aiosmtpd_server import AiosmtpdServer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _workers_end() -> Iterator[None]:
    yield
    while _apps:
        end(_apps.pop())


def end(app: Flask) -> None:
    """Have this process send nothing more of what waits."""
    for queue in app.extensions["mail"].engines:
        queue.end()
        queue.drain(20)


_apps: list[Flask] = []


def hello(**fields: t.Any) -> Message:
    return Message("Hello", **{"recipients": ["bob@example.org"], "body": "Hi", **fields})


def make_app(where: t.Any, folder: Path, **config: t.Any) -> tuple[Flask, Mail]:
    app = Flask(__name__)
    url = where if isinstance(where, str) else where.url
    app.config.update(
        MAIL_URL=url,
        MAIL_DEFAULT_SENDER="me@example.com",
        MAIL_QUEUE=f"folder://{folder}",
        **config,
    )
    mail = Mail(app)
    _apps.append(app)
    app.add_url_rule("/", view_func=lambda: "ok")
    return app, mail


def test_send_later_leaves_a_job_on_disk_and_this_process_sends_it(
    server: AiosmtpdServer, folder: Path
) -> None:
    app, mail = make_app(server, folder)
    message = hello()
    with app.app_context():
        queued = mail.send_later(message)
        assert (queued.message_id, queued.engine) == (message.message_id, "folder")
        assert mail.drain(20) == 0
    assert len(server.messages) == 1
    found, [record] = FolderQueue(folder).about(queued.message_id)
    assert (found, record.outcome) == ([], "accepted")


async def test_it_may_be_awaited_in_a_view_that_is_async(
    server: AiosmtpdServer, folder: Path
) -> None:
    app, mail = make_app(server, folder)
    with app.app_context():
        queued = await mail.send_later(hello())
    assert queued.engine == "folder"


def test_what_waits_is_sent_from_the_first_request_on_and_not_before(
    server: AiosmtpdServer, folder: Path
) -> None:
    queue = FolderQueue(folder)
    other, their_mail = make_app("smtp://127.0.0.1:1", folder)
    with other.app_context():
        their_mail.send_later(hello())
    end(other)
    app, mail = make_app(server, folder)
    assert rooms(folder) == {"new": 1}
    assert app.test_client().get("/").text == "ok"
    with app.app_context():
        assert mail.drain(20) == 0
    assert len(server.messages) == 1
    assert [*queue.jobs()] == []


def test_while_sending_is_suppressed_nothing_is_queued_and_nothing_that_waits_is_sent(
    server: AiosmtpdServer, folder: Path
) -> None:
    queue = FolderQueue(folder)
    app, mail = make_app(server, folder)
    app.testing = True
    dispatched = []
    with app.app_context(), mail.record_messages() as outbox:
        queued = mail.send_later(hello())
        dispatched += outbox
    assert (len(dispatched), queued.engine) == (1, "memory")
    assert not folder.exists()
    queue.put(pack(hello(sender="me@example.com")))
    app.test_client().get("/")
    with app.app_context():
        assert mail.drain(0.5) == 1
    assert server.messages == []


def test_signals_are_sent_by_who_sends_without_a_message(
    server: AiosmtpdServer, folder: Path
) -> None:
    app, mail = make_app(server, folder)
    heard: list[t.Any] = []

    def hear(sender: Flask, **what: t.Any) -> None:
        assert sender is app
        assert current_app == app
        heard.append(what)

    with (
        email_accepted.connected_to(hear, app),
        email_failed.connected_to(hear, app),
        email_dispatched.connected_to(hear, app),
        app.app_context(),
    ):
        queued = mail.send_later(hello())
        _until(lambda: heard)
        [accepted] = heard
        assert accepted["message"] is None
        assert isinstance(accepted["receipt"], Receipt)
        assert accepted["receipt"].message_id == queued.message_id


def test_what_a_dead_process_may_have_sent_is_told_as_unknown(
    server: AiosmtpdServer, folder: Path
) -> None:
    app, _ = make_app(server, folder)
    heard: list[t.Any] = []

    def hear(sender: Flask, **what: t.Any) -> None:
        heard.append(what["error"])

    _die_while_sending(folder)
    with email_failed.connected_to(hear, app):
        app.test_client().get("/")
        _until(lambda: heard)
    assert isinstance(heard[0], DeliveryUnknown)
    assert rooms(folder) == {"unknown": 1}
    assert server.messages == []


def test_a_job_names_the_mailer_and_that_one_sends_it(server: AiosmtpdServer, folder: Path) -> None:
    with aiosmtpd_server() as bulk:
        app, mail = make_app(server, folder, MAIL_MAILERS={"bulk": {"MAIL_URL": bulk.url}})
        with app.app_context():
            mail.send_later(hello())
            mail.using("bulk").send_later(hello(recipients=["eve@example.org"]))
            assert mail.drain(20) == 0
        assert [len(each.messages) for each in (server, bulk)] == [1, 1]


def test_what_the_config_says_of_sending_holds_for_what_waited(
    server: AiosmtpdServer, folder: Path
) -> None:
    app, mail = make_app(
        server, folder, MAIL_REDIRECT_TO="dev@example.com", MAIL_SUBJECT_PREFIX="[staging] "
    )
    with app.app_context():
        mail.send_later(hello())
        assert mail.drain(20) == 0
    [message] = server.messages
    assert b"[staging] Hello" in _octets_of(message)
    assert b"bob@example.org" in _octets_of(message)


def test_no_credential_and_no_host_is_in_the_folder(folder: Path) -> None:
    app, mail = make_app(f"smtp://user:{PASSWORD}@127.0.0.1:1", folder)
    with app.app_context():
        mail.send_later(hello())
    end(app)
    for path in folder.rglob("*.json*"):
        assert PASSWORD not in path.read_text()
        assert "127.0.0.1" not in path.read_text()


def test_what_cannot_be_composed_or_written_is_told_at_once(
    server: AiosmtpdServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, mail = make_app(server, folder)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with app.app_context():
        with pytest.raises(MessageError):
            mail.send_later(hello(recipients=[]))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(QueueFull, match="No space left"):
                mail.send_later(hello())
        assert mail.drain(5) == 0
    assert server.messages == []


@pytest.mark.parametrize("value", ["folder://", "folder:///", "folder://host/x", "folder", "redis"])
def test_a_queue_that_is_none_is_a_config_error(value: str) -> None:
    app = Flask(__name__)
    app.config.update(MAIL_QUEUE=value)
    with pytest.raises(ConfigError, match=r"MAIL_QUEUE: .*folder:///"):
        Mail(app)


def test_what_is_for_later_waits_until_then(server: AiosmtpdServer, folder: Path) -> None:
    app, mail = make_app(server, folder)
    with app.app_context():
        mail.send_later(hello(), countdown=3600)
        mail.send_later(hello())
        assert mail.drain(20) == 1
    assert len(server.messages) == 1


def test_an_app_without_a_server_still_serves(folder: Path) -> None:
    app, _ = make_app("", folder, MAIL_SERVER="")
    assert app.test_client().get("/").text == "ok"


PROGRAM = """
    import sys
    from flask import Flask
    from amail_flask import Mail, Message

    app = Flask(__name__)
    app.config.update(MAIL_URL=sys.argv[1], MAIL_DEFAULT_SENDER="me@example.com",
                      MAIL_QUEUE=f"folder://{sys.argv[2]}", MAIL_DRAIN_TIMEOUT=20)
    mail = Mail(app)
    with app.app_context():
        for number in range(20):
            mail.send_later(Message(str(number), ["bob@example.org"], "Hi"))
"""


def test_a_process_that_exits_ends_those_under_way_and_leaves_the_others(
    server: AiosmtpdServer, folder: Path
) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), server.url, str(folder)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    left = rooms(folder)
    assert len(server.messages) + left.pop("new", 0) == 20
    assert left == {}


def test_the_background_loop_of_a_forked_worker_sends_what_its_parent_queued(
    server: AiosmtpdServer, folder: Path
) -> None:
    program = textwrap.dedent(PROGRAM) + textwrap.dedent("""
        import os
        with app.app_context():
            mail.drain(20)
        child = os.fork()
        with app.app_context():
            mail.send_later(Message("last", ["bob@example.org"], "Hi"))
            mail.drain(20)
            if child:
                assert os.waitpid(child, 0)[1] == 0
                sys.exit(mail.drain(20))
    """)
    ran = subprocess.run(
        [sys.executable, "-c", program, server.url, str(folder)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(server.messages) == 22
    assert rooms(folder) == {}


# flask mail queue, flask mail status


def invoke(app: Flask, *arguments: str, code: int = 0) -> str:
    result = app.test_cli_runner().invoke(args=["mail", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_flask_mail_queue_lists_and_status_says_what_became_of_a_message(
    server: AiosmtpdServer, folder: Path
) -> None:
    app, mail = make_app(server, folder)
    with app.app_context():
        sent = mail.send_later(hello()).message_id
        assert mail.drain(20) == 0
    end(app)
    unknown = _die_while_sending(folder)
    assert "accepted by" in invoke(app, "status", sent)
    assert "being sent" in invoke(app, "queue")
    assert invoke(app, "queue", "--run", "--once") == ""
    assert "0 waiting, 0 claimed, 1 unknown" in invoke(app, "queue")
    assert "it may have been sent" in invoke(app, "status", unknown)
    assert "waits to be sent" in invoke(app, "queue", "retry", "unknown")
    invoke(app, "queue", "--run", "--once")
    assert len(server.messages) == 2
    assert "accepted by" in invoke(app, "status", unknown)
    assert "nothing is known of it" in invoke(app, "status", "<never@x.org>", code=1)


def test_flask_mail_queue_without_a_folder_says_what_to_set() -> None:
    app = Flask(__name__)
    Mail(app)
    for arguments in (["queue"], ["status", "<a@b.c>"]):
        assert "set MAIL_QUEUE to folder:///" in invoke(app, *arguments, code=1)


def test_flask_mail_queue_run_sends_nothing_while_that_is_suppressed(
    server: AiosmtpdServer, folder: Path
) -> None:
    app, _ = make_app(server, folder, MAIL_SUPPRESS_SEND=True)
    assert "nothing is sent" in invoke(app, "queue", "--run", code=1)


def _until(condition: t.Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def _octets_of(message: t.Any) -> bytes:
    return bytes(getattr(message, "content", message))


def _die_while_sending(folder: Path) -> str:
    """Have a process killed after the last octet of a message went out; return its Message-ID."""
    program = """
        import json, os, signal, sys
        from amail import Message
        from amail.queues import pack
        from amail.queues.folder import FolderQueue

        queue = FolderQueue(sys.argv[1])
        job = pack(Message("Hello", ["bob@example.org"], "Hi", sender="me@example.com"))
        queue.put(job)
        [claimed] = queue.claim(1)
        claimed.mark()
        print(json.dumps(job["id"]), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(folder)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return str(json.loads(ran.stdout))
