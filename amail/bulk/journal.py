"""The journal of a run: what became of whom, on disk before anybody relies on it.

A file of JSON lines. It is what makes a run that was interrupted or killed go on where it was.

Invariants:

- *Begun first.* A ``begin`` line is on disk (fsync) before its message may be handed to a
  transport. So whoever has no line got nothing.
- *Settled after.* A line with an outcome is written after the outcome was known. One that is lost
  leaves a ``begin`` alone, and that is *unknown*: the message may have been accepted or not. So
  nobody is counted as accepted who was not.
- *One identity.* A mailbox (exact local part, domain in lower case) has one Message-ID in a run,
  made of both; sent again it has the Date of the first time too, so that the octets are the same.
- *One run.* The first line draws the run's id, each start names the digest of the letter: another
  letter is an error. The file is locked while it is open, so that two runs at once are one error.
- *Torn at the end only.* Lines are appended. A line without its end is that of a crash in the
  middle of a write; nobody relied on it, and it is cut off. What else cannot be read is an error.

Nothing in it is a secret: addresses, Message-IDs, relays, replies of servers. The addresses are
personal data, so the file belongs to its owner only (0600).

Lines, by ``event``: ``start``; ``begin``, ``accepted``, ``rejected``, ``not_sent``, ``unknown``,
``invalid`` of one mailbox each (``to``); ``skipped`` of a row of the list. ``at`` and ``date`` are
in seconds since the epoch.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import threading
import time
import typing as t
from array import array
from collections import Counter
from pathlib import Path

from amail import MailError, Message
from amail.bulk.recipients import key_of
from amail.bulk.tally import Tally

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from amail.errors import Outcome

_MAGIC = '{"journal": "amail bulk", "v": 1, "run": "'
_VERSION = 1
_LONGEST_TEXT = 500

STOPPED: t.Final[Mapping[str, object]] = {
    "kind": "stopped",
    "error": "the run was stopped before its turn",
}
"""Details of what was begun and not handed out. It is no outcome of a send, and not counted so."""

State: t.TypeAlias = t.Literal["begin", "accepted", "rejected", "not_sent", "unknown", "invalid"]
Entry: t.TypeAlias = dict[str, t.Any]
"""One line of the journal."""

_STATES: tuple[State, ...] = ("begin", "accepted", "rejected", "not_sent", "unknown", "invalid")
_OUTCOMES: dict[State, Outcome] = {
    "accepted": "accepted",
    "rejected": "rejected",
    "not_sent": "not_sent",
    "unknown": "unknown",
}
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
_FAR_AWAY = 1 << 40
# What is kept of a mailbox is one int: where its last line begins, whether its row was met since
# the start, and its state.
_STATE_BITS = 3
_SEEN = 1 << _STATE_BITS
_OFFSET_BITS = _STATE_BITS + 1


class JournalError(MailError, ValueError):
    """A journal that cannot be used or not be written; says why and what to do."""


class Journal:
    """An open journal. Made by ``open``; used in one loop, then ``aclose()``.

    About 140 octets of memory are kept of each mailbox. ``counts`` are mailboxes by state, since
    the run's first start; ``skipped`` are rows of this start, by why.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.run = ""
        self.letter: str | None = None
        self.starts: list[float] = []  # in seconds of running before each
        self.began_at: float | None = None
        self.tally = Tally()
        self.counts: Counter[State] = Counter()
        self.skipped: Counter[str] = Counter()
        self._descriptor = descriptor
        self._table: dict[bytes, int] = {}
        self._skipped_at = array("Q")
        self._size = 0
        self._started_at = 0.0
        self._seconds_before = 0.0
        self._last_at = 0.0
        self._pending: list[bytes] = []
        self._appended = self._on_disk = 0
        self._writing = threading.Lock()
        self._flushing: asyncio.Task[None] | None = None
        self._failure: JournalError | None = None

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, letter: str, allow_changed: bool = False
    ) -> Journal:
        """Open the journal of a letter's run and note that it starts; make it where it is missing.

        It blocks. Raises JournalError where another process has it, another letter was sent by it
        and ``allow_changed`` is not set, it is no journal, or it is damaged.
        """
        place = Path(path)
        try:
            descriptor = os.open(place, _FLAGS, 0o600)
        except OSError as error:
            raise JournalError(f"{place}: cannot be opened: {error.strerror}") from error
        journal = cls(place, descriptor)
        try:
            _lock(descriptor, place)
            journal._load()
            if journal.letter not in {None, letter} and not allow_changed:
                raise JournalError(
                    f"{place}: is the journal of another letter: its templates, sender, headers or "
                    "attachments were others. Take another journal for a new letter; where it is "
                    "the same one, corrected, allow the change"
                )
            journal._start(letter)
        except BaseException:
            journal.abandon()
            raise
        return journal

    # What is known of whom.

    def state(self, key: bytes) -> State | None:
        """Return what is known of a mailbox; "begin" is one whose outcome nobody wrote down."""
        value = self._table.get(key)
        return None if value is None else _STATES[value & (_SEEN - 1)]

    def see(self, key: bytes) -> bool:
        """Note that a row of this mailbox was met, and tell whether one was before."""
        value = self._table.get(key, 0)
        if value & _SEEN:
            return True
        if key in self._table:
            self._table[key] = value | _SEEN
        return False

    def entry(self, key: bytes) -> Entry:
        """Return the last line of a mailbox, one that is on disk. Raises KeyError."""
        (entry,) = self._read([self._table[key] >> _OFFSET_BITS])
        return entry

    def message_id(self, mailbox: str, domain: str) -> str:
        """Return the Message-ID that a mailbox has in this run."""
        return Message.make_id(f"{self.run} {mailbox}", domain=domain)

    def entries(self, *states: State) -> Iterator[Entry]:
        """Read the last line of each mailbox in one of these states, in the order they began.

        For after ``aclose()``: what is pending is not there yet.
        """
        wanted = {_STATES.index(state) for state in states}
        values = self._table.values()
        return self._read(v >> _OFFSET_BITS for v in values if v & (_SEEN - 1) in wanted)

    def skipped_entries(self) -> Iterator[Entry]:
        """Read the lines of the rows that were skipped since the start."""
        return self._read(self._skipped_at)

    # What happens.

    def begin(self, to: str, message_id: str, date: int) -> None:
        """Note that a message is about to be handed out. It may be once ``durable()`` returns."""
        self._append({"event": "begin", "to": to, "id": message_id, "date": date}, seen=True)

    def settle(
        self, to: str, message_id: str, date: int, state: State, details: Mapping[str, object]
    ) -> None:
        """Note what became of a message that was begun."""
        given = {name: value for name, value in details.items() if value is not None}
        named = {"to": to, "id": message_id, "date": date, "at": round(time.time(), 3)}
        self._append({"event": state, **named, **given}, seen=True)

    def skip(self, line: int, why: str, to: str | None, text: str) -> None:
        """Note a row of the list that is not sent."""
        entry = {"event": "skipped", "line": line, "why": why, "to": to, "text": _cut(text)}
        self._append(entry, seen=False)

    async def durable(self) -> None:
        """Return when everything noted so far is on disk. Raises JournalError."""
        wanted = self._appended
        while self._on_disk < wanted:
            if self._failure is not None:
                raise self._failure
            await asyncio.shield(self._flushed())

    async def aclose(self) -> None:
        """Bring all to disk and let others have the file, which can still be read.

        Raises JournalError.
        """
        try:
            await self.durable()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let others have the file at once. What is pending is lost, and unknown."""
        with self._writing:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def _flushed(self) -> asyncio.Task[None]:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="amail bulk: journal")
        return self._flushing

    async def _flush(self) -> None:
        """Write what is pending, and what comes meanwhile: one fsync for all that has gathered."""
        while self._pending and self._failure is None:
            lines, self._pending = self._pending, []
            try:
                await asyncio.to_thread(self._write, b"".join(lines))
            except OSError as error:
                # What fsync could not write may be gone, and asking again would not say so.
                self._failure = JournalError(f"{self.path}: cannot be written: {error.strerror}")
                return
            self._on_disk += len(lines)

    def _write(self, octets: bytes) -> None:
        with self._writing:
            left = memoryview(octets)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)

    def _append(self, entry: Entry, *, seen: bool) -> None:
        octets = json.dumps(entry).encode() + b"\n"
        self._note(entry, self._size, seen=seen)
        self._size += len(octets)
        self._pending.append(octets)
        self._appended += 1
        if self._failure is None:
            self._flushed()

    def _note(self, entry: Entry, offset: int, *, seen: bool) -> None:
        """Take in what a line says. Raises KeyError, TypeError or ValueError for what is none."""
        event = entry["event"]
        if event == "start":
            self._note_start(float(entry["at"]), str(entry["letter"]))
        elif event == "skipped":
            self.skipped[str(entry["why"])] += 1
            self._skipped_at.append(offset)
        else:
            key, state = key_of(entry["to"]), _STATES.index(event)
            if (before := self._table.get(key)) is not None:
                self.counts[_STATES[before & (_SEEN - 1)]] -= 1
            self.counts[event] += 1
            mark = _SEEN if seen else 0
            self._table[key] = offset << _OFFSET_BITS | mark | state
            if event in _OUTCOMES and entry.get("kind") != STOPPED["kind"]:
                self._note_outcome(entry, _OUTCOMES[event])

    def _note_start(self, at: float, letter: str) -> None:
        self._seconds_before += max(0.0, self._last_at - self._started_at)
        self._started_at = self._last_at = at
        if self.began_at is None:
            self.began_at = at
        self.starts.append(self._seconds_before)
        self.letter = letter
        self.skipped.clear()
        self._skipped_at = array("Q")

    def _note_outcome(self, entry: Entry, outcome: Outcome) -> None:
        at = float(entry["at"])
        self._last_at = max(self._last_at, at)
        seconds = self._seconds_before + max(0.0, at - self._started_at)
        text = entry.get("reply") or entry.get("error") or ""
        kind = str(entry.get("code") or entry.get("kind") or "")
        self.tally.add(seconds, outcome, str(entry.get("relay", "")), kind, str(text))

    @property
    def seconds(self) -> float:
        """How long the run was under way, all starts together, to the last outcome."""
        return self._seconds_before + max(0.0, self._last_at - self._started_at)

    # Opening.

    def _load(self) -> None:
        """Read what is there. A torn end is cut off, an empty file gets its first line."""
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    self._check_header(line)
                if not line.endswith(b"\n"):
                    break
                if number > 1:
                    self._take(number, line)
                self._size += len(line)
        os.ftruncate(self._descriptor, self._size)
        if not self._size:
            self.run = secrets.token_hex(8)
            self._append_now({"journal": "amail bulk", "v": _VERSION, "run": self.run})
            _sync_folder(self.path.parent)

    def _check_header(self, line: bytes) -> None:
        """Find the run's id. Raises JournalError for any other file, which is left as it is."""
        if not line.endswith(b"\n") and _MAGIC.startswith(line.decode("utf-8", "replace")):
            return  # a crash before the first line was there
        try:
            header = json.loads(line)
            if header["journal"] != "amail bulk":
                raise ValueError
            version, self.run = header["v"], str(header["run"])
        except (ValueError, KeyError, TypeError):
            if not line.endswith(b"\n") and line.startswith(_MAGIC.encode()):
                return
            raise JournalError(
                f"{self.path}: is no journal of amail bulk; name one, or a file that is not there"
            ) from None
        if version != _VERSION:
            raise JournalError(f"{self.path}: is of version {version}; this amail writes 1")

    def _take(self, number: int, line: bytes) -> None:
        try:
            self._note(json.loads(line), self._size, seen=False)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise JournalError(
                f"{self.path}, line {number}: is damaged ({type(error).__name__}). Whom its lines "
                "name would be sent to again without them: bring back a copy, or take out that "
                "line only if you know whom it was of"
            ) from None

    def _start(self, letter: str) -> None:
        self._append_now({"event": "start", "at": round(time.time(), 3), "letter": letter})

    def _append_now(self, entry: Entry) -> None:
        octets = json.dumps(entry).encode() + b"\n"
        try:
            self._write(octets)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be written: {error.strerror}") from error
        if "event" in entry:
            self._note(entry, self._size, seen=False)
        self._size += len(octets)

    def _read(self, offsets: Iterable[int]) -> Iterator[Entry]:
        with self.path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                yield json.loads(file.readline())


def outcome_of(state: State) -> Outcome | None:
    """Return the outcome that a state stands for; of "invalid" there is none."""
    return "unknown" if state == "begin" else _OUTCOMES.get(state)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def _lock(descriptor: int, path: Path) -> None:
    """Lock a file until it is closed, by the end of the process too. Raises JournalError."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _FAR_AWAY, os.SEEK_SET)  # for what is locked cannot be read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise JournalError(
            f"{path}: another run is using this journal; wait for its end or stop it"
        ) from None


def _sync_folder(folder: Path) -> None:
    """Have the name of a new file survive a crash of the machine too."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
