"""FileTransport: writes each message into a folder, as an .eml and its envelope as .json.

Invariant: a file with its final name is complete. The envelope is there before the content, so that
whoever finds an .eml finds where it goes. A send that is cancelled leaves no file, or says that
there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import logging
import os
import re
import threading
import time
import typing as t
from dataclasses import asdict
from pathlib import Path

from amail.errors import ConfigError, InvalidAttachment, MailError, NotSent, SendTimeout
from amail.receipt import Receipt, Reply

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from amail.envelope import Envelope
    from amail.mime import Content

_logger = logging.getLogger("amail")

_UNSAFE = re.compile(r"[^A-Za-z0-9@._+-]+")
_LONGEST_ID = 100


class FileTransport:
    """Writes each message into ``folder``, which is made, for its owner only, if it is missing.

    ``<time>-<Message-ID>.eml`` is the content as it would be sent; beside it lies ``.json`` with
    ``reverse_path``, ``forward_paths`` (those of Bcc too), ``mail_options``, ``rcpt_options``,
    ``all_recipients``, ``message_id``, ``needs_utf8`` and ``needs_8bit``. Names sort by time, in
    UTC. Files belong to their owner only (0600). Both are on disk when the receipt is there; its
    ``queue_id`` is the name without suffix. Raises ConfigError.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
            raise ConfigError(f"folder: must be a path, not {type(folder).__name__}")
        self.folder = Path(os.fsdecode(folder))

    def __repr__(self) -> str:
        return f"<FileTransport to {self.folder}>"

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Write the message; see Transport. ``deadline`` is looked at before the first octet.

        Raises NotSent where the folder cannot be written, InvalidAttachment for one that changed.
        When this is cancelled a note on the CancelledError says whether the message is there.
        """
        details: dict[str, t.Any] = {
            "message_id": content.message_id,
            "recipients": envelope.forward_paths,
            "relay": str(self.folder),
            "retryable": True,
        }
        if deadline is not None and time.monotonic() >= deadline:
            raise SendTimeout("the deadline passed before the message was written", **details)
        fate = _Fate()
        try:
            name = await asyncio.to_thread(self._write, envelope, content, fate)
        except OSError as error:
            text = f"{self.folder}: the message cannot be written: {error.strerror}"
            raise NotSent(text, **details) from error
        except asyncio.CancelledError as error:
            note = f"{content.message_id}: {fate.leave()}"
            error.add_note(note)
            if fate.is_unknown:
                _logger.warning("%s", note)
            raise
        return Receipt(
            message_id=content.message_id,
            envelope=envelope,
            reply=Reply(250, "2.0.0", f"written as {name}.eml"),
            accepted=envelope.forward_paths,
            relay=str(self.folder),
            queue_id=name,
        )

    async def aclose(self) -> None:
        """Do nothing: every message was written when its receipt was there."""

    def _write(self, envelope: Envelope, content: Content, fate: _Fate) -> str:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = dt.datetime.now(dt.UTC)
        stamp = now.strftime("%Y%m%dT%H%M%S.%f")
        name = stem = f"{stamp}-{safe_name(content.message_id)}"
        for number in itertools.count(2):
            if not (self.folder / f"{name}.json").exists():
                break
            name = f"{stem}-{number}"  # the same message, and a clock that stands still
        record = {
            "message_id": content.message_id,
            **asdict(envelope),
            "needs_utf8": content.needs_utf8,
            "needs_8bit": content.needs_8bit,
        }
        text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
        described = self.folder / f"{name}.json"
        _write_file(described, [text.encode()])
        try:
            chunks = fate.while_wanted(_as_announced(content))
            _write_file(self.folder / f"{name}.eml", chunks, fate.settle)
        except BaseException:
            described.unlink(missing_ok=True)
            raise
        fate.written(f"{name}.eml")
        _sync_folder(self.folder)
        return name


class _NotWanted(Exception):
    """The caller has left, and no file shall be there."""


class _Fate:
    """Whether the file of a message is to be there: settled by its writer, or by who leaves first.

    Used from two threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_left = False
        self._is_settled = False
        self._name: str | None = None

    @property
    def is_unknown(self) -> bool:
        """True between the last moment to turn back and the end."""
        return self._is_settled and self._name is None

    def leave(self) -> str:
        """Have no file there, if it is not too late for that, and say what became of it."""
        with self._lock:
            self._is_left = True
            if not self._is_settled:
                return "not sent"
        if self._name is None:
            return "delivery unknown: the file was just being put in its place"
        return f"the message was written, as {self._name}"

    def while_wanted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield chunks. Raises _NotWanted as soon as the caller has left."""
        for chunk in chunks:
            if self._is_left:
                raise _NotWanted
            yield chunk

    def settle(self) -> None:
        """From here on the file is to be there. Raises _NotWanted if the caller has left."""
        with self._lock:
            if self._is_left:
                raise _NotWanted
            self._is_settled = True

    def written(self, name: str) -> None:
        """Note that the file is there."""
        self._name = name


def safe_name(message_id: str) -> str:
    """Return a Message-ID as part of a file name, on any system."""
    return _UNSAFE.sub("_", message_id.strip("<>"))[:_LONGEST_ID]


def _as_announced(content: Content) -> Iterator[bytes]:
    """Yield content. Raises InvalidAttachment where its source fails or has another length."""
    octets = 0
    try:
        for chunk in content.chunks():
            octets += len(chunk)
            yield chunk
    except MailError:
        raise
    except Exception as error:
        raise InvalidAttachment("the content could not be read as it was announced") from error
    if octets != len(content):
        raise InvalidAttachment("the content could not be read as it was announced")


def _write_file(
    path: Path, chunks: Iterable[bytes], before_it_is_seen: Callable[[], None] = lambda: None
) -> None:
    """Write a file that is seen complete or not at all."""
    unfinished = path.with_name(f".{path.name}.part")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        before_it_is_seen()
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Have the names on disk too, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
