"""How many workers and sessions do a million messages an hour need, at 5, 40 and 150 ms?

    python -m benchmarks.scale [--quick]

Measures what a message costs over TLS, in processor time and in round trips, computes from that
what a million an hour need at each distance, and then does it for a while at 40 ms, with the
sessions that were computed: what arrives is counted.

A session carries one message for each time it takes (Little's law): sessions = messages a second x
round trips x their length. A worker is one process, kept busy to 70 %.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import typing as t
from dataclasses import dataclass

from benchmarks import peers
from benchmarks.measure import Contender, Task, Trial, in_turn, off_the_core
from benchmarks.report import Series, Table, command
from benchmarks.sinks import far_away, fast_sink

if t.TYPE_CHECKING:
    from benchmarks.measure import Plan
    from benchmarks.sinks import Sink

AN_HOUR = 1_000_000
RATE = AN_HOUR / 3600
BUSY = 0.7
MILLISECONDS = (5, 40, 150)
CHECKED_AT = 40
SECONDS = 10  # how long the checked point is kept up


@dataclass(frozen=True)
class Way:
    """A way of sending: who, how many messages to measure it, and how deep it pipelines."""

    contender: Contender
    near: int
    far: int
    depth: int = 1


WAYS = (
    Way(peers.AMAIL_SEND_DATA, near=2000, far=15),
    Way(peers.AMAIL_MANY_DATA, near=2000, far=30),
    Way(peers.AMAIL_MANY_CHUNKING, near=2000, far=30),
    Way(peers.AMAIL_MANY_DEEP, near=2000, far=480, depth=16),
)
CHECKED = WAYS[1]
PROCESSOR, ROUND_TRIPS = "processor time a message", "round trips a message"
WORKERS = "a million an hour: workers, each kept busy to 70 %"
CHECK = f"checked: messages an hour at {CHECKED_AT} ms"


def sessions_at(milliseconds: int) -> str:
    """Name the table of sessions at that distance."""
    return f"a million an hour at {milliseconds} ms: sessions in all"


def sessions_for(rate: float, round_trips: float, round_trip: float) -> int:
    """How many sessions carry so many messages a second; ``round_trip`` in seconds."""
    return max(1, math.ceil(rate * round_trips * round_trip))


def workers_for(rate: float, processor: float) -> int:
    """How many processes; ``processor`` is seconds a message."""
    return max(1, math.ceil(rate * processor / BUSY))


def processor_times(sink: Sink, plan: Plan) -> list[list[float]]:
    """Seconds of processor time a message over ten sessions, for each way and run."""
    trials = [
        Trial(
            way.contender,
            Task(
                sink.port, plan.count(way.near), 10, warm=1, ca_file=sink.ca_file, depth=way.depth
            ),
            sink.counter,
        )
        for way in WAYS
    ]
    found = in_turn(trials, plan.runs)
    return [
        [each.cpu / trial.task.count for each in runs]
        for trial, runs in zip(trials, found, strict=True)
    ]


def round_trips(far: Sink, plan: Plan) -> list[list[float]]:
    """Round trips a message over one session, for each way and run."""
    trials = [
        Trial(
            way.contender,
            Task(
                far.port,
                plan.count(way.far, least=2 * way.depth),
                warm=1,
                ca_file=far.ca_file,
                depth=way.depth,
            ),
            far.counter,
        )
        for way in WAYS
    ]
    found = in_turn(trials, plan.runs)
    return [
        [each.seconds / trial.task.count / far.round_trip for each in runs]
        for trial, runs in zip(trials, found, strict=True)
    ]


def kept_up(far: Sink, plan: Plan, sessions: int) -> list[float]:
    """Messages an hour over so many open sessions, for each run."""
    count = plan.count(round(RATE * SECONDS), least=2 * sessions)
    task = Task(far.port, count, sessions, warm=sessions, ca_file=far.ca_file)
    (runs,) = in_turn([Trial(CHECKED.contender, task, far.counter)], plan.runs)
    return [count / each.seconds * 3600 for each in runs]


def computed(processor: list[list[float]], trips: list[list[float]]) -> list[Table]:
    """Compute the tables from what was measured of each way."""

    def table(
        question: str, unit: str, figures: list[list[float]], better: t.Literal["less"] = "less"
    ) -> Table:
        names = [way.contender.name for way in WAYS]
        series = [Series(name, tuple(each)) for name, each in zip(names, figures, strict=True)]
        return Table(question, unit, better, tuple(series))

    tables = [
        table(PROCESSOR, "us", [[each * 1e6 for each in way] for way in processor]),
        table(ROUND_TRIPS, "", trips),
        table(WORKERS, "", [[workers_for(RATE, each) for each in way] for way in processor]),
    ]
    for milliseconds in MILLISECONDS:
        figures = [
            [float(sessions_for(RATE, each, milliseconds / 1000)) for each in way] for way in trips
        ]
        tables.append(table(sessions_at(milliseconds), "", figures))
    return tables


def measure(plan: Plan) -> list[Table]:
    with contextlib.ExitStack() as stack:
        with off_the_core():
            sink = stack.enter_context(fast_sink(tls=True))
        far = stack.enter_context(far_away(sink, CHECKED_AT / 1000))
        processor, trips = processor_times(sink, plan), round_trips(far, plan)
        checked = statistics.median(trips[WAYS.index(CHECKED)])
        sessions = sessions_for(RATE, checked, far.round_trip)
        hourly = kept_up(far, plan, sessions)
    who = f"{CHECKED.contender.name}, {sessions} sessions, one process"
    return [
        *computed(processor, trips),
        Table(CHECK, "messages/h", "more", (Series(who, tuple(hourly)),)),
    ]


if __name__ == "__main__":
    command("scale", measure, __doc__)
