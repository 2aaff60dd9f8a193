"""The journal: what it remembers, what of a broken one is forgiven, and what never is."""

from __future__ import annotations

import asyncio
import os
import tempfile
import typing as t
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.bulk import JournalError
from amail.bulk.journal import STOPPED, Journal
from amail.bulk.recipients import key_of
from tests.bulk.lists import SLOW_EXAMPLES

if t.TYPE_CHECKING:
    from amail.bulk.journal import State

STATES: tuple[State, ...] = ("accepted", "rejected", "not_sent", "unknown", "invalid")
NAMES = ("a@x.org", "b@x.org", "c@x.org")

Step = tuple[str, "State | None"]
"""Of whom a message is begun, and what becomes of it, None where nothing is written down."""

steps = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([None, *STATES])), max_size=30)


async def write(path: Path, written: list[Step]) -> dict[str, State]:
    """Write a journal, and return what it has to say of each."""
    journal = Journal.open(path, letter="one")
    known: dict[str, State] = {}
    for to, state in written:
        journal.begin(to, f"<{to}>", 1)
        known[to] = "begin"
        if state is not None:
            journal.settle(to, f"<{to}>", 1, state, {"relay": "here"})
            known[to] = state
    await journal.aclose()
    assert journal.counts.total() == len(known)
    return known


async def read(path: Path) -> dict[str, State]:
    journal = Journal.open(path, letter="one")
    await journal.aclose()
    found = {to: journal.state(key_of(to)) for to in NAMES}
    for to, state in found.items():
        if state is not None:
            assert journal.entry(key_of(to))["to"] == to
            assert to in [entry["to"] for entry in journal.entries(state)]
    assert journal.counts.total() == sum(state is not None for state in found.values())
    return {to: state for to, state in found.items() if state is not None}


@SLOW_EXAMPLES
@given(steps)
def test_it_remembers_the_last_of_what_became_of_each(written: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        known = asyncio.run(write(path, written))
        assert asyncio.run(read(path)) == known


@SLOW_EXAMPLES
@given(steps, st.floats(0, 1))
def test_cut_anywhere_it_never_says_that_one_was_accepted_who_was_not(
    written: list[Step], share: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        asyncio.run(write(path, written))
        whole = path.read_bytes()
        cut = int(share * len(whole))  # a number of its own, as clocks and ids vary in length
        os.truncate(path, cut)
        known = asyncio.run(read(path))
        # What is left is what was said up to there, whole lines of it, and nothing else.
        kept = whole[: whole.rfind(b"\n", 0, cut) + 1]
        assert path.read_bytes().startswith(kept)
        for to, state in known.items():
            assert f'"event": "{state}", "to": "{to}"'.encode() in kept
        begun = {to for to in NAMES if f'"begin", "to": "{to}"'.encode() in kept}
        assert known.keys() == begun


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"17",
        b'{"event": "accepted"}',
        b'{"event": "lost", "to": "a@x.org"}',
        b'{"event": "accepted", "to": 5, "at": 1}',
        b'{"event": "accepted", "to": "a@x.org", "at": "noon"}',
        b"\0" * 40,
        b"\xff",
        b"[" * 99999,
    ],
)
async def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "journal"
    await write(path, [("a@x.org", "accepted")])
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:3], line + b"\n", *lines[3:]])
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match="journal, line 4: is damaged"):
        Journal.open(path, letter="one")
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "content",
    [b"email,name\na@x.org,Ada\n", b'{"email": "a@x.org"}', b"{}\n", b"\0", b'{"journal": "x"}\n'],
)
async def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(JournalError, match="is no journal of amail bulk"):
        Journal.open(path, letter="one")
    assert path.read_bytes() == content


async def test_one_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"journal": "amail bulk", "v": 2, "run": "x"}\n')
    with pytest.raises(JournalError, match="is of version 2"):
        Journal.open(path, letter="one")


async def test_a_place_where_nothing_can_be_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "journal"):
        with pytest.raises(JournalError, match="cannot be opened"):
            Journal.open(path, letter="one")


async def test_it_is_free_again_once_it_is_closed_or_could_not_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal.open(path, letter="one")
    with pytest.raises(JournalError, match="another run"):
        Journal.open(path, letter="one")
    await first.aclose()
    with pytest.raises(JournalError, match="another letter"):
        Journal.open(path, letter="two")
    await Journal.open(path, letter="one").aclose()


async def test_what_was_taken_back_counts_as_not_sent_but_as_no_try(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal", letter="one")
    journal.begin("a@x.org", "<a>", 1)
    journal.settle("a@x.org", "<a>", 1, "not_sent", STOPPED)
    await journal.aclose()
    assert journal.counts["not_sent"] == 1
    assert not len(journal.tally.timeline)


async def test_a_pause_between_starts_is_no_time_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    for start in (1000.0, 90_000.0):
        now = start
        journal = Journal.open(tmp_path / "journal", letter="one")
        now = start + 10
        journal.settle("a@x.org", "<a>", 1, "accepted", {})
        await journal.aclose()
    assert journal.seconds == 20
    assert journal.starts == [0, 10]
    assert journal.began_at == 1000


async def test_many_that_wait_share_one_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.open(tmp_path / "journal", letter="one")
    times = 0
    fsync = os.fsync

    def counting(descriptor: int) -> None:
        nonlocal times
        times += 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counting)

    async def one(number: int) -> None:
        journal.begin(f"{number}@x.org", "<x>", 1)
        await journal.durable()

    await asyncio.gather(*(one(number) for number in range(200)))
    assert 1 <= times <= 3
    await journal.aclose()
