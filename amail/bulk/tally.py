"""Tally: counts what became of messages, over time, in a bounded number of numbers."""

from __future__ import annotations

import typing as t
from collections import Counter, deque
from dataclasses import dataclass, field

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail.errors import Outcome

_MOST_BUCKETS = 120
_MOST_KINDS = 50
_REST = "other"
_SPEED_SECONDS = 30.0


class Timeline:
    """How many messages had which outcome when, in at most 120 buckets of the same width.

    ``width`` is in seconds, doubled whenever time has gone on beyond the last bucket.
    """

    def __init__(self) -> None:
        self.width = 1.0
        self._buckets: list[Counter[Outcome]] = []

    def add(self, seconds: float, outcome: Outcome) -> None:
        """Count one, so many seconds after the beginning."""
        while seconds >= self.width * _MOST_BUCKETS:
            self._double()
        index = int(max(0.0, seconds) / self.width)
        while len(self._buckets) <= index:
            self._buckets.append(Counter())
        self._buckets[index][outcome] += 1

    def __iter__(self) -> Iterator[Counter[Outcome]]:
        return iter(self._buckets)

    def __len__(self) -> int:
        return len(self._buckets)

    def _double(self) -> None:
        pairs = [self._buckets[at : at + 2] for at in range(0, len(self._buckets), 2)]
        self._buckets = [sum(pair, Counter()) for pair in pairs]
        self.width *= 2


class Speed:
    """Messages a second, of the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, done: int) -> None:
        """Note how many are done by now."""
        if not self._seen or now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, done))
        while len(self._seen) > 1 and now - self._seen[0][0] > _SPEED_SECONDS:
            self._seen.popleft()

    def per_second(self, now: float, done: int) -> float:
        """Return how many are done in a second, 0 while nothing can be said."""
        if not self._seen or now <= self._seen[0][0]:
            return 0.0
        since, before = self._seen[0]
        return (done - before) / (now - since)


Kind: t.TypeAlias = "tuple[Outcome, str]"
"""An outcome, and why: the codes of a reply, or the name of an error."""


@dataclass
class Kinds:
    """How often each of a few kinds was met, with an example; the rarer ones are counted as one."""

    counts: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, str] = field(default_factory=dict)

    def add(self, kind: Kind, example: str = "") -> None:
        """Count one more of a kind."""
        if kind not in self.counts and len(self.counts) >= _MOST_KINDS:
            kind = (kind[0], _REST)
        self.counts[kind] += 1
        self.examples.setdefault(kind, example)


@dataclass
class Tally:
    """What is known of all messages: by outcome over time, why not, and over which relay."""

    timeline: Timeline = field(default_factory=Timeline)
    reasons: Kinds = field(default_factory=Kinds)
    relays: dict[str, Counter[Outcome]] = field(default_factory=dict)

    def add(self, seconds: float, outcome: Outcome, relay: str, kind: str, text: str) -> None:
        """Count one message that has an outcome, so many seconds after the beginning."""
        self.timeline.add(seconds, outcome)
        if outcome != "accepted":
            self.reasons.add((outcome, kind), text)
        if relay not in self.relays and len(self.relays) >= _MOST_KINDS:
            relay = _REST
        self.relays.setdefault(relay, Counter())[outcome] += 1
