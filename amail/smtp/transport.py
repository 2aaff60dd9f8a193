"""SMTPTransport: leases a session, sends, and decides what may be tried again.

Invariant: a message whose last octet was written is never sent again from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import sys
import time
import typing as t
import warnings
import weakref
from collections import Counter
from dataclasses import replace

from amail.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLost,
    MailerClosed,
    MailError,
    NotSent,
    PoolTimeout,
    ProtocolError,
    SenderRejected,
    SendError,
    SendTimeout,
    ServerBusy,
    TLSError,
    UsageError,
)
from amail.smtp.circuit import Circuit
from amail.smtp.credentials import Refusals
from amail.smtp.manners import Manners
from amail.smtp.pace import Pace
from amail.smtp.parts import Parts, is_due_later
from amail.smtp.pool import Pool
from amail.smtp.protocol import Deadlines
from amail.smtp.session import Session, Way, open_session
from amail.smtp.settings import check_seconds
from amail.smtp.tls import client_context
from amail.text import masked
from amail.transports.base import (
    PoolStats,
    drain_seconds,
    reply_until,
    time_for_all,
    when_written,
)

if t.TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable

    from amail.envelope import Envelope
    from amail.errors import Outcome
    from amail.mime import Content
    from amail.receipt import Receipt
    from amail.smtp.pace import Turn
    from amail.smtp.pool import Slot
    from amail.smtp.settings import SMTPSettings
    from amail.transports.base import OnResolved
    from amail.transports.server_info import Observer, ServerInfo

_logger = logging.getLogger("amail.smtp")

_ATTEMPTS = 2
_JITTER_SECONDS = 0.1
_BUSY_SECONDS = 60.0


class SMTPTransport:
    """Sends over pooled SMTP sessions to one server.

    ``timeout`` is in seconds from the moment a slot is held until the last octet of the content is
    written, all attempts together; the reply to it then has ``settings.final_timeout``, or with
    ``timeout_covers_reply`` what is left of ``timeout``. ``patience``: seconds into an outage,
    which may be a restart, in which those who wait are held back instead of refused.

    Belongs to the loop that first uses it, and to the next one when that is closed.
    """

    def __init__(
        self,
        settings: SMTPSettings,
        *,
        timeout: float = 60.0,
        timeout_covers_reply: bool = False,
        patience: float = 10.0,
    ) -> None:
        check_seconds("timeout", timeout)
        self.settings = settings
        self._timeout = timeout
        self._timeout_covers_reply = timeout_covers_reply
        self._made_at = _caller()
        self._pool: Pool[Session] | None = None
        self._context: ssl.SSLContext | None = None
        self._watcher: AsyncGenerator[None, None] | None = None
        self._finalizer: weakref.finalize[t.Any, t.Any] | None = None
        self._context_loading: asyncio.Future[ssl.SSLContext] | None = None
        # Or a thousand senders dial a server that is down, and lock an account.
        self._server = Circuit(failures=5, seconds=1.0, longest=60.0, patience=patience)
        self._credentials = Circuit(failures=1, seconds=60.0, longest=60.0)
        self._refusals = Refusals()
        self._pace = Pace(settings.max_connections)
        self._manners = Manners(settings)
        self._was_in: tuple[int, int] | None = None  # the process and the loop
        self._outcomes: Counter[Outcome] = Counter()
        self._on_resolved: OnResolved | None = None
        self._reconnects = 0
        self._inherited: list[AsyncGenerator[None, None]] = []

    def __repr__(self) -> str:
        return f"<SMTPTransport to {self.settings.relay}>"

    @property
    def concurrency(self) -> int:
        """How many sends are worth having under way at once."""
        return self.settings.max_connections * self.settings.pipeline_depth

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Send over a session of the pool; see Transport.

        What certainly was not taken is tried once more over a fresh session, if that can help. Whom
        the server finds one recipient too many gets it in a next transaction.
        Raises UsageError from a second running loop.
        """
        began = time.monotonic()
        pool = await self._pool_here()
        limit = None if deadline is None else pool.loop.time() + (deadline - began)
        try:
            receipt = await self._send_part(pool, limit, envelope, content)
            if receipt.refused and any(map(is_due_later, receipt.refused.values())):
                receipt = await self._send_rest(pool, limit, Parts(envelope, receipt), content)
        except MailError as error:
            outcome: Outcome = getattr(error, "outcome", "not_sent")
            self._outcomes[outcome] += 1
            if isinstance(error, SendError) and error.message_id is None:
                error.message_id, error.recipients = content.message_id, envelope.forward_paths
            self._log_failure(error, outcome, content, began)
            raise
        self._outcomes["accepted"] += 1
        self._log_acceptance(receipt, content, began)
        return receipt

    async def verify(self, observe: Observer | None = None) -> ServerInfo:
        """Open a session, all the way, and say what the server said; it stays in the pool.

        ``observe`` is called in the loop at each stage with what is known by then, so that it is
        not lost where a later stage fails. Raises what ``send`` raises where no session can be had,
        within ``timeout``.
        """
        pool = await self._pool_here()
        async with pool.slot() as slot:
            return (await self._open(slot, self._deadlines(None), observe)).info

    def listen(self, on_resolved: OnResolved) -> bool:
        """Have it told, in the loop, what late replies settle."""
        self._on_resolved = on_resolved
        return True

    def stats(self) -> PoolStats:
        """Return the numbers of this process's pool and the outcomes so far."""
        pool = self._pool if self._pool is not None and self._pool.belongs_here else None
        return PoolStats(
            open=pool.open if pool else 0,
            idle=pool.idle if pool else 0,
            leased=pool.leased if pool else 0,
            waiting=pool.waiting if pool else 0,
            accepted=self._outcomes["accepted"],
            rejected=self._outcomes["rejected"],
            not_sent=self._outcomes["not_sent"],
            unknown=self._outcomes["unknown"],
            reconnects=self._reconnects,
        )

    async def aclose(self, drain: float | None = None) -> None:
        """End every session. Idempotent.

        Those in use get ``drain`` seconds to finish: 10, unless ``drain_seconds`` says otherwise.
        """
        drain = drain_seconds.get() if drain is None else drain
        pool = self._pool
        if pool is None:
            return
        if not pool.belongs_here or pool.loop.is_closed():
            self._forget(pool)
            return
        if pool.loop is not asyncio.get_running_loop():
            raise UsageError(
                "this mailer belongs to another event loop, which is still running; close it there"
            )
        watcher = self._watcher
        self._let_go()
        try:
            await pool.aclose(drain)
        finally:
            self._pace.end()
            pool.drop()
            if watcher is not None:
                await watcher.aclose()

    # One message

    async def _send_part(
        self,
        pool: Pool[Session],
        limit: float | None,
        envelope: Envelope,
        content: Content,
        earlier: Parts | None = None,
    ) -> Receipt:
        """Send to the recipients of one transaction, over whatever session becomes free."""
        slot, way = pool.slot(limit, shares=when_written.get() is not None), Way()
        try:
            async with slot:
                return await self._send(slot, envelope, content, way)
        except MailError:
            raise
        except BaseException as error:
            fate = way.fate
            if earlier is not None:
                error.add_note(f"{content.message_id}: {earlier}")
                fate = "accepted" if fate == "not_sent" else fate
            self._outcomes[fate] += 1
            raise

    async def _send_rest(
        self, pool: Pool[Session], limit: float | None, parts: Parts, content: Content
    ) -> Receipt:
        """Send to those the server would not take in one transaction with the others."""
        while (part := parts.next()) is not None:
            try:
                parts.took(await self._send_part(pool, limit, part, content, parts))
            except MailError as error:
                parts.failed(part, error)
        return parts.receipt()

    async def _send(
        self, slot: Slot[Session], envelope: Envelope, content: Content, way: Way
    ) -> Receipt:
        way.deadlines = self._deadlines_in(slot)
        attempts = 1
        session = slot.take_idle()
        while True:
            reused, shared = session is not None, slot.is_shared
            try:
                receipt = await self._send_at_its_pace(slot, envelope, content, way)
            except NotSent as error:
                if _too_many(error) and await slot.exchange(_BUSY_SECONDS):
                    _logger.info("%s takes no further session; one fewer now", self.settings.relay)
                    way.deadlines = self._deadlines_in(slot)
                    session = slot.take_idle()
                    continue
                if reused and _was_stale(error):
                    # The most ordinary fault of a pool: the server had hung up in the meantime.
                    self._reconnects += 1
                elif attempts < _ATTEMPTS and _may_help_at_once(error):
                    attempts += 1
                    was_pipelined = slot.session is not None and slot.session.is_pipelined
                    way.is_careful = was_pipelined and _may_be_about_groups(error)
                    await _pause(way.deadlines)
                else:
                    raise
                if shared:  # only now it is its own turn
                    way.deadlines = self._deadlines_in(slot)
                if asyncio.get_running_loop().time() >= way.deadlines.content:
                    raise
            else:
                if way.is_careful:
                    self._manners.forgo_pipelining()
                return receipt if attempts == 1 else replace(receipt, attempts=attempts)
            slot.drop()
            session = None

    async def _send_at_its_pace(
        self, slot: Slot[Session], envelope: Envelope, content: Content, way: Way
    ) -> Receipt:
        """Send over the slot's session or a new one, again where the server asks to slow down."""
        with self._pace.turn() as turn:
            if (tell := when_written.get()) is not None:
                way.on_written = functools.partial(self._written, slot, turn, tell)
            while True:
                # Never the turn before the slot: who has the slot may wait for the turn.
                await slot.hold()
                if not turn.enter_at_once():
                    await self._enter(turn, way.deadlines)
                is_fresh = slot.session is None
                try:
                    session = slot.session or await self._open(slot, way.deadlines)
                    receipt = await session.send(envelope, content, way)
                except (SenderRejected, ServerBusy) as error:
                    # A 421 on a session that was used before may be about that one alone.
                    is_told = _asks_to_slow_down(error) and (is_fresh or slot.holds_reusable)
                    if not is_told or not turn.was_told_to_slow_down(
                        way.deadlines.content, others_wait=slot.others_wait
                    ):
                        raise
                    _logger.info("%s asks to slow down: %s", self.settings.relay, error.reply)
                    slot.be_patient_until(self._pace.until)
                    slot.recall()
                else:
                    turn.was_accepted()
                    return receipt
                finally:
                    turn.leave()
                if not slot.holds_reusable:
                    slot.drop()

    def _written(self, slot: Slot[Session], turn: Turn, tell: Callable[[], None]) -> None:
        """Let the next one begin, there being nothing left to do for this one but to wait."""
        turn.leave()
        session = slot.session
        if session is not None and session.can_follow and session.reusable:
            slot.offer()
        tell()

    async def _enter(self, turn: Turn, deadlines: Deadlines) -> None:
        try:
            await turn.enter(deadlines.content)
        except TimeoutError:
            relay = self.settings.relay
            text = f"{relay} asked to slow down; the deadline passed before this message's turn"
            raise SendTimeout(text, stage="mail", retryable=True, relay=relay) from None

    async def _open(
        self, slot: Slot[Session], deadlines: Deadlines, observe: Observer | None = None
    ) -> Session:
        """Open a session, unless it is known that the server cannot be had or will not have us.

        While it cannot be had, one that another sender gives back will do as well.
        """
        limit = deadlines.content
        context = await self._tls_context()
        opener = functools.partial(
            open_session,
            self.settings,
            context,
            limit,
            observe,
            refused=self._credentials_refused,
            manners=self._manners,
        )
        loop = asyncio.get_running_loop()
        # A sender in a hurry says nothing about the server.
        is_outage = functools.partial(_is_outage_before, limit, loop)
        async with self._server.attempt(limit, is_outage, wait=slot.seek) as must_open:
            if not must_open and slot.session is not None:
                return slot.session
            has_news = await self._news_of_credentials(limit)
            async with self._credentials.attempt(limit, _refuses_credentials, has_news=has_news):
                session = await slot.open(opener)
                self._refusals.forget()
                return session

    def _credentials_refused(self, settings: SMTPSettings, secret: str) -> None:
        self._refusals.note(settings, secret)
        self._server.close()  # it can be had

    async def _news_of_credentials(self, limit: float) -> Callable[[], bool]:
        """Return what tells whether there are others than the server refused."""
        credentials = None
        if self._credentials.is_open:
            left = limit - asyncio.get_running_loop().time()
            seconds = max(0.0, min(self.settings.command_timeout, left))
            credentials = await self._refusals.credentials(self.settings, seconds)
        return functools.partial(self._refusals.are_news, credentials)

    def _deadlines_in(self, slot: Slot[Session]) -> Deadlines:
        """Do as ``_deadlines``; where several relays share the time, it begins with a slot."""
        begin = time_for_all.get()
        if begin is None or slot.deadline is not None or slot.is_shared:
            return self._deadlines(slot.deadline)
        content, reply = begin()
        since = asyncio.get_running_loop().time() - time.monotonic()
        return Deadlines(content + since, reply + since)

    def _deadlines(self, limit: float | None) -> Deadlines:
        """Work out, the slot being held now, until when the content and its reply may take."""
        now = asyncio.get_running_loop().time()
        if limit is not None:
            later = reply_until.get()
            reply = limit if later is None else max(limit, now + (later - time.monotonic()))
            return Deadlines(limit, reply)
        until = now + self._timeout
        reply = until if self._timeout_covers_reply else float("inf")
        return Deadlines(until, reply, self._timeout)

    async def _tls_context(self) -> ssl.SSLContext | None:
        if self.settings.effective_tls == "none":
            return None
        if self._context is None:
            loading = self._context_loading
            if loading is None:
                loop = asyncio.get_running_loop()
                loading = loop.run_in_executor(None, client_context, self.settings)
                self._context_loading = loading
            try:
                self._context = await asyncio.shield(loading)
            finally:
                if loading.done():
                    self._context_loading = None
        return self._context

    def _resolved(self, came_to: Receipt | MailError) -> None:
        """Take the late reply to a message whose sender had left, and was told "unknown"."""
        outcome: Outcome = getattr(came_to, "outcome", "unknown")
        text = "%s: %s by %s, which had been unknown"
        message_id = getattr(came_to, "message_id", None)
        if outcome == "unknown":
            _logger.info("%s: stays unknown: %s had no reply", message_id, self.settings.relay)
            return
        _logger.warning(text, message_id, outcome, self.settings.relay)
        self._outcomes["unknown"] -= 1
        self._outcomes[outcome] += 1
        if self._on_resolved is not None:
            try:
                self._on_resolved(came_to)
            except Exception:
                _logger.exception("%s: on_resolved failed", message_id)

    # The loop

    async def _pool_here(self) -> Pool[Session]:
        """Return the pool of the running loop, in this process."""
        loop = asyncio.get_running_loop()
        pool = self._pool
        if pool is not None and pool.loop is loop and pool.belongs_here:
            return pool
        if pool is not None:
            if pool.belongs_here and not pool.loop.is_closed():
                raise UsageError(
                    "this mailer belongs to another event loop, which is not closed. Make one "
                    "mailer for each loop, or share one through amail.Portal or SyncMailer"
                )
            self._forget(pool)
        here = os.getpid(), id(loop)
        if here != self._was_in:  # and not only closed and entered again
            self._was_in = here
            for each in (self._server, self._credentials):
                each.leave_loop()
            self._pace = Pace(self.settings.max_connections)
        settings = self.settings
        pool = self._pool = Pool(
            settings.max_connections,
            idle_timeout=settings.idle_timeout,
            pool_timeout=settings.pool_timeout,
            settled=_weakly(self._resolved),
        )
        self._manners = Manners(settings)
        self._finalizer = weakref.finalize(self, _abandon, pool, self._made_at)
        self._finalizer.atexit = False
        self._watcher = _drop_with_the_loop(pool)
        await anext(self._watcher)
        return pool

    def _forget(self, pool: Pool[Session]) -> None:
        """Drop what belongs to a closed loop, or to the parent of this process."""
        pool.forget()
        if not pool.belongs_here and self._watcher is not None:
            # Collecting it would wake the parent's loop.
            self._inherited.append(self._watcher)
        self._let_go()

    def _let_go(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        self._pool = self._watcher = self._finalizer = self._context_loading = None

    # The log

    def _log_acceptance(self, receipt: Receipt, content: Content, began: float) -> None:
        if receipt.refused:
            show = str if self.settings.log_addresses else masked
            refused = [f"{show(path)} {reply.code}" for path, reply in receipt.refused.items()]
            text = "%s: %s refused %d of %d recipients: %s"
            count = len(receipt.envelope.forward_paths)
            _logger.warning(
                text, content.message_id, receipt.relay, len(refused), count, ", ".join(refused)
            )
        if _logger.isEnabledFor(logging.INFO):
            reply = receipt.reply
            _logger.info(
                "%s: accepted by %s, %s, %d recipient(s), %d octets, %.0f ms",
                content.message_id,
                receipt.relay,
                f"{reply.code} {reply.enhanced or ''}".strip(),
                len(receipt.accepted),
                len(content),
                (time.monotonic() - began) * 1000,
            )

    def _log_failure(
        self, error: MailError, outcome: Outcome, content: Content, began: float
    ) -> None:
        level = logging.WARNING if outcome == "unknown" else logging.INFO
        reply = getattr(error, "reply", None)
        _logger.log(
            level,
            "%s: %s, %s at the stage %s by %s, %s, %.0f ms",
            content.message_id,
            outcome.replace("_", " "),
            type(error).__name__,
            getattr(error, "stage", None),
            self.settings.relay,
            "no reply" if reply is None else f"{reply.code} {reply.enhanced or ''}".strip(),
            (time.monotonic() - began) * 1000,
        )


def _weakly(method: Callable[[Receipt | MailError], None]) -> Callable[[t.Any], None]:
    """Call a method of an object without keeping that alive."""
    reference = weakref.WeakMethod(method)

    def call(argument: Receipt | MailError) -> None:
        alive = reference()
        if alive is not None:
            alive(argument)

    return call


def _too_many(error: SendError) -> bool:
    """Tell whether the server takes no further session at the moment (421 in place of 220)."""
    return isinstance(error, ServerBusy) and error.stage == "greeting"


def _asks_to_slow_down(error: SendError) -> bool:
    """Tell whether MAIL is refused for now out of a policy (RFC 3463, 3.8), as by rate limits."""
    reply = error.reply
    is_policy = reply is not None and (reply.enhanced or "").startswith("4.7.")
    return is_policy and error.stage == "mail"


def _refuses_credentials(error: SendError) -> bool:
    return isinstance(error, AuthenticationError) and error.stage == "auth" and not error.retryable


def _is_outage_before(limit: float, loop: asyncio.AbstractEventLoop, error: SendError) -> bool:
    return _is_outage(error) and loop.time() < limit


def _is_outage(error: SendError) -> bool:
    """Tell whether no session can be had, for any sender, that was not asked for too many."""
    is_ours = isinstance(error, MailerClosed | PoolTimeout)
    return not (is_ours or _refuses_credentials(error) or _too_many(error))


def _was_stale(error: NotSent) -> bool:
    """Tell whether a session that lay idle had ended meanwhile: MAIL finds that out."""
    return error.stage == "mail" and isinstance(error, ConnectionLost | ServerBusy)


def _may_be_about_groups(error: NotSent) -> bool:
    """Tell whether the server may not bear that several commands come in one write."""
    return error.stage in {"mail", "rcpt", "data"} and isinstance(
        error, ProtocolError | SendTimeout
    )


def _may_help_at_once(error: NotSent) -> bool:
    """Tell by kind and stage whether a fresh session, now, may do what this one did not."""
    match error:
        case ConnectionLost() | SendTimeout():
            return True
        case ProtocolError():
            return error.stage in {"mail", "rcpt", "data", "body", "final"}
        case ServerBusy():
            return error.stage in {"mail", "rcpt"}
        case AuthenticationError():
            return error.stage == "mail"
        case TLSError():
            return error.retryable and error.reply is None
        case ConnectError():
            return error.stage == "dns" and not error.retryable
    return False


async def _pause(deadlines: Deadlines) -> None:
    """Wait a moment, not the same for everybody."""
    left = deadlines.content - asyncio.get_running_loop().time()
    seconds = random.uniform(0, _JITTER_SECONDS)  # noqa: S311
    await asyncio.sleep(max(0.0, min(seconds, left)))


async def _drop_with_the_loop(pool: Pool[Session]) -> AsyncGenerator[None, None]:
    """Drop the sessions when their loop is about to be closed.

    asyncio.run closes the asynchronous generators that are left before it closes the loop: the one
    moment at which a pool that nobody closed can still let go in good order.
    """
    try:
        yield
    finally:
        pool.drop()


def _abandon(pool: Pool[Session], made_at: str) -> None:
    """Let go of the sessions of a transport that was collected without being closed."""
    if not pool.belongs_here or pool.loop.is_closed():
        pool.forget()
        return
    was_open = pool.open
    with contextlib.suppress(RuntimeError):
        pool.loop.call_soon_threadsafe(pool.drop)
    if was_open:
        text = f"a mailer made at {made_at} was not closed; write: async with Mailer(...)"
        warnings.warn(text, ResourceWarning, stacklevel=2)


def _caller() -> str:
    """Return "file:line" of the nearest frame that is not ours."""
    frame = sys._getframe(1)  # as warnings does for its stacklevel
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("amail."):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
