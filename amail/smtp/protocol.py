"""Drives transactions over a transport: bytes in, bytes out, back-pressure, one timer.

Transactions stand in a queue, in the order of their octets on the wire; replies are those to the
first. Invariant: of all but the last one the content is written; at most ``depth`` have octets of
theirs on the wire and no reply; and each ends with an outcome, whatever the transport does. The
protocol never closes or aborts its transport; ``usable`` says whether a transaction may begin, and
``can_follow`` whether one may while replies are on their way. Who waits may leave when the last
octet was written: the reply may still come, and ``unsettled`` is done when it has, or cannot any
more.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import typing as t
from collections import deque
from dataclasses import dataclass

from amail.errors import InvalidAttachment, MailError
from amail.smtp.commands import DOT, QUIT
from amail.smtp.replies import MalformedReply, ReplyReader
from amail.smtp.stuffing import as_it_is, checked, dot_stuffed, stuffed

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from amail.smtp.trace import Trace
    from amail.smtp.transaction import Transaction

_logger = logging.getLogger("amail.smtp")

SMALL = 64 * 1024
"""Content up to that many octets goes out in one write, the dot with it."""

_TURN = 256 * 1024
"""Octets written before other tasks of the loop have their turn."""

FRESH_SECONDS = 1.0
"""That long after its last octet a server is believed to be there without having been asked."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds without progress after which a stage has failed (RFC 5321, section 4.5.3.2)."""

    command: float
    data: float
    final: float


class Deadlines(t.NamedTuple):
    """Readings of the loop's clock: until the last octet is written, and until the reply came.

    ``seconds`` away they were, to be counted anew where the session is not free yet; 0: they are
    fixed.
    """

    content: float = float("inf")
    reply: float = float("inf")
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
    final_until: float = 0.0  # that long the final reply is waited for, whoever has left
    is_left: bool = False  # by who waited

    def wake(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    @property
    def is_written(self) -> bool:
        return self.transaction.last_octet_written

    @property
    def until(self) -> float:
        """Until when somebody waits for its turn, or for its reply."""
        return self.deadlines.reply if self.is_written else self.deadlines.of_waiting


class SMTPProtocol(asyncio.Protocol):
    """The protocol of an open session: greeted, encrypted and authenticated.

    ``transport`` is given here because ``connection_made`` was called on its former protocol.
    ``depth``: of how many transactions the content may be on the wire at once.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        waits: Waits,
        depth: int = 1,
        trace: Trace | None = None,
    ) -> None:
        self._transport = transport
        self._waits = waits
        self._depth = depth
        self._most = max(depth, 2)  # one envelope may follow where no content may
        self._trace = trace
        self._loop = asyncio.get_running_loop()
        # The timer outlives the caller that set it; what its context holds shall not live on.
        self._context = contextvars.Context()
        self._reader = ReplyReader()
        self._runs: deque[_Run] = deque()
        self._forsaken = False  # an envelope was written that nobody will send the content of
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._chunks: Iterator[bytes] | None = None
        self._written = 0  # octets of the content, before dot-stuffing
        self._kept_back = b""  # the last octets of what is counted
        self._unsent = 0  # octets that waited in the transport when last looked at
        self._held: list[bytes] = []  # to be written with what is said next, or a moment later
        self._paused = False
        self._broken = False
        self._heard_at = self._loop.time()
        self._late: list[Transaction] = []  # those that ended when who waited had left
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
        """True while a transaction can begin behind those that wait for their last reply."""
        runs = self._runs
        return (
            bool(runs)
            and runs[-1].is_written
            and len(runs) < self._most
            and not self._forsaken
            and self.usable
        )

    @property
    def awaits_reply(self) -> bool:
        """True while the reply to some last octet may come, whoever waits for it."""
        return bool(self._runs) and self._runs[0].is_written and self.is_alive

    @property
    def is_fresh(self) -> bool:
        """True while the server has just been heard of."""
        return self._loop.time() - self._heard_at <= FRESH_SECONDS

    async def run(
        self,
        transaction: Transaction,
        deadlines: Deadlines,
        on_written: Callable[[], None] | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """Drive a transaction until it has its outcome, or the caller's time is over.

        ``on_written`` is called when its last octet is: another one may follow; and again, once one
        may, where as many as may be were on their way. ``at_once`` allows the content to go out
        with the envelope, where it fits and the server has just been heard of. When this is
        cancelled, or returns without an outcome, the transaction is left as it stands. Either the
        protocol is not usable any more, or the final reply may still come: then there is
        ``unsettled``.
        """
        run = _Run(transaction, deadlines, self._loop.create_future(), on_written)
        if not (self.can_follow if self._runs else self.usable):
            transaction.lost()
            return
        at_once = at_once and len(self._runs) < self._depth and self.is_fresh
        try:
            if at_once and transaction.fits_one_flight:
                content = self._small_content(transaction)
                if content is None:
                    return
                self._runs.append(run)
                self._write_last(run, transaction.begin() + content)
            else:
                self._runs.append(run)
                self._write(transaction.begin())
                self._expect_of(run, self._waits.command)
            await run.done
        finally:
            self._leave(run)

    def settle(self) -> list[Transaction]:
        """Return the transactions whose callers had left. Each has its outcome now."""
        if self.unsettled is None or not self.unsettled.done():
            raise AssertionError("nothing was left behind, or it has no outcome yet")
        self.unsettled = None
        late, self._late = self._late, []
        return late

    def _leave(self, run: _Run) -> None:
        if run not in self._runs:
            return
        is_first = run is self._runs[0]
        if run.is_written and self.is_alive:
            self._wait_without_caller(run)
            return
        self._runs.remove(run)
        self._forsaken = True
        if is_first or not self.is_alive:
            self._chunks = None
            self._broken = True
            self._forsake_others()
            self._tell_settled()

    def _wait_without_caller(self, run: _Run) -> None:
        self._forsake_unwritten()
        run.is_left, run.on_written = True, None
        run.deadlines = Deadlines(run.final_until, run.final_until)
        if self.unsettled is None:
            self.unsettled = self._loop.create_future()
        self._expect_of(run, run.final_until - self._loop.time())

    def _forsake_unwritten(self) -> None:
        """End one that has its envelope written and can have no turn. Nothing of it was sent."""
        if len(self._runs) > 1 and not self._runs[-1].is_written:
            self._forsake(self._runs.pop())

    def _forsake_others(self) -> None:
        """End those whose replies will not be believed."""
        while self._runs:
            self._forsake(self._runs.popleft())

    def _forsake(self, run: _Run) -> None:
        self._forsaken = True
        if run.transaction.outcome is None:
            run.transaction.lost()
        self._hand_over(run)

    def _hand_over(self, run: _Run) -> None:
        """Have who waits look at the outcome, or keep it for who will ask."""
        if run.is_left:
            self._late.append(run.transaction)
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
        self._heard_at = self._loop.time()
        if self._trace is not None:
            self._trace.received(data)
        malformed = None
        try:
            replies = self._reader.feed(data)
        except MalformedReply as error:
            self._broken = True
            replies, malformed = error.replies, str(error)
        if self._reader.untidy:
            self._reader.untidy = False
            _logger.debug("a reply without CR at its end, or a space behind its code, was taken")
        left = len(replies)
        if malformed is not None or self._reader.pending:
            left += 1
        for code, raw in replies:
            if not self._runs:
                self._broken = True
                return
            left -= 1
            self._receive(self._runs[0], code, raw, is_last=not left)
        if malformed is not None:
            self._malformed(malformed)
        elif left and not self._runs:
            self._broken = True

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

    def _receive(self, run: _Run, code: int, raw: bytes, *, is_last: bool) -> None:
        transaction = run.transaction
        octets = transaction.receive(code, raw)
        if transaction.outcome is not None:
            self._conclude()
        elif transaction.last_octet_written:
            pass  # the envelope's replies; it is the last one that is waited for
        elif not is_last:
            if octets or transaction.stage == "body":
                # A reply that came before its command was written is the reply to something else.
                self._malformed("there are more replies than commands")
        elif transaction.stage == "body":
            self._begin_content(run)
        else:
            if octets:
                self._write(octets)
            self._expect(self._waits.data if transaction.stage == "data" else self._waits.command)

    def _conclude(self) -> None:
        """Wake the one who waits. Then it is the turn of the next one."""
        was_full = len(self._runs) == self._most
        run = self._runs.popleft()
        self._chunks = None
        self.left_open = run.transaction.left_open
        if not run.transaction.in_step or (self._forsaken and not self._runs):
            self._broken = True
        self._hand_over(run)
        if self._broken:
            self._forsake_others()
        elif self._runs:
            self._begin_turn(self._runs[0])
            last = self._runs[-1]
            if was_full and last.on_written is not None and self.can_follow:
                last.on_written()  # when it was written there was no room for another one
        self._tell_settled()

    def _tell_settled(self) -> None:
        """Say so when none is left that nobody waits for."""
        unsettled = self.unsettled
        if unsettled is None or unsettled.done() or any(each.is_left for each in self._runs):
            return
        unsettled.set_result(None)

    def _begin_turn(self, run: _Run) -> None:
        now = self._loop.time()
        if run.is_written:
            self._expect(run.final_until - now)
        else:
            run.deadlines = run.deadlines.counted_from(now)
            self._expect(self._waits.command)

    def _malformed(self, reason: str) -> None:
        self._broken = True
        if self._runs:
            self._runs[0].transaction.malformed(reason)
            self._conclude()

    def _begin_content(self, run: _Run) -> None:
        transaction = run.transaction
        if len(transaction.content) > SMALL:
            self._written = 0
            looked_at = as_it_is if transaction.is_chunked else dot_stuffed
            self._chunks = looked_at(self._counted(transaction.content.chunks()))
            self._expect(self._waits.data)
            if transaction.content_command:
                self._write(transaction.content_command)
            self._send_content()
            return
        octets = self._small_content(transaction)
        if octets is None:
            self._broken = True
            self._conclude()
        else:
            self._write_last(run, octets)

    def _small_content(self, transaction: Transaction) -> bytes | None:
        """Return the content as it goes out in one write; None where that ends the transaction."""
        try:
            octets = b"".join(transaction.content.chunks())
            if transaction.is_chunked:
                wire = transaction.content_command + checked(octets)
            else:
                wire = stuffed(octets) + DOT
        except Exception as error:  # noqa: BLE001 - whatever the source raises, the dot is not sent
            _content_failed(transaction, error)
            return None
        if len(octets) != len(transaction.content):
            _content_failed(transaction)
            return None
        return wire

    def _send_content(self) -> None:
        """Write chunks as long as the transport takes them, then the dot as a write of its own.

        BDAT has no dot: there the last chunk waits until it is known that none comes after it.
        """
        chunks = self._chunks
        if chunks is None or not self._runs:
            return
        run = self._runs[0]
        until = self._written + _TURN
        while not self._paused and self._written < until:
            try:
                chunk = next(chunks, None)
            except Exception as error:  # noqa: BLE001 - whatever the source raises, the dot is not sent
                self._fail_content(run, error)
                return
            if chunk is None or self._written > len(run.transaction.content):
                self._end_content(run)
                return
            if run.transaction.is_chunked:
                self._kept_back, chunk = chunk, self._kept_back
            self._write(chunk)
        self._unsent = self._transport.get_write_buffer_size()
        self._expect(self._waits.data)
        if not self._paused:
            self._loop.call_soon(self._send_content)

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._written += len(chunk)
            yield chunk

    def _end_content(self, run: _Run) -> None:
        if self._written != len(run.transaction.content):
            self._fail_content(run)
            return
        self._chunks = None
        last = DOT
        if run.transaction.is_chunked:
            last, self._kept_back = self._kept_back, b""
        self._write_last(run, last)

    def _write_last(self, run: _Run, octets: bytes) -> None:
        run.transaction.content_written()
        run.final_until = self._loop.time() + self._waits.final
        self._expect_of(run, self._waits.final)
        if run.on_written is None:
            self._write(octets)
            return
        # Who follows has its turn before the write is made, and says its envelope in the same one.
        self._held.append(octets)
        run.on_written()
        self._loop.call_soon(self._write_held)

    def _fail_content(self, run: _Run, cause: Exception | None = None) -> None:
        _content_failed(run.transaction, cause)
        self._broken = True
        self._conclude()

    def _end(self) -> None:
        self.connected = False
        if self._runs:
            self._runs[0].transaction.lost(self._reader.pending)
            self._broken = True
            self._conclude()

    def _write(self, octets: bytes) -> None:
        if self._held:
            octets = b"".join([*self._held, octets])
            self._held.clear()
        if self._trace is not None:
            self._trace.sent(octets)
        self._transport.write(octets)

    def _write_held(self) -> None:
        if self._held and not self._transport.is_closing():
            self._write(b"")

    # The timer. It is only ever set anew for an earlier deadline; for a later one it finds out when
    # it fires, which is far cheaper than a timer for each reply.

    def _expect_of(self, run: _Run, seconds: float) -> None:
        """Something is to happen with it within that time, if it is its turn."""
        if run is self._runs[0]:
            self._expect(seconds)
        else:
            self._arm(run.until)

    def _expect(self, seconds: float) -> None:
        """Something is to happen with the first one within that time."""
        if self._runs:
            run = self._runs[0]
            limit = run.deadlines.reply if run.is_written else run.deadlines.content
            self._deadline = min(self._loop.time() + seconds, limit)
            self._arm(self._deadline)

    def _arm(self, due: float) -> None:
        if due == float("inf"):
            return
        if self._timer is None or self._timer_due > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._on_timer, context=self._context)
            self._timer_due = due  # uvloop's handles do not tell

    def _on_timer(self) -> None:
        self._timer = None
        self._end_others_waits()
        if not self._runs:
            return
        run, now = self._runs[0], self._loop.time()
        if now < self._deadline or self._body_moves(run):
            self._arm(min(self._deadline, *[each.until for each in self._runs]))
            return
        if run.is_written and not run.is_left and now < run.final_until:
            run.wake()  # it is the caller's time only that is over
            return
        run.transaction.timed_out()
        self._broken = True
        self._conclude()

    def _end_others_waits(self) -> None:
        """Wake those behind the first one whose time is over."""
        now = self._loop.time()
        for run in list(self._runs)[1:]:
            if now < run.until or run.is_left:
                continue
            if run.is_written:
                run.wake()
            else:
                run.transaction.timed_out()
                self._forsake_unwritten()

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


def _content_failed(transaction: Transaction, cause: Exception | None = None) -> None:
    """End a transaction whose content cannot be read as it was announced."""
    if isinstance(cause, MailError):
        error: MailError = cause
    else:
        error = InvalidAttachment("the content could not be read as it was announced")
        error.__cause__ = cause
    transaction.content_failed(error)
