"""A run: everybody in a list gets a letter, once, however often the run is begun again."""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing as t
from collections import deque
from dataclasses import dataclass

from amail import (
    Address,
    AuthenticationError,
    ConfigError,
    Mailer,
    MailError,
    MessageError,
    NotSent,
    SendError,
    Vetoed,
)
from amail.bulk.journal import STOPPED, Journal
from amail.bulk.recipients import BadRow, Recipients, key_of
from amail.bulk.report import Report
from amail.bulk.tally import Speed
from amail.transports.throttled import Windows

if t.TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping

    from amail import Receipt, Result
    from amail.bulk.journal import State
    from amail.bulk.letter import Addressed, Letter
    from amail.bulk.recipients import Fields, Recipient

_CONCURRENCY = 10
_ROWS_AT_ONCE = 64
_LONGEST_TEXT = 500


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    ``rows`` of the ``total`` ones of the list were met since this start (``total`` is None where
    only reading tells it). Mailboxes since the run's first start: ``accepted``, ``rejected`` (a
    server refused them or the message), ``not_sent``, ``unknown``; ``under_way`` now. Rows of this
    start that are ``invalid`` or ``duplicates``. ``per_second``: messages of the last half minute;
    ``seconds_left``: of this pace, None while there is none.
    """

    total: int | None
    rows: int
    accepted: int
    rejected: int
    not_sent: int
    unknown: int
    under_way: int
    invalid: int
    duplicates: int
    per_second: float
    seconds_left: float | None


async def run(
    mailer: Mailer,
    letter: Letter,
    recipients: Recipients | str | os.PathLike[str] | Iterable[Fields],
    *,
    journal: str | os.PathLike[str],
    rate: str | Iterable[str] | None = None,
    resend_unknown: bool = False,
    retry_rejected: bool = False,
    allow_changed: bool = False,
    give_up_after: int = 100,
    on_progress: Callable[[Progress], object] | None = None,
    stop: asyncio.Event | None = None,
) -> Report:
    """Send ``letter`` to each of ``recipients`` who has not got it, and return what came of it.

    ``journal`` is the path of what makes that true, see ``amail.bulk.journal``. Called again with
    the same one, those who were accepted are skipped, and those who were not sent, or had not been
    reached, are sent. Those of whom nothing is known are sent again with ``resend_unknown`` only,
    with the same Message-ID, and those who were rejected with ``retry_rejected``. Another letter is
    a JournalError unless ``allow_changed``; another list is not: whoever is new in it is sent to.

    ``rate`` is "14/s", or a list of which each holds; how many are sent at once is for the
    mailer's transport to say. Setting ``stop`` has those who are under way finish, and no others
    begin. So have ``give_up_after`` messages in a row that were not sent, and credentials that
    are refused. Cancelling ends it at once, and those under way are unknown.

    ``on_progress`` is called in the loop, now and then. A row that cannot be used stops nobody.
    Raises RecipientsError before anything is sent, JournalError, ConfigError, UsageError.
    """
    sender = letter.sender or _default_sender(mailer)
    windows = None if rate is None else Windows(rate)
    if not isinstance(recipients, Recipients):
        recipients = Recipients(recipients)
    total = await asyncio.to_thread(recipients.count)
    name = f"{letter.digest} of {sender.addr_spec}"
    opened = await _opened(
        asyncio.to_thread(Journal.open, journal, letter=name, allow_changed=allow_changed)
    )
    running = _Run(
        opened,
        letter,
        sender,
        recipients,
        total=total,
        windows=windows,
        stop=stop or asyncio.Event(),
        resend_unknown=resend_unknown,
        retry_rejected=retry_rejected,
        give_up_after=give_up_after,
        on_progress=on_progress,
    )
    try:
        await running.send_all(mailer)
    finally:
        await opened.aclose()
    return Report(opened, running.progress(), running.stopped)


async def _opened(opening: Coroutine[t.Any, t.Any, Journal]) -> Journal:
    """Wait for a thread to open a journal. Whoever is cancelled meanwhile leaves none open."""
    task = asyncio.create_task(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_abandon)
        raise


def _abandon(opening: asyncio.Task[Journal]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abandon()


class _Run:
    """The two ends of send_many: what it pulls messages from, and what takes its results."""

    def __init__(
        self,
        journal: Journal,
        letter: Letter,
        sender: Address,
        recipients: Recipients,
        *,
        total: int | None,
        windows: Windows | None,
        stop: asyncio.Event,
        resend_unknown: bool,
        retry_rejected: bool,
        give_up_after: int,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self.stopped: str | None = None
        self._journal = journal
        self._letter = letter
        self._sender = sender
        self._rows = iter(recipients)
        self._total = total
        self._windows = windows
        self._stop = stop
        self._resend_unknown = resend_unknown
        self._retry_rejected = retry_rejected
        self._give_up_after = give_up_after
        self._on_progress = on_progress
        self._met = 0
        self._settled = 0
        self._under_way = 0
        self._in_vain = 0
        self._ready: Addressed | None = None
        self._speed = Speed()

    async def send_all(self, mailer: Mailer) -> None:
        """Send until there is nobody left or this is stopped."""
        at_once: int = getattr(mailer.transport, "concurrency", _CONCURRENCY)
        self._speed.note(time.monotonic(), 0)
        sending = mailer.send_many(self._messages(at_once), concurrency=at_once)
        with contextlib.closing(self._rows):
            async with contextlib.aclosing(sending) as results:
                async for result in results:
                    self._take(result)

    def progress(self) -> Progress:
        """Return where this is."""
        now, counts = time.monotonic(), self._journal.counts
        pace = self._speed.per_second(now, self._settled)
        left = None if self._total is None else max(0, self._total - self._met) + self._under_way
        return Progress(
            total=self._total,
            rows=self._met,
            accepted=counts["accepted"],
            rejected=counts["rejected"],
            not_sent=counts["not_sent"],
            unknown=counts["unknown"] + counts["begin"] - self._under_way,
            under_way=self._under_way,
            invalid=self._journal.skipped["invalid"] + counts["invalid"],
            duplicates=self._journal.skipped["duplicate"],
            per_second=pace,
            seconds_left=left / pace if left is not None and pace else None,
        )

    # What send_many pulls from.

    async def _messages(self, at_once: int) -> AsyncGenerator[Addressed, None]:
        """Yield messages whose begin is on disk: one fsync for as many as are sent at once."""
        begun: deque[Addressed] = deque()
        try:
            while batch := await self._batch(at_once):
                begun.extend(batch)
                await self._journal.durable()
                while begun and not self._is_over():
                    yield begun.popleft()
        finally:
            for message in begun:
                self._under_way -= 1
                self._settle(message, "not_sent", STOPPED)

    async def _batch(self, most: int) -> list[Addressed]:
        """Begin with so many messages, or as many as the rate allows now; none at the end."""
        batch: list[Addressed] = []
        while len(batch) < most and not self._is_over():
            if self._ready is None:
                self._ready = await self._next_message()
            if self._ready is None or not await self._is_its_turn(wait=not batch):
                break
            self._journal.begin(*_named(self._ready))
            self._under_way += 1
            batch.append(self._ready)
            self._ready = None
        return batch

    def _is_over(self) -> bool:
        if self._stop.is_set() and self.stopped is None:
            self.stopped = "it was interrupted"
        return self.stopped is not None

    async def _is_its_turn(self, *, wait: bool) -> bool:
        """Take a place in the rate. Where there is none, wait for it, but not for a stop."""
        if self._windows is None:
            return True
        while (now := time.monotonic()) < (opens_at := self._windows.opens_at()):
            if not wait:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), opens_at - now)
            if self._is_over():
                return False
        self._windows.take(now)
        return True

    async def _next_message(self) -> Addressed | None:
        """Return the message of the next row that is to get one, None when there is none."""
        for row in self._rows:
            self._met += 1
            if self._met % _ROWS_AT_ONCE == 0:
                await self._let_others_run()
                if self._is_over():
                    self._met -= 1
                    return None
            if isinstance(row, BadRow):
                self._journal.skip(row.line, "invalid", None, row.error)
            elif (message := self._message_of(row)) is not None:
                await asyncio.sleep(0)  # rendering takes a while
                return message
        return None

    async def _let_others_run(self) -> None:
        await asyncio.sleep(0)
        await self._journal.durable()
        self._tell()

    def _message_of(self, recipient: Recipient) -> Addressed | None:
        mailbox = recipient.mailbox
        key = key_of(mailbox)
        if self._journal.see(key):
            self._journal.skip(recipient.line, "duplicate", mailbox, "is in the list before")
            return None
        state = self._journal.state(key)
        if not self._is_wanted(state):
            return None
        is_again = state in {"begin", "unknown"}
        date = int(self._journal.entry(key)["date"] if is_again else time.time())
        message_id = self._journal.message_id(mailbox, self._sender.ascii_domain)
        try:
            message = self._letter.message_for(
                recipient, sender=self._sender, message_id=message_id, date=date
            )
        except MessageError as error:
            self._journal.skip(recipient.line, "invalid", mailbox, str(error))
            return None
        message.was_unknown = is_again
        return message

    def _is_wanted(self, state: State | None) -> bool:
        match state:
            case "accepted":
                return False
            case "rejected":
                return self._retry_rejected
            case "begin" | "unknown":
                return self._resend_unknown
        return True

    # What takes the results.

    def _take(self, result: Result) -> None:
        message = t.cast("Addressed", result.message)
        self._under_way -= 1
        self._settled += 1
        if result.receipt is not None:
            state, details = _of_receipt(result.receipt)
        else:
            state, details = _of_error(t.cast("MailError", result.error))
        self._settle(message, state, details)
        self._count_in_vain(result.error)
        self._speed.note(time.monotonic(), self._settled)
        self._tell()

    def _settle(self, message: Addressed, state: State, details: Mapping[str, object]) -> None:
        if message.was_unknown and state != "accepted":
            state = "unknown"  # what became of the copy before it is not known any better
        self._journal.settle(*_named(message), state, details)

    def _count_in_vain(self, error: MailError | None) -> None:
        """Give up where a server cannot be had: the rest of the list would fail within moments."""
        if not isinstance(error, NotSent) or isinstance(error, Vetoed | MessageError):
            self._in_vain = 0
            return
        self._in_vain += 1
        if self.stopped is not None:
            return
        if isinstance(error, AuthenticationError) and not error.retryable:
            self.stopped = f"the credentials were refused: {error}"
        elif self._in_vain >= self._give_up_after:
            self.stopped = f"{self._in_vain} messages in a row were not sent: {error}"

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.progress())


def _default_sender(mailer: Mailer) -> Address:
    if mailer.default_sender is None:
        raise ConfigError("sender: is missing; give the letter one, or the mailer a default_sender")
    return Address.of(mailer.default_sender, field="default_sender")


def _named(message: Addressed) -> tuple[str, str, int]:
    """Return what the journal calls a message."""
    return message.recipient.mailbox, str(message.message_id), int(t.cast("float", message.date))


def _of_receipt(receipt: Receipt) -> tuple[State, dict[str, object]]:
    return "accepted", {"relay": receipt.relay, "queue_id": receipt.queue_id}


def _of_error(error: MailError) -> tuple[State, dict[str, object]]:
    """Return what an error says became of a message, and why."""
    text = str(error)[:_LONGEST_TEXT]
    kind = type(error).__name__
    if not isinstance(error, SendError):
        return "invalid", {"kind": kind, "error": text}
    refused = list(getattr(error, "refused", {}).values())
    reply = error.reply or (refused[0] if refused else None)
    code = None if reply is None else " ".join(filter(None, (str(reply.code), reply.enhanced)))
    return error.outcome, {
        "relay": error.relay,
        "stage": error.stage,
        "kind": kind,
        "code": code,
        "reply": None if reply is None else str(reply),
        "error": text,
    }
