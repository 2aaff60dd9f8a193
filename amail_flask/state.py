"""State: what the extension knows about one app, and what it sends in the background for it.

Flask runs every async view in an event loop of its own and closes it afterwards, so the sessions
live in one background loop of the process (amail.Portal). What crosses to it is composed before: a
coroutine over immutable values.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import typing as t
import weakref
from concurrent import futures

from amail import (
    ConfigError,
    Mailer,
    NullTransport,
    Portal,
    QueueFull,
    SendError,
    SMTPSettings,
    SMTPTransport,
)
from amail_flask.signals import email_dispatched

if t.TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from flask import Flask

    from amail import Message as AnyMessage
    from amail import Receipt
    from amail.address import Person
    from amail_flask.config import MailConfig

_logger = logging.getLogger("amail.flask")

_QUEUE_LENGTH = 1000
_BACKGROUND_SECONDS = 660.0


class State:
    """What one app has in ``app.extensions["mail"]``.

    ``default_sender`` and ``ascii_attachments`` may be set; the rest is read from the config once.
    """

    def __init__(self, config: MailConfig, *, testing: bool = False, app: Flask | None) -> None:
        self.config = config
        self._app = app
        self._testing = testing
        options: dict[str, t.Any] = {
            "default_sender": config["MAIL_DEFAULT_SENDER"],
            "ascii_attachments": config["MAIL_ASCII_ATTACHMENTS"],
        }
        try:
            self._nowhere = Mailer(NullTransport("suppressed"), **options)
        except ConfigError as error:
            text = str(error).replace("default_sender", "MAIL_DEFAULT_SENDER", 1)
            raise ConfigError(text) from error
        self._pending: set[futures.Future[None]] = set()
        self._pending_in = os.getpid()
        self._mailer: Mailer | ConfigError
        try:
            self._mailer = _mailer(config, options)
        except ConfigError as error:
            if not self.suppress:
                raise
            _logger.warning("sending is suppressed; without that the config is refused: %s", error)
            self._mailer = error

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
            raise self._mailer
        return self._mailer

    @property
    def nowhere(self) -> Mailer:
        """The mailer that checks and composes, and sends nothing."""
        return self._nowhere

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

    def dispatched(self, message: AnyMessage) -> None:
        """Tell who listens. What a listener raises changes nothing about what was sent."""
        try:
            email_dispatched.send(self._app, message=message)
        except Exception:
            _logger.exception("a receiver of email_dispatched failed")

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

    async def close_at_exit(self) -> None:
        """End the sessions at once; what is under way there says what became of it."""
        transport = self.mailer.transport
        if isinstance(transport, SMTPTransport):
            await transport.aclose(drain=0)

    def _pending_here(self) -> set[futures.Future[None]]:
        if self._pending_in != os.getpid():
            self._pending_in, self._pending = os.getpid(), set()  # the parent's are the parent's
        return self._pending

    async def _send_in_background(
        self, message: AnyMessage, message_id: str, sending: Coroutine[t.Any, t.Any, Receipt]
    ) -> None:
        try:
            await sending
        except asyncio.CancelledError as error:
            known = "; ".join(getattr(error, "__notes__", ())) or "it is not known to be sent"
            _logger.error("%s: ended before it was done: %s", message_id, known)  # noqa: TRY400
            raise
        except SendError as error:
            # Its text names recipients, a log does not.
            reply = "no reply" if error.reply is None else str(error.reply.code)
            text = "%s: could not be sent in the background: %s, %s at the stage %s, %s"
            kind, outcome = type(error).__name__, error.outcome.replace("_", " ")
            _logger.error(text, message_id, outcome, kind, error.stage, reply)  # noqa: TRY400
        except Exception:
            _logger.exception("%s: could not be sent in the background", message_id)
        else:
            if email_dispatched.receivers:
                await _elsewhere(lambda: self._dispatched_later(message))

    def _dispatched_later(self, message: AnyMessage) -> None:
        if self._app is None:
            self.dispatched(message)
            return
        with self._app.app_context():
            self.dispatched(message)

    def _mailers(self) -> Iterator[Mailer]:
        yield self._nowhere
        if isinstance(self._mailer, Mailer):
            yield self._mailer


def _mailer(config: MailConfig, options: dict[str, t.Any]) -> Mailer:
    where = config.where
    if isinstance(where, SMTPSettings):
        transport = SMTPTransport(where, timeout=config["MAIL_TIMEOUT"], timeout_covers_reply=True)
        return Mailer(transport, **options)
    return Mailer(where, **options)


async def _elsewhere(work: t.Callable[[], None]) -> None:
    """Run what may take its time in a thread of its own: here it would hold up every session.

    Not in the loop's executor either, whose few threads resolve names.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            work()
        finally:
            loop.call_soon_threadsafe(done.set_result, None)

    try:
        threading.Thread(target=run, name="amail-receiver", daemon=True).start()
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
