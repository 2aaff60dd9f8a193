"""Measuring: several runs, the contenders in turn in each, every one in a process of its own.

So the processor time of a contender is that of its process alone. What a command starts is pinned
to the core that the command itself is pinned to.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
import typing as t
from dataclasses import asdict, dataclass, field
from pathlib import Path

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Function = Callable[["Task", "Clock"], t.Any]

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Task:
    """What a contender is asked to do: send ``count`` messages of ``size`` octets attached.

    ``warm`` more go ahead and are not measured. With ``ca_file`` TLS is spoken from the start, and
    AUTH. ``path`` is a file to attach.
    """

    port: int = 0
    count: int = 1
    sessions: int = 1
    size: int = 0
    recipients: int = 1
    warm: int = 0
    ca_file: str = ""
    path: str = ""
    depth: int = 1

    @property
    def messages(self) -> int:
        """How many have to arrive."""
        return self.warm + self.count

    def numbers(self, clock: Clock) -> Iterator[int]:
        """Count the messages of one who sends them one after another; the clock begins in time."""
        yield from range(self.warm)
        if self.warm:
            clock.begin()
        yield from range(self.warm, self.messages)


@dataclass
class Clock:
    """Seconds that passed, and of processor time in all threads of this process."""

    seconds: float = 0.0
    cpu: float = 0.0
    more: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        gc.collect()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu


@dataclass(frozen=True)
class Measured:
    """What one contender took for one task."""

    seconds: float
    cpu: float
    more: dict[str, float]


@dataclass(frozen=True)
class Contender:
    """Who is measured: a function in a process of its own, or a program for each task.

    ``serves`` is a command that is given tasks as lines of JSON and answers each with one, which is
    what the process of a function does. ``sink`` says which server it is for.
    """

    name: str
    function: Function | None = None
    serves: tuple[str, ...] = ()
    program: Callable[[Task], list[str]] | None = None
    sink: t.Literal["smtp-sink", "chunking"] = "smtp-sink"

    @contextlib.contextmanager
    def started(self) -> Iterator[Callable[[Task], Measured]]:
        """Yield what does one task after another."""
        if self.program is not None:
            yield self._run
            return
        command = self.serves or (sys.executable, "-m", "benchmarks.worker", self._place)
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

        def ask(task: Task) -> Measured:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(asdict(task)) + "\n")
            process.stdin.flush()
            if not (line := process.stdout.readline()):
                raise SystemExit(f"{self.name}: failed, see above")
            return Measured(**json.loads(line))

        with process:
            try:
                yield ask
            except BaseException:
                process.kill()
                raise

    @property
    def _place(self) -> str:
        """Where another process finds the function, also if this one was run as a script."""
        assert self.function is not None
        module = self.function.__module__
        if module == "__main__":
            module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
        return f"{module}:{self.function.__name__}"

    def _run(self, task: Task) -> Measured:
        assert self.program is not None
        before, began = os.times(), time.perf_counter()
        subprocess.run(self.program(task), check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - began, os.times()
        spent = after.children_user + after.children_system
        return Measured(seconds, spent - before.children_user - before.children_system, {})


@dataclass(frozen=True)
class Plan:
    """How often, and which share of the messages that a full run sends."""

    runs: int = 5
    share: float = 1.0

    def count(self, messages: int, least: int = 2) -> int:
        return max(min(messages, least), round(messages * self.share))


QUICK = Plan(runs=2, share=0.1)


@dataclass(frozen=True)
class Trial:
    """One contender, its task, and which counter has to have counted the messages afterwards."""

    contender: Contender
    task: Task
    counter: Callable[[], int] | None = None


def in_turn(trials: Iterable[Trial], runs: int) -> list[list[Measured]]:
    """Measure run by run, each trial once a run: for each trial the figures of all runs.

    A contender has one process for all its trials.
    """
    trials = list(trials)
    found: list[list[Measured]] = [[] for _ in trials]
    with contextlib.ExitStack() as stack:
        asked: dict[str, Callable[[Task], Measured]] = {}
        for trial in trials:
            if trial.contender.name not in asked:
                asked[trial.contender.name] = stack.enter_context(trial.contender.started())
        for _ in range(runs):
            for trial, figures in zip(trials, found, strict=True):
                figures.append(counted(trial, asked[trial.contender.name]))
    return found


def anew(trial: Trial, runs: int) -> list[Measured]:
    """Measure in a fresh process for each run."""
    found = []
    for _ in range(runs):
        with trial.contender.started() as ask:
            found.append(counted(trial, ask))
    return found


def counted(trial: Trial, ask: Callable[[Task], Measured]) -> Measured:
    """Do a trial, of which every message has to arrive."""
    counter = trial.counter or (lambda: 0)
    before = counter()
    measured = ask(trial.task)
    if trial.counter is not None:
        _await_count(trial, counter, before + trial.task.messages)
    return measured


def _await_count(trial: Trial, counter: Callable[[], int], expected: int) -> None:
    """Another process counts, and may say so a moment after its last reply."""
    until = time.monotonic() + 5
    while (arrived := counter()) < expected and time.monotonic() < until:
        time.sleep(0.001)
    if arrived != expected:
        raise SystemExit(f"{trial.contender.name}: {expected} sent, {arrived} arrived (in all)")


def pin_to_one_core() -> None:
    """Pin this process, and all that it starts, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])


@contextlib.contextmanager
def off_the_core() -> Iterator[None]:
    """Start others where they take no time from who is measured, if there are other cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    ours = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # there are none, or they are not ours
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - ours)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)
