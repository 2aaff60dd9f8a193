"""FolderQueue: jobs in a folder, one file each, for the processes of one machine. No broker.

    new/      waits, and may be sent now
    later/    waits until the time in its name: it was tried, and could not be sent
    claimed/  taken by a process that lives, in a folder of its own: see claims.py
    unknown/  may have been sent: parked, until somebody decides
    corrupt/  is no job: parked
    journal/  what became of each
    tmp/      what is being written

A job moves by ``rename``, and is in one place at every moment: whoever is killed, at whatever
moment, leaves it waiting, or claimed by a process that is dead. What the dead had claimed waits
again if the last octet of its content had not been asked for, and is unknown otherwise.

Invariants: a job that ``put`` has returned the name of is on disk, also after a power cut, until it
was accepted, refused for good, has expired, or was dropped by somebody. A job is handed out again
only where nothing of it can have been sent. A job that is divided, some of its recipients being
left for later, has the part for later on disk before the other part ends.

A name is ``<due>.<tries>.<mailer>.<message>.<random>.json``: milliseconds since 1970, how often it
was tried, and hashes, so that nothing has to be opened to find what is due, or is asked for.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import time
import typing as t
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from amail.errors import ConfigError, MessageError, NotSent, QueueFull
from amail.queues.claims import OUT, Claims, of_the_dead
from amail.queues.files import folder_of, make_folder, sync_folder, write_new, write_whole
from amail.queues.job import unpack
from amail.queues.journal import Journal, Record
from amail.smtp.settings import check_seconds

if t.TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from amail.queues.job import Job
    from amail.queues.journal import Outcome

_logger = logging.getLogger("amail.queue")

EXPIRES = 5 * 86_400.0
"""Seconds for which a job is tried: as long as mail servers do (RFC 5321, section 4.5.4.1)."""
KEPT = 14 * 86_400.0
"""Seconds for which the journal knows what became of a job."""

_NAME = re.compile(
    r"(?P<due>[0-9]{13})\.(?P<tries>[0-9]{3})\.(?P<mailer>[0-9a-f]{8})\.(?P<message>[0-9a-f]{16})"
    r"\.(?P<random>[0-9a-f]{16})\.json"
)
_MOST_TRIES = 999
_QUIET_NS = 50_000_000  # the clock of a file system stands still for some milliseconds
_LARGE = 1000  # names
_REST = 19  # times as long as it took to look at a large folder
_LEFT_SECONDS = 3600.0
_ROOMS = ("new", "later", "claimed", "unknown", "corrupt", "tmp")

State = t.Literal["waiting", "claimed", "unknown", "corrupt"]
_STATES: dict[str, State] = {
    "new": "waiting",
    "later": "waiting",
    "unknown": "unknown",
    "corrupt": "corrupt",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A job as it lies in the folder.

    ``name`` is what a person calls it by. ``due`` is in seconds since 1970; ``tries`` is how often
    it was tried, ``mailer`` the hash of the name of its mailer.
    """

    state: State
    path: Path
    due: float = 0.0
    tries: int = 0
    mailer: str = ""
    message: str = ""
    random: str = ""

    @classmethod
    def at(cls, path: Path, state: State) -> Found:
        """Read what a name says. One that is none of ours is a name too."""
        match = _NAME.fullmatch(path.name.removesuffix(OUT))
        if match is None:
            return cls("corrupt", path)
        due, tries = int(match["due"]) / 1000, int(match["tries"])
        return cls(state, path, due, tries, match["mailer"], match["message"], match["random"])

    @property
    def name(self) -> str:
        """What tells it from others, and stays when it is tried again."""
        return self.random or self.path.name

    def job(self) -> Job:
        """Read it. Raises MessageError for what is no job, and OSError."""
        try:
            job: Job = json.loads(self.path.read_bytes())
        except (ValueError, RecursionError):
            raise MessageError(f"{self.path.name}: is no JSON") from None
        unpack(job)
        return job


class Claimed:
    """A job that this process has taken."""

    def __init__(self, found: Found, job: Job) -> None:
        self.job = job
        self.name = found.name
        self.tries = found.tries
        self.mailer = found.mailer
        self._path = found.path

    @property
    def path(self) -> Path:
        """Where it is now."""
        return self._path

    @property
    def is_marked(self) -> bool:
        """True once its content may have been sent."""
        return self._path.name.endswith(OUT)

    def mark(self) -> None:
        """Note, before it is so, that its content may have been sent.

        It is the renaming of a file, which waits for no disk and can be done in an event loop.
        Raises NotSent.
        """
        if self.is_marked:
            return
        marked = self._path.with_name(f"{self._path.name}{OUT}")
        try:
            self._path.rename(marked)
        except OSError as error:
            text = f"it could not be noted that this is being sent: {error.strerror}"
            raise NotSent(text, retryable=True, message_id=self.job["id"]) from error
        self._path = marked


class FolderQueue:
    """The jobs in ``folder``, which is made when it is first used, for its owner only.

    Everything in it is private: contents are not encrypted. It must be on a file system of this
    machine. ``expires`` and ``kept`` are in seconds: for how long a job is tried, and the journal
    knows of it. All methods block. Any number of processes may use the folder at once, and any
    number of threads ``put``; who claims needs an object of his own.

    Raises ConfigError.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, expires: float = EXPIRES, kept: float = KEPT
    ) -> None:
        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise ConfigError(f"folder: must be a path, not {type(folder).__name__}")
        check_seconds("expires", expires)
        check_seconds("kept", kept)
        self.folder = Path(os.fsdecode(folder))
        self._expires = expires
        self._journal = Journal(self.folder / "journal", kept=kept)
        self._claims: Claims | None = None
        self._taken: list[Path] = []
        self._rooms_changed: set[Path] = set()
        self._new, self._later = _Shelf(self.folder / "new"), _Shelf(self.folder / "later")
        self.is_sure = False
        """Whether the last ``claim`` can have overlooked nothing that was due."""
        self._wakers: list[Callable[[], object]] = []
        self._has_rooms = False
        _queues.add(self)

    def __repr__(self) -> str:
        return f"<FolderQueue in {self.folder}>"

    @classmethod
    def from_url(cls, url: str, **options: float) -> FolderQueue:
        """Return the queue of folder:///path. Raises ConfigError."""
        try:
            return cls(folder_of(url), **options)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"queue: {error}") from None

    # Who leaves a message

    def put(self, job: Job, *, due: float = 0.0) -> str:
        """Have a job wait, until ``due`` at least, and return its name: it is on disk then.

        Without an expiry it gets that of the queue, from then on. Raises MessageError for what is
        no job, QueueFull where the disk is full, and NotSent where the folder cannot be written.
        """
        unpack(job)
        now = time.time()
        due = max(due, now)
        job = {**job, "exp": job.get("exp", round(due + self._expires))}
        try:
            name = self._write(job, "later" if due > now else "new", due, 0)
        except OSError as error:
            is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            text = f"{self.folder}: the message cannot be queued: {error.strerror}"
            kind = QueueFull if is_full else NotSent
            raise kind(text, retryable=True, message_id=job["id"]) from error
        for wake in list(self._wakers):
            wake()
        return name

    def at_put(self, wake: Callable[[], object]) -> None:
        """Have it called whenever this process has put a job, in whatever thread did."""
        self._wakers.append(wake)

    def not_at_put(self, wake: Callable[[], object]) -> None:
        """Have it called no more."""
        with contextlib.suppress(ValueError):
            self._wakers.remove(wake)

    # Who sends it

    def claim(self, count: int, paused: Collection[str] = ()) -> list[Claimed]:
        """Take up to so many jobs that are due, the longest due first. They are ours on disk then.

        Those of the mailers ``paused`` (by their hashes) stay. What is no job is parked. Raises
        OSError; what was taken until then is taken with the next claim.
        """
        self.is_sure = False
        claims = self._claims_here()
        try:
            while len(self._taken) < count and (path := self._next(paused)) is not None:
                if claims.take(path):
                    self._taken.append(claims.folder / path.name)
                    self._rooms_changed.add(path.parent)
            for folder in (claims.folder, *self._rooms_changed) if self._taken else ():
                sync_folder(folder)
        except OSError:
            self._look_anew(claims)
            raise
        claimed = [self._read(Found.at(path, "claimed")) for path in self._taken]
        self._taken, self._rooms_changed = [], set()
        return [each for each in claimed if each is not None]

    def next_due(self, paused: Collection[str] = ()) -> float | None:
        """Return when the next job is due that was in the folder when it was last looked at."""
        heads = (shelf.head(paused) for shelf in (self._new, self._later))
        return min((int(head[:13]) / 1000 for head in heads if head is not None), default=None)

    def divide(self, claimed: Claimed, rest: Job, due: float) -> None:
        """Have a part of a job wait until ``due``, as a job of its own. Raises OSError."""
        self._write(rest, "later", due, claimed.tries + 1)

    def finish(self, claimed: Claimed, outcome: Outcome, **about: t.Any) -> None:
        """Note what became of a job, and remove it. Raises OSError.

        ``about`` are fields of the Record.
        """
        self._note(claimed, outcome, **about)
        claimed.path.unlink()

    def park(self, claimed: Claimed, **about: t.Any) -> None:
        """Put a job aside that may have been sent. Raises OSError."""
        self._move(claimed.path, "unknown", claimed.path.name.removesuffix(OUT))
        self._note(claimed, "unknown", **about)

    def defer(self, claimed: Claimed, job: Job, due: float, **about: t.Any) -> None:
        """Have a job wait until ``due``, nothing of it having been sent. Raises OSError.

        ``job`` is the claimed one, or a part of it for fewer recipients.
        """
        if job is not claimed.job:
            write_whole(claimed.path, _as_json(job), self.folder / "tmp")
        self._move(claimed.path, "later", _name(job, due, claimed.tries + 1, claimed.name))
        self._note(claimed, "deferred", **about)

    def give_back(self, claimed: Claimed, why: str = "") -> None:
        """Have a job wait as if it had not been claimed, nothing of it having been sent."""
        self._move(claimed.path, "new", claimed.path.name.removesuffix(OUT))
        if why:
            self._note(claimed, "deferred", text=why, tries=claimed.tries)

    def rescue(self) -> list[Job]:
        """See to what dead processes had claimed. Raises OSError.

        What cannot have been sent waits again; what may have been is parked, and returned.
        """
        self._make_rooms()
        unknown: list[Job] = []
        for path, is_out in of_the_dead(self.folder / "claimed"):
            name, found = path.name.removesuffix(OUT), Found.at(path, "claimed")
            if is_out and self._journal.has_ended(found.name):
                path.unlink()
            elif is_out:
                unknown.extend(self._rescue_unknown(found))
            else:
                self._move(path, "new", name)
                _logger.info("%s: waits again: the process that had claimed it died", found.name)
        self._clear_away()
        return unknown

    def close(self) -> None:
        """Let go of the folder. What is still claimed then is rescued by another process."""
        if self._claims is not None and self._claims.pid == os.getpid():
            self._claims.close()
        self._claims = None

    def after_fork(self) -> None:
        """Be another process's. Called by itself."""
        if self._claims is not None:
            self._claims.forget()
        self._claims, self._wakers = None, []
        self._taken, self._rooms_changed = [], set()

    # Who asks

    def jobs(self) -> Iterator[Found]:
        """Yield all jobs, those that wait first, the longest due first among them."""
        for room, state in _STATES.items():
            if room == "unknown":
                yield from self._claimed()
            for path in _sorted(self.folder / room):
                yield Found.at(path, state)

    def find(self, name: str) -> Found | None:
        """Return the job of that name."""
        return next((found for found in self.jobs() if found.name == name), None)

    def about(self, message_id: str) -> tuple[list[Found], list[Record]]:
        """Return the jobs of a message that are in the folder, and what is in the journal of it."""
        wanted = _hash(message_id, 16)
        found = [each for each in self.jobs() if each.message == wanted]
        return found, self._journal.about(message_id)

    def retry(self, found: Found) -> bool:
        """Have a job wait that is parked, or be due that waits. False where it is gone meanwhile.

        For one that is unknown this may be a second copy. Raises MessageError for what is no job,
        OSError.
        """
        now = time.time()
        try:
            job = {**found.job(), "exp": round(now + self._expires)}
            claims = self._claims_here()
            if not claims.take(found.path):
                return False
        except FileNotFoundError:
            return False
        path = claims.folder / found.path.name
        write_whole(path, _as_json(job), self.folder / "tmp")
        self._move(path, "new", _name(job, now, 0, secrets.token_hex(8)))
        self._try_to_note(self._record(job, found.name, "deferred", text="retried by hand"))
        return True

    def drop(self, found: Found) -> bool:
        """Remove a job for good. False where it is gone meanwhile. Raises OSError."""
        try:
            job = found.job()
        except FileNotFoundError:
            return False
        except MessageError:
            job = None
        try:
            found.path.unlink()
        except FileNotFoundError:
            return False
        if job is not None:
            self._try_to_note(self._record(job, found.name, "dropped"))
        return True

    # The rooms

    def _claims_here(self) -> Claims:
        if self._claims is not None and self._claims.pid != os.getpid():
            self.after_fork()  # by something that runs no hooks
        if self._claims is None:
            self._make_rooms()
            self._claims = Claims(self.folder / "claimed", self.folder / "tmp")
        return self._claims

    def _look_anew(self, claims: Claims) -> None:
        """Trust nothing that is known of the folder; somebody may have removed some of it."""
        self._has_rooms = False
        self._new.forget()
        self._later.forget()
        if not claims.folder.is_dir():
            claims.forget()
            self._claims, self._taken, self._rooms_changed = None, [], set()

    def _make_rooms(self) -> None:
        if not self._has_rooms:
            make_folder(self.folder)
            for room in _ROOMS:
                make_folder(self.folder / room)
            self._has_rooms = True

    def _write(self, job: Job, room: str, due: float, tries: int) -> str:
        self._make_rooms()
        random = secrets.token_hex(8)
        path = self.folder / room / _name(job, due, tries, random)
        write_new(path, _as_json(job), self.folder / "tmp")
        return random

    def _move(self, path: Path, room: str, name: str) -> None:
        path.rename(self.folder / room / name)
        with contextlib.suppress(OSError):  # after a power cut it counts as claimed by the dead
            sync_folder(self.folder / room)

    def _next(self, paused: Collection[str]) -> Path | None:
        """Return what is due longest, wherever it waits."""
        shelves = (self._later, self._new)
        looked = [shelf.look(paused) for shelf in shelves]
        self.is_sure = all(looked)
        heads = [(head, shelf) for shelf in shelves if (head := shelf.head(paused)) is not None]
        if not heads:
            return None
        name, shelf = min(heads, key=lambda each: each[0])
        return shelf.pop(name) if _is_due(name) else None

    def _read(self, found: Found) -> Claimed | None:
        """Read what was claimed; what cannot be read as a job is put aside."""
        try:
            return Claimed(found, found.job())
        except (MessageError, OSError) as error:
            _logger.error("%s: is no job, and is put aside: %s", found.path.name, error)  # noqa: TRY400 - the text says it
        with contextlib.suppress(FileNotFoundError):
            self._move(found.path, "corrupt", found.path.name)
        return None

    def _rescue_unknown(self, found: Found) -> Iterator[Job]:
        name = found.path.name.removesuffix(OUT)
        try:
            job = found.job()
        except MessageError:
            self._move(found.path, "corrupt", name)
            return
        self._move(found.path, "unknown", name)
        text = "the process died while it was sent; it may have been taken or not"
        self._try_to_note(self._record(job, found.name, "unknown", text=text))
        yield job

    def _claimed(self) -> Iterator[Found]:
        for folder in _sorted(self.folder / "claimed"):
            for path in _sorted(folder):
                if path.name != "lock":
                    yield Found.at(path, "claimed")

    def _clear_away(self) -> None:
        """Remove what was never finished, and what is too old."""
        self._journal.prune()
        for path in _sorted(self.folder / "tmp"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _LEFT_SECONDS and path.is_file():
                    path.unlink()

    # The journal

    def _note(self, claimed: Claimed, outcome: Outcome, **about: t.Any) -> None:
        tries = {"tries": claimed.tries + 1}
        self._try_to_note(self._record(claimed.job, claimed.name, outcome, **{**tries, **about}))

    def _try_to_note(self, record: Record) -> None:
        """Note it if that can be done. Nothing but later questions depends on it."""
        try:
            self._journal.add(record)
        except OSError as error:
            text = "%s: %s, which could not be written into the journal: %s"
            _logger.error(text, record.message_id, record.outcome, error.strerror)  # noqa: TRY400

    @staticmethod
    def _record(job: Job, name: str, outcome: Outcome, **about: t.Any) -> Record:
        about = {"recipients": len(job["env"]["to"]), **about}
        return Record(outcome, job["id"], name, **about)


class _Shelf:
    """The names in a room, as they were when it was last looked at, sorted, for each mailer.

    Taking one costs the same however many there are. Looking at a large folder takes a twentieth of
    the time at most.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.forget()

    def forget(self) -> None:
        """Know nothing."""
        self._names: dict[str, deque[str]] = {}
        self._not_before = 0.0
        self._changed_ns = -1

    def look(self, paused: Collection[str]) -> bool:
        """Read the folder, if nothing in it is known to be due and it has changed.

        False where it may have changed and it is too soon to read it again.
        """
        head = self.head(paused)
        if head is not None and _is_due(head):
            return True
        changed_ns = self.folder.stat().st_mtime_ns
        if changed_ns == self._changed_ns:
            return True
        began = time.monotonic()
        if began < self._not_before:
            return False
        # What changes within the same tick of the file system's clock cannot be seen by it.
        is_quiet = time.time_ns() - changed_ns > _QUIET_NS
        self._changed_ns = changed_ns if is_quiet else -1
        names: dict[str, list[str]] = {}
        listed = os.listdir(self.folder)
        for name in listed:
            if (match := _NAME.fullmatch(name)) is not None:
                names.setdefault(match["mailer"], []).append(name)
        self._names = {mailer: deque(sorted(each)) for mailer, each in names.items()}
        if len(listed) > _LARGE:
            self._not_before = began + _REST * (time.monotonic() - began)
        return True

    def head(self, paused: Collection[str] = ()) -> str | None:
        """Return the first name."""
        each = self._names.items()
        return min(
            (names[0] for mailer, names in each if names and mailer not in paused), default=None
        )

    def pop(self, name: str) -> Path:
        """Take the name of a first one off."""
        for names in self._names.values():
            if names and names[0] == name:
                names.popleft()
        return self.folder / name


_queues: weakref.WeakSet[FolderQueue] = weakref.WeakSet()


def mailer_hash(name: str) -> str:
    """Return what stands for a mailer in the names of jobs."""
    return _hash(name, 8)


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _stamp(at: float) -> str:
    return f"{max(0, int(at * 1000)):013d}"


def _is_due(name: str) -> bool:
    return name[:13] <= _stamp(time.time())


def _name(job: Job, due: float, tries: int, random: str) -> str:
    hashes = f"{mailer_hash(job['mailer'])}.{_hash(job['id'], 16)}"
    return f"{_stamp(due)}.{min(tries, _MOST_TRIES):03d}.{hashes}.{random}.json"


def _as_json(job: Job) -> bytes:
    return json.dumps(job, separators=(",", ":")).encode()


def _sorted(folder: Path) -> list[Path]:
    """List what is in a folder; nothing where there is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [folder / name for name in sorted(os.listdir(folder))]
    return []


def _forget_parents_claims() -> None:
    for queue in list(_queues):
        queue.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_claims)
