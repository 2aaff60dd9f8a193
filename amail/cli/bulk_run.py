"""What ``amail bulk`` does: a letter to everybody in a list, and what came of it.

Invariant: nothing that is printed holds a secret; what a list or a server says is shown as text.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import typing as t
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from amail import ConfigError, Mailer, MailError, RoundRobin
from amail.bulk import Letter, Recipients, rehearse, run
from amail.bulk.chart import SHOWN, duration

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail import Message
    from amail.bulk import Progress as Numbers
    from amail.bulk import Rehearsal, Report
    from amail.cli.bulk import Options

_COLOURS = {"accepted": "green", "rejected": "red", "unknown": "yellow", "not_sent": "default"}
_MOST_LISTED = 20
_SAMPLE_LINES = 12
_EXIT_NOT_ALL = 1
_EXIT_CANNOT = 2
_EXIT_SIGNAL = 128


def bulk_run(options: Options) -> int:
    """Do what the command says, print what came of it, and return the exit code."""
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        letter = _letter(options)
        recipients = Recipients(
            options["recipients"],
            column=options["email_column"],
            name_column=options["name_column"],
            delimiter=options["delimiter"],
        )
        if options["dry_run"]:
            return _rehearse(letter, recipients, out, err)
        mailer = _mailer(options)
        report, by_signal = asyncio.run(_send(mailer, letter, recipients, options, err))
        _print_report(report, out)
        _write_reports(report, options, out)
    except MailError as error:
        err.print(Text(f"amail bulk: {error}"), style="red")
        return _EXIT_CANNOT
    except (KeyboardInterrupt, asyncio.CancelledError):
        lost = "" if options["dry_run"] else "; those that were under way are unknown"
        err.print(f"amail bulk: ended at once{lost}", style="red")
        return _EXIT_SIGNAL + signal.SIGINT
    if by_signal is not None:
        err.print("interrupted: run the same command again, and it goes on from here")
        return _EXIT_SIGNAL + by_signal
    return 0 if report.all_accepted else _EXIT_NOT_ALL


def _letter(options: Options) -> Letter:
    files = [path for path in (options["text"], options["html"]) if path is not None]
    headers = dict(_header(each) for each in options["header"])
    return Letter(
        options["subject"],
        text=_text_of(options["text"]),
        html=_text_of(options["html"]),
        sender=options["sender"],
        reply_to=options["reply_to"],
        attachments=options["attach"],
        unsubscribe=options["unsubscribe"],
        headers=headers,
        inline_css=options["inline_css"],
        folders=[path.parent for path in files],
    )


def _text_of(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ConfigError("--header: write 'Name: value'")
    return name, value.strip()


def _mailer(options: Options) -> Mailer:
    """Make the mailer, over one server or several."""
    if options["url"] and options["relay"]:
        raise ConfigError("--url: is for one server; name it as a --relay beside the others")
    if options["round_robin"] and len(options["relay"]) < 2:
        raise ConfigError("--round-robin: needs two --relay or more")
    smtp: dict[str, t.Any] = {}
    if options["max_connections"] is not None:
        smtp["max_connections"] = options["max_connections"]
    if options["round_robin"]:
        return Mailer(RoundRobin(options["relay"], **smtp))
    if options["relay"]:
        return Mailer(list(options["relay"]), **smtp)
    return Mailer(options["url"], **smtp) if options["url"] else Mailer.from_env(**smtp)


# Sending


async def _send(
    mailer: Mailer, letter: Letter, recipients: Recipients, options: Options, err: Console
) -> tuple[Report, int | None]:
    """Run it behind a bar. Returns the report, and the signal that stopped it."""
    journal = options["journal"] or Path(f"{options['recipients']}.journal")
    with _stopped_by_signals(err) as stopping, _Bar(err) as bar:
        async with mailer:
            report = await run(
                mailer,
                letter,
                recipients,
                journal=journal,
                rate=options["rate"] or None,
                resend_unknown=options["resend_unknown"],
                retry_rejected=options["retry_rejected"],
                allow_changed=options["allow_changed"],
                give_up_after=options["give_up_after"],
                on_progress=bar.show,
                stop=stopping.event,
            )
    return report, stopping.number


class _Stopping:
    """What the first signal sets; the second one cancels the task."""

    def __init__(self, err: Console) -> None:
        self.event = asyncio.Event()
        self.number: int | None = None
        self._err = err
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()

    def __call__(self, number: int, frame: object) -> None:
        """Handle a signal, between any two lines of the main thread."""
        self._loop.call_soon_threadsafe(self._heard, number)

    def _heard(self, number: int) -> None:
        if self.number is None:
            self.number = number
            self.event.set()
            self._err.print("stopping: those under way finish; Ctrl-C once more ends it at once")
        elif self._task is not None:
            self._task.cancel()


@contextlib.contextmanager
def _stopped_by_signals(err: Console) -> Iterator[_Stopping]:
    stopping = _Stopping(err)
    before = {number: signal.signal(number, stopping) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar:
    """A bar with rate, outcomes and time left. Where there is no terminal it is not drawn."""

    def __init__(self, console: Console) -> None:
        counts = "".join(
            f"  [{_COLOURS[outcome]}]{{task.fields[{outcome}]:,}} {name}[/]"
            for outcome, _, name in SHOWN[:3]
        )
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,}/{task.fields[of]}  {task.fields[pace]:.1f}/s" + counts),
            TextColumn("{task.fields[left]}"),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(
            "", total=None, of="?", pace=0.0, left="", accepted=0, rejected=0, unknown=0
        )

    def __enter__(self) -> t.Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def show(self, at: Numbers) -> None:
        """Draw where the run is."""
        left = "" if at.seconds_left is None else f"{duration(at.seconds_left)} left"
        self._progress.update(
            self._task,
            total=at.total,
            completed=at.rows - at.under_way,
            of="?" if at.total is None else f"{at.total:,}",
            pace=at.per_second,
            left=left,
            accepted=at.accepted,
            rejected=at.rejected,
            unknown=at.unknown,
        )


# What is printed behind it


def _print_report(report: Report, out: Console) -> None:
    at = report.progress
    table = Table("", "", title=f"{duration(report.seconds)} under way", show_header=False)
    table.columns[1].justify = "right"
    for outcome, _, name in SHOWN:
        table.add_row(name, f"{getattr(at, outcome):,}", style=_COLOURS[outcome])
    for name, count in (
        ("invalid rows", at.invalid),
        ("duplicates", at.duplicates),
        ("not reached", report.not_reached or 0),
    ):
        if count:
            table.add_row(name, f"{count:,}")
    out.print(table)
    _print_reasons(report, out)
    _print_unknown(report, out)
    _print_skipped(report, out)
    if report.stopped is not None:
        out.print(Text(f"It stopped: {report.stopped}"), style="yellow")


def _print_reasons(report: Report, out: Console) -> None:
    table = Table("how often", "why not", "for example", box=None)
    for count, reason, example in itertools.islice(report.reasons(), _MOST_LISTED):
        table.add_row(f"{count:,}", Text(reason), Text(_visible(example)))
    if table.row_count:
        out.print(table)


def _print_unknown(report: Report, out: Console) -> None:
    if not report.progress.unknown:
        return
    out.print("Unknown, they may have it or not (--resend-unknown sends it again):", style="yellow")
    for entry in report.entries("unknown"):
        out.print(Text(f"  {entry['to']}  {entry['id']}"), soft_wrap=True)


def _print_skipped(report: Report, out: Console) -> None:
    if not report.progress.invalid + report.progress.duplicates:
        return
    out.print("Rows that were skipped:", style="yellow")
    for number, entry in enumerate(report.skipped()):
        if number == _MOST_LISTED:
            out.print("  ... the others are in the JSON report")
            return
        where = f"line {entry['line']}" if "line" in entry else str(entry["to"])
        out.print(
            Text(f"  {where}: {_visible(str(entry.get('text') or entry.get('error')))}"),
            soft_wrap=True,
        )


def _write_reports(report: Report, options: Options, out: Console) -> None:
    for path, write in (
        (options["report_json"], report.write_json),
        (options["report_html"], report.write_html),
    ):
        if path is not None:
            write(path)
            out.print(Text(f"report: {path}"))


# Without sending


def _rehearse(letter: Letter, recipients: Recipients, out: Console, err: Console) -> int:
    with err.status("rendering") if err.is_terminal else contextlib.nullcontext():
        done = rehearse(letter, recipients)
    for number, message in enumerate(done.samples, 1):
        out.print(_panel(number, message))
    for row in done.bad[:_MOST_LISTED]:
        out.print(Text(f"line {row.line}: {_visible(row.error)}"), style="red", soft_wrap=True)
    if done.invalid > _MOST_LISTED:
        out.print(f"... and {done.invalid - _MOST_LISTED:,} more")
    out.print(_said_of(done))
    return _EXIT_NOT_ALL if done.invalid else 0


def _said_of(done: Rehearsal) -> str:
    duplicates = f", {done.duplicates:,} duplicates" if done.duplicates else ""
    invalid = f", {done.invalid:,} invalid" if done.invalid else ""
    return f"{done.valid:,} of {done.rows:,} would be sent{duplicates}{invalid}; nothing was sent"


def _panel(number: int, message: Message) -> Panel:
    to = ", ".join(map(str, message.recipients))
    body = message.body if message.body is not None else message.html or ""
    lines = body.splitlines()
    if len(lines) > _SAMPLE_LINES:
        lines = [*lines[:_SAMPLE_LINES], "..."]
    kinds = ["text"] * (message.body is not None) + ["html"] * (message.html is not None)
    files = [_visible(str(each.filename)) for each in message.attachments]
    head = f"To: {_visible(to)}\nSubject: {_visible(message.subject)}"
    said = Text("\n".join(map(_visible, lines)), style="dim")
    return Panel(
        Group(Text(head), Text(), said),
        title=f"sample {number}",
        subtitle=Text(", ".join([*kinds, *files])),
        subtitle_align="right",
    )


def _visible(text: str) -> str:
    """Return a text that a terminal shows and does not obey."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
