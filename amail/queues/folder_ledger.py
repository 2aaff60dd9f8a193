"""FolderLedger: a ledger in a folder, for the workers of one machine. See ledger.py."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import time
import typing as t
from pathlib import Path

from amail.errors import ConfigError
from amail.queues.files import make_folder, open_private, write_whole
from amail.queues.ledger import KEPT, LEASE, Entry
from amail.smtp.settings import check_seconds

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail.queues.ledger import State

_logger = logging.getLogger("amail.queue")

_KEY = re.compile("[0-9a-f]{64}")
_PRUNE_SECONDS = 3600.0


class FolderLedger:
    """Keeps a small file for each key in ``folder``, which is made if it is missing.

    ``lease`` and ``kept`` are in seconds, of the clock of the machine: how long a key is its
    worker's, and how long it is known what was sent. All processes of this machine may share it; a
    file system of several machines is no place for it. Raises ConfigError.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, lease: float = LEASE, kept: float = KEPT
    ) -> None:
        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise ConfigError(f"folder: must be a path, not {type(folder).__name__}")
        check_seconds("lease", lease)
        check_seconds("kept", kept)
        if kept < lease:
            raise ConfigError("kept: must not be less than lease")
        self.folder = Path(os.fsdecode(folder))
        self.lease = lease
        self._kept = kept

    def __repr__(self) -> str:
        return f"<FolderLedger in {self.folder}>"

    async def begin(self, key: str, token: str) -> Entry:
        """Take a key, if nobody has it and it was not done."""
        return await asyncio.to_thread(self._begin, key, token)

    async def sent(self, key: str, token: str, deferred: tuple[int, ...] = ()) -> None:
        """Note that a server has it."""
        await asyncio.to_thread(self._settle, key, token, "sent", deferred)

    async def unknown(self, key: str, token: str, deferred: tuple[int, ...] = ()) -> None:
        """Note that nobody knows whether a server has it."""
        await asyncio.to_thread(self._settle, key, token, "unknown", deferred)

    async def release(self, key: str, token: str) -> None:
        """Give a key back that certainly was not sent."""
        await asyncio.to_thread(self._release, key, token)

    def _begin(self, key: str, token: str) -> Entry:
        with self._shard_of(key) as shard:
            found = shard.read(key)
            if found is not None and time.time() < found.until:
                state: State = "busy" if found.state == "begun" else found.state
                return Entry(state, found.deferred)
            shard.write(key, _Kept("begun", token, time.time() + self.lease))
            shard.prune()
        return Entry("begun")

    def _settle(self, key: str, token: str, state: State, deferred: tuple[int, ...]) -> None:
        with self._shard_of(key) as shard:
            found = shard.read(key)
            if found is None or (found.state, found.token) == ("begun", token):
                shard.write(key, _Kept(state, token, time.time() + self._kept, deferred))

    def _release(self, key: str, token: str) -> None:
        with self._shard_of(key) as shard:
            found = shard.read(key)
            if found is not None and (found.state, found.token) == ("begun", token):
                (shard.folder / key).unlink()

    @contextlib.contextmanager
    def _shard_of(self, key: str) -> Iterator[_Shard]:
        """Have the keys that begin like this one to ourselves."""
        if not _KEY.fullmatch(key):
            raise ValueError("a key is 64 hexadecimal digits")
        shard = _Shard(self.folder / key[:2])
        make_folder(self.folder)
        make_folder(shard.folder)
        descriptor = open_private(shard.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # for as long as it takes to write a file
            yield shard
        finally:
            os.close(descriptor)


class _Kept(t.NamedTuple):
    """What is known of a key, and until when."""

    state: State
    token: str
    until: float
    deferred: tuple[int, ...] = ()


class _Shard:
    """A 256th of the keys, which are pruned together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> _Kept | None:
        """Return what is known of a key; None where nothing is that can be read."""
        try:
            state, token, until, deferred = json.loads((self.folder / key).read_bytes())
            return _Kept(state, token, float(until), tuple(deferred))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            _logger.error("%s: cannot be read; what was sent is not known", self.folder / key)  # noqa: TRY400 - what is in it says nothing
            return None

    def write(self, key: str, kept: _Kept) -> None:
        """Have something known of a key, on disk when this returns."""
        write_whole(self.folder / key, json.dumps(kept).encode(), self.folder)

    def prune(self) -> None:
        """Forget, once an hour, what nobody has to know any more."""
        marker = self.folder / "pruned"
        now = time.time()
        with contextlib.suppress(FileNotFoundError):
            if now - marker.stat().st_mtime < _PRUNE_SECONDS:
                return
        marker.touch(mode=0o600)
        for name in os.listdir(self.folder):
            kept = self.read(name) if _KEY.fullmatch(name) else None
            if (kept is not None and kept.until <= now) or name.endswith(".part"):
                (self.folder / name).unlink(missing_ok=True)
