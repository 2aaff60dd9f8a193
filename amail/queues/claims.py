"""Claims: a folder of the files that one process has taken, known to be that process's by a lock.

    claimed/<boot>-<random>/lock        locked (flock) by the process for as long as it lives
    claimed/<boot>-<random>/<name>      taken; nothing of it can have been sent
    claimed/<boot>-<random>/<name>.out  the last octet of its content is going out, or has gone out

The kernel lets go of a lock when its process ends, however it ends: no process number that is used
again and no clock can be wrong about that. What a dead process had taken is given back, but for
what may have been sent.

A mark (``.out``) is a name that changes, which a killed process cannot take back but a power cut
can. So of a process of an earlier boot everything counts as marked; and where the system does not
say which boot it is, of every dead process. Invariant: a folder in ``claimed`` is locked before it
can be seen, and who finds it not locked has locked it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import typing as t
from pathlib import Path

from amail.queues.files import make_folder, open_private, sync_folder

if t.TYPE_CHECKING:
    from collections.abc import Iterator

OUT = ".out"
"""Behind the name of a file whose content may have been sent."""

_LOCK = "lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Claims:
    """What this process has taken. Made in the process that it is for; not for a forked child."""

    def __init__(self, claimed: Path, scratch: Path) -> None:
        name = f"{_boot()}-{secrets.token_hex(8)}"
        unseen = scratch / name
        make_folder(unseen)
        self._descriptor = open_private(unseen / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.pid = os.getpid()
        self.folder = claimed / name
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            unseen.rename(self.folder)
            sync_folder(claimed)
        except BaseException:
            os.close(self._descriptor)
            raise

    def take(self, path: Path) -> bool:
        """Take a file for this process; False where another one was faster. Raises OSError."""
        try:
            path.rename(self.folder / path.name)
        except FileNotFoundError:
            if not self.folder.is_dir():
                raise  # somebody has removed it
            return False
        return True

    def close(self) -> None:
        """Let go of the lock, and of the folder if nothing is left in it."""
        with contextlib.suppress(OSError):
            if os.listdir(self.folder) == [_LOCK]:
                (self.folder / _LOCK).unlink()
                self.folder.rmdir()
        self.forget()

    def forget(self) -> None:
        """Be no claims any more. In a forked child: the parent's lock stays the parent's."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Have the folder of a process that has ended; False where it has not, or is none of ours."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:  # somebody else has seen to it, or made it
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def of_the_dead(claimed: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the files that dead processes had taken, and whether their content may be out.

    Who iterates moves each away; then the folders are removed.
    """
    for name in os.listdir(claimed):
        folder = claimed / name
        with _locked(folder) as is_ours:
            if not is_ours:
                continue
            trusted = name.partition("-")[0] == _boot() != ""
            for entry in os.listdir(folder):
                if entry != _LOCK:
                    yield folder / entry, entry.endswith(OUT) or not trusted
            (folder / _LOCK).unlink()
            folder.rmdir()


def _boot() -> str:
    """Return what tells this boot of the machine from others, "" where nothing does."""
    try:
        return _BOOT.read_text("ascii").strip().replace("-", "")[:16]
    except OSError:
        return ""
