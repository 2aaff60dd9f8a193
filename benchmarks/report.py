"""What was found: as JSON, as a Markdown table, as a chart, and in the documentation's pages."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import typing as t
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.install import versions
from benchmarks.measure import QUICK, ROOT, Plan, pin_to_one_core

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DOCS = ROOT / "docs"
FOLDER = DOCS / "benchmarks"
PAGES = (DOCS / "performance.md", DOCS / "scale.md")


@dataclass(frozen=True)
class Series:
    """The figures of one contender, one for each run."""

    who: str
    figures: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


@dataclass(frozen=True)
class Table:
    """One question, and what was found for each contender.

    ``base`` is the contender that all are compared with; "" where a ratio says nothing.
    """

    question: str
    unit: str
    better: t.Literal["more", "less"]
    series: tuple[Series, ...]
    base: str = ""

    def of(self, who: str) -> float | None:
        """Return the median of a contender; None if it was not measured."""
        return next((each.median for each in self.series if each.who == who), None)

    def ratio(self, series: Series) -> float | None:
        """How many times better the base is; None where there is no base, or it is this one."""
        base = self.of(self.base)
        if base is None or series.who == self.base or not base or not series.median:
            return None
        return base / series.median if self.better == "more" else series.median / base


@dataclass(frozen=True)
class Result:
    """All that a command has found."""

    name: str
    tables: tuple[Table, ...]
    runs: int
    quick: bool = False
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Result:
        read = json.loads(text)
        tables = [
            Table(**{**each, "series": tuple(_series(row) for row in each["series"])})
            for each in read.pop("tables")
        ]
        return cls(tables=tuple(tables), **read)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def _series(row: dict[str, t.Any]) -> Series:
    return Series(row["who"], tuple(row["figures"]))


def number(value: float) -> str:
    """Write three digits that count, or all of those before the point."""
    if value >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(ratio: float | None) -> str:
    """Write a ratio: "12x", "1.2x", "0.12x"; nothing for None."""
    if ratio is None:
        return ""
    return f"{ratio:.2f}x" if ratio < 1 else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def markdown(result: Result) -> str:
    """Write the tables as one, and below it what the figures are of."""
    lines = ["| | | median | range | |", "|---|---|---|---|---|"]
    for table in result.tables:
        for at, series in enumerate(table.series):
            ratio = table.ratio(series)
            low, high = number(min(series.figures)), number(max(series.figures))
            lines.append(
                f"| {'' if at else f'**{table.question}**'} | {series.who} "
                f"| {f'{number(series.median)} {table.unit}'.rstrip()} | {low}-{high} "
                f"| {times(ratio)} |"
            )
    return "\n".join([*lines, "", caption(result)])


def caption(result: Result) -> str:
    of = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    bases = {table.base for table in result.tables if table.base}
    compared = " The last column: how many times better amail did." if bases else ""
    quick = " **A quick run, to see that it works: not for quoting.**" if result.quick else ""
    return f"Medians of {result.runs} runs in turn. {of}.{compared}{quick}"


OURS, THEIRS = "#2563eb", "#94a3b8"
LEFT, WIDTH, BAR = 300, 380, 20


def chart(result: Result) -> str:
    """Draw a bar for each contender, as long as its figure within its table."""
    body: list[str] = []
    y = 20
    for table in result.tables:
        y += 14
        unit = f"{table.unit}; " if table.unit else ""
        label = f"{table.question} ({unit}{table.better} is better)"
        body.append(f'<text x="12" y="{y}" font-weight="bold">{escape(label)}</text>')
        longest = max(each.median for each in table.series) or 1
        for series in table.series:
            y += BAR + 4
            width = max(2, round(series.median / longest * WIDTH))
            who = escape(series.who.replace("`", ""))
            ratio = table.ratio(series)
            told = number(series.median) + ("" if ratio is None else f" ({times(ratio)})")
            colour = OURS if series.who.startswith("amail") else THEIRS
            body.append(
                f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{who}</text>'
                f'<rect x="{LEFT}" y="{y - 14}" width="{width}" height="{BAR - 2}" '
                f'fill="{colour}"/><text x="{LEFT + width + 8}" y="{y}">{told}</text>'
            )
        y += BAR + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 150} {y}" '
        'font-family="system-ui, sans-serif" font-size="13">\n'
        f"<title>{escape(result.name)}</title>\n"
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def write(result: Result, folder: Path) -> None:
    """Write what was found as three files, named after the command."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in {
        ".json": result.to_json(),
        ".md": markdown(result) + "\n",
        ".svg": chart(result),
    }.items():
        (folder / (result.name + suffix)).write_text(text, "utf-8")


def read(folder: Path = FOLDER) -> dict[str, Result]:
    """Return what all commands have found, by their names."""
    found = [Result.from_json(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    return {result.name: result for result in found}


MARKED = re.compile(r"(<!-- (\w+) (\w+)(?:: ([^>]*))? -->)\n.*?(<!-- end -->)", re.DOTALL)


def marked(page: str, results: dict[str, Result], goals: str | None = None) -> str:
    """Return a page with what stands between its markers renewed.

    <!-- benchmark NAME --> and <!-- end --> hold its table, <!-- benchmark NAME: HOW --> only the
    questions that begin so; <!-- which goals --> holds what ``goals`` is.
    """

    def renewed(match: re.Match[str]) -> str:
        begin, what, name, prefix, end = match.groups()
        if what == "which" and goals is not None:
            return f"{begin}\n{goals}\n{end}"
        if what == "benchmark" and (result := results.get(name)) is not None:
            return f"{begin}\n{markdown(_those(result, prefix or ''))}\n{end}"
        return match[0]

    return MARKED.sub(renewed, page)


def _those(result: Result, prefix: str) -> Result:
    tables = tuple(table for table in result.tables if table.question.startswith(prefix))
    return replace(result, tables=tables)


def renew_pages(
    results: dict[str, Result], goals: str | None = None, pages: Iterable[Path] = PAGES
) -> None:
    """Renew what stands between the markers of the documentation's pages."""
    for page in pages:
        text = page.read_text("utf-8")
        if (new := marked(text, results, goals)) != text:
            page.write_text(new, "utf-8")


def command(name: str, measure: Callable[[Plan], list[Table]], doc: str | None) -> None:
    """Be the command of one benchmark: measure, print, and write into the documentation."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer runs and messages; the pages stay as they are"
    )
    parser.add_argument("--into", type=Path, help="write the files there; the pages stay")
    given = parser.parse_args()
    pin_to_one_core()
    plan = QUICK if given.quick else Plan()
    result = Result(name, tuple(measure(plan)), plan.runs, given.quick, versions())
    print(markdown(result))
    into: Path = given.into or (Path(tempfile.mkdtemp()) if given.quick else FOLDER)
    write(result, into)
    if into == FOLDER:
        renew_pages({name: result})
    print(f"\nwritten: {into}/{name}.md, .svg, .json")
