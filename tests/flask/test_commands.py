"""flask mail check, send-test and config."""

from __future__ import annotations

import typing as t

import pytest
from flask import Flask

from amail.testing import FaultServer
from amail_flask import Mail
from amail_flask.config import KEYS
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

    from tests.servers.aiosmtpd_server import AiosmtpdServer

CANARY = "canary-pa55word"
REFUSED = "refused@example.org"


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server(refused={REFUSED}) as running:
        yield running


def run(keys: dict[str, t.Any], *arguments: str) -> Result:
    """Run ``flask mail ...`` for an app with these keys."""
    app = Flask("shop")
    app.config.update({"MAIL_DEFAULT_SENDER": "me@example.com", **keys})
    mail = Mail(app)
    done = app.test_cli_runner().invoke(args=["mail", *arguments])
    mail.close()
    assert CANARY not in done.output
    return done


def test_check_says_what_the_server_offers() -> None:
    with FaultServer.serve_in_thread(users={"ada": CANARY}) as server:
        keys = {"MAIL_SERVER": server.host, "MAIL_PORT": server.port}
        done = run({**keys, "MAIL_USERNAME": "ada", "MAIL_PASSWORD": CANARY}, "check")
        assert server.messages == []
    lines = {line[:12].strip(): line[13:] for line in done.output.splitlines()[1:]}
    assert done.exit_code == 0
    assert lines["relay"] == f"{server.host}:{server.port}"
    assert "PLAIN" in lines["AUTH"]
    assert lines["credentials"] == "accepted by AUTH PLAIN"
    assert "PIPELINING" in lines["extensions"]
    assert lines["extensions"].endswith("(in the clear)")
    assert lines["SIZE"].startswith("messages of up to ")


def test_check_says_what_is_wrong_and_exits_with_1() -> None:
    with FaultServer.serve_in_thread(users={"ada": "other"}) as server:
        keys = {"MAIL_SERVER": server.host, "MAIL_PORT": server.port}
        done = run({**keys, "MAIL_USERNAME": "ada", "MAIL_PASSWORD": CANARY}, "check")
    assert done.exit_code == 1
    assert "535" in done.stderr
    assert "[not_sent, at auth]" in done.stderr


def test_check_goes_on_to_the_other_mailers_when_one_fails(server: AiosmtpdServer) -> None:
    with FaultServer.serve_in_thread(greeting="554 5.3.2 no") as down:
        keys = {"MAIL_URL": down.url, "MAIL_MAILERS": {"bulk": {"MAIL_URL": server.url}}}
        every, bulk = run(keys, "check"), run(keys, "check", "--mailer", "bulk")
    assert (every.exit_code, bulk.exit_code) == (1, 0)
    assert f"relay        {server.host}:{server.port}" in every.stdout
    assert "554" in every.stderr
    assert bulk.output.startswith("bulk: ")


def test_check_of_a_config_that_is_refused_says_why() -> None:
    done = run({"MAIL_SERVER": ""}, "check")
    assert done.exit_code == 1
    assert "MAIL_SERVER: is empty" in done.stderr


def test_check_works_while_sending_is_suppressed(server: AiosmtpdServer) -> None:
    assert run({"MAIL_URL": server.url, "MAIL_SUPPRESS_SEND": True}, "check").exit_code == 0
    assert server.sessions == 1


def test_send_test_says_what_came_of_it(server: AiosmtpdServer) -> None:
    done = run({"MAIL_URL": server.url}, "send-test", "bob@example.org")
    assert done.exit_code == 0
    assert "250 2.0.0 ok, queued as A00001" in done.output
    (stored,) = server.messages
    assert stored.forward_paths == ("bob@example.org",)
    assert b"send-test of shop" in stored.content


@pytest.mark.parametrize(
    ("keys", "address", "said"),
    [
        ({}, REFUSED, "550 5.1.1"),
        ({}, "nobody", "recipients"),
        ({"MAIL_DEFAULT_SENDER": None}, "bob@example.org", "sender"),
        ({"MAIL_SUPPRESS_SEND": True}, "bob@example.org", "not sent: MAIL_SUPPRESS_SEND"),
        ({"MAIL_ALLOWED_RECIPIENTS": "example.com"}, "bob@example.org", "MAIL_ALLOWED_RECIPIENTS"),
    ],
)
def test_send_test_exits_with_1_where_no_server_has_it_for_that_address(
    server: AiosmtpdServer, keys: dict[str, t.Any], address: str, said: str
) -> None:
    done = run({"MAIL_URL": server.url, **keys}, "send-test", address)
    assert done.exit_code == 1
    assert said in done.stderr
    assert server.messages == []


def test_send_test_uses_the_mailer_that_is_named(server: AiosmtpdServer) -> None:
    keys = {"MAIL_URL": "smtp://127.0.0.1:1", "MAIL_MAILERS": {"bulk": {"MAIL_URL": server.url}}}
    assert run(keys, "send-test", "bob@example.org", "--mailer", "bulk").exit_code == 0
    assert len(server.messages) == 1
    wrong = run(keys, "send-test", "bob@example.org", "--mailer", "buld")
    assert wrong.exit_code == 1
    assert "no mailer 'buld'" in wrong.stderr


def test_config_shows_each_key_its_value_and_where_that_is_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_MAIL_MAX_CONNECTIONS", "7")
    monkeypatch.setenv("FLASK_MAIL_TIMEOUT", "30")
    done = run(
        {
            "MAIL_SERVER": "smtp.example.com",
            "MAIL_USERNAME": CANARY,
            "MAIL_PASSWORD": CANARY,
            "MAIL_MAX_CONNECTIONS": 7,
            "MAIL_TIMEOUT": 5,
        },
        "config",
    )
    rows = [line.split() for line in done.output.splitlines()]
    assert rows[0] == ["key", "value", "from"]
    assert [row[0] for row in rows[1:]] == list(KEYS)
    shown = {row[0]: row[1:] for row in rows[1:]}
    assert shown["MAIL_SERVER"] == ["smtp.example.com", "app.config"]
    assert shown["MAIL_PASSWORD"] == ["********", "app.config"]
    assert shown["MAIL_MAX_CONNECTIONS"] == ["7", "FLASK_MAIL_MAX_CONNECTIONS"]
    assert shown["MAIL_TIMEOUT"] == ["5.0", "app.config"]
    assert shown["MAIL_MAX_EMAILS"] == ["100", "default"]
    assert shown["MAIL_TLS_SERVER_NAME"] == ["the", "host", "default"]


def test_config_shows_where_a_url_wins() -> None:
    url = f"smtp://ada:{CANARY}@smtp.example.com"
    done = run({"MAIL_URL": url, "MAIL_SERVER": "old.example.com"}, "config")
    rows = {line.split()[0]: line for line in done.output.splitlines()}
    assert "smtp://********@smtp.example.com:587" in rows["MAIL_URL"]
    assert rows["MAIL_SERVER"].endswith("app.config, but MAIL_URL wins")


def test_config_of_a_mailer_shows_what_is_its_own() -> None:
    keys = {"MAIL_TIMEOUT": 5, "MAIL_MAILERS": {"bulk": {"MAIL_MAX_CONNECTIONS": 2}}}
    done = run(keys, "config", "--mailer", "bulk")
    rows = {line.split()[0]: line.split()[1:] for line in done.output.splitlines()}
    assert rows["MAIL_MAX_CONNECTIONS"] == ["2", "MAIL_MAILERS['bulk']"]
    assert rows["MAIL_TIMEOUT"] == ["5.0", "app.config"]


def test_an_app_whose_mail_was_made_twice_has_the_commands_once() -> None:
    app = Flask(__name__)
    Mail(app)
    Mail(app)
    assert app.test_cli_runner().invoke(args=["mail", "config"]).exit_code == 0
