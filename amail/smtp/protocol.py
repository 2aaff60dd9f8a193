"""Drives transactions over a transport: bytes in, bytes out, back-pressure, one timer.

Invariant: at most one transaction at a time has octets of its content on the wire and no reply, and
each ends with an outcome, whatever the transport does. The protocol never closes or aborts its
transport; ``usable`` says whether another transaction may begin, and ``can_follow`` whether one may
say its envelope while the reply to the last octet of the one before is on its way. Who waits may
leave when the last octet was written: the reply may still come, and ``unsettled`` is done when it
has, or cannot any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import typing as t
from dataclasses import dataclass

from amail.errors import InvalidAttachment, MailError
from amail.smtp.commands import DOT, QUIT
from amail.smtp.replies import MalformedReply, ReplyReader
from amail.smtp.stuffing import dot_stuffed

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from amail.smtp.transaction import Transaction

_logger = logging.getLogger("amail.smtp")

SMALL = 64 * 1024
"""Content up to that many octets goes out in one write, the dot with it."""

_TURN = 256 * 1024
"""Octets written before other tasks of the loop have their turn."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds without progress after which a stage has failed (RFC 5321, section 4.5.3.2)."""

    command: float
    data: float
    final: float


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Readings of the loop's clock: until the last octet is written, and until the reply came.

    ``seconds`` away they were, to be counted anew where the session is not free yet; 0: they are
    fixed.
    """

    content: float
    reply: float
    seconds: float = 0.0

    def counted_from(self, now: float) -> Deadlines:
        """Return those of a transaction whose turn it is now."""
        if not self.seconds:
            return self
        content = now + self.seconds
        return Deadlines(content, max(content, self.reply), self.seconds)

    @property
    def of_waiting(self) -> float:
        """Until when one may wait for its turn."""
        return float("inf") if self.seconds else self.content


@dataclass(slots=True, eq=False)
class _Run:
    """A transaction and who waits for it."""

    transaction: Transaction
    deadlines: Deadlines
    done: asyncio.Future[None]
    on_written: Callable[[], None] | None = None

    def wake(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class SMTPProtocol(asyncio.Protocol):
    """The protocol of an open session: greeted, encrypted and authenticated.

    ``transport`` is given here because ``connection_made`` was called on its former protocol.
    """

    def __init__(self, transport: asyncio.Transport, waits: Waits) -> None:
        self._transport = transport
        self._waits = waits
        self._loop = asyncio.get_running_loop()
        # The timer outlives the caller that set it; what its context holds shall not live on.
        self._context = contextvars.Context()
        self._reader = ReplyReader()
        self._run: _Run | None = None
        self._next: _Run | None = None
        self._forsaken = False  # an envelope was written that nobody will send the content of
        self._deadline = 0.0
        self._final_until = 0.0  # that long the final reply is waited for, whoever has left
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._chunks: Iterator[bytes] | None = None
        self._written = 0  # octets of the content, before dot-stuffing
        self._unsent = 0  # octets that waited in the transport when last looked at
        self._paused = False
        self._broken = False
        self.unsettled: asyncio.Future[None] | None = None
        self.left_open = False  # the last transaction to end left an envelope behind
        self.connected = True
        self.lost: asyncio.Future[None] = self._loop.create_future()

    @property
    def usable(self) -> bool:
        """True while a transaction can begin: connected, in step, nothing unasked received."""
        return self.is_alive and self.unsettled is None

    @property
    def is_alive(self) -> bool:
        """True while replies may come that can be believed."""
        return self.connected and not self._broken and not self._transport.is_closing()

    @property
    def can_follow(self) -> bool:
        """True while an envelope can be written behind the last octet of a transaction."""
        run = self._run
        return (
            run is not None
            and run.transaction.last_octet_written
            and run.transaction.outcome is None
            and self._next is None
            and not self._forsaken
            and self.usable
        )

    @property
    def awaits_reply(self) -> bool:
        """True while the reply to some last octet may come, whoever waits for it."""
        run = self._run
        if run is None or run.transaction.outcome is not None:
            return False
        return run.transaction.last_octet_written and self.is_alive

    async def run(
        self,
        transaction: Transaction,
        deadlines: Deadlines,
        on_written: Callable[[], None] | None = None,
    ) -> None:
        """Drive a transaction until it has its outcome, or the caller's time is over.

        ``on_written`` is called when its last octet is: another one may follow. When this is
        cancelled, or returns without an outcome, the transaction is left as it stands. Either the
        protocol is not usable any more, or the final reply may still come: then there is
        ``unsettled``.
        """
        run = _Run(transaction, deadlines, self._loop.create_future(), on_written)
        try:
            if self.can_follow:
                self._next = run
                self._write(transaction.begin())
                self._arm()
            elif self._is_free() and self.usable:
                self._run = run
                self._write(transaction.begin())
                self._expect(self._waits.command)
            else:
                transaction.lost()
                return
            await run.done
        finally:
            self._leave(run)

    def settle(self) -> Transaction:
        """Return the transaction whose caller had left. It has its outcome now."""
        run = self._run
        if run is None or self.unsettled is None:
            raise AssertionError("nothing was left behind")
        self.unsettled = None
        self._end_run(run)
        return run.transaction

    def _is_free(self) -> bool:
        """Tell whether there is no transaction, or only one that has its outcome."""
        if self._run is not None and self._run.transaction.outcome is not None:
            self._end_run(self._run)
        return self._run is None

    def _leave(self, run: _Run) -> None:
        transaction = run.transaction
        if run is self._next:
            self._next, self._forsaken = None, True
        elif run is not self._run:
            return
        elif transaction.outcome is None and transaction.last_octet_written and self.is_alive:
            self._wait_without_caller(run)
        else:
            self._end_run(run)

    def _wait_without_caller(self, run: _Run) -> None:
        self._forsake_next()
        run.on_written = None
        self.unsettled = run.done = self._loop.create_future()
        run.deadlines = Deadlines(self._final_until, self._final_until)
        self._expect(self._final_until - self._loop.time())

    def _end_run(self, run: _Run) -> None:
        transaction = run.transaction
        is_whole = transaction.outcome is not None and transaction.in_step
        if not is_whole or self._reader.pending or self._forsaken:
            self._broken = True
        self._run = self._chunks = None
        self._forsake_next()

    def _forsake_next(self) -> None:
        """End one that has its envelope written and can have no turn. Nothing of it was sent."""
        if self._next is not None:
            run, self._next, self._forsaken = self._next, None, True
            if run.transaction.outcome is None:
                run.transaction.lost()
            run.wake()

    async def quit(self) -> None:
        """Say QUIT and wait until the server has closed, or anything else ends the connection."""
        self._broken = True
        if self.connected:
            self._write(QUIT)
            await asyncio.shield(self.lost)

    def stop(self) -> None:
        """Let go of the timer: nothing will be waited for any more."""
        self._broken = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        """Hand replies to the transaction. What comes unasked makes the session unusable."""
        malformed = None
        try:
            replies = self._reader.feed(data)
        except MalformedReply as error:
            self._broken = True
            replies, malformed = error.replies, str(error)
        if self._reader.untidy:
            self._reader.untidy = False
            _logger.debug("a reply without CR at its end, or a space behind its code, was taken")
        last = len(replies) - 1
        for position, (code, raw) in enumerate(replies):
            if self._run is None or self._run.transaction.outcome is not None:
                self._broken = True
                return
            is_last = position == last and malformed is None and not self._reader.pending
            self._receive(self._run.transaction, code, raw, is_last)
        if malformed is not None:
            self._malformed(malformed)

    def eof_received(self) -> None:
        """End what is under way: no reply can come any more. The transport closes itself."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way."""
        self._end()
        self.stop()
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        """Stop reading the content: the transport's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on: the transport's buffer has room."""
        self._paused = False
        self._send_content()

    # Transaction

    def _receive(self, transaction: Transaction, code: int, raw: bytes, is_last: bool) -> None:
        octets = transaction.receive(code, raw)
        if transaction.outcome is not None:
            self._conclude()
        elif not is_last and (octets or transaction.stage == "body"):
            # A reply that came before its command was written is the reply to something else.
            self._malformed("there are more replies than commands")
        elif transaction.stage == "body":
            self._begin_content(transaction)
        else:
            if octets:
                self._write(octets)
            self._expect(self._waits.data if transaction.stage == "data" else self._waits.command)

    def _conclude(self) -> None:
        """Wake the one who waits. Then it is the turn of the one whose envelope was written."""
        run, following = self._run, self._next
        if run is None:
            return
        self.left_open = run.transaction.left_open
        run.wake()
        if following is None or self.unsettled is not None or not run.transaction.in_step:
            self._forsake_next()
            return
        self._run, self._next = following, None
        following.deadlines = following.deadlines.counted_from(self._loop.time())
        self._expect(self._waits.command)

    def _malformed(self, reason: str) -> None:
        self._broken = True
        if self._run is not None and self._run.transaction.outcome is None:
            self._run.transaction.malformed(reason)
            self._conclude()

    def _begin_content(self, transaction: Transaction) -> None:
        content = transaction.content
        self._written = 0
        if len(content) > SMALL:
            self._chunks = dot_stuffed(self._counted(content.chunks()))
            self._expect(self._waits.data)
            self._send_content()
            return
        try:
            octets = b"".join(content.chunks())
            wire = b"".join(dot_stuffed([octets]))
        except Exception as error:  # noqa: BLE001 - whatever the source raises, the dot is not sent
            self._content_failed(transaction, error)
            return
        if len(octets) != len(content):
            self._content_failed(transaction)
            return
        self._write_last(transaction, wire + DOT)

    def _send_content(self) -> None:
        """Write chunks as long as the transport takes them, then the dot as a write of its own."""
        run, chunks = self._run, self._chunks
        if run is None or chunks is None or run.transaction.outcome is not None:
            return
        transaction = run.transaction
        until = self._written + _TURN
        while not self._paused and self._written < until:
            try:
                chunk = next(chunks, None)
            except Exception as error:  # noqa: BLE001 - whatever the source raises, the dot is not sent
                self._content_failed(transaction, error)
                return
            if chunk is None:
                self._end_content(transaction)
                return
            self._write(chunk)
        self._unsent = self._transport.get_write_buffer_size()
        self._expect(self._waits.data)
        if not self._paused:
            self._loop.call_soon(self._send_content)

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._written += len(chunk)
            yield chunk

    def _end_content(self, transaction: Transaction) -> None:
        if self._written != len(transaction.content):
            self._content_failed(transaction)
            return
        self._chunks = None
        self._write_last(transaction, DOT)

    def _write_last(self, transaction: Transaction, octets: bytes) -> None:
        transaction.content_written()
        self._write(octets)
        self._final_until = self._loop.time() + self._waits.final
        self._expect(self._waits.final)
        if self._run is not None and self._run.on_written is not None:
            self._run.on_written()

    def _content_failed(self, transaction: Transaction, cause: Exception | None = None) -> None:
        if isinstance(cause, MailError):
            error: MailError = cause
        else:
            error = InvalidAttachment("the content could not be read as it was announced")
            error.__cause__ = cause
        transaction.content_failed(error)
        self._broken = True
        self._conclude()

    def _end(self) -> None:
        self.connected = False
        if self._run is not None and self._run.transaction.outcome is None:
            self._run.transaction.lost(self._reader.pending)
            self._conclude()

    def _write(self, octets: bytes) -> None:
        self._transport.write(octets)

    # The timer. It is only ever set anew for an earlier deadline; for a later one it finds out when
    # it fires, which is far cheaper than a timer for each reply.

    def _expect(self, seconds: float) -> None:
        """Something is to happen within that time."""
        run = self._run
        if run is None:
            return
        is_written = run.transaction.last_octet_written
        limit = run.deadlines.reply if is_written else run.deadlines.content
        self._deadline = min(self._loop.time() + seconds, limit)
        self._arm()

    def _arm(self) -> None:
        due = self._deadline
        if self._next is not None:
            due = min(due, self._next.deadlines.of_waiting)
        if self._timer is None or self._timer_due > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._on_timer, context=self._context)
            self._timer_due = due  # uvloop's handles do not tell

    def _on_timer(self) -> None:
        self._timer = None
        run, now = self._run, self._loop.time()
        if run is None or run.transaction.outcome is not None:
            return
        if self._next is not None and now >= self._next.deadlines.of_waiting:
            self._next.transaction.timed_out()
            self._forsake_next()
        if now < self._deadline or self._body_moves(run):
            self._arm()
            return
        has_caller = run.transaction.last_octet_written and self.unsettled is None
        if has_caller and now < self._final_until:
            run.wake()  # it is the caller's time only that is over
            return
        run.transaction.timed_out()
        self._broken = True
        self._conclude()

    def _body_moves(self, run: _Run) -> bool:
        """Tell whether octets of the content left since this was last asked, and wait on if so."""
        if run.transaction.stage != "body":
            return False
        unsent, self._unsent = self._unsent, self._transport.get_write_buffer_size()
        now = self._loop.time()
        if self._unsent < unsent and now < run.deadlines.content:
            self._deadline = min(now + self._waits.data, run.deadlines.content)
            return True
        return False
