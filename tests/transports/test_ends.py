"""The ends that send nothing, and the URLs that name an end."""

from __future__ import annotations

import asyncio
import datetime as dt
import io
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
import typing as t
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from hypothesis import given

from amail import (
    ConfigError,
    Content,
    InvalidAttachment,
    Mailer,
    MemoryTransport,
    Message,
    NotSent,
    NullTransport,
    SendTimeout,
    SMTPTransport,
)
from amail.transports import resolve
from amail.transports.console import ConsoleTransport
from amail.transports.file import FileTransport, safe_name
from tests.musts import PASSWORD, assert_keeps_secrets
from tests.strategies import EXAMPLES, nasty_text
from tests.transports.ends import letter

if t.TYPE_CHECKING:
    from collections.abc import Iterator


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.glob(f"*{suffix}"))


# file:///folder


async def test_a_message_is_written_as_it_would_be_sent_beside_its_envelope(tmp_path: Path) -> None:
    envelope, content = letter(
        "bob@example.org", bcc=["eve@example.net"], mail_options=["RET=HDRS"]
    )
    receipt = await FileTransport(tmp_path).send(envelope, content)
    (written,), (described,) = files(tmp_path, ".eml"), files(tmp_path, ".json")
    assert written.read_bytes() == bytes(content)
    assert json.loads(described.read_text("utf-8")) == {
        "message_id": content.message_id,
        "reverse_path": "ada@example.com",
        "forward_paths": ["bob@example.org", "eve@example.net"],
        "mail_options": ["RET=HDRS"],
        "rcpt_options": [],
        "all_recipients": False,
        "needs_utf8": False,
        "needs_8bit": False,
    }
    assert written.stem == described.stem == receipt.queue_id
    assert receipt.accepted == envelope.forward_paths
    assert receipt.relay == str(tmp_path)
    assert b"eve@example.net" not in written.read_bytes()


async def test_the_folder_is_made_and_everything_in_it_is_the_owners_only(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "out"
    await FileTransport(folder).send(*letter())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}


async def test_no_message_takes_the_place_of_another_and_names_sort_by_time(tmp_path: Path) -> None:
    transport = FileTransport(tmp_path)
    same = letter()
    receipts = [await transport.send(*same) for _ in range(20)]
    names = [receipt.queue_id for receipt in receipts]
    assert [each.stem for each in files(tmp_path, ".eml")] == names == sorted(set(map(str, names)))
    await asyncio.gather(*(transport.send(*letter()) for _ in range(50)))
    assert len(files(tmp_path, ".eml")) == len(files(tmp_path, ".json")) == 70


@given(message_id=nasty_text)
@EXAMPLES
def test_a_name_holds_nothing_that_leads_out_of_the_folder(message_id: str) -> None:
    name = safe_name(f"<{message_id}>")
    assert re.fullmatch(r"[A-Za-z0-9@._+-]{0,100}", name)


async def test_a_content_that_fails_leaves_no_file_behind(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * 200_000)
    message = Message("Hi", ["bob@example.org"], sender="ada@example.com", body="Hi")
    message.attach_file(source)
    folder = tmp_path / "out"
    async with Mailer(f"file://{folder}") as mailer:
        sending = mailer.send(message)
        source.write_bytes(b"x" * 100)
        with pytest.raises(InvalidAttachment):
            await sending
    assert list(folder.iterdir()) == []


class Source:
    """A part that is announced with ten octets, and does something else."""

    def __init__(self, *, failure: Exception | None = None) -> None:
        self._failure = failure

    def __len__(self) -> int:
        return 10

    def chunks(self) -> Iterator[bytes]:
        yield b"abc"
        if self._failure is not None:
            raise self._failure


@pytest.mark.parametrize("failure", [None, ValueError("odd"), OSError(5, "I/O error")])
async def test_f62b_a_source_that_fails_or_ends_early_is_an_invalid_attachment(
    tmp_path: Path, failure: Exception | None
) -> None:
    content = Content([b"A: b\r\n\r\n", Source(failure=failure)], message_id="<x@y>")
    envelope, _ = letter("bob@example.org")
    with pytest.raises(InvalidAttachment, match="as it was announced"):
        await FileTransport(tmp_path).send(envelope, content)
    assert list(tmp_path.iterdir()) == []


async def test_the_same_message_twice_in_one_moment_is_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Still(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> t.Self:
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(dt, "datetime", Still)
    end, both = FileTransport(tmp_path), letter("bob@example.org")
    first, second = await end.send(*both), await end.send(*both)
    assert first.queue_id != second.queue_id
    assert len(list(tmp_path.glob("*.eml"))) == len(list(tmp_path.glob("*.json"))) == 2


async def test_a_folder_that_cannot_be_written_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NotSent, match="cannot be written") as caught:
        await FileTransport(tmp_path / "file").send(*letter())
    assert (caught.value.outcome, caught.value.retryable) == ("not_sent", True)
    assert caught.value.recipients == ("bob@example.org",)


async def test_a_deadline_that_has_passed_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SendTimeout):
        await FileTransport(tmp_path).send(*letter(), deadline=time.monotonic() - 1)
    assert list(tmp_path.iterdir()) == []


async def test_the_loop_goes_on_while_a_message_is_written(tmp_path: Path) -> None:
    reading, go_on = threading.Event(), threading.Event()

    class Slow:
        def __len__(self) -> int:
            return 1

        def chunks(self) -> Iterator[bytes]:
            reading.set()
            assert go_on.wait(10)
            yield b"x"

    content = Content([b"Subject: Hi\r\n\r\n", Slow()], message_id="<x@example.com>")
    sending = asyncio.ensure_future(FileTransport(tmp_path).send(letter()[0], content))
    while not reading.is_set():
        await asyncio.sleep(0)
    assert files(tmp_path, ".eml") == []  # nobody sees half of it
    go_on.set()
    await sending
    assert files(tmp_path, ".eml")[0].read_bytes() == b"Subject: Hi\r\n\r\nx\r\n"


# file:///folder, and a caller that leaves


class Held:
    """A part whose octets come when they are let through."""

    def __init__(self) -> None:
        self.reading, self.go_on = threading.Event(), threading.Event()
        self.pieces = 0

    def __len__(self) -> int:
        return 3

    def chunks(self) -> Iterator[bytes]:
        self.reading.set()
        for _ in range(3):
            assert self.go_on.wait(10)
            self.pieces += 1
            yield b"x"


async def until(happened: threading.Event) -> None:
    while not happened.is_set():
        await asyncio.sleep(0)


async def cancelled(sending: asyncio.Task[t.Any]) -> list[str]:
    """Cancel a send, and return the notes on what it raises."""
    sending.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await sending
    return getattr(caught.value, "__notes__", [])


async def finished_writers() -> None:
    """Wait for the threads that write."""
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_c9_a_send_that_is_cancelled_while_it_writes_leaves_no_file(tmp_path: Path) -> None:
    part = Held()
    content = Content([b"Subject: Hi\r\n\r\n", part], message_id="<x@example.com>")
    sending = asyncio.ensure_future(FileTransport(tmp_path).send(letter()[0], content))
    await until(part.reading)
    assert await cancelled(sending) == ["<x@example.com>: not sent"]
    part.go_on.set()
    await finished_writers()
    assert list(tmp_path.iterdir()) == []
    assert part.pieces == 1  # no more than what it was just waiting for


async def test_c9_a_send_that_is_cancelled_before_the_last_moment_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, go_on = threading.Event(), threading.Event()

    def fsync(descriptor: int) -> None:
        if list(tmp_path.glob(".*.eml.part")):  # all of it is written
            syncing.set()
            assert go_on.wait(10)

    monkeypatch.setattr(os, "fsync", fsync)
    envelope, content = letter()
    sending = asyncio.ensure_future(FileTransport(tmp_path).send(envelope, content))
    await until(syncing)
    assert await cancelled(sending) == [f"{content.message_id}: not sent"]
    go_on.set()
    await finished_writers()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_there", [False, True])
async def test_c10_a_send_that_is_cancelled_too_late_says_that_the_file_is_or_may_be_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_there: bool,
) -> None:
    held, go_on = threading.Event(), threading.Event()
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if target.suffix == ".eml" and not is_there:
            held.set()
            assert go_on.wait(10)
        return real(path, target)

    def sync(folder: str | Path, flags: int, *args: int) -> int:
        if folder == tmp_path and is_there:
            held.set()
            assert go_on.wait(10)
        return opened(folder, flags, *args)

    opened = os.open
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(os, "open", sync)
    envelope, content = letter()
    sending = asyncio.ensure_future(FileTransport(tmp_path).send(envelope, content))
    await until(held)
    (note,) = await cancelled(sending)
    go_on.set()
    await finished_writers()
    (written,) = files(tmp_path, ".eml")
    assert len(files(tmp_path, ".json")) == 1
    if is_there:
        assert note == f"{content.message_id}: the message was written, as {written.name}"
    else:
        assert note.startswith(f"{content.message_id}: delivery unknown: ")
        assert note in caplog.text


# console://


async def test_the_console_shows_envelope_and_content() -> None:
    stream = io.StringIO()
    receipt = await ConsoleTransport(stream).send(*letter(bcc=["eve@example.net"]))
    shown = stream.getvalue()
    assert (
        "MAIL FROM:<ada@example.com>\nRCPT TO:<bob@example.org>\nRCPT TO:<eve@example.net>\n"
        in shown
    )
    assert "\nSubject: Hello\n" in shown
    assert "\n\nHi\n---" in shown
    assert receipt.relay == "console"


async def test_no_content_has_a_say_in_the_terminal() -> None:
    stream = io.StringIO()
    transport = ConsoleTransport(stream)
    octets = (
        b"From: a@b.example\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\n\r\n\x1b[31m\x07\x9b \r\n"
    )
    async with Mailer(transport) as mailer:
        await mailer.send_raw(octets, sender="a@b.example", recipients="c@d.example")
    assert "\\x1b[31m\\x07\\x9b" in stream.getvalue()
    assert all(line.isprintable() for line in stream.getvalue().split("\n"))


async def test_what_an_encoding_lacks_is_escaped_and_a_large_content_is_cut() -> None:
    octets = io.BytesIO()
    stream = io.TextIOWrapper(octets, encoding="ascii", write_through=True)
    envelope, content = letter(body="naïve\n" * 100_000, charset="utf-8")
    await ConsoleTransport(stream).send(envelope, content)
    shown = octets.getvalue().decode("ascii")
    assert f"... and {len(content) - 256 * 1024} octets more" in shown
    assert len(shown) < 300_000


async def test_a_console_that_is_gone_is_not_sent() -> None:
    stream = io.StringIO()
    stream.close()
    with pytest.raises(NotSent, match="console"):
        await ConsoleTransport(stream).send(*letter())


async def test_it_is_standard_output_at_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    async with Mailer("console://", default_sender="ada@example.com") as mailer:
        await mailer.send(Message("To be seen", ["bob@example.org"], body="Hi"))
    assert "Subject: To be seen" in capsys.readouterr().out


# URLs


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("smtp://a.example", SMTPTransport),
        ("SMTPS://a.example", SMTPTransport),
        ("memory://", MemoryTransport),
        ("Null://", NullTransport),
        ("console://", ConsoleTransport),
        ("file:///var/mail", FileTransport),
    ],
)
def test_a_url_names_an_end_by_its_scheme(url: str, kind: type) -> None:
    assert type(Mailer(url).transport) is kind


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///var/mail/out", "/var/mail/out"),
        ("file://localhost/var/mail", "/var/mail"),
        ("file:///var/a%20b%23c", "/var/a b#c"),
    ],
)
def test_a_file_url_is_a_folder(url: str, folder: str) -> None:
    transport = Mailer(url).transport
    assert isinstance(transport, FileTransport)
    assert str(transport.folder) == folder


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("file://folder/x", "file:///var/mail/out"),
        ("file://", "absolute path"),
        ("file:///", "absolute path"),
        ("file:///x?y=z", "percent-encode"),
        ("console://x", "nothing stands behind console://"),
        ("memory://x", "nothing stands behind memory://"),
        ("carrier-pigeon://x", "there is nothing for that scheme; URLs begin with one of smtp, "),
        (
            "ftp://x",
            "there is nothing for 'ftp'; URLs begin with one of smtp, smtps, memory, null, ",
        ),
        ("a.example", "is no URL"),
    ],
)
def test_a_url_that_names_none_is_refused_with_what_can_be_written(url: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        Mailer(url)


def test_a_url_without_a_scheme_shows_no_password() -> None:
    for url in (f"ada:{PASSWORD}://x", f"{PASSWORD}://x", f"ftp://ada:{PASSWORD}@x"):
        with pytest.raises(ConfigError) as caught:
            Mailer(url)
        assert_keeps_secrets(caught.value)


# Schemes of other packages

made_of: list[str] = []


def make(url: str) -> MemoryTransport:
    """What another package would have."""
    made_of.append(url)
    return MemoryTransport(relay="pigeon")


def make_nothing(url: str) -> None:
    """Return no Transport."""


def refuse(url: str) -> MemoryTransport:
    """Be in order, and have something against the URL."""
    raise ConfigError("pigeon: how many?")


def fail(url: str) -> MemoryTransport:
    """Have a mistake."""
    raise KeyError(url)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have other packages installed."""
    here = "tests.transports.test_ends"
    values = {
        "pigeon": f"{here}:make",
        "nothing": f"{here}:make_nothing",
        "refusing": f"{here}:refuse",
        "failing": f"{here}:fail",
        "missing": "there.is.no.such.module:make",
        "smtp": "there.is.no.such.module:make",
    }
    added = [EntryPoint(name, value, resolve.GROUP) for name, value in values.items()]

    def entry_points(*, group: str) -> EntryPoints:
        assert group == "amail.transports"
        return EntryPoints(added)

    monkeypatch.setattr(resolve, "entry_points", entry_points)


@pytest.mark.usefixtures("packages")
async def test_another_package_adds_a_scheme() -> None:
    async with Mailer("Pigeon://loft?count=3", default_sender="ada@example.com") as mailer:
        receipt = await mailer.send(Message("Coo", ["bob@example.org"], body="Coo"))
    assert receipt.relay == "pigeon"
    assert made_of == ["Pigeon://loft?count=3"]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("nothing://", "must return a Transport, not NoneType"),
        ("refusing://", "pigeon: how many?"),
        ("failing://", "'failing' of amail.transports raised KeyError"),
        ("missing://", "'missing' of amail.transports raised ModuleNotFoundError"),
        ("other://", "null, console, file, failing, missing, nothing, pigeon, refusing"),
    ],
)
def test_a_scheme_of_another_package_that_does_not_work_is_a_config_error(
    url: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        Mailer(url)


@pytest.mark.usefixtures("packages")
def test_no_package_takes_a_scheme_of_ours() -> None:
    assert type(Mailer("smtp://a.example").transport) is SMTPTransport


def test_other_packages_are_not_looked_for_until_a_url_needs_one() -> None:
    code = (
        "import importlib.metadata as m, amail\n"
        "def entry_points(**kwargs): raise AssertionError\n"
        "m.entry_points = amail.transports.resolve.entry_points = entry_points\n"
        "for url in ('smtp://a', 'memory://', 'console://', 'file:///x'): amail.Mailer(url)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
