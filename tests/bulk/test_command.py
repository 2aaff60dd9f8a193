"""``amail bulk``: what it asks for, shows, writes, and how it ends; by the command itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from click.testing import CliRunner

from amail.cli.commands import amail
from amail.testing import OK, ByMessage, FaultServer, Hang
from tests.bulk.lists import address, addresses, copies_in, write_list
from tests.musts import PASSWORD, assert_no_canary

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    import click.testing

TEXT = "Dear {{ name }}, hello.\n"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer.serve_in_thread() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return tmp_path


def arguments(recipients: Path, *more: str) -> list[str]:
    letter = ("--subject", "Hello {{ name }}", "--text", "text.txt", "--from", "Ada <ada@x.org>")
    return ["bulk", str(recipients), *letter, *more]


def bulk(recipients: Path, *more: str, **environment: str) -> click.testing.Result:
    """Run the command; nothing it says holds a password."""
    result = CliRunner().invoke(amail, arguments(recipients, *more), env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert_no_canary(result.output, "the output")
    return result


@contextlib.contextmanager
def started(recipients: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "tests.bulk.amail_command"]
    process = subprocess.Popen(
        [*command, *arguments(recipients, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_it_sends_writes_both_reports_and_ends_with_0(folder: Path, server: FaultServer) -> None:
    recipients = write_list(folder / "list.csv", 20)
    result = bulk(
        *(recipients, "--report-json", "r.json", "--report-html", "r.html"), MAIL_URL=server.url
    )
    assert result.exit_code == 0
    assert copies_in(server) == dict.fromkeys(addresses(range(20)), 1)
    assert json.loads(Path("r.json").read_text())["accepted"] == 20
    assert "20 accepted" in Path("r.html").read_text()
    assert Path("list.csv.journal").stat().st_mode & 0o777 == 0o600
    again = bulk(recipients, "--url", server.url)
    assert again.exit_code == 0
    assert len(server.messages) == 20


def test_everything_of_the_letter_can_be_said(folder: Path, server: FaultServer) -> None:
    Path("page.html").write_text("<style>p{color:red}</style><p>{{ row['First name'] }}</p>")
    Path("terms.txt").write_text("the terms")
    Path("list.tsv").write_text("Mail\tWho\tFirst name\tname\nbob@x.org\tBob B\tBob\tB\n")
    result = bulk(
        Path("list.tsv"),
        *("--url", server.url, "--html", "page.html", "--inline-css", "--attach", "terms.txt"),
        *("--reply-to", "re@x.org", "--unsubscribe", "https://x.org/{{ Who }}"),
        *("--header", "X-Campaign: spring", "--email-column", "Mail", "--name-column", "Who"),
        *("--delimiter", "\t"),
    )
    assert result.exit_code == 1, "a URL cannot hold a space"
    result = bulk(
        Path("list.tsv"),
        *("--url", server.url, "--html", "page.html", "--inline-css", "--attach", "terms.txt"),
        *("--reply-to", "re@x.org", "--unsubscribe", "https://x.org/{{ Who|urlencode }}"),
        *("--header", "X-Campaign: spring", "--email-column", "Mail", "--name-column", "Who"),
        *("--delimiter", "\t", "--allow-changed"),
    )
    assert result.exit_code == 0, result.output
    (message,) = server.messages
    text = message.content.decode()
    for said in (
        "To: Bob B <bob@x.org>",
        "Reply-To: re@x.org",
        "<https://x.org/Bob%20B>",
        "X-Campaign: spring",
        'filename="terms.txt"',
        "color: red;",
    ):
        assert said in text


def test_json_lines_are_recipients_too(folder: Path, server: FaultServer) -> None:
    Path("list.jsonl").write_text('{"email": "bob@x.org", "name": "Bob"}\n')
    assert bulk(Path("list.jsonl"), "--url", server.url).exit_code == 0
    assert copies_in(server) == {"bob@x.org": 1}


def test_who_was_refused_or_has_a_bad_row_is_said_and_ends_with_1(folder: Path) -> None:
    recipients = write_list(folder / "list.csv", 3)
    with recipients.open("a") as file:
        file.write("nobody,x\n")
    with FaultServer.serve_in_thread(rcpt=ByMessage({2: "550 5.1.1 no such user"})) as server:
        result = bulk(recipients, "--url", server.url, "--max-connections", "1")
        assert result.exit_code == 1
        assert len(server.messages) == 2
        for said in ("refused: 550 5.1.1", "no such user", "line 5: column 'email'"):
            assert said in result.output
        server.change(rcpt=OK)
        result = bulk(recipients, "--url", server.url, "--retry-rejected")
    assert result.exit_code == 1, "the bad row is still there"
    assert copies_in(server) == dict.fromkeys(addresses(range(3)), 1)


def test_several_relays_share_the_list_each_within_its_own_limit(folder: Path) -> None:
    recipients = write_list(folder / "list.csv", 60)
    with FaultServer.serve_in_thread() as one, FaultServer.serve_in_thread() as two:
        relays = [f"{one.url}?max_connections=1", f"{two.url}?max_connections=3"]
        more = ("--relay", relays[0], "--relay", relays[1], "--round-robin")
        assert bulk(recipients, *more).exit_code == 0
        assert copies_in(one, two) == dict.fromkeys(addresses(range(60)), 1)
        assert len(one.messages) == len(two.messages) == 30
        assert one.connections == 1
        assert two.connections <= 3


def test_the_second_relay_is_there_for_when_the_first_is_not(folder: Path) -> None:
    recipients = write_list(folder / "list.csv", 10)
    busy = FaultServer.serve_in_thread(greeting="421 4.3.2 not now")
    with busy as one, FaultServer.serve_in_thread() as two:
        result = bulk(recipients, MAIL_RELAYS=f"{one.url} {two.url}")
        assert result.exit_code == 0
        assert len(two.messages) == 10
        assert not one.messages


def test_other_commands_do_without_jinja() -> None:
    code = "import sys, amail.cli.commands; assert not {'jinja2', 'amail.bulk'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_jinja_it_says_what_to_install(folder: Path) -> None:
    code = "import sys; sys.modules['jinja2'] = None; from amail.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments(write_list(folder / "list.csv", 1))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert 'pip install "amail-asyncio[templates]"' in done.stderr
    assert "Traceback" not in done.stderr


# --dry-run


def test_a_dry_run_shows_three_sends_nothing_and_writes_nothing(folder: Path) -> None:
    recipients = write_list(folder / "list.csv", 9)
    before = sorted(os.listdir())
    result = bulk(recipients, "--dry-run")
    assert result.exit_code == 0
    for number in (0, 4, 8):
        assert f"To: Reader {number} <{address(number)}>" in result.output
        assert f"Dear Reader {number}, hello." in result.output
    assert result.output.count("Subject: ") == 3
    assert "9 of 9 would be sent" in result.output
    assert sorted(os.listdir()) == before


def test_a_dry_run_finds_each_row_that_would_be_skipped(folder: Path) -> None:
    Path("list.csv").write_text(
        f"email,name\n{address(1)},One\nnobody,x\n{address(2)},{'x' * 5000}\n{address(1)},Again\n"
    )
    result = bulk(Path("list.csv"), "--dry-run", "--subject", "Hello {{ nam }}")
    assert "line 2: subject: UndefinedError: 'nam' is undefined" in result.output
    result = bulk(Path("list.csv"), "--dry-run")
    assert result.exit_code == 1
    assert "line 3: column 'email'" in result.output
    assert "line 4: column 'name'" in result.output
    assert "1 of 4 would be sent, 1 duplicates, 2 invalid; nothing was sent" in result.output


def test_samples_are_shown_as_text_whatever_they_hold(folder: Path) -> None:
    Path("list.csv").write_text("email,name\na@x.org,[red]Ada[/red]\n")
    Path("text.txt").write_text("\x1b[31m{{ name }}[/]")
    result = bulk(Path("list.csv"), "--dry-run")
    assert result.exit_code == 0
    assert "Subject: Hello [red]Ada[/red]" in result.output
    assert r"\x1b[31m[red]Ada[/red][/]" in result.output
    assert "\x1b" not in result.output


# What cannot be done as asked


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ((), "MAIL_URL: is not set"),
        (("--url", f"smtp://ada:{PASSWORD}@x.org:0"), "port"),
        (("--url", "null://", "--relay", "null://"), "--url: is for one server"),
        (("--relay", "null://", "--round-robin"), "--round-robin: needs two"),
        (("--relay", "null://", "--relay", "x"), "where: relay 2"),
        (("--url", "null://", "--rate", "often"), "rate: 'often' is none"),
        (("--url", "null://", "--from", "nobody"), "sender: "),
        (("--url", "null://", "--header", "x"), "--header: write"),
        (("--url", "null://", "--email-column", "mail"), "none is called 'mail'"),
        (("--url", "null://", "--subject", "{{"), "subject: TemplateSyntaxError"),
        (("--url", "null://", "--journal", "list.csv"), "is no journal of amail bulk"),
        (("--url", "null://", "--report-json", "no/r.json"), "the report cannot be written"),
    ],
)
def test_what_cannot_be_done_as_asked_is_said_and_ends_with_2(
    folder: Path, more: tuple[str, ...], complaint: str
) -> None:
    result = bulk(write_list(folder / "list.csv", 1), *more, MAIL_URL="")
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_text_that_is_not_utf_8_is_said(folder: Path) -> None:
    Path("text.txt").write_bytes(b"\xff")
    result = bulk(write_list(folder / "list.csv", 1), "--url", "null://")
    assert result.exit_code == 2
    assert "text.txt: is not UTF-8" in result.stderr


# Ctrl-C and SIGKILL


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_lets_those_under_way_finish_and_the_same_command_goes_on(
    folder: Path, number: signal.Signals, code: int
) -> None:
    recipients = write_list(folder / "list.csv", 60)
    with FaultServer.serve_in_thread(final={5: Hang(), 6: Hang()}) as server:
        more = ("--url", f"{server.url}?max_connections=2&pipelining=no")
        with started(recipients, *more) as process:
            wait_for(server, server.reached("final", 6))
            process.send_signal(number)
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith("stopping: those under way finish")
            server.release()
            rest = process.stdout.read()
            assert process.wait(30) == code
        assert "run the same command again" in rest
        assert 6 <= len(server.messages) < 20
        result = bulk(recipients, *more)
    assert result.exit_code == 0
    assert copies_in(server) == dict.fromkeys(addresses(range(60)), 1)


def test_a_second_ctrl_c_ends_it_at_once_and_lists_those_under_way_next_time(folder: Path) -> None:
    recipients = write_list(folder / "list.csv", 30)
    with FaultServer.serve_in_thread(final={1: Hang(), 2: Hang()}) as server:
        more = ("--url", f"{server.url}?max_connections=2&pipelining=no")
        with started(recipients, *more) as process:
            wait_for(server, server.reached("final", 2))
            assert process.stdout is not None
            process.send_signal(signal.SIGINT)
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert "ended at once" in process.stdout.read()
        server.release()
        result = bulk(recipients, *more)
        assert result.exit_code == 1
        for to in copies_in(server):
            assert copies_in(server)[to] == 1
        assert unknown_in(result.output) | copies_in(server).keys() == addresses(range(30))
        assert bulk(recipients, *more, "--resend-unknown").exit_code == 0


@pytest.mark.parametrize("after", [1, 40, 150])
def test_after_sigkill_each_has_one_copy_or_is_listed_as_unknown(folder: Path, after: int) -> None:
    recipients = write_list(folder / "list.csv", 300)
    with FaultServer.serve_in_thread() as server:
        more = ("--url", f"{server.url}?max_connections=3", "--report-json", "r.json")
        with started(recipients, *more) as process:
            wait_for(server, server.until(lambda: len(server.messages) >= after))
            process.kill()
            process.wait()
        assert len(server.messages) < 300
        result = bulk(recipients, *more)
        copies = copies_in(server)
        listed = unknown_in(result.output)
        assert set(copies.values()) == {1}
        assert copies.keys() | listed == addresses(range(300))
        assert len(listed) <= 5 * 3
        assert {each["to"] for each in json.loads(Path("r.json").read_text())["unknown"]} == listed
        assert result.exit_code == (1 if listed else 0)
        ids = ids_in(server)
        assert bulk(recipients, *more, "--resend-unknown").exit_code == 0
        again = ids_in(server)
    assert copies_in(server).keys() == addresses(range(300))
    assert ids <= again
    assert len(again) == 300, "a copy has the Message-ID of the one before"


def wait_for(server: FaultServer, waiting: t.Coroutine[t.Any, t.Any, None]) -> None:
    """Wait for something at a server that runs in its own thread."""
    asyncio.run_coroutine_threadsafe(waiting, server._loop).result(30)


def ids_in(server: FaultServer) -> set[bytes]:
    return {each.content.partition(b"Message-ID: ")[2].split()[0] for each in server.messages}


def unknown_in(output: str) -> set[str]:
    """Who is listed as unknown."""
    _, _, listed = output.partition("Unknown, ")
    return {line.split()[0] for line in listed.splitlines()[1:] if line.startswith("  reader")}
