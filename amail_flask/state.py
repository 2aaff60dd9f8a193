"""State: what the extension knows about one app, and what it sends in the background for it.

Flask runs every async view in an event loop of its own and closes it afterwards, so the sessions
live in one background loop of the process (amail.Portal). What crosses to it is composed before: a
coroutine over immutable values.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
import typing as t
import weakref

from flask import has_request_context
from flask.logging import default_handler

from amail import (
    ConfigError,
    Mailer,
    MailError,
    NullTransport,
    Portal,
    Receipt,
    UsageError,
)
from amail.crossing import Crossing
from amail.later import MemoryQueue, Queued
from amail.logging import show_debug
from amail.many import send_many
from amail.queues.due import due_at
from amail.sending import Sending
from amail.threads import loop_is_running, start_for_users
from amail.transports.base import drain_seconds, listening
from amail_flask.mailers import mailer_over, make_mailer
from amail_flask.queueing import engine_of
from amail_flask.sends import Sends
from amail_flask.signals import email_accepted, email_dispatched, email_failed, email_resolved
from amail_flask.templates import AppTemplates

if t.TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
    from datetime import datetime
    from email.message import EmailMessage

    import blinker
    from flask import Flask

    from amail import Message as AnyMessage
    from amail import Result
    from amail.address import Person
    from amail.many import Messages
    from amail_flask.config import MailConfig
    from amail_flask.queueing import Engine

    Cross = Callable[[Coroutine[t.Any, t.Any, Receipt]], Awaitable[Receipt]] | None

T = t.TypeVar("T")

_logger = logging.getLogger("amail.flask")

_CONCURRENCY = 5
_BACKGROUND_SECONDS = 660.0
_SETTLE_SECONDS = 1.0
_FLASK_MAILS_NAMES = frozenset(
    ("server", "port", "use_tls", "use_ssl", "username", "password", "max_emails", "debug")
)


class State(Sends):
    """What one app has in ``app.extensions["mail"]``.

    ``default_sender`` and ``ascii_attachments`` may be set; the rest is read from the config once.
    Flask-Mail's names for it are there too: ``server``, ``use_tls``, ``max_emails``.
    """

    def __init__(
        self,
        config: MailConfig,
        *,
        app: Flask | None,
        testing: bool = False,
        debug: bool = False,
        name: str = "",
    ) -> None:
        self.config = config
        self.name = name
        self._app = app
        self._testing = testing
        self._nowhere = mailer_over(NullTransport("suppressed"), config)
        self._queue = MemoryQueue()
        self._engine: Engine | None = None
        self.engines: tuple[Engine, ...] = ()
        self._mailer: Mailer | ConfigError
        try:
            self._mailer = make_mailer(config)
        except ConfigError as error:
            # An app may well start without a server; its first message is told.
            if not self.suppress and not config.names_no_server:
                raise
            _logger.warning("nothing can be sent, as the config is refused: %s", error)
            self._mailer = error
        else:
            listening(self._mailer.transport, self._resolved)
        if debug if config["MAIL_DEBUG"] is None else config["MAIL_DEBUG"]:
            show_debug(default_handler)
        if config["MAIL_PROTOCOL_TRACE"]:
            show_debug(default_handler, "amail.smtp.trace")
        self._named = {name: self._further(name, each) for name, each in config.mailers.items()}
        if not name:
            engines: dict[str, Engine | None] = {}
            for state in self.every:
                queue = state.config["MAIL_QUEUE"]
                if queue not in engines:
                    engines[queue] = engine_of(queue, app, self, _process.portal)
                state._engine = engines[queue]
            self.engines = tuple(engine for engine in engines.values() if engine is not None)

    def __repr__(self) -> str:
        return f"<State of {self._app!r}: {self.config!r}>"

    @property
    def suppress(self) -> bool:
        """True while nothing is sent: MAIL_SUPPRESS_SEND, else ``app.testing`` as it is now."""
        told = self.config["MAIL_SUPPRESS_SEND"]
        if told is not None:
            return bool(told)
        return self._testing if self._app is None else bool(self._app.testing)

    @property
    def mailer(self) -> Mailer:
        """The app's mailer, whether or not sending is suppressed. Raises ConfigError."""
        if isinstance(self._mailer, ConfigError):
            raise ConfigError(str(self._mailer))  # a new one, whose traceback is this call's
        return self._mailer

    def is_of(self, config: MailConfig) -> bool:
        """Tell whether this was made of the same config, and could be."""
        return self.config == config and isinstance(self._mailer, Mailer)

    def now(self) -> tuple[Mailer, bool]:
        """Return the mailer to send with, and whether it is the one that sends nothing."""
        suppressed = self.suppress
        return self._nowhere if suppressed else self.mailer, suppressed

    @property
    def every(self) -> tuple[State, ...]:
        """The states of the app: its own and those of MAIL_MAILERS."""
        return (self, *self._named.values())

    def using(self, name: str | None) -> State:
        """Return the state of a mailer of MAIL_MAILERS, this one for None. Raises UsageError."""
        if name is None:
            return self
        if name not in self._named:
            known = ", ".join(self._named) or "nothing"
            raise UsageError(f"there is no mailer {name!r}: MAIL_MAILERS has {known}")
        return self._named[name]

    def __getattr__(self, name: str) -> t.Any:
        """Look up what Flask-Mail's state has too: ``server``, ``port``, ``use_tls``."""
        if name not in _FLASK_MAILS_NAMES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.config[f"MAIL_{name.upper()}"]

    @property
    def default_sender(self) -> Person | None:
        """The author of messages that name none."""
        return self._nowhere.default_sender

    @default_sender.setter
    def default_sender(self, person: Person | None) -> None:
        for mailer in self._mailers():
            mailer.default_sender = person

    @property
    def ascii_attachments(self) -> bool:
        """Whether names of attachments are written in ASCII."""
        return self._nowhere.ascii_attachments

    @ascii_attachments.setter
    def ascii_attachments(self, ascii_only: bool) -> None:
        for mailer in self._mailers():
            mailer.ascii_attachments = ascii_only

    @functools.cached_property
    def templates(self) -> AppTemplates:
        """What ``mail.render`` renders with. Raises UsageError where there is no app."""
        if self._app is None:
            raise UsageError("render: there is no app here, whose templates it would be")
        return AppTemplates(self._app)

    def know_process(self) -> None:
        """Have the sessions end with this process, after what is being sent."""
        _process.add(self)

    def portal_for(self, sending: Coroutine[t.Any, t.Any, t.Any]) -> Portal:
        """Return the background loop; it will end this app's sessions before it ends itself.

        Where there can be none any more, ``sending`` is closed and UsageError raised.
        """
        try:
            _process.add(self)
        except BaseException:
            sending.close()
            raise
        return _process.portal

    def run(self, coroutine: Coroutine[t.Any, t.Any, T]) -> T:
        """Run a coroutine in the background loop and wait for it in this thread."""
        return self.portal_for(coroutine).call_sync(coroutine)

    def dispatched(self, message: AnyMessage) -> None:
        """Tell who listens that a message was accepted, or would have been sent."""
        self._tell(email_dispatched, message=message)

    def accepted(self, message: AnyMessage | None, receipt: Receipt) -> None:
        """Tell who listens that a server has a message; None is one composed elsewhere."""
        if message is not None:
            self.dispatched(message)
        self._tell(email_accepted, message=message, receipt=receipt)

    def failed(self, message: AnyMessage | None, error: MailError) -> None:
        """Tell who listens what became of a message that was not accepted."""
        self._tell(email_failed, message=message, error=error)

    def _whose_signals(self) -> Flask | None:
        return self._app

    def _tell(self, signal: blinker.NamedSignal, **what: t.Any) -> None:
        """Send a signal. What a receiver raises changes nothing about what was sent."""
        try:
            signal.send(self._app, **what)
        except Exception:
            _logger.exception("a receiver of %s failed", signal.name.replace("-", "_"))

    def _resolved(self, came_to: Receipt | MailError) -> None:
        """Tell who listens of a late reply; called in the background loop, not to be held up."""
        if not email_resolved.receivers:
            return
        receipt = came_to if isinstance(came_to, Receipt) else None
        error = None if isinstance(came_to, Receipt) else came_to
        tell = functools.partial(self._tell, email_resolved, receipt=receipt, error=error)
        start_for_users(lambda: self.in_app_context(tell), "amail-receiver")

    def send(self, message: AnyMessage) -> Coroutine[t.Any, t.Any, Receipt]:
        """Do as ``Mail.send`` does."""
        _check_may_await(
            "write mail.send_sync(message), or make it async def and write await mail.send(message)"
        )
        mailer, suppressed = self.now()
        return self._telling(message, mailer.send(message), None if suppressed else self._call)

    def send_raw(
        self, content: bytes | EmailMessage, **about: t.Any
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        """Do as ``Mail.send_raw`` does."""
        _check_may_await("make it async def and write await mail.send_raw(...)")
        mailer, suppressed = self.now()
        sending = mailer.send_raw(content, **about)
        return self._telling(None, sending, None if suppressed else self._call)

    def send_many(
        self, messages: Messages, *, concurrency: int | None, ordered: bool
    ) -> AsyncGenerator[Result, None]:
        """Do as ``Mail.send_many`` does; it crosses to the background loop with many at once."""
        _check_may_await("make it async def and write async for result in ...")
        crossing = Crossing(self.portal_for)

        def send(message: AnyMessage) -> Coroutine[t.Any, t.Any, Receipt]:
            mailer, suppressed = self.now()
            cross = None if suppressed else crossing.call
            return self._telling(message, mailer.send(message), cross)

        usual = 2 * getattr(self.now()[0].transport, "concurrency", _CONCURRENCY)
        at_once = usual if concurrency is None else concurrency
        return send_many(send, messages, concurrency=at_once, ordered=ordered)

    def _telling(
        self, message: AnyMessage | None, sending: Coroutine[t.Any, t.Any, Receipt], cross: Cross
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        """Return what awaits ``sending``, over there unless nothing is sent, and tells of it."""
        wrap = functools.partial(self._sent, message, cross)
        return sending.inside(wrap) if isinstance(sending, Sending) else wrap(sending)

    async def _call(self, sending: Coroutine[t.Any, t.Any, Receipt]) -> Receipt:
        return await self.portal_for(sending).call(sending)

    async def _sent(
        self, message: AnyMessage | None, cross: Cross, sending: Coroutine[t.Any, t.Any, Receipt]
    ) -> Receipt:
        if cross is None:
            receipt = await sending
            if message is not None:
                self.dispatched(message)
            return receipt
        try:
            receipt = await cross(sending)
        except MailError as error:
            self.failed(message, error)
            raise
        self.accepted(message, receipt)
        return receipt

    # A forgotten await is warned of under this name: "coroutine 'Mail.send' was never awaited".
    _sent.__qualname__ = "Mail.send"

    def send_sync(self, message: AnyMessage, timeout: float | None = None) -> Receipt:
        """Do as ``Mail.send_sync`` does."""
        if loop_is_running():
            raise UsageError("this would block the event loop: write await mail.send(message)")
        if self.suppress:
            return self._send_nowhere(message, timeout)
        sending = self.mailer.send(message, timeout=timeout)
        try:
            receipt = self.run(sending)
        except MailError as error:
            self.failed(message, error)
            raise
        self.accepted(message, receipt)
        return receipt

    def send_later(
        self,
        message: AnyMessage,
        *,
        countdown: float | None = None,
        eta: datetime | None = None,
    ) -> Queued:
        """Leave a message to the background loop, or to the engine that MAIL_QUEUE names.

        Raises QueueFull, MessageError, UsageError, and what the engine does.
        """
        due = due_at(countdown, eta)
        if self.suppress:
            return Queued(self._send_nowhere(message, None).message_id)
        if self._engine is not None:
            return self._engine.send_later(self, message, due)
        if due > time.time():
            raise UsageError(
                "countdown, eta: the queue in memory is gone with its process, and sends at once; "
                'set MAIL_QUEUE to "folder:///path" or "celery"'
            )
        self._queue.check_room()
        sending = self.mailer.send(message, timeout=_BACKGROUND_SECONDS)
        message_id = str(message.message_id)
        tell = functools.partial(self._tell_of_later, message)
        self._queue.put(message_id, sending, self.portal_for(sending), tell)
        return Queued(message_id)

    def _send_nowhere(self, message: AnyMessage, timeout: float | None) -> Receipt:
        sending = self._nowhere.send(message, timeout=timeout)
        try:
            sending.send(None)  # it waits for nothing
        except StopIteration as done:
            self.dispatched(message)
            return t.cast("Receipt", done.value)
        raise UsageError("a suppressed send had to wait")

    def _tell_of_later(
        self, message: AnyMessage, came_to: Receipt | MailError
    ) -> Callable[[], None] | None:
        if isinstance(came_to, Receipt):
            listens = email_dispatched.receivers or email_accepted.receivers
            tell = functools.partial(self.accepted, message, came_to)
        else:
            listens = email_failed.receivers
            tell = functools.partial(self.failed, message, came_to)
        return functools.partial(self.in_app_context, tell) if listens else None

    def drain(self, timeout: float) -> int:
        """Wait for what was queued; return how much is left."""
        until = time.monotonic() + timeout
        left = self._queue.drain(timeout)
        for engine in self.engines:
            left += engine.drain(max(0.0, until - time.monotonic()))
        return left

    def close(self) -> None:
        """End the sessions of this process. Sending again opens new ones."""
        if isinstance(self._mailer, Mailer) and _process.has(self):
            _process.portal.call_sync(self._mailer.transport.aclose())

    async def drain_and_close(self) -> None:
        """Drain the queue for up to MAIL_DRAIN_TIMEOUT, then end the sessions, as at exit."""
        if not _process.has(self):
            return
        for engine in self.engines:
            engine.end()
        await asyncio.to_thread(self.drain, self.config["MAIL_DRAIN_TIMEOUT"])
        await _process.portal.call(self.close_at_exit())
        await asyncio.to_thread(self.drain, _SETTLE_SECONDS)  # what was ended says so in the log

    async def close_at_exit(self) -> None:
        """End the sessions at once; what is under way there says what became of it."""
        if isinstance(self._mailer, Mailer):
            drain_seconds.set(0.0)  # in this task; the queue was drained
            await self._mailer.transport.aclose()

    def in_app_context(self, tell: Callable[[], None]) -> None:
        """Call it in the app's context, where there is an app."""
        if self._app is None:
            tell()
            return
        with self._app.app_context():
            tell()

    def _further(self, name: str, config: MailConfig) -> State:
        try:
            return State(config, testing=self._testing, app=self._app, name=name)
        except ConfigError as error:
            raise ConfigError(f"MAIL_MAILERS[{name!r}]: {error}") from error

    def _mailers(self) -> Iterator[Mailer]:
        yield self._nowhere
        if isinstance(self._mailer, Mailer):
            yield self._mailer


def _check_may_await(instead: str) -> None:
    """Raise UsageError, with what to write, in a view that is not async."""
    if has_request_context() and not loop_is_running():
        raise UsageError(f"this view is not async: {instead}")


class _Process:
    """What this process has once: the background loop, and the apps that have sent through it."""

    def __init__(self) -> None:
        self.portal = Portal(drain_timeout=0)  # starts its loop when it is first used
        self._lock = threading.Lock()
        self._states: weakref.WeakSet[State] = weakref.WeakSet()
        self._closes_in: int | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._start_anew)

    def add(self, state: State) -> None:
        """Know an app. Its sessions are ended and its queue is drained with the process."""
        with self._lock:
            if state not in self._states:
                self._states.add(state)
                drain_timeout = state.config["MAIL_DRAIN_TIMEOUT"]
                self.portal.drain_timeout = max(self.portal.drain_timeout, drain_timeout)
            if self._closes_in != os.getpid():
                self._closes_in = os.getpid()
                self.portal.at_close(self._close)

    def has(self, state: State) -> bool:
        """Tell whether an app has sent anything from this process."""
        return self._closes_in == os.getpid() and state in self._states

    async def _close(self) -> None:
        self._closes_in = None
        await asyncio.gather(*(state.close_at_exit() for state in list(self._states)))

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._states = weakref.WeakSet()
        self._closes_in = None


_process = _Process()
