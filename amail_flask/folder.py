"""FolderEngine: what send_later takes waits in a folder and outlives every process.

What serves the app sends it: each process from its first request, or its first message, on.
"""

from __future__ import annotations

import functools
import typing as t

from amail import ConfigError, MailError, Receipt
from amail.later import Queued
from amail.queues.folder import FolderQueue
from amail.queues.folder_sender import FolderSender
from amail.queues.job import pack
from amail.queues.worker import FolderWorker
from amail.threads import start_for_users
from amail_flask.signals import email_accepted, email_failed

if t.TYPE_CHECKING:
    from flask import Flask

    from amail import Mailer, Portal
    from amail import Message as AnyMessage
    from amail.queues.job import Handled
    from amail_flask.state import State

_CONCURRENCY = 5


class FolderEngine:
    """The queue of ``app``, whose own state is ``state``, in the folder that ``url`` names."""

    engine: t.Final = "folder"

    def __init__(self, url: str, app: Flask, state: State, portal: Portal) -> None:
        self._url = url
        self._state = state
        self._queue = self.another()
        self._sender = FolderSender(self._queue, portal, self._new_worker)
        app.before_request(self.serve)

    def another(self) -> FolderQueue:
        """Return another queue over the same folder, which no worker here claims with."""
        return FolderQueue.from_url(self._url)

    def send_later(self, state: State, message: AnyMessage, due: float = 0.0) -> Queued:
        """Compose a message with the mailer of ``state``; its job is on disk when this returns.

        Raises MessageError, QueueFull where the disk is full, NotSent where it cannot be written.
        """
        envelope, content = state.mailer.compose(message)
        self._queue.put(pack(envelope=envelope, content=content, mailer=state.name), due=due)
        self.serve()
        return Queued(content.message_id, self.engine)

    def serve(self) -> None:
        """Have what waits sent by this process too, unless nothing is sent."""
        if not self._sender.has_begun and not self.is_suppressed:
            for state in self._state.every:
                state.know_process()
            self._sender.start()

    @property
    def is_suppressed(self) -> bool:
        """True while nothing is sent."""
        return self._state.suppress

    def drain(self, timeout: float | None) -> int:
        """Wait until nothing is due, None for as long as it takes; return how many jobs are left.

        After ``end`` only for those under way.
        """
        return self._sender.drain(timeout)

    def end(self) -> None:
        """Begin no job any more in this process, until it serves again."""
        self._sender.end()

    # In the background loop

    def _new_worker(self) -> FolderWorker:
        try:
            at_once = getattr(self._state.mailer.transport, "concurrency", _CONCURRENCY)
        except ConfigError:  # which each try will say
            at_once = _CONCURRENCY
        return FolderWorker(self._queue, self._mailer, concurrency=at_once, on_done=self._done)

    def _mailer(self, name: str) -> Mailer:
        state = self._state.using(name or None)
        if state.suppress:
            raise ConfigError("MAIL_SUPPRESS_SEND, or TESTING, is on: what waits is not sent")
        return state.mailer

    def _done(self, ended: Handled | MailError) -> None:
        """Tell who listens, in a thread of its own. There is no Message any more."""
        came_to = ended if isinstance(ended, MailError) else ended.receipt
        if isinstance(came_to, Receipt) and email_accepted.receivers:
            tell = functools.partial(self._state.accepted, None, came_to)
        elif isinstance(came_to, MailError) and email_failed.receivers:
            tell = functools.partial(self._state.failed, None, came_to)
        else:
            return
        start_for_users(functools.partial(self._state.in_app_context, tell), "amail-receiver")
