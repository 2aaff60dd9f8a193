"""What a folder queue says to people: lines of text, for the command lines of amail and Flask."""

from __future__ import annotations

import datetime as dt
import time
import typing as t
from collections import Counter

from amail.errors import MessageError, UsageError
from amail.text import printable

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from amail.queues.folder import FolderQueue, Found, State
    from amail.queues.job import Job
    from amail.queues.journal import Record

Action = t.Literal["list", "show", "retry", "drop", "status"]
ACTIONS: tuple[Action, ...] = t.get_args(Action)

_STATES: tuple[State, ...] = ("waiting", "claimed", "unknown", "corrupt")


def report(
    queue: FolderQueue, action: Action, names: Iterable[str], *, limit: int = 50
) -> Iterator[str]:
    """Do what was asked for, and yield lines that say it.

    ``names`` are those of jobs, or Message-IDs for "status"; "unknown" stands for all jobs that
    are. Raises UsageError where there is no such job, OSError.
    """
    if action == "list":
        yield from _listed(queue, limit)
    elif action == "status":
        for message_id in names:
            yield from status(queue, message_id)
    else:
        does = {"show": _shown, "retry": _retried, "drop": _dropped}[action]
        for found in list(_found(queue, names)):
            yield from does(queue, found)


def status(queue: FolderQueue, message_id: str) -> Iterator[str]:
    """Yield what became of a message. Raises UsageError where nothing is known of it."""
    if not message_id.startswith("<"):
        message_id = f"<{message_id}>"
    jobs, records = queue.about(message_id)
    if not jobs and not records:
        text = "nothing is known of it: it was not queued here, or that was too long ago"
        raise UsageError(f"{printable(message_id)}: {text}")
    for record in records:
        yield _line(message_id, _said_of(record))
    for found in jobs:
        yield _line(message_id, _where(found))


def _listed(queue: FolderQueue, limit: int) -> Iterator[str]:
    counts: Counter[str] = Counter()
    parked: list[Found] = []
    for found in queue.jobs():
        counts[found.state] += 1
        if found.state in {"unknown", "corrupt"}:
            parked.append(found)
        elif counts["waiting"] + counts["claimed"] <= limit:
            yield _row(found)
    left = counts["waiting"] + counts["claimed"] - limit
    if left > 0:
        yield f"... and {left} more"
    for found in parked:
        yield _row(found)
    yield ", ".join(f"{counts[state]} {state}" for state in _STATES)


def _row(found: Found) -> str:
    try:
        job = found.job()
        about = f"{job['id']}  {_recipients(len(job['env']['to']))}"
    except MessageError as error:
        about = str(error)
    except OSError:
        about = "gone meanwhile"
    return f"{found.name:<16}  {_where(found)}  {about}"


def _found(queue: FolderQueue, names: Iterable[str]) -> Iterator[Found]:
    names = set(names)
    if not names:
        raise UsageError(
            'which one? Give names as the list has them, or "unknown" for all of those'
        )
    for found in queue.jobs():
        if found.name in names or (found.state == "unknown" and "unknown" in names):
            names.discard(found.name)
            yield found
    missing = sorted(names - {"unknown"})
    if missing:
        raise UsageError(
            f"there is no job {printable(missing[0])}; it may have been sent meanwhile"
        )


def _shown(queue: FolderQueue, found: Found) -> Iterator[str]:
    yield _row(found)
    try:
        job: Job = found.job()
    except MessageError:
        yield f"the file is {found.path}"
        return
    yield f"file: {found.path}"
    yield f"mailer: {job['mailer'] or 'the default'}"
    yield f"from: {job['env']['from'] or '<>'}"
    for path in job["env"]["to"]:
        yield f"to: {path}"
    yield f"content: {len(job['mime'])} characters of {job.get('encoding', '7-bit text')}"
    if "exp" in job:
        yield f"expires: {_at(job['exp'])}"
    for record in queue.about(job["id"])[1]:
        yield _said_of(record)


def _retried(queue: FolderQueue, found: Found) -> Iterator[str]:
    if found.state == "claimed":
        yield f"{found.name}: is being sent"
        return
    try:
        is_done = queue.retry(found)
    except MessageError as error:
        raise UsageError(f"{found.name}: is no job that can be sent: {error}") from None
    yield f"{found.name}: {'waits to be sent' if is_done else 'is gone meanwhile'}"


def _dropped(queue: FolderQueue, found: Found) -> Iterator[str]:
    if found.state == "claimed":
        yield f"{found.name}: is being sent"
        return
    yield f"{found.name}: {'is dropped' if queue.drop(found) else 'is gone meanwhile'}"


def _where(found: Found) -> str:
    match found.state:
        case "waiting" if found.due > time.time():
            return f"waiting until {_at(found.due)}, {_tries(found.tries)}"
        case "waiting":
            return f"waiting since {_at(found.due)}, {_tries(found.tries)}"
        case "claimed":
            return "being sent"
        case "unknown":
            return "unknown: it may have been sent; it is not sent again by itself"
        case "corrupt":
            return "corrupt: is no job"


def _said_of(record: Record) -> str:
    words = [_at(record.at), record.outcome]
    if record.relay:
        words.append(f"by {record.relay}")
    if record.queue_id:
        words.append(f"as {record.queue_id}")
    words.append(f"for {_recipients(record.recipients)}")
    said = " ".join(words)
    return f"{said}: {printable(record.text)}" if record.text else said


def _line(message_id: str, text: str) -> str:
    return f"{printable(message_id)}: {text}"


def _recipients(count: int) -> str:
    return "1 recipient" if count == 1 else f"{count} recipients"


def _tries(count: int) -> str:
    return "not tried yet" if count == 0 else "tried once" if count == 1 else f"tried {count} times"


def _at(seconds: float) -> str:
    """Write a time in UTC, to the second."""
    try:
        moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return "some day"
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
