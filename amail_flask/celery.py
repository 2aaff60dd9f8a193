"""AppQueue: what send_later takes is sent by the workers of the app's Celery (MAIL_QUEUE="celery").

The Celery app is the one of Flask's own page about it, in ``app.extensions["celery"]``. It may come
there before or after the extension; a worker has the task before it takes its first job.
"""

from __future__ import annotations

import functools
import logging
import os
import typing as t
from concurrent import futures

from celery import signals

from amail import ConfigError, Receipt
from amail.later import Queued
from amail.queues.celery import CeleryQueue
from amail.threads import loop_is_running

if t.TYPE_CHECKING:
    from celery import Celery
    from flask import Flask

    from amail import Mailer, MailError, Portal
    from amail import Message as AnyMessage
    from amail.queues.job import Handled, Job
    from amail.queues.ledger import Ledger
    from amail_flask.state import State

_logger = logging.getLogger("amail.flask")

_PAGE = "https://flask.palletsprojects.com/patterns/celery/"
_THREADS = 4


class AppQueue:
    """Queues the messages of ``app``, whose own state is ``state``, in its Celery app.

    ``portal`` is the loop of the process that sends. ``ledger`` is the URL of a Redis to have a
    ledger in; without one it is in the broker, if that is a Redis. Raises ConfigError.
    """

    engine: t.Final = "celery"

    def __init__(self, app: Flask, state: State, portal: Portal, ledger: str = "") -> None:
        self._app = app
        self._state = state
        self._portal = portal
        self._ledger = ledger
        self._threads: futures.ThreadPoolExecutor | None = None
        self._threads_in: int | None = None
        if "celery" in app.extensions:
            self.queue  # noqa: B018 - whose task a worker then has
        signals.worker_init.connect(self._worker_begins)

    @functools.cached_property
    def queue(self) -> CeleryQueue:
        """The queue in the app's Celery app. Raises ConfigError where there is none."""
        celery: Celery | None = self._app.extensions.get("celery")
        if celery is None:
            raise ConfigError(
                'MAIL_QUEUE: "celery" is the Celery app in app.extensions["celery"], where there '
                f"is none; see {_PAGE}"
            )
        return CeleryQueue(
            celery,
            self._mailer,
            portal=self._portal,
            ledger=_ledger_at(self._ledger or _redis_of(celery)),
            on_done=self._done,
        )

    def send_later(self, state: State, message: AnyMessage, due: float = 0.0) -> Queued:
        """Compose a message with the mailer of ``state``, now, and queue it for the time ``due``.

        It waits for the broker, but in an event loop, where what is returned does when it is
        awaited. Raises MessageError, and there or here what ``CeleryQueue.put`` does.
        """
        job = self.queue.pack(*state.mailer.compose(message), mailer=state.name, due=due)
        message_id = str(job["id"])
        if not loop_is_running():
            self.queue.put(job, due=due)
            return Queued(message_id, self.engine)
        putting = self._executor().submit(self._put, job, due)
        return Queued(message_id, self.engine, putting)

    def drain(self, timeout: float) -> int:
        """Wait for nothing: what is queued is the workers'."""
        return 0

    def end(self) -> None:
        """Do nothing: a worker ends by itself."""

    def _put(self, job: Job, due: float) -> None:
        try:
            self.queue.put(job, due=due)
        except Exception as error:
            # Whether anybody awaits it or not.
            _logger.error("%s: could not be queued: %s", job["id"], type(error).__name__)  # noqa: TRY400
            raise

    def _executor(self) -> futures.ThreadPoolExecutor:
        """Return threads of this process. At its exit they end what they were given."""
        if self._threads is None or self._threads_in != os.getpid():
            self._threads_in = os.getpid()
            self._threads = futures.ThreadPoolExecutor(_THREADS, "amail-celery")
        return self._threads

    # In the worker

    def _worker_begins(self, sender: t.Any = None, **_: t.Any) -> None:
        if sender.app is self._app.extensions.get("celery"):
            self.queue  # noqa: B018 - as above, where Celery came last

    def _mailer(self, name: str) -> Mailer:
        mailer, _ = self._state.using(name or None).now()
        return mailer

    def _done(self, ended: Handled | MailError) -> None:
        """Send the signals of the app. There is no Message, for it was composed elsewhere."""
        with self._app.app_context():
            if isinstance(ended, Exception):
                self._state.failed(None, ended)
            elif isinstance(ended.receipt, Receipt):
                self._state.accepted(None, ended.receipt)


def _ledger_at(url: str) -> Ledger | None:
    if not url:
        return None
    try:
        from amail.queues.redis_ledger import RedisLedger  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            'MAIL_QUEUE: a ledger in Redis needs pip install "amail-asyncio[redis]"'
        ) from error
    try:
        return RedisLedger(url)
    except ConfigError as error:
        raise ConfigError(f"MAIL_QUEUE: ledger: {error}") from None


def _redis_of(celery: Celery) -> str:
    """Return the URL of the broker if it is one Redis, and nothing is said of how to get there."""
    url = celery.conf.broker_write_url or celery.conf.broker_url
    is_plain = isinstance(url, str) and url.startswith("redis://") and not set(url) & {"?", ";"}
    return url if is_plain else ""
