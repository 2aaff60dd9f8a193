"""How many round trips does a message take, to 1 and to 20 recipients, at 10 and 40 ms?

    python -m benchmarks.latency [--quick]

Over one session that is open, through a proxy that delays what goes through it. A round trip is
what a NOOP takes through the same proxy, so a figure is time divided by that: the processor's share
is in it, and the TCP handshake, which the proxy cannot delay, is not. What arrived is counted.
"""

from __future__ import annotations

import contextlib
import typing as t
from dataclasses import dataclass

from benchmarks import peers
from benchmarks.measure import Task, Trial, in_turn
from benchmarks.report import Series, Table, command
from benchmarks.sinks import far_away, fast_sink, postfix_sink

if t.TYPE_CHECKING:
    from benchmarks.measure import Contender, Measured, Plan
    from benchmarks.sinks import Sink

MILLISECONDS = (10, 40)
RECIPIENTS = (1, 20)
BASE = peers.AMAIL_SEND.name


@dataclass(frozen=True)
class Entry:
    """A contender, and how many messages it sends one after another at 40 ms.

    ``alone`` has an envelope of one recipient only: with twenty it does as others do here.
    """

    contender: Contender
    messages: int
    depth: int = 1
    alone: bool = False
    warm: int = 1


ENTRIES = (
    Entry(peers.AMAIL_SEND, 10),
    Entry(peers.AMAIL_MANY, 20),
    Entry(peers.AMAIL_MANY_CHUNKING, 20),
    Entry(peers.AMAIL_MANY_DEEP, 320, depth=16),
    Entry(peers.AIOSMTPLIB_POOL, 4),
    Entry(peers.AIOSMTPLIB_SEND, 3, alone=True, warm=0),
    Entry(peers.FLASK_MAIL_CONNECT, 4),
    Entry(peers.FLASK_MAIL_SEND, 3, warm=0),
    Entry(peers.FLASK_MAILMAN, 4, alone=True),
    Entry(peers.FASTAPI_MAIL_SEND, 3, alone=True, warm=0),
)
NODEMAILER_MESSAGES = 8


def scenario(recipients: int, milliseconds: int) -> str:
    """Name a table: to so many recipients, at that round trip."""
    return f"{recipients} recipient{'s' if recipients > 1 else ''}, {milliseconds} ms"


def entries(recipients: int) -> list[Entry]:
    wanted = [*ENTRIES, *(Entry(each, NODEMAILER_MESSAGES) for each in peers.nodemailer())]
    installed = peers.there(*(each.contender for each in wanted))
    return [
        each
        for each in wanted
        if each.contender in installed and not (each.alone and recipients > 1)
    ]


def task_of(entry: Entry, far: Sink, recipients: int, plan: Plan) -> Task:
    """Say how many: to several recipients a quarter, for some send each of them a round trip."""
    count = entry.messages if recipients == 1 else -(-entry.messages // 4)
    count = plan.count(count, least=2 * entry.depth)
    return Task(far.port, count, recipients=recipients, warm=entry.warm, depth=entry.depth)


def round_trips(trial: Trial, measured: Measured, far: Sink) -> float:
    return measured.seconds / trial.task.count / far.round_trip


def measure(plan: Plan) -> list[Table]:
    asked: list[tuple[str, Sink, Trial]] = []
    with contextlib.ExitStack() as stack:
        near = {
            "smtp-sink": stack.enter_context(postfix_sink()),
            "chunking": stack.enter_context(fast_sink()),
        }
        for milliseconds in MILLISECONDS:
            far = {
                name: stack.enter_context(far_away(sink, milliseconds / 1000))
                for name, sink in near.items()
            }
            for recipients in RECIPIENTS:
                for entry in entries(recipients):
                    sink = far[entry.contender.sink]
                    task = task_of(entry, sink, recipients, plan)
                    trial = Trial(entry.contender, task, sink.counter)
                    asked.append((scenario(recipients, milliseconds), sink, trial))
        found = in_turn([trial for *_, trial in asked], plan.runs)
    series: dict[str, list[Series]] = {}
    for (question, sink, trial), runs in zip(asked, found, strict=True):
        figures = tuple(round_trips(trial, each, sink) for each in runs)
        series.setdefault(question, []).append(Series(trial.contender.name, figures))
    return [
        Table(question, "round trips", "less", tuple(each), BASE)
        for question, each in series.items()
    ]


if __name__ == "__main__":
    command("latency", measure, __doc__)
