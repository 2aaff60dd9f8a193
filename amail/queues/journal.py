"""A journal: what became of each job, one line of JSON each, a file a day.

It is for those who ask later. A line is appended with one write, so that any number of processes
may; nothing waits for the disk, so that the last seconds before a power cut may be missing. Files
of more than ``kept`` seconds ago are removed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import time
import typing as t
from dataclasses import dataclass

from amail.queues.files import make_folder, open_private
from amail.text import printable

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Outcome = t.Literal["accepted", "rejected", "not_sent", "unknown", "expired", "deferred", "dropped"]

_ENDS = frozenset({"accepted", "rejected", "not_sent", "expired", "dropped"})
_SUFFIX = ".jsonl"
_LONGEST_TEXT = 500


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a job at one time.

    ``name`` is that of the job in the queue, ``recipients`` how many it was for. "deferred" is not
    the end: it will be tried again. ``text`` is the reply or the error, ``relay`` the server and
    ``queue_id`` what the server calls the message. ``at`` is in seconds since 1970.
    """

    outcome: Outcome
    message_id: str
    name: str
    recipients: int
    text: str = ""
    relay: str | None = None
    queue_id: str | None = None
    tries: int = 0
    at: float = 0.0


_FIELDS = frozenset(Record.__dataclass_fields__)


class Journal:
    """The journal in a folder."""

    def __init__(self, folder: Path, *, kept: float) -> None:
        self._folder = folder
        self._kept = kept

    def add(self, record: Record) -> None:
        """Append a line. Raises OSError."""
        now = time.time()
        values = {name: getattr(record, name) for name in Record.__dataclass_fields__}
        values |= {"text": printable(record.text, _LONGEST_TEXT), "at": round(now, 3)}
        line = b"\n" + json.dumps(values).encode()  # of its own, even behind one that was cut short
        make_folder(self._folder)
        path = self._folder / f"{_day(now)}{_SUFFIX}"
        descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def about(self, message_id: str) -> list[Record]:
        """Return what is known of a message, the oldest first."""
        records = self._with(json.dumps(message_id), self._names())
        return [record for record in records if record.message_id == message_id]

    def has_ended(self, name: str) -> bool:
        """Tell whether a job of that name was seen to its end, as far as was noted of late."""
        records = self._with(json.dumps(name), self._names()[-2:])
        return any(record.name == name and record.outcome in _ENDS for record in records)

    def prune(self) -> None:
        """Remove the files that are too old."""
        oldest = f"{_day(time.time() - self._kept)}{_SUFFIX}"
        for name in self._names():
            if name < oldest:
                (self._folder / name).unlink(missing_ok=True)

    def _with(self, text: str, names: list[str]) -> Iterator[Record]:
        """Yield the records with a text somewhere. A line that cannot be read is none."""
        wanted = text.encode()
        for name in names:
            with contextlib.suppress(FileNotFoundError), open(self._folder / name, "rb") as file:
                for line in file:
                    if wanted in line and (record := _record(line)) is not None:
                        yield record

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self._folder) if name.endswith(_SUFFIX))
        return []


def _record(line: bytes) -> Record | None:
    try:
        record = Record(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (record.message_id, record.name, record.text, record.relay or "", record.queue_id or "")
    numbers = (record.recipients, record.tries, record.at)
    is_ours = (
        record.outcome in t.get_args(Outcome)
        and all(isinstance(text, str) for text in texts)
        and all(type(number) in {int, float} for number in numbers)
    )
    return record if is_ours else None


def _day(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y%m%d")
