"""How many messages a second, over 1, 10 and 50 sessions, small ones and 100 KB?

    python -m benchmarks.throughput [--quick]

Client and sink are pinned to one and the same core, so this is what both take together, which is
mostly the client; sessions are opened within the measured time; what arrived is counted by the
sink: postfix's smtp-sink, and for CHUNKING one of our own. There is no real server, no network and
no TLS in it.
"""

from __future__ import annotations

import contextlib
import typing as t
from dataclasses import dataclass

from benchmarks import peers
from benchmarks.measure import Task, Trial, in_turn
from benchmarks.report import Series, Table, command
from benchmarks.sinks import fast_sink, postfix_sink

if t.TYPE_CHECKING:
    from benchmarks.measure import Contender, Plan
    from benchmarks.sinks import Sink

SESSIONS = (1, 10, 50)
SIZES = {"small": 0, "100 KB": 100_000}
BASE = peers.AMAIL_GATHER.name


@dataclass(frozen=True)
class Entry:
    """A contender and how many messages take it about half a second; an eighth of 100 KB."""

    contender: Contender
    messages: int
    depth: int = 1


ALONE = (  # whose users have one session at a time
    Entry(peers.FLASK_MAIL_SEND, 200),
    Entry(peers.FLASK_MAIL_CONNECT, 250),
    Entry(peers.FLASK_MAILMAN, 400),
    Entry(peers.FASTAPI_MAIL_SEND, 150),
    Entry(peers.FASTAPI_MAIL_LIST, 300),
    Entry(peers.AIOSMTPLIB_SEND, 150),
)
POOLED = (
    Entry(peers.AMAIL_GATHER, 4000),
    Entry(peers.AMAIL_MANY, 4000),
    Entry(peers.AMAIL_MANY_CHUNKING, 4000),
    Entry(peers.AMAIL_MANY_DEEP, 5000, depth=16),
    Entry(peers.AIOSMTPLIB_POOL, 250),
    Entry(peers.AIOSMTPLIB_BYTES, 1000),
    Entry(peers.SMTP_SOURCE, 5000),
    Entry(peers.LIMIT, 10_000),
    Entry(peers.LIMIT_CHUNKING, 10_000),
    Entry(peers.LIMIT_DEEP, 10_000),
)


def scenario(size: str, sessions: int) -> str:
    """Name a table: of that size over so many sessions."""
    return f"{size}, {sessions} session{'s' if sessions > 1 else ''}"


def entries(sessions: int) -> list[Entry]:
    """Return who takes part: who has one session at a time only where there is one."""
    wanted = [*POOLED, *(Entry(each, 800) for each in peers.nodemailer())]
    wanted += ALONE if sessions == 1 else ()
    installed = peers.there(*(each.contender for each in wanted))
    return [each for each in wanted if each.contender in installed]


def task_of(entry: Entry, sink: Sink, size: int, sessions: int, plan: Plan) -> Task:
    messages = entry.messages if size == 0 else entry.messages // 8
    count = plan.count(max(messages, 2 * sessions))
    return Task(sink.port, count, sessions, size, depth=entry.depth)


def measure(plan: Plan) -> list[Table]:
    with contextlib.ExitStack() as stack:
        sinks = {
            "smtp-sink": stack.enter_context(postfix_sink()),
            "chunking": stack.enter_context(fast_sink()),
        }
        asked: list[tuple[str, Trial]] = []
        for size, octets in SIZES.items():
            for sessions in SESSIONS:
                for entry in entries(sessions):
                    sink = sinks[entry.contender.sink]
                    task = task_of(entry, sink, octets, sessions, plan)
                    trial = Trial(entry.contender, task, sink.counter)
                    asked.append((scenario(size, sessions), trial))
        found = in_turn([trial for _, trial in asked], plan.runs)
    series: dict[str, list[Series]] = {}
    for (question, trial), runs in zip(asked, found, strict=True):
        rates = tuple(trial.task.count / each.seconds for each in runs)
        series.setdefault(question, []).append(Series(trial.contender.name, rates))
    return [
        Table(question, "messages/s", "more", tuple(each), BASE)
        for question, each in series.items()
    ]


if __name__ == "__main__":
    command("throughput", measure, __doc__)
