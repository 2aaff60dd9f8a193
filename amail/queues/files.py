"""Files that are there complete or not at all, also after the power was cut; where they lie."""

from __future__ import annotations

import os
import secrets
import typing as t
from urllib.parse import unquote, urlsplit

if t.TYPE_CHECKING:
    from pathlib import Path


def folder_of(url: str) -> str:
    """Return the path that folder:///path names. Raises ValueError, saying what it must be."""
    parts = urlsplit(url)
    is_local = parts.netloc in {"", "localhost"}
    is_plain = not (parts.query or parts.fragment or parts.path in {"", "/"})
    if parts.scheme != "folder" or not is_local or not is_plain:
        raise ValueError(
            "must name a folder by its absolute path, as in folder:///var/spool/app-mail; "
            "percent-encode # and ?"
        )
    return unquote(parts.path)


def make_folder(folder: Path) -> None:
    """Make a folder for its owner only, if it is missing."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _give_to_owner_of(folder.parent, folder)


def open_private(path: Path, flags: int) -> int:
    """Open a file that nobody but its owner can read, and return its descriptor."""
    is_new = not path.exists()
    descriptor = os.open(path, flags, 0o600)
    if is_new:
        _give_to_owner_of(path.parent, descriptor)
    return descriptor


def _give_to_owner_of(folder: Path, what: Path | int) -> None:
    """Give what root has made to whose folder it is in, who could not read it otherwise."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(what, owner.st_uid, owner.st_gid)


def write_whole(path: Path, octets: bytes, scratch: Path) -> None:
    """Write a file for its owner only, in place of one of the same name, and have it on disk.

    ``scratch`` is a folder of the same file system, where it lies until it is complete. What lies
    there and is old was left by a process that died. Where this raises OSError, there is the old
    file or the new one.
    """
    _put_in_place(path, octets, scratch)
    sync_folder(path.parent)


def write_new(path: Path, octets: bytes, scratch: Path) -> None:
    """Write one as ``write_whole`` does that was not there: if this raises, it still is not.

    Somebody may take it away as soon as it is there.
    """
    _put_in_place(path, octets, scratch)
    try:
        sync_folder(path.parent)
    except OSError:
        try:
            path.unlink()
        except FileNotFoundError:
            return  # somebody has taken it, so it was there
        raise


def _put_in_place(path: Path, octets: bytes, scratch: Path) -> None:
    unfinished = scratch / f"{secrets.token_hex(8)}.part"
    descriptor = open_private(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with open(descriptor, "wb") as file:
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
