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
import typing as t
import weakref
from concurrent import futures

from amail import (
    ConfigError,
    Mailer,
    MailError,
    NullTransport,
    Portal,
    QueueFull,
    Receipt,
    SMTPTransport,
    UsageError,
)
from amail.threads import start_for_users
from amail_flask.mailers import mailer_over, make_mailer
from amail_flask.signals import email_accepted, email_dispatched, email_failed, email_resolved
from amail_flask.templates import AppTemplates

if t.TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    import blinker
    from flask import Flask

    from amail import Message as AnyMessage
    from amail.address import Person
    from amail.transports.base import Transport
    from amail_flask.config import MailConfig

T = t.TypeVar("T")

_logger = logging.getLogger("amail.flask")

_QUEUE_LENGTH = 1000
_BACKGROUND_SECONDS = 660.0
_SETTLE_SECONDS = 1.0
_FLASK_MAILS_NAMES = frozenset(
    ("server", "port", "use_tls", "use_ssl", "username", "password", "max_emails", "debug")
)


class State:
    """What one app has in ``app.extensions["mail"]``.

    ``default_sender`` and ``ascii_attachments`` may be set; the rest is read from the config once.
    Flask-Mail's names for it are there too: ``server``, ``use_tls``, ``max_emails``.
    """

    def __init__(
        self, config: MailConfig, *, testing: bool = False, app: Flask | None, name: str = ""
    ) -> None:
        self.config = config
        self.name = name
        self._app = app
        self._testing = testing
        self._nowhere = mailer_over(NullTransport("suppressed"), config)
        self._pending: set[futures.Future[None]] = set()
        self._pending_in = os.getpid()
        self._mailer: Mailer | ConfigError
        self._relays: tuple[Transport, ...] = ()
        try:
            self._mailer, self._relays = make_mailer(config)
        except ConfigError as error:
            # An app may well start without a server; its first message is told.
            if not self.suppress and not config.names_no_server:
                raise
            _logger.warning("nothing can be sent, as the config is refused: %s", error)
            self._mailer = error
        for relay in self._relays:
            listen = getattr(relay, "listen", None)
            if listen is not None:
                listen(self._resolved)
        self._named = {name: self._further(name, each) for name, each in config.mailers.items()}

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

    @property
    def nowhere(self) -> Mailer:
        """The mailer that checks and composes, and sends nothing."""
        return self._nowhere

    def now(self) -> tuple[Mailer, bool]:
        """Return the mailer to send with, and whether it is the one that sends nothing."""
        suppressed = self.suppress
        return self.nowhere if suppressed else self.mailer, suppressed

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
        start_for_users(lambda: self._in_app_context(tell), "amail-receiver")

    def queue(self, message: AnyMessage) -> str:
        """Have a message sent by the background loop; return its Message-ID."""
        pending = self._pending_here()
        if len(pending) >= _QUEUE_LENGTH:
            raise QueueFull(
                f"{_QUEUE_LENGTH} messages wait to be sent in the background; try again later, or "
                "await mail.send(message), which waits its turn",
                stage="pool",
                retryable=True,
            )
        sending = self.mailer.send(message, timeout=_BACKGROUND_SECONDS)
        message_id = str(message.message_id)
        portal = self.portal_for(sending)
        background = portal.submit(self._send_in_background(message, message_id, sending))
        pending.add(background)
        background.add_done_callback(pending.discard)
        return message_id

    def drain(self, timeout: float) -> int:
        """Wait for what was queued; return how much is left."""
        return len(futures.wait(list(self._pending_here()), timeout=timeout).not_done)

    def close(self) -> None:
        """End the sessions of this process. Sending again opens new ones."""
        if isinstance(self._mailer, Mailer) and _process.has(self):
            _process.portal.call_sync(self._mailer.transport.aclose())

    async def drain_and_close(self) -> None:
        """Drain the queue for up to MAIL_DRAIN_TIMEOUT, then end the sessions, as at exit."""
        if not _process.has(self):
            return
        await asyncio.to_thread(self.drain, self.config["MAIL_DRAIN_TIMEOUT"])
        await _process.portal.call(self.close_at_exit())
        await asyncio.to_thread(self.drain, _SETTLE_SECONDS)  # what was ended says so in the log

    async def close_at_exit(self) -> None:
        """End the sessions at once; what is under way there says what became of it."""
        relays = [relay for relay in self._relays if isinstance(relay, SMTPTransport)]
        await asyncio.gather(*(relay.aclose(drain=0) for relay in relays))

    def _pending_here(self) -> set[futures.Future[None]]:
        if self._pending_in != os.getpid():
            self._pending_in, self._pending = os.getpid(), set()  # the parent's are the parent's
        return self._pending

    async def _send_in_background(
        self, message: AnyMessage, message_id: str, sending: Coroutine[t.Any, t.Any, Receipt]
    ) -> None:
        try:
            receipt = await sending
        except asyncio.CancelledError as error:
            known = "; ".join(getattr(error, "__notes__", ())) or "it is not known to be sent"
            _logger.error("%s: ended before it was done: %s", message_id, known)  # noqa: TRY400
            raise
        except MailError as error:
            _log_failure(message_id, error)
            failure = error
            if email_failed.receivers:
                await _elsewhere(
                    lambda: self._in_app_context(lambda: self.failed(message, failure))
                )
        except Exception:
            _logger.exception("%s: could not be sent in the background", message_id)
        else:
            if email_dispatched.receivers or email_accepted.receivers:
                await _elsewhere(
                    lambda: self._in_app_context(lambda: self.accepted(message, receipt))
                )

    def _in_app_context(self, tell: Callable[[], None]) -> None:
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


def _log_failure(message_id: str, error: MailError) -> None:
    """Log what became of a message in the background. Its text names recipients, a log does not."""
    reply = getattr(error, "reply", None)
    outcome: str = getattr(error, "outcome", "not_sent")
    _logger.error(
        "%s: could not be sent in the background: %s, %s at the stage %s, %s",
        message_id,
        outcome.replace("_", " "),
        type(error).__name__,
        getattr(error, "stage", None),
        "no reply" if reply is None else str(reply.code),
    )


async def _elsewhere(work: t.Callable[[], None]) -> None:
    """Run what may take its time in a thread of its own: here it would hold up every session.

    Not in the loop's executor either, whose few threads resolve names.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def ended() -> None:
        loop.call_soon_threadsafe(done.set_result, None)

    try:
        start_for_users(work, "amail-receiver", ended)
    except RuntimeError:  # the process is ending; nobody is held up any more
        work()
        return
    await done


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
