"""A list of 100,000 costs memory for who is in it, and none for what they get."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tracemalloc
import typing as t

import pytest

from amail import NullTransport
from amail.bulk import Letter
from tests.bulk.lists import LETTER, address, rows, send_to, write_list
from tests.messages import ADA

if t.TYPE_CHECKING:
    from pathlib import Path

MANY = 100_000
OCTETS_EACH = 220  # of which a third is that a dict is copied when it grows


async def peak_of(recipients: Path, journal: Path, letter: Letter = LETTER) -> int:
    """The most memory that a run takes, in octets, without what imports and first uses take."""
    await send_to(NullTransport(), rows(*range(20)), journal.with_name("warm"), letter)
    tracemalloc.start()
    try:
        report = await send_to(NullTransport(), recipients, journal, letter)
        assert report.all_accepted
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_what_they_get_takes_no_memory(tmp_path: Path) -> None:
    large = Letter("x", text="{{ name }}" + "y" * 20_000, sender=ADA)
    peak = await peak_of(write_list(tmp_path / "list.csv", 1_000), tmp_path / "journal", large)
    assert peak < 100 * 20_000


def test_those_who_were_accepted_are_skipped_in_bounded_memory(tmp_path: Path) -> None:
    count = 10_000
    journal = tmp_path / "journal"
    asyncio.run(send_to(NullTransport(), rows(0), journal))
    with journal.open("a") as file:
        for number in range(1, count):
            settled = {"event": "accepted", "to": address(number), "id": "<x@x.org>", "date": 1}
            file.write(json.dumps({**settled, "at": 1.0, "relay": "null"}) + "\n")
    recipients = write_list(tmp_path / "list.csv", count)
    assert asyncio.run(peak_of(recipients, journal)) < count * OCTETS_EACH


def largest_size_of(recipients: Path, journal: Path) -> int:
    """The octets that a process had at most, which sent to a list and then ran once more."""
    code = (
        "import asyncio, resource, sys; from pathlib import Path; from amail import NullTransport; "
        "from tests.bulk.lists import send_to; places = map(Path, sys.argv[1:]); "
        "recipients, journal = places; "
        "send = lambda: asyncio.run(send_to(NullTransport(), recipients, journal)); "
        "assert send().all_accepted; assert send().all_accepted; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, str(recipients), str(journal)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=800)
    return int(done.stdout) * 1024


@pytest.mark.soak_short
@pytest.mark.timeout(900)
def test_100_000_are_sent_to_in_bounded_memory(tmp_path: Path) -> None:
    sizes = [
        largest_size_of(write_list(tmp_path / f"{count}.csv", count), tmp_path / f"{count}.journal")
        for count in (1_000, MANY)
    ]
    assert sizes[1] - sizes[0] < MANY * OCTETS_EACH + 8_000_000, sizes
