"""The examples do what they say, each run against a real server."""

from __future__ import annotations

import email
import email.policy
import importlib.util
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests import oracle
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from flask import Flask

    from tests.servers.aiosmtpd_server import AiosmtpdServer

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server() as running:
        yield running


class Example(t.NamedTuple):
    """An example that is a Flask app."""

    app: Flask
    mail: t.Any


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> Example:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # where Flask looks for the app's folder
    spec.loader.exec_module(module)
    return Example(module.app, module.mail)


def close(example: Example) -> None:
    with example.app.app_context():
        example.mail.close()


def run(name: str, server: AiosmtpdServer) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        env={**os.environ, "MAIL_URL": server.url},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout


def test_script_sends_one_message(server: AiosmtpdServer) -> None:
    assert "accepted by 127.0.0.1" in run("script", server)
    assert [message.forward_paths for message in server.messages] == [("bob@example.org",)]


def test_gather_sends_each_of_200_once_over_5_sessions_at_a_time(server: AiosmtpdServer) -> None:
    assert "200 accepted" in run("gather", server)
    assert len({message.forward_paths for message in server.messages}) == 200
    assert len(server.messages) == 200


def test_international_mail_is_read_back_in_every_script(server: AiosmtpdServer) -> None:
    assert run("international", server).splitlines() == [
        f"{language} accepted" for language in ("zh", "ja", "ar", "en")
    ]
    assert all(message.content.isascii() for message in server.messages)
    readings = [oracle.read(message.content) for message in server.messages]
    subjects = ["新年快乐 🎉", "明けましておめでとう", "سنة سعيدة", "🥳 👩‍👩‍👧 🎊"]
    assert [reading.subject for reading in readings] == subjects
    assert {reading.mailboxes["From"][0][0] for reading in readings} == {"Zoë"}
    assert [reading.mailboxes["To"][0] for reading in readings] == [
        ("李雷", "li@example.org"),
        ("山田花子", "hana@example.org"),
        ("عمر", "omar@example.org"),
        ("👩‍🚀 Ada", "ada@xn--bcher-kva.example"),
    ]
    names = ["贺卡.txt", "年賀状.txt", "بطاقة.txt", "🎉🎊.txt"]
    assert [reading.attachments[0].filename for reading in readings] == names
    texts = ["祝你新年快乐\r\n", "今年もよろしく\r\n", "كل عام وأنتم بخير\r\n", "🎆🎇✨\r\n"]
    assert [reading.text_of("text/plain") for reading in readings] == texts
    for reading, text in zip(readings, texts, strict=True):
        assert text in (reading.text_of("text/html") or "")


def test_send_html_reads_the_environment_and_sends_text_and_html(
    server: AiosmtpdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_SERVER", server.host)
    monkeypatch.setenv("MAIL_PORT", str(server.port))
    monkeypatch.setenv("MAIL_USE_TLS", "false")
    monkeypatch.setenv("MAIL_DEFAULT_SENDER", "me@example.com")
    example = load("send_html", monkeypatch)
    answer = example.app.test_client().post("/welcome/he@example.org")
    close(example)
    assert answer.text.startswith("accepted: <")
    (stored,) = server.messages
    message = email.message_from_bytes(stored.content, policy=email.policy.default)
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/alternative",
        "text/plain",
        "text/html",
    ]


def test_send_in_background_answers_202_and_sends_afterwards(
    server: AiosmtpdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_URL", server.url)
    example = load("send_in_background", monkeypatch)
    answer = example.app.test_client().post("/order/he@example.org")
    assert answer.status_code == 202
    with example.app.app_context():
        assert example.mail.drain(10) == 0
    close(example)
    (stored,) = server.messages
    assert answer.text.removeprefix("it will be sent: ").encode() in stored.content


def test_send_attachment_sends_the_file_as_it_lies_there(
    server: AiosmtpdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_URL", server.url)
    example = load("send_attachment", monkeypatch)
    assert example.app.test_client().post("/picture/he@example.org").text == "sent"
    close(example)
    (stored,) = server.messages
    message = email.message_from_bytes(stored.content, policy=email.policy.default)
    (picture,) = message.iter_attachments()
    assert picture.get_filename() == "picture.png"
    assert picture.get_content() == (EXAMPLES / "picture.png").read_bytes()


def test_send_bulk_sends_all_over_one_session(
    server: AiosmtpdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_URL", server.url)
    example = load("send_bulk", monkeypatch)
    assert example.app.test_client().post("/news").text == "20 sent"
    close(example)
    assert len(server.messages) == 20
    assert {message.session for message in server.messages} == {1}


def test_bulk_run_goes_on_where_it_was(server: AiosmtpdServer) -> None:
    assert run("bulk_run", server).splitlines() == ["50 accepted", "51 accepted"]
    assert len({message.forward_paths for message in server.messages}) == 51
    assert len(server.messages) == 51


def test_progress_shows_what_came_of_200(server: AiosmtpdServer) -> None:
    said = run("progress", server)
    assert "200/200" in said
    assert said.endswith("{'accepted': 200}\n")
    assert len(server.messages) == 200


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text("utf-8")
    names = [path.stem for path in EXAMPLES.glob("*.py")]
    assert len(names) == 9
    assert [name for name in names if f'"{name}"' not in here] == []
