"""The report: counts, JSON and a page, all of the same numbers, and of any text as text."""

from __future__ import annotations

import asyncio
import json
import tempfile
import typing as t
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import (
    ConnectError,
    DeliveryUnknown,
    MailError,
    MemoryTransport,
    MessageRejected,
    Receipt,
    Reply,
)
from amail.bulk import JournalError, Report
from amail.bulk.chart import chart, duration, scale
from amail.bulk.tally import Kinds, Speed, Timeline
from tests.bulk.lists import SLOW_EXAMPLES, address, rows, send_to
from tests.strategies import EXAMPLES, nasty_text
from tests.transports.ends import End

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail.errors import Outcome

OUTCOMES: tuple[Outcome, ...] = ("accepted", "rejected", "not_sent", "unknown")
SVG = "{http://www.w3.org/2000/svg}"
HTML = "{http://www.w3.org/1999/xhtml}"


def accepted(receipt: Receipt) -> Receipt:
    return receipt


def rejected(text: str = "no such user") -> MessageRejected:
    return MessageRejected("no", stage="final", reply=Reply(550, "5.1.1", text))


async def mixed(journal: Path) -> Report:
    """A run with each of the outcomes, an invalid row and a duplicate."""
    outcomes: list[MailError | Callable[[Receipt], Receipt]] = [
        *[accepted] * 5,
        *[rejected()] * 3,
        *[DeliveryUnknown("no reply", stage="final", relay="one")] * 2,
        ConnectError("down", stage="connect"),
    ]
    listed = [*rows(*range(11), 0), {"email": "nobody"}]
    return await send_to(End("one", *outcomes), listed, journal)


def page_of(report: Report, folder: Path) -> ET.Element:
    report.write_html(folder / "report.html")
    page = (folder / "report.html").read_text("utf-8")
    assert page.startswith("<!doctype html>\n")
    return ET.fromstring(page.partition("\n")[2])  # it is well-formed as XML too


def text_of(page: ET.Element) -> str:
    return " ".join("".join(page.itertext()).split())


async def test_json_has_the_counts_and_who_it_was(tmp_path: Path) -> None:
    report = await mixed(tmp_path / "journal")
    report.write_json(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o600
    counts = {outcome: found[outcome] for outcome in OUTCOMES if outcome == "accepted"}
    assert counts == {"accepted": 5}
    assert [len(found[each]) for each in ("rejected", "unknown", "not_sent", "skipped")] == [
        *(3, 2, 1, 2)
    ]
    assert found["total"] == found["rows"] == 13
    assert (found["invalid"], found["duplicates"]) == (1, 1)
    assert [(each["outcome"], each["reason"], each["count"]) for each in found["reasons"]] == [
        ("rejected", "550 5.1.1", 3),
        ("unknown", "DeliveryUnknown", 2),
        ("not_sent", "ConnectError", 1),
    ]
    sums: Counter[str] = Counter()
    for bucket in found["timeline"]["outcomes"]:
        sums.update(bucket)
    assert sums == {"accepted": 5, "rejected": 3, "unknown": 2, "not_sent": 1}
    assert found["stopped"] is None


async def test_the_page_has_the_same_numbers_a_chart_and_loads_nothing(tmp_path: Path) -> None:
    report = await mixed(tmp_path / "journal")
    page = page_of(report, tmp_path)
    text = text_of(page)
    for said in ("accepted5", "refused3", "unknown2", "not sent1", "invalid rows1", "duplicates1"):
        assert said in text
    assert "550 5.1.1 no such user" in text
    heights = Counter[str]()
    for bar in page.iter(f"{SVG}rect"):
        heights[bar.attrib["class"]] += round(float(bar.attrib["height"]) * 10)
    assert heights["a"] / 5 == pytest.approx(heights["r"] / 3, rel=0.02)
    assert heights["r"] / 3 == pytest.approx(heights["u"] / 2, rel=0.02)
    raw = (tmp_path / "report.html").read_text()
    assert "src=" not in raw
    assert "url(" not in raw
    assert "<script" not in raw
    assert raw.count("http://www.w3.org/") == raw.count("http") - raw.count("http-equiv")


async def test_a_stopped_run_says_so_on_the_page(tmp_path: Path) -> None:
    end = End("one", ConnectError("<b>down</b>", stage="connect"))
    report = await send_to(end, rows(*range(50)), tmp_path / "journal", give_up_after=5)
    text = text_of(page_of(report, tmp_path))
    assert "It stopped: 5 messages in a row were not sent: <b>down</b>." in text
    assert f"not reached{50 - report.progress.not_sent}" in text


async def test_those_of_an_earlier_start_are_not_said_not_to_be_reached(tmp_path: Path) -> None:
    await send_to(MemoryTransport(), rows(*range(30)), tmp_path / "journal")
    stop = asyncio.Event()
    stop.set()
    report = await send_to(MemoryTransport(), rows(*range(40)), tmp_path / "journal", stop=stop)
    assert (report.progress.accepted, report.not_reached) == (30, 10)


async def test_a_run_begun_again_has_a_line_in_the_chart(tmp_path: Path) -> None:
    await mixed(tmp_path / "journal")
    report = await send_to(MemoryTransport(), rows(*range(20)), tmp_path / "journal")
    page = page_of(report, tmp_path)
    assert len([path for path in page.iter(f"{SVG}path") if path.get("class") == "again"]) == 1
    assert "in 2 starts" in text_of(page)


async def test_a_long_list_is_cut_on_the_page_and_whole_in_json(tmp_path: Path) -> None:
    end = End("one", rejected())
    report = await send_to(end, rows(*range(230)), tmp_path / "journal")
    assert "and 30 more, in the JSON report" in text_of(page_of(report, tmp_path))
    report.write_json(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert [each["to"] for each in found["rejected"]] == [address(n) for n in range(230)]


async def test_a_report_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    report = await mixed(tmp_path / "journal")
    with pytest.raises(JournalError, match="the report cannot be written"):
        report.write_html(tmp_path / "none" / "report.html")


@SLOW_EXAMPLES
@given(st.lists(nasty_text, min_size=1, max_size=10))
def test_whatever_a_server_says_is_text_on_the_page(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        end = End("one", *map(rejected, texts))
        listed = rows(*range(len(texts)))
        report = asyncio.run(send_to(end, listed, Path(folder, "journal")))
        page = page_of(report, Path(folder))
        tables = list(page.iter(f"{HTML}table"))
        assert len(tables) == 3
        assert {cell.tag for table in tables for cell in table.iter()} == {
            f"{HTML}{tag}" for tag in ("table", "thead", "tbody", "tr", "th", "td")
        }
        report.write_json(Path(folder, "report.json"))
        found = json.loads(Path(folder, "report.json").read_text())["rejected"]
        assert len(found) == len(texts)


# What it is made of


@EXAMPLES
@given(st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from(OUTCOMES)), max_size=50))
def test_a_timeline_counts_each_once_in_at_most_120_buckets(
    events: list[tuple[float, Outcome]],
) -> None:
    timeline = Timeline()
    for seconds, outcome in events:
        timeline.add(seconds, outcome)
    assert len(timeline) <= 120
    assert sum(timeline, Counter[t.Any]()) == Counter(outcome for _, outcome in events)
    buckets = list(timeline)
    for seconds, outcome in events:
        assert buckets[int(seconds / timeline.width)][outcome]


@EXAMPLES
@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from(OUTCOMES)), max_size=20),
    st.lists(st.floats(0, 1e6), max_size=3),
)
def test_a_chart_is_well_formed_and_inside_its_frame(
    events: list[tuple[float, Outcome]], starts: list[float]
) -> None:
    timeline = Timeline()
    for seconds, outcome in events:
        timeline.add(seconds, outcome)
    svg = ET.fromstring(chart(timeline, sorted(starts)))
    for bar in svg.iter(f"{SVG}rect"):
        at = {name: float(bar.attrib[name]) for name in ("x", "y", "width", "height")}
        assert at["x"] >= 0
        assert at["x"] + at["width"] <= 960
        assert at["y"] >= 0
        assert at["y"] + at["height"] <= 260
        assert at["height"] > 0


@EXAMPLES
@given(st.integers(0, 10**12))
def test_an_axis_holds_what_it_is_for_with_round_ticks(most: int) -> None:
    top, ticks = scale(most)
    assert most <= top
    assert ticks[0] == 0
    assert ticks[-1] == top
    assert 3 <= len(ticks) <= 6
    assert str(ticks[1]).rstrip("0") in {"1", "2", "5"}


def test_times_are_written_as_people_do() -> None:
    assert [duration(each) for each in (0, 59.9, 60, 3599, 3600, 90061)] == [
        *("0 s", "59 s", "1:00", "59:59", "1:00:00", "25:01:01")
    ]


def test_kinds_beyond_the_first_50_are_counted_as_one() -> None:
    kinds = Kinds()
    for number in range(200):
        kinds.add(("rejected", str(number)))
    assert len(kinds.counts) == 51
    assert kinds.counts["rejected", "other"] == 150


def test_the_speed_is_that_of_the_last_half_minute() -> None:
    speed = Speed()
    for second in range(101):
        done = second * 100 if second < 50 else 5000 + (second - 50) * 10
        speed.note(float(second), done)
    assert speed.per_second(100.0, 5500) == pytest.approx(10, rel=0.05)
