"""``amail demo`` does what the README says, and fails where something is missing."""

from __future__ import annotations

import subprocess
import sys
import typing as t

from click.testing import CliRunner

from amail.cli.commands import amail
from amail_flask.demo import command

if t.TYPE_CHECKING:
    import pytest


def run_demo() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "from amail.cli import main; main()", "demo"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=55,
        check=False,
    )


def test_the_demo_sends_everything_and_reads_it_back_from_the_server() -> None:
    done = run_demo()
    assert (done.returncode, done.stderr) == (0, "")
    for expected in (
        "503 accepted",
        "503 received",
        "From a script",
        "From an async view",
        "你好，世界",
        "红点.png",
        "报告.csv",
        "RecipientsRejected: the server refused every recipient: nobody@example.org: 550 5.1.1",
        "messages a second",
        "aiosmtpd",
        "sessions",
    ):
        assert expected in done.stdout, expected


def test_the_demo_fails_if_an_accepted_message_is_not_at_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = command.Server.report

    def forgetful(server: command.Server) -> dict[str, t.Any]:
        found = report(server)
        del found["messages"][7]
        return found

    monkeypatch.setattr(command.Server, "report", forgetful)
    monkeypatch.setattr(command, "MANY", 20)
    done = CliRunner().invoke(amail, ["demo"])
    assert done.exit_code == 1
    assert "accepted but not at the server: <" in done.output


def test_the_command_line_lists_its_commands_and_its_version() -> None:
    done = CliRunner().invoke(amail, ["--help"])
    assert done.exit_code == 0
    assert "demo" in done.output
    assert "amail, version" in CliRunner().invoke(amail, ["--version"]).output
    assert CliRunner().invoke(amail, ["nonsense"]).exit_code == 2
