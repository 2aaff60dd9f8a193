"""Which goals hold, by what the other commands have written?

    python -m benchmarks.compare [FOLDER]

Reads docs/benchmarks/*.json, or those of another folder. It measures nothing and fails nothing. The
table of goals in docs/performance.md is renewed, unless another folder is read.
"""

from __future__ import annotations

import argparse
import typing as t
from dataclasses import dataclass
from pathlib import Path

from benchmarks import compose, feel, flask_cost, latency, memory, peers, throughput
from benchmarks.report import FOLDER, number, read, renew_pages

if t.TYPE_CHECKING:
    from benchmarks.report import Result

    Results = dict[str, Result]


@dataclass(frozen=True)
class Figure:
    """A median: of which benchmark, in which table, whose."""

    benchmark: str
    table: str
    who: str

    def of(self, results: Results) -> float | None:
        """Return it; None where it was not measured."""
        result = results.get(self.benchmark)
        tables = () if result is None else result.tables
        found = (table.of(self.who) for table in tables if table.question == self.table)
        return next(found, None)


@dataclass(frozen=True)
class Goal:
    """A figure that has to be at least ``must`` and should be ``aim``; at most, if ``at_most``.

    With ``over`` it is the ratio of the two.
    """

    name: str
    figure: Figure
    must: float
    aim: float
    over: Figure | None = None
    at_most: bool = False
    unit: str = "x"

    def value(self, results: Results) -> float | None:
        figure = self.figure.of(results)
        if self.over is None:
            return None if figure is None else figure
        over = self.over.of(results)
        return figure / over if figure is not None and over else None

    def verdict(self, value: float | None) -> str:
        """Say in words whether it holds."""
        if value is None:
            return "not measured"
        if self._reached(value, self.aim):
            return "holds, and the aim"
        return "holds" if self._reached(value, self.must) else "DOES NOT HOLD"

    def _reached(self, value: float, bound: float) -> bool:
        return value <= bound if self.at_most else value >= bound


def _feel(table: str, who: str) -> Figure:
    return Figure("feel", table, who)


def _at_most(name: str, figure: Figure, must: float, aim: float, unit: str) -> Goal:
    return Goal(name, figure, must, aim, at_most=True, unit=unit)


def _rate(who: str, sessions: int = 10) -> Figure:
    return Figure("throughput", throughput.scenario("small", sessions), who)


def _trips(who: str, recipients: int = 1) -> Figure:
    return Figure("latency", latency.scenario(recipients, 40), who)


def _composed(scenario: str, who: str) -> Figure:
    return Figure("compose", scenario, who)


def _request(secure: bool, who: str) -> Figure:
    question = flask_cost.SECURE if secure else flask_cost.PLAIN
    return Figure("flask_cost", f"{question}: {flask_cost.WALL}", who)


FELT = (
    Goal(
        "processor time a message over TLS, against aiosmtplib given bytes",
        _feel(feel.PROCESSOR, peers.AIOSMTPLIB_BYTES.name),
        2.5,
        5,
        over=_feel(feel.PROCESSOR, peers.AMAIL_GATHER_DATA.name),
    ),
    Goal(
        "the same where the server has CHUNKING",
        _feel(feel.PROCESSOR, peers.AIOSMTPLIB_BYTES.name),
        2.5,
        5,
        over=_feel(feel.PROCESSOR, peers.AMAIL_GATHER.name),
    ),
    _at_most(
        "one warm send, 40 ms, TLS, no CHUNKING",
        _feel(feel.WARM, peers.AMAIL_SEND_DATA.name),
        2.1,
        2.1,
        " round trips",
    ),
    _at_most(
        "first message of a process, 465 with AUTH, no CHUNKING",
        _feel(feel.FIRST, peers.AMAIL_SEND_DATA.name),
        7,
        7,
        " round trips",
    ),
    _at_most(
        "50 callers at once, p99 against p50",
        _feel(feel.CALLERS, feel.AMAIL_CALLERS.name),
        3,
        3,
        " times",
    ),
    _at_most(
        "longest stall while 25 MB go out, from a path",
        _feel(feel.STALL, feel.AMAIL_STALL_PATH.name),
        20,
        5,
        " ms",
    ),
    _at_most(
        "longest stall while 25 MB go out, bytes",
        _feel(feel.STALL, feel.AMAIL_STALL_BYTES.name),
        20,
        5,
        " ms",
    ),
)

RATES = (
    Goal(
        "gather, against Flask-Mail send",
        _rate(peers.AMAIL_GATHER.name),
        15,
        30,
        over=_rate(peers.FLASK_MAIL_SEND.name, 1),
    ),
    Goal(
        "gather, against Flask-Mail connect",
        _rate(peers.AMAIL_GATHER.name),
        12,
        25,
        over=_rate(peers.FLASK_MAIL_CONNECT.name, 1),
    ),
    Goal(
        "gather, against a pool of aiosmtplib with EmailMessage",
        _rate(peers.AMAIL_GATHER.name),
        15,
        33,
        over=_rate(peers.AIOSMTPLIB_POOL.name),
    ),
    Goal(
        "gather, against Nodemailer's pool",
        _rate(peers.AMAIL_GATHER.name),
        6,
        13,
        over=_rate(peers.NODEMAILER),
    ),
    Goal(
        "gather, against smtp-source -d",
        _rate(peers.AMAIL_GATHER.name),
        0.8,
        1.4,
        over=_rate(peers.SMTP_SOURCE.name),
    ),
    Goal(
        "send_many with CHUNKING, against the limit",
        _rate(peers.AMAIL_MANY_CHUNKING.name),
        0.3,
        1.0,
        over=_rate(peers.LIMIT.name),
    ),
    Goal(
        "send_many with CHUNKING, depth 16, against the limit",
        _rate(peers.AMAIL_MANY_DEEP.name),
        0.3,
        1.0,
        over=_rate(peers.LIMIT.name),
    ),
)

ROUND_TRIPS = (
    Goal(
        "40 ms, one connection, send_many with DATA, against aiosmtplib",
        _trips(peers.AIOSMTPLIB_POOL.name),
        3.5,
        4,
        over=_trips(peers.AMAIL_MANY.name),
    ),
    Goal(
        "40 ms, one connection, send_many with CHUNKING and depth 16, against aiosmtplib",
        _trips(peers.AIOSMTPLIB_POOL.name),
        3.5,
        60,
        over=_trips(peers.AMAIL_MANY_DEEP.name),
    ),
    Goal(
        "20 recipients, 40 ms, send, against aiosmtplib",
        _trips(peers.AIOSMTPLIB_POOL.name, 20),
        10,
        23,
        over=_trips(peers.AMAIL_SEND.name, 20),
    ),
    Goal(
        "20 recipients, 40 ms, send_many, against aiosmtplib",
        _trips(peers.AIOSMTPLIB_POOL.name, 20),
        10,
        23,
        over=_trips(peers.AMAIL_MANY.name, 20),
    ),
)

COMPOSING = (
    _at_most("compose text + html", _composed(compose.HTML, compose.AMAIL), 25, 10, " us"),
    Goal(
        "compose with 100 KB attached, against EmailMessage",
        _composed(compose.ATTACHED, compose.STDLIB),
        15,
        24,
        over=_composed(compose.ATTACHED, compose.AMAIL),
    ),
    Goal(
        "the same attachment again, against EmailMessage",
        _composed(compose.AGAIN, compose.STDLIB),
        15,
        24,
        over=_composed(compose.AGAIN, compose.AMAIL),
    ),
)

REQUESTS = (
    Goal(
        "Flask, async view, TLS + AUTH, against Flask-Mail",
        _request(True, flask_cost.FLASK_MAIL.name),
        3,
        4,
        over=_request(True, flask_cost.AMAIL_ASYNC.name),
    ),
    *(
        Goal(
            f"Flask, sync view, {name}, {'TLS + AUTH' if secure else 'no TLS'}, against Flask-Mail",
            _request(secure, flask_cost.FLASK_MAIL.name),
            must,
            aim,
            over=_request(secure, ours.name),
        )
        for secure in (True, False)
        for name, ours, must, aim in (
            ("send_sync", flask_cost.AMAIL_SYNC, 4, 6),
            ("send_later", flask_cost.AMAIL_LATER, 8, 12),
        )
    ),
)

MEMORY = (
    _at_most(
        "25 MiB attached from a path",
        Figure("memory", memory.LARGE, memory.AMAIL_PATH.name),
        8,
        1,
        " MiB",
    ),
    _at_most(
        "100,000 messages, gather, each with its message",
        Figure("memory", memory.EACH, memory.AMAIL_GATHER.name),
        5,
        3,
        " KiB each",
    ),
    _at_most(
        "100,000 messages, send_many",
        Figure("memory", memory.VERY_MANY, memory.AMAIL_MANY.name),
        4,
        1,
        " MiB in all",
    ),
)

GOALS: dict[str, tuple[Goal, ...]] = {
    "What users feel": FELT,
    "Round trips": ROUND_TRIPS,
    "Composing": COMPOSING,
    "Memory": MEMORY,
    "A request in Flask": REQUESTS,
    "Client cost, no real server": RATES,
}


def table(results: Results) -> str:
    """Write which goals hold, as Markdown."""
    lines = ["| | must | aim | found | |", "|---|---|---|---|---|"]
    for title, goals in GOALS.items():
        lines.append(f"| **{title}** | | | | |")
        for goal in goals:
            value = goal.value(results)
            found = "" if value is None else f"{number(value)}{goal.unit}"
            bound = "<= " if goal.at_most else ""
            lines.append(
                f"| {goal.name} | {bound}{goal.must:g} | {bound}{goal.aim:g} "
                f"| {found} | {goal.verdict(value)} |"
            )
    if quick := [name for name, result in results.items() if result.quick]:
        lines += ["", f"**Quick runs, not for quoting: {', '.join(quick)}.**"]
    return "\n".join(lines)


def main() -> None:
    """Print it, and renew it in the documentation."""
    parser = argparse.ArgumentParser(description="Which goals hold, by what was measured.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder: Path = parser.parse_args().folder
    results = read(folder)
    print(table(results))
    if folder == FOLDER:
        renew_pages({}, table(results))


if __name__ == "__main__":
    main()
