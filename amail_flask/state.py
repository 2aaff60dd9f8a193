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
import typing as t
from concurrent import futures

from amail import ConfigError, Mailer, NullTransport, Portal, QueueFull, SMTPSettings, SMTPTransport
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

_portal = Portal()  # starts its loop when it is first used


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
        self._nowhere = Mailer(NullTransport("suppressed"), **options)
        self._pending: set[futures.Future[None]] = set()
        self._closes_in: int | None = None
        try:
            where = config.where
            if isinstance(where, SMTPSettings):
                self._mailer: Mailer | ConfigError = Mailer(
                    SMTPTransport(where, timeout=config["MAIL_TIMEOUT"], timeout_covers_reply=True),
                    **options,
                )
            else:
                self._mailer = Mailer(where, **options)
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
    def sender(self) -> Mailer:
        """The mailer to send with now."""
        return self._nowhere if self.suppress else self.mailer

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

    def portal(self) -> Portal:
        """Return the background loop; it will close this app's mailer before it ends."""
        if self._closes_in != os.getpid():
            self._closes_in = os.getpid()
            self._pending = set()
            _portal.drain_timeout = max(_portal.drain_timeout, self.config["MAIL_DRAIN_TIMEOUT"])
            _portal.at_close(self._close)
        return _portal

    def dispatched(self, message: AnyMessage) -> None:
        """Tell who listens. What a listener raises changes nothing about what was sent."""
        try:
            email_dispatched.send(self._app, message=message)
        except Exception:
            _logger.exception("a receiver of email_dispatched failed")

    def queue(self, message: AnyMessage) -> str:
        """Have a message sent by the background loop; return its Message-ID."""
        if len(self._pending) >= _QUEUE_LENGTH:
            raise QueueFull(
                f"{_QUEUE_LENGTH} messages wait to be sent in the background; try again later, or "
                "await mail.send(message), which waits its turn",
                stage="pool",
                retryable=True,
            )
        portal = self.portal()
        sending = self.mailer.send(message, timeout=_BACKGROUND_SECONDS)
        message_id = str(message.message_id)
        background = portal.submit(self._send_in_background(message, message_id, sending))
        self._pending.add(background)
        background.add_done_callback(self._pending.discard)
        return message_id

    def drain(self, timeout: float) -> int:
        """Wait for what was queued; return how much is left."""
        return len(futures.wait(list(self._pending), timeout=timeout).not_done)

    def close(self) -> None:
        """End the sessions of this process. Sending again opens new ones."""
        if self._closes_in == os.getpid():
            _portal.call_sync(self.mailer.transport.aclose())

    async def _send_in_background(
        self, message: AnyMessage, message_id: str, sending: Coroutine[t.Any, t.Any, Receipt]
    ) -> None:
        try:
            await sending
        except asyncio.CancelledError:
            _logger.warning("%s: was not sent before the end; it may be lost", message_id)
            raise
        except Exception:
            _logger.exception("%s: could not be sent in the background", message_id)
            return
        if email_dispatched.receivers:
            # Not here: a receiver that takes its time would hold up every session.
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, functools.partial(self._dispatched_later, message))

    def _dispatched_later(self, message: AnyMessage) -> None:
        if self._app is not None:
            with self._app.app_context():
                self.dispatched(message)

    def _mailers(self) -> Iterator[Mailer]:
        yield self._nowhere
        if isinstance(self._mailer, Mailer):
            yield self._mailer

    async def _close(self) -> None:
        self._closes_in = None
        await self.mailer.transport.aclose()
