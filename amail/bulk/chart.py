"""A chart of outcomes over time, as SVG to stand in a page. Pure: numbers in, text out.

Colours are the page's, by class: a, r, n, u for accepted, rejected, not sent, unknown.
"""

from __future__ import annotations

import typing as t
from html import escape

if t.TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator

    from amail.bulk.tally import Timeline
    from amail.errors import Outcome

SHOWN: tuple[tuple[Outcome, str, str], ...] = (
    ("accepted", "a", "accepted"),
    ("rejected", "r", "refused"),
    ("unknown", "u", "unknown"),
    ("not_sent", "n", "not sent"),
)
"""Outcome, class, and what a reader calls it; from the bottom of a bar to its top."""

_XMLNS = "http://www.w3.org/2000/svg"
_WIDTH, _HEIGHT = 960, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 14, 34
_GAP = 0.18
_FEWEST_BARS = 12


def chart(timeline: Timeline, starts: Iterable[float]) -> str:
    """Draw one bar for each bucket, and a line where the run was begun again.

    ``starts`` are in seconds of the timeline. Returns an svg element, well-formed as XML too.
    """
    bars = max(len(timeline), _FEWEST_BARS)
    step = (_WIDTH - _LEFT - _RIGHT) / bars
    most = max((bucket.total() for bucket in timeline), default=0)
    top, ticks = scale(most)
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    parts = [
        f'<svg xmlns="{_XMLNS}" viewBox="{box}" role="img" aria-label="Outcomes over time">',
        *_grid(top, ticks),
        *_hours(bars, step, timeline.width),
    ]
    for index, bucket in enumerate(timeline):
        began = duration(index * timeline.width)
        parts += _bar(bucket, _LEFT + index * step, step, top, began)
    parts += _lines(list(starts)[1:], step / timeline.width)
    return "\n".join([*parts, "</svg>"])


def scale(most: int) -> tuple[int, list[int]]:
    """Return the top of an axis that holds ``most``, and its ticks: 1, 2 or 5 times a power of 10.

    There are from two to five of them above 0.
    """
    step = 1
    for factor in _ones_twos_fives():
        step = factor
        if step * 5 >= most:
            break
    count = max(2, -(-most // step))
    return step * count, [step * number for number in range(count + 1)]


def duration(seconds: float) -> str:
    """Write a time: "8 s", "1:05", "2:00:00"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _ones_twos_fives() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def _y(value: float, top: int) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM)


def _grid(top: int, ticks: list[int]) -> Iterator[str]:
    for tick in ticks:
        y = _y(tick, top)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        place = f'x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end"'
        yield f'<text class="tick" {place}>{tick:,}</text>'


def _hours(bars: int, step: float, width: float) -> Iterator[str]:
    """Label the time, some six times."""
    every = max(1, bars // 6)
    for index in range(0, bars, every):
        x, text = _LEFT + index * step, duration(index * width)
        yield f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 12}">{text}</text>'


def _bar(bucket: Counter[Outcome], left: float, step: float, top: int, began: str) -> Iterator[str]:
    if not bucket.total():
        return
    said = ", ".join(f"{bucket[outcome]:,} {name}" for outcome, _, name in SHOWN if bucket[outcome])
    yield f"<g><title>{escape(began)}: {escape(said)}</title>"
    below = 0
    for outcome, colour, _ in SHOWN:
        count = bucket[outcome]
        if count:
            y, base = _y(below + count, top), _y(below, top)
            x, width = left + step * _GAP / 2, step * (1 - _GAP)
            yield (
                f'<rect class="{colour}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" '
                f'height="{base - y:.2f}"/>'
            )
            below += count
    yield "</g>"


def _lines(starts: Iterable[float], per_second: float) -> Iterator[str]:
    for start in starts:
        x = _LEFT + start * per_second
        yield (
            f"<g><title>begun again after {duration(start)}</title>"
            f'<path class="again" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/></g>'
        )
