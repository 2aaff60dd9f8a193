"""What the benchmarks compare is the same message, whoever sends it. Nothing is timed here."""

from __future__ import annotations

import asyncio
import email
import email.policy
import inspect
import typing as t
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import (
    compare,
    compose,
    feel,
    flask_cost,
    latency,
    memory,
    messages,
    peers,
    report,
    scale,
    throughput,
)
from benchmarks.__main__ import COMMANDS
from benchmarks.measure import Clock, Contender, Plan, Task, Trial, anew, in_turn
from benchmarks.report import Result, Series, Table
from benchmarks.sinks import far_away, fast_sink, postfix_sink
from tests.servers.aiosmtpd_server import aiosmtpd_server
from tests.servers.programs import require, require_module

if t.TYPE_CHECKING:
    from email.message import EmailMessage

    from tests.servers.aiosmtpd_server import AiosmtpdServer

TINY = Plan(runs=1, share=0.001)


# The same message


def test_every_peer_composes_the_same_message() -> None:
    require_module("flask_mail")
    for scenario, composers in compose.SCENARIOS.items():
        with compose.in_app():
            read = [_said(_parsed(composer(7))) for composer in composers.values()]
        assert read[0]["subject"] == "News 7"
        assert len(read[0]["parts"]) == 2
        # Of the attachment only amail has other octets each time, for it would remember them.
        if scenario == compose.ATTACHED:
            read = [{**each, "parts": each["parts"][:1]} for each in read]
        assert read[0] == read[1] == read[2], scenario


def test_an_attachment_that_amail_has_not_encoded_yet_is_new_each_time() -> None:
    octets = {compose.amail_attached(number) for number in (1, 2)}
    sizes = {len(_parsed(each).get_payload()[1].get_content()) for each in octets}  # type: ignore[union-attr, index]
    assert (len(octets), sizes) == (2, {compose.SIZE})


def _parsed(octets: bytes) -> EmailMessage:
    return email.message_from_bytes(octets, policy=email.policy.default)


def _said(message: EmailMessage) -> dict[str, t.Any]:
    parts = [part for part in message.walk() if not part.is_multipart()]
    return {
        "subject": message["subject"],
        "from": message["from"].addresses,
        "to": message["to"].addresses,
        "has": bool(message["date"] and message["message-id"]),
        "parts": [_content(part) for part in parts],
    }


def _content(part: EmailMessage) -> tuple[str, object]:
    content = part.get_content()
    text = content.replace("\r\n", "\n").rstrip("\n") if isinstance(content, str) else content
    return part.get_content_type(), text


# Every contender delivers

IN_PYTHON = [
    peers.AMAIL_SEND,
    peers.AMAIL_SEND_DATA,
    peers.AMAIL_GATHER,
    peers.AMAIL_MANY,
    peers.AIOSMTPLIB_SEND,
    peers.AIOSMTPLIB_POOL,
    peers.AIOSMTPLIB_BYTES,
    peers.FLASK_MAIL_SEND,
    peers.FLASK_MAIL_CONNECT,
]


@pytest.mark.parametrize("contender", IN_PYTHON, ids=lambda each: each.function.__name__)
def test_a_contender_sends_what_its_task_says(contender: Contender) -> None:
    if contender in {peers.FLASK_MAIL_SEND, peers.FLASK_MAIL_CONNECT}:
        require_module("flask_mail")
    with aiosmtpd_server() as server:
        clock = _done(contender, Task(server.port, count=3, sessions=2, recipients=2, warm=1))
    _expect(server, count=4, recipients=2)
    assert clock.seconds > 0
    assert clock.cpu > 0


def _done(contender: Contender, task: Task) -> Clock:
    assert contender.function is not None
    clock = Clock()
    if inspect.iscoroutinefunction(contender.function):
        asyncio.run(contender.function(task, clock))
    else:
        contender.function(task, clock)
    return clock


def _expect(server: AiosmtpdServer, *, count: int, recipients: int) -> None:
    read = sorted((_said(_parsed(each.content)) for each in server.messages), key=str)
    assert sorted(each["subject"] for each in read) == [f"News {n}" for n in range(count)]
    for stored in server.messages:
        number = int(str(_parsed(stored.content)["subject"]).removeprefix("News "))
        to = messages.recipients(number, recipients)
        # Flask-Mail's envelope is a set.
        assert sorted(f"Reader {number} <{each}>" for each in stored.forward_paths) == to
        assert stored.reverse_path == "ada@example.com"
        parts = dict(_said(_parsed(stored.content))["parts"])
        assert parts["text/plain"] == messages.TEXT.rstrip("\n")
        assert parts["text/html"] == messages.HTML


def test_a_contender_is_measured_in_a_process_of_its_own() -> None:
    with aiosmtpd_server() as server:
        trial = Trial(peers.AMAIL_SEND, Task(server.port, count=2), lambda: len(server.messages))
        ((measured,),) = in_turn([trial], runs=1)
    _expect(server, count=2, recipients=1)
    assert measured.seconds > 0
    assert measured.cpu > 0


def test_messages_that_did_not_arrive_end_the_command() -> None:
    arrived = iter([0, *[5] * 100])
    sends_two = Contender("two", program=lambda task: ["true"])
    trial = Trial(sends_two, Task(count=2), lambda: next(arrived))
    with pytest.raises(SystemExit, match="two: 2 sent, 5 arrived"):
        in_turn([trial], runs=1)


def test_runs_go_from_one_contender_to_the_next() -> None:
    asked: list[str] = []

    def named(name: str) -> Contender:
        def program(task: Task) -> list[str]:
            asked.append(f"{name}{task.count}")
            return ["true"]

        return Contender(name, program=program)

    a, b = named("a"), named("b")
    in_turn([Trial(a, Task(count=1)), Trial(b, Task(count=1)), Trial(a, Task(count=2))], runs=2)
    assert asked == ["a1", "b1", "a2"] * 2


# With the programs that they need


@pytest.mark.servers
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "module",
    [compose, feel, flask_cost, latency, memory, scale, throughput],
    ids=lambda module: module.__name__.partition(".")[2],
)
def test_a_command_finds_a_figure_for_each_contender(module: t.Any) -> None:
    require("smtp-sink", "smtp-source", "cc", "node", "npm")
    require_module("flask_mail")
    tables = module.measure(TINY)
    assert tables
    for table in tables:
        assert len({each.who for each in table.series}) == len(table.series) > 0
        assert all(len(each.figures) == 1 for each in table.series)
        assert not table.base or table.of(table.base) is not None
        if module is not memory:  # where nothing is what is hoped for
            assert all(each.median > 0 for each in table.series), table


@pytest.mark.servers
@pytest.mark.parametrize("contender", [peers.FASTAPI_MAIL_LIST, peers.FLASK_MAILMAN, "nodemailer"])
def test_a_peer_that_has_to_be_installed_sends_the_same_message(
    contender: Contender | str,
) -> None:
    require("npm")
    if isinstance(contender, str):
        (contender,) = peers.nodemailer()
    elif not peers.there(contender):
        pytest.skip("cannot be installed")
    with aiosmtpd_server() as server:
        trial = Trial(contender, Task(server.port, count=3, sessions=2, recipients=2))
        anew(trial, runs=1)
    _expect(server, count=3, recipients=2)


@pytest.mark.servers
@pytest.mark.parametrize("tls", [False, True])
def test_our_sink_counts_messages_however_they_come(*, tls: bool) -> None:
    require("cc")
    contenders = [peers.AMAIL_GATHER, peers.AMAIL_GATHER_DATA, peers.AIOSMTPLIB_POOL]
    with fast_sink(tls=tls) as sink:
        for size in (0, 300_000):  # more than it holds at once
            task = Task(sink.port, count=5, sessions=2, size=size, ca_file=sink.ca_file)
            for number, contender in enumerate(contenders):
                before = sink.counter()
                _done(contender, task)
                assert sink.counter() - before == 5, (number, size)


@pytest.mark.servers
def test_the_limit_delivers_to_both_sinks() -> None:
    require("cc", "smtp-sink")
    with postfix_sink() as plain, fast_sink() as chunking:
        trials = [
            Trial(peers.LIMIT, Task(plain.port, count=7, sessions=3), plain.counter),
            Trial(peers.LIMIT_CHUNKING, Task(chunking.port, count=7, sessions=3), chunking.counter),
            Trial(peers.LIMIT_DEEP, Task(chunking.port, count=99, sessions=2), chunking.counter),
        ]
        in_turn(trials, runs=1)


@pytest.mark.servers
def test_a_round_trip_is_as_long_as_asked_for() -> None:
    require("cc")
    with fast_sink(tls=True) as sink, far_away(sink, 0.02) as far:
        assert far.port != sink.port
        assert far.round_trip >= 0.02
        _done(peers.AMAIL_SEND, Task(far.port, count=1, ca_file=far.ca_file))
        assert sink.counter() == 1


# Tables, charts and pages

figures = st.lists(st.floats(0.001, 1e9, allow_nan=False), min_size=1, max_size=5).map(tuple)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)
tables = st.builds(
    Table,
    texts,
    texts,
    st.sampled_from(["more", "less"]),
    st.lists(st.builds(Series, texts, figures), min_size=1, max_size=3).map(tuple),
    texts,
)
results = st.builds(
    Result,
    st.just("name"),
    st.lists(tables, max_size=3).map(tuple),
    st.integers(1, 5),
    st.booleans(),
    st.dictionaries(texts, texts, max_size=2),
)


@given(results)
def test_what_was_found_is_read_as_it_was_written(result: Result) -> None:
    assert Result.from_json(result.to_json()) == result


@given(results)
def test_a_chart_has_a_bar_for_every_figure(result: Result) -> None:
    drawn = ET.fromstring(report.chart(result))
    bars = [each for each in drawn.iter() if each.get("fill") in {report.OURS, report.THEIRS}]
    assert len(bars) == sum(len(table.series) for table in result.tables)


def _example(better: t.Literal["more", "less"] = "less") -> Result:
    series = tuple(
        Series(who, tuple(float(10**number + each) for each in range(5)))
        for number, who in enumerate(("amail", "`peer`", "other & <another>"))
    )
    return Result("example", (Table("how long", "us", better, series, "amail"),), 5)


def test_a_table_has_every_figure_and_how_many_times_better_amail_did() -> None:
    rows = report.markdown(_example()).splitlines()
    assert rows[2:5] == [
        "| **how long** | amail | 3 us | 1-5 |  |",
        "|  | `peer` | 12 us | 10-14 | 4.0x |",
        "|  | other & <another> | 102 us | 100-104 | 34x |",
    ]
    assert report.markdown(_example("more")).splitlines()[4].endswith("| 0.03x |")


def test_a_chart_draws_figures_as_long_as_they_are() -> None:
    drawn = ET.fromstring(report.chart(_example()))
    bars = [each for each in drawn.iter() if each.get("fill") in {report.OURS, report.THEIRS}]
    widths = [int(bar.get("width") or 0) for bar in bars]
    assert widths == [round(each / 102 * report.WIDTH) for each in (3, 12, 102)]
    assert [bar.get("fill") for bar in bars] == [report.OURS, report.THEIRS, report.THEIRS]
    assert "102 (34x)" in "".join(drawn.itertext())


def test_a_quick_run_says_so() -> None:
    assert "quick" not in report.markdown(_example())
    assert "not for quoting" in report.markdown(replace(_example(), quick=True))


def test_a_page_is_renewed_between_its_markers_only() -> None:
    page = (
        "before\n<!-- benchmark example: how -->\nold\n<!-- end -->\nbetween\n"
        "<!-- benchmark example: what -->\nold\n<!-- end -->\n"
        "<!-- benchmark unknown -->\nkept\n<!-- end -->\n"
        "<!-- which goals -->\nold\n<!-- end -->\nafter\n"
    )
    renewed = report.marked(page, {"example": _example()}, "goals")
    assert "old" not in renewed
    assert renewed.count("how long") == 1
    for kept in ("before\n", "-->\nkept\n<!--", "\nbetween\n", "-->\ngoals\n<!--", "after\n"):
        assert kept in renewed
    assert report.marked(renewed, {"example": _example()}, "goals") == renewed


def test_the_pages_say_what_was_measured() -> None:
    found = report.read()
    assert set(found) == set(COMMANDS)
    for page in report.PAGES:
        text = page.read_text("utf-8")
        again = report.marked(text, found, compare.table(found))
        assert again == text, f"python -m benchmarks.compare renews {page.name}"
    for name, result in found.items():
        assert (report.FOLDER / f"{name}.md").read_text("utf-8") == report.markdown(result) + "\n"
        assert (report.FOLDER / f"{name}.svg").read_text("utf-8") == report.chart(result)


# Goals and scale


def test_every_goal_is_about_something_that_is_measured() -> None:
    found = report.read()
    goals = [goal for group in compare.GOALS.values() for goal in group]
    assert [goal.name for goal in goals if goal.value(found) is None] == []


def test_a_goal_holds_from_its_bound_on() -> None:
    figure = compare.Figure("example", "how long", "`peer`")
    found = {"example": _example()}
    at_most = compare.Goal("g", figure, must=12, aim=6, at_most=True)
    assert at_most.value(found) == 12
    assert [at_most.verdict(value) for value in (6, 12, 12.1, None)] == [
        "holds, and the aim",
        "holds",
        "DOES NOT HOLD",
        "not measured",
    ]
    at_least = compare.Goal("g", figure, must=2, aim=4, over=replace(figure, who="amail"))
    assert at_least.value(found) == 4
    assert at_least.verdict(at_least.value(found)) == "holds, and the aim"
    assert [at_least.verdict(value) for value in (2, 1.9)] == ["holds", "DOES NOT HOLD"]
    assert at_least.value({}) is None


def test_the_goals_are_listed_with_what_was_found() -> None:
    found = {name: replace(result, quick=False) for name, result in report.read().items()}
    rows = compare.table(found).splitlines()
    names = {goal.name for group in compare.GOALS.values() for goal in group}
    assert names <= {row.split(" | ")[0].removeprefix("| ") for row in rows}
    assert not any("not measured" in row or "not for quoting" in row for row in rows)
    found["feel"] = replace(found["feel"], quick=True)
    assert "not for quoting: feel" in compare.table(found)


@given(st.floats(0.1, 1e5), st.floats(0.01, 10), st.floats(0.001, 1))
def test_so_many_sessions_carry_the_rate_and_one_less_does_not(
    rate: float, round_trips: float, round_trip: float
) -> None:
    sessions = scale.sessions_for(rate, round_trips, round_trip)
    carried = 1 / (round_trips * round_trip)
    assert sessions * carried >= rate * 0.999999
    assert sessions == 1 or (sessions - 1) * carried < rate * 1.000001


def test_the_page_on_scale_computes_as_the_command_does() -> None:
    assert scale.sessions_for(scale.RATE, 2, 0.04) == 23
    assert scale.workers_for(scale.RATE, 0.001) == 1
    assert scale.workers_for(scale.RATE, 0.01) == 4


def test_a_clock_counts_from_the_message_behind_those_that_go_ahead() -> None:
    clock = Clock()
    numbers = Task(count=2, warm=2).numbers(clock)
    assert [next(numbers), next(numbers)] == [0, 1]
    assert not hasattr(clock, "_wall")
    assert list(numbers) == [2, 3]
    clock.end()
    assert clock.seconds > 0


def test_a_plan_asks_for_a_share_but_never_for_nothing() -> None:
    assert Plan().count(4000) == 4000
    assert Plan(share=0.1).count(4000) == 400
    assert Plan(share=0.1).count(5) == 2
    assert Plan(share=0.1).count(1) == 1
    assert Plan(share=0.1).count(100, least=32) == 32
