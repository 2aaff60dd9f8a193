"""Report: what came of a run, as numbers, JSON and one HTML page that needs nothing else.

Invariant: lists of people are read from the journal as they are written, however long they are.
What a server or a list said stands in a page as text.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import os
import typing as t
from dataclasses import asdict, dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from amail.bulk.chart import SHOWN, chart, duration
from amail.bulk.journal import JournalError

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from amail.bulk.journal import Entry, Journal, State
    from amail.bulk.run import Progress
    from amail.errors import Outcome

_MOST_ROWS = 200
_STATES: dict[Outcome, tuple[State, ...]] = {
    "accepted": ("accepted",),
    "rejected": ("rejected",),
    "not_sent": ("not_sent",),
    "unknown": ("unknown", "begin"),
}
_LISTED: tuple[Outcome, ...] = ("unknown", "rejected", "not_sent")
_ADVICE = {
    "unknown": "Their server may have taken the message or not. Sent again only where asked for.",
    "rejected": "A server said no. Sent again only where asked for.",
    "not_sent": "Certainly not taken. Sent when the same command is run again.",
}


@dataclass(frozen=True)
class Report:
    """What came of a run, since its first start. ``progress`` has the numbers.

    ``stopped`` says why it ended before the end of the list, None where it did not.
    """

    journal: Journal
    progress: Progress
    stopped: str | None

    @property
    def seconds(self) -> float:
        """How long it was under way, all starts together."""
        return self.journal.seconds

    @property
    def not_reached(self) -> int | None:
        """How many rows nothing was done about, now or before, as it was stopped.

        Duplicates among them are counted too. None where the list's length is not known.
        """
        at = self.progress
        if self.stopped is None:
            return 0
        if at.total is None:
            return None
        done = self.journal.counts.total() + self.journal.skipped.total()
        return max(0, at.total - done)

    @property
    def all_accepted(self) -> bool:
        """True where everybody in the list has the letter."""
        at = self.progress
        wrong = (at.rejected, at.not_sent, at.unknown, at.invalid, self.not_reached or 0)
        return self.stopped is None and not any(wrong)

    def entries(self, outcome: Outcome) -> Iterator[Entry]:
        """Read the journal's last line of each mailbox with this outcome."""
        return self.journal.entries(*_STATES[outcome])

    def skipped(self) -> Iterator[Entry]:
        """Read the journal's lines of the rows that were invalid or duplicates."""
        return itertools.chain(self.journal.skipped_entries(), self.journal.entries("invalid"))

    def reasons(self) -> Iterator[tuple[int, str, str]]:
        """Yield why messages were not accepted, for readers: how often, what, an example of it.

        The most frequent come first. Each try is counted, also of one that was accepted later.
        """
        names = {outcome: name for outcome, _, name in SHOWN}
        known = self.journal.tally.reasons
        for (outcome, kind), count in known.counts.most_common():
            yield count, f"{names[outcome]}: {kind}", known.examples[outcome, kind]

    def summary(self) -> dict[str, t.Any]:
        """Return all but the lists of people, JSON-safe."""
        at, tally = self.progress, self.journal.tally
        return {
            "run": self.journal.run,
            "journal": str(self.journal.path),
            "began_at": self.journal.began_at,
            "starts": len(self.journal.starts),
            "seconds": round(self.seconds, 3),
            "stopped": self.stopped,
            "not_reached": self.not_reached,
            **{name: value for name, value in asdict(at).items() if name in _COUNTED},
            "relays": {relay: dict(counts) for relay, counts in tally.relays.items()},
            "reasons": [
                {"outcome": kind[0], "reason": kind[1], "count": count, "example": example}
                for kind, count in tally.reasons.counts.most_common()
                for example in [tally.reasons.examples[kind]]
            ],
            "timeline": {
                "seconds_each": tally.timeline.width,
                "outcomes": [dict(bucket) for bucket in tally.timeline],
            },
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the summary and who is unknown, refused, not sent or was skipped.

        Raises JournalError for a file that cannot be written.
        """
        lists: dict[str, Iterable[Entry]] = {each: self.entries(each) for each in _LISTED}
        _write(path, _json(self.summary(), {**lists, "skipped": self.skipped()}))

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page, with a chart, that loads nothing from anywhere.

        Of each list it has the first 200. Raises JournalError for a file that cannot be written.
        """
        _write(path, [_page(self)])


_COUNTED = frozenset(
    {"total", "rows", "accepted", "rejected", "not_sent", "unknown", "invalid", "duplicates"}
)


def _write(path: str | os.PathLike[str], pieces: Iterable[str]) -> None:
    """Write a file that is seen complete or not at all, its owner's only: it names people."""
    place = Path(path)
    unfinished = place.with_name(f".{place.name}.part")
    try:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(pieces)
        unfinished.replace(place)
    except OSError as error:
        raise JournalError(f"{place}: the report cannot be written: {error.strerror}") from error


def _json(summary: dict[str, t.Any], lists: dict[str, Iterable[Entry]]) -> Iterator[str]:
    yield json.dumps(summary, indent=2).removesuffix("\n}")
    for name, entries in lists.items():
        yield f",\n  {json.dumps(name)}: ["
        for number, entry in enumerate(entries):
            yield f"{',' if number else ''}\n    {json.dumps(entry)}"
        yield "\n  ]"
    yield "\n}\n"


def _page(report: Report) -> str:
    at, journal = report.progress, report.journal
    template = Template(resources.files("amail.bulk").joinpath("page.html").read_text("utf-8"))
    width = journal.tally.timeline.width
    counts: dict[Outcome, int] = {outcome: getattr(at, outcome) for outcome, _, _ in SHOWN}
    return template.substitute(
        title=f"{counts['accepted']:,} accepted",
        badge="everybody has it" if report.all_accepted else _badge(report),
        badge_class="done" if report.all_accepted else "open",
        subtitle=_text(_subtitle(report)),
        notice=_notice(report),
        numbers="".join(_numbers(report, counts)),
        share="".join(_share(counts, report.not_reached or 0)),
        per_bar=f"a bar is {duration(width)}",
        chart=chart(journal.tally.timeline, journal.starts),
        legend="".join(f'<span><i class="{c}"></i>{name}</span>' for _, c, name in SHOWN),
        tables="\n".join(_tables(report)),
        run=escape(journal.run),
        journal=_text(str(journal.path)),
    )


def _badge(report: Report) -> str:
    return "finished" if report.stopped is None else "stopped"


def _subtitle(report: Report) -> str:
    began = dt.datetime.fromtimestamp(report.journal.began_at or 0, dt.UTC)
    starts = len(report.journal.starts)
    times = "" if starts == 1 else f" in {starts} starts"
    return f"Begun {began:%Y-%m-%d %H:%M} UTC, {duration(report.seconds)} under way{times}"


def _notice(report: Report) -> str:
    if report.stopped is None:
        return ""
    text = f"It stopped: {report.stopped}. The same command goes on from there."
    return f'<section class="card notice">{_text(text)}</section>'


def _numbers(report: Report, counts: dict[Outcome, int]) -> Iterator[str]:
    for outcome, colour, name in SHOWN:
        yield _number(colour, name, counts[outcome])
    at = report.progress
    if at.invalid or at.duplicates:
        yield _number("o", "invalid rows", at.invalid)
        yield _number("o", "duplicates", at.duplicates)
    if report.not_reached:
        yield _number("o", "not reached", report.not_reached)


def _number(colour: str, name: str, count: int) -> str:
    return f'<div class="number"><i class="{colour}"></i>{name}<b>{count:,}</b></div>'


def _share(counts: dict[Outcome, int], not_reached: int) -> Iterator[str]:
    whole = max(1, sum(counts.values()) + not_reached)
    for outcome, colour, _ in SHOWN:
        if counts[outcome]:
            yield f'<i class="{colour}" style="width:{counts[outcome] / whole:.4%}"></i>'


def _tables(report: Report) -> Iterator[str]:
    tally = report.journal.tally
    if tally.reasons.counts:
        rows = ((f"{count:,}", reason, example) for count, reason, example in report.reasons())
        yield _table("Why not", "", ("How often", "What", "For example"), rows)
    rows_of_relays = (
        (f"{by.total():,}", relay or "no relay", *(f"{by[outcome]:,}" for outcome, _, _ in SHOWN))
        for relay, by in sorted(tally.relays.items())
    )
    names = [name.capitalize() for _, _, name in SHOWN]
    yield _table("Relays", "", ("Messages", "Relay", *names), rows_of_relays)
    for outcome in _LISTED:
        if getattr(report.progress, outcome):
            heading = {each: name for each, _, name in SHOWN}[outcome].capitalize()
            rows = ((e["to"], _why(e), e["id"]) for e in report.entries(outcome))
            yield _table(heading, _ADVICE[outcome], ("Who", "Why", "Message-ID"), rows)
    if report.progress.invalid or report.progress.duplicates:
        rows = (_skipped(entry) for entry in report.skipped())
        advice = "Correct the list and run the same command again: only these are sent then."
        yield _table("Rows that were skipped", advice, ("Line", "Who", "Why"), rows)


def _why(entry: Entry) -> str:
    said = str(entry.get("reply") or entry.get("error") or "")
    return said or "the run ended before the server's answer was written down"


def _skipped(entry: Entry) -> tuple[str, str, str]:
    line = str(entry.get("line", ""))
    return line, entry.get("to") or "", str(entry.get("text") or entry.get("error"))


def _table(heading: str, advice: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    left = iter(rows)
    body = [
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>"
        for row in itertools.islice(left, _MOST_ROWS)
    ]
    more = sum(1 for _ in left)
    rest = f'<p class="soft">and {more:,} more, in the JSON report</p>' if more else ""
    said = f'<p class="soft">{escape(advice)}</p>' if advice else ""
    return (
        f'<section class="card"><h2>{escape(heading)}</h2>{said}<table><thead><tr>{head}</tr>'
        f"</thead><tbody>\n{chr(10).join(body)}\n</tbody></table>{rest}</section>"
    )


def _text(text: str) -> str:
    """Return a text as it may stand in a page: no markup, and no control characters."""
    return escape("".join(each if each.isprintable() else ascii(each)[1:-1] for each in text))
