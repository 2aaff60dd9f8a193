"""CeleryQueue: messages that Celery's workers send, for when one machine is not enough.

    celery = Celery("shop", broker="amqp://...")
    queue = CeleryQueue(celery, Mailer("smtp://..."))

    queue.send_later(message)                   # in any process
    $ celery -A shop worker                     # on any machine

Celery and its broker do the queueing; this is one task, and the settings with which it loses
nothing. Invariant: a job is acknowledged when a server has its message, when none ever will, or
when nobody can tell; never before. Where some of it is left for later, that is queued first.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import time
import typing as t
from collections.abc import Mapping

from celery import signals
from celery.exceptions import Reject

from amail.errors import (
    ConfigError,
    DeliveryUnknown,
    MailError,
    NotSent,
    SendError,
    UsageError,
)
from amail.frames import first_place
from amail.mailer import Mailer
from amail.portal import Portal
from amail.queues.celery_check import complaints
from amail.queues.due import due_at
from amail.queues.ended import left_of, said_of
from amail.queues.gate import Gate
from amail.queues.job import TIMEOUT, Handled, handle, pack
from amail.smtp.settings import check_seconds
from amail.threads import loop_is_running
from amail.transports.retrying import RetryPolicy

if t.TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from celery import Celery
    from celery.app.task import Task

    from amail.envelope import Envelope
    from amail.message import Message
    from amail.mime import Content
    from amail.queues.job import Job
    from amail.queues.ledger import Ledger
    from amail.transports.base import Transport

    Mailers = Mailer | Mapping[str, Mailer] | Callable[[str], Mailer]
    OnDone = Callable[[Handled | MailError], object]

_logger = logging.getLogger("amail.queue")

LIMIT = 10 * 1024 * 1024
_DAY = 86_400.0
_BROKER_SECONDS = 10.0

SETTINGS: t.Final[Mapping[str, t.Any]] = {
    "acks_late": True,
    "reject_on_worker_lost": True,  # without it acks_late loses what a killed child process had
    "acks_on_timeout": False,
    "serializer": "json",
    "ignore_result": True,
}
"""What the task is made with. It has no ``expires``: what that ends Celery drops without a word."""


class CeleryQueue:
    """Queues messages for the workers of a Celery app, and is what they send them with.

    Make one where the app is made, so that its workers have it too. ``mailers`` is a Mailer, or
    several by name: a job has the name only, neither credentials nor a host. Each process has its
    own sessions (``max_connections=1`` is enough for a prefork child), in the background loop
    ``portal``, and ends them before it ends.

    ``ledger`` keeps what was sent from being sent again (``RedisLedger``). ``limit`` is the most
    octets of content. ``on_done`` is called in the worker with what came of a message in the end:
    Handled, or the MailError for which it, or some of its recipients, are given up.

    In seconds: ``time_limit`` is for one try, the server's last reply and all. What was not taken
    is tried again after a pause of between half and all of ``first``, twice as much each time up to
    ``longest``, until ``expires_in`` after it was queued. ``task_name`` is Celery's name for the
    task, which ``task_routes`` may know.

    Raises ConfigError.
    """

    engine: t.Final = "celery"

    def __init__(
        self,
        app: Celery,
        mailers: Mailers,
        *,
        ledger: Ledger | None = None,
        portal: Portal | None = None,
        time_limit: float = TIMEOUT,
        first: float = 30.0,
        longest: float = 600.0,
        expires_in: float = 5 * _DAY,
        limit: int = LIMIT,
        on_done: OnDone | None = None,
        task_name: str = "amail.send",
    ) -> None:
        check_seconds("time_limit", time_limit)
        check_seconds("expires_in", expires_in)
        if ledger is not None and ledger.lease <= time_limit:
            raise ConfigError(f"ledger: its lease must be more than time_limit, {time_limit:g} s")
        self._app = app
        self._mailers = mailers
        self.ledger = ledger
        self._portal = Portal() if portal is None else portal
        self._end_with_portal: dict[t.Any, int] = {}
        self._time_limit = time_limit
        self._pauses = RetryPolicy(first=first, longest=longest)
        self._expires_in = expires_in
        self._limit = limit
        self._on_done = on_done
        self._task = self._made_task(task_name)
        self._is_checked = False
        # Celery holds these weakly, and us by the task.
        signals.celeryd_after_setup.connect(self._worker_begins)
        signals.worker_process_shutdown.connect(self._child_ends)
        signals.worker_shutdown.connect(self._worker_ends)

    def __repr__(self) -> str:
        return f"<CeleryQueue of {self._app!r}>"

    def send_later(
        self,
        message: Message,
        *,
        mailer: str = "",
        envelope: Envelope | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | None = None,
    ) -> str:
        """Compose a message now, leave it to the workers, and return its Message-ID.

        It is sent ``countdown`` seconds from now, or at ``eta``, at the earliest, and not after
        ``expires``, in seconds since 1970. It waits for the broker, so in an event loop write
        ``await asyncio.to_thread(queue.send_later, message)``.

        Raises MessageError, UsageError; NotSent where the broker cannot be reached, and
        DeliveryUnknown where nobody can tell whether it has the message.
        """
        if loop_is_running():
            raise UsageError(
                "send_later waits for the broker and would block the event loop: write "
                "await asyncio.to_thread(queue.send_later, message)"
            )
        due = due_at(countdown, eta)
        composed = self._mailer(mailer).compose(message, envelope=envelope)
        job = self.pack(*composed, mailer=mailer, due=due, expires=expires)
        self.put(job, due=due)
        return str(job["id"])

    def pack(
        self,
        envelope: Envelope,
        content: Content,
        *,
        mailer: str = "",
        due: float = 0.0,
        expires: float | None = None,
    ) -> Job:
        """Make a job of what was composed. Raises MessageError where it is too large."""
        if expires is None:
            expires = max(due, time.time()) + self._expires_in
        return pack(
            envelope=envelope, content=content, mailer=mailer, expires=expires, limit=self._limit
        )

    def put(
        self, job: Job, *, due: float = 0.0, tries: int = 0, task_id: str | None = None
    ) -> None:
        """Have a job handled from the time ``due`` on, after so many tries. Raises as send_later.

        A worker holds what is for later, and the broker gives it to another one if that takes too
        long; so what is for much later is held, and queued again, several times.
        """
        self.check_settings()
        if self._app.conf.task_always_eager:
            self._send_now(job)
            return
        options: dict[str, t.Any] = {} if task_id is None else {"task_id": task_id}
        if (pause := due - time.time()) > 0:
            options["countdown"] = min(pause, self._pauses.longest)
        details: dict[str, t.Any] = {"stage": "pool", "message_id": job["id"], "retryable": True}
        with contextlib.ExitStack() as leaving:
            try:
                producer = leaving.enter_context(self._app.producer_or_acquire())
                _ensure_connection(producer)
            except Exception as error:
                text = f"the broker cannot be reached ({type(error).__name__}); it is not queued"
                raise NotSent(text, **details) from error
            try:
                self._task.apply_async(
                    (job, tries, due),
                    producer=producer,
                    argsrepr=f"({job['id']!r},)",  # not the message, for all who watch the workers
                    confirm_timeout=_BROKER_SECONDS,
                    **options,
                )
            except Exception as error:
                text = f"nobody knows whether the broker has it ({type(error).__name__})"
                raise DeliveryUnknown(text, **details) from error

    def warnings(self) -> tuple[str, ...]:
        """Say what in the app's settings would lose or hold up mail, and what to write instead."""
        return complaints(
            self._app,
            self._task,
            longest_pause=self._pauses.longest,
            time_limit=self._time_limit,
        )

    def check_settings(self) -> None:
        """Log, once, what ``warnings`` says. Done by itself when a worker starts, or queues."""
        if self._is_checked:
            return
        if getattr(self._task, "queue_of_amail", None) is not self:
            raise UsageError(
                f"the app has a task {self._task.name} already: give each CeleryQueue of an app a "
                "task_name of its own"
            )
        self._is_checked = True
        for complaint in self.warnings():
            _logger.warning("Celery: %s", complaint)

    # In the worker

    def _made_task(self, name: str) -> Task:
        def send(task: Task, job: Job, tries: int = 0, due: float = 0.0) -> None:
            self._work(task, job, tries, due)

        # Not shared, or every Celery app of the process would have it.
        made = self._app.task(name=name, bind=True, shared=False, queue_of_amail=self, **SETTINGS)
        return t.cast("Task", made(send))

    def _work(self, task: Task, job: Job, tries: int, due: float) -> None:
        """Do what is to be done with a job. To return is to acknowledge it."""
        if due > time.time():
            self._put_back(task, job, tries, due)
            return
        ended = self._try(job)
        left = left_of(job, ended)
        if left is None:
            self._done(job, ended)
            return
        due = time.time() + self._pause(tries)
        if due >= left.get("exp", math.inf):
            if isinstance(ended, Handled):
                self._done(job, ended)
                ended = _given_up(left)
            self._done(job, ended)
            return
        why = f": {said_of(ended)}" if isinstance(ended, MailError) else ""
        _logger.info("%s: left for later after try %d%s", _id_of(job), tries + 1, why)
        try:
            self._put_back(task, left, tries + 1, due)
        except Reject:
            # Given back to the broker is the whole job, of which a ledger knows what was sent.
            if left is job or self.ledger is not None:
                raise
            self._done(job, _given_up(left))
        if left is not job:
            self._done(job, ended)

    def _send_now(self, job: Job) -> None:
        """Send a job in the process that queues it, where the app has task_always_eager."""
        ended = self._try(job)
        self._done(job, ended)
        if isinstance(ended, MailError):
            raise ended

    def _try(self, job: Job) -> Handled | MailError:
        gate = Gate()
        try:
            mailer = self._mailer(_name_of_mailer(job))
            self._close_with_portal(mailer.transport)
            self._close_with_portal(self.ledger)
            return self._portal.call_sync(
                handle(
                    job,
                    mailer,
                    self.ledger,
                    time_limit=self._time_limit,
                    before_last_octet=gate.let_pass,
                )
            )
        except MailError as error:
            return error
        except Exception as error:  # noqa: BLE001
            # SoftTimeLimitExceeded, which Celery raises wherever the task is; or a fault of ours,
            # which must not cost a message. Not with its frames, which hold the content.
            kind = DeliveryUnknown if gate.shut() else NotSent
            text = f"the try was interrupted: {type(error).__name__} in {first_place(error)}"
            _logger.error("%s: %s", _id_of(job), text)  # noqa: TRY400
            return kind(text, message_id=_id_of(job))

    def _put_back(self, task: Task, job: Job, tries: int, due: float) -> None:
        """Queue a job for later. Task.retry would lose it where that cannot be done."""
        try:
            self.put(job, due=due, tries=tries, task_id=task.request.id)
        except SendError as error:
            _logger.error("%s: cannot be queued for later: %s", _id_of(job), error)  # noqa: TRY400
            raise Reject(type(error).__name__, requeue=True) from None

    def _pause(self, tries: int) -> float:
        longest = self._pauses.longest_pause(tries + 1)
        return random.uniform(longest / 2, longest)  # noqa: S311

    def _done(self, job: Job, ended: Handled | MailError) -> None:
        if isinstance(ended, Handled) and ended.outcome == "expired":
            ended = NotSent("it expired in the queue", stage="pool", message_id=_id_of(job))
        if isinstance(ended, DeliveryUnknown):
            text = "%s: may have been sent or not, and is not sent again by itself: %s"
            _logger.error(text, _id_of(job), said_of(ended))
        elif isinstance(ended, MailError):
            _logger.error("%s: is given up: %s", _id_of(job), said_of(ended))
        if self._on_done is not None:
            try:
                self._on_done(ended)
            except Exception:
                _logger.exception("%s: on_done failed", _id_of(job))

    # The process

    def _mailer(self, name: str) -> Mailer:
        mailers = self._mailers
        if isinstance(mailers, Mailer):
            return mailers
        if not isinstance(mailers, Mapping):
            return mailers(name)
        if name not in mailers:
            raise ConfigError(f"there is no mailer {name!r} here; give it to CeleryQueue")
        return mailers[name]

    def _close_with_portal(self, what: Transport | Ledger | None) -> None:
        """Have the connections of something, if it has any, ended with this process's loop."""
        close = getattr(what, "aclose", None)
        if close is not None and self._end_with_portal.get(what) != os.getpid():
            self._portal.at_close(close)
            self._end_with_portal[what] = os.getpid()

    def _worker_begins(self, instance: t.Any = None, **_: t.Any) -> None:
        if instance.app is self._app:
            self.check_settings()

    def _child_ends(self, **_: t.Any) -> None:
        self._portal.close()

    def _worker_ends(self, **_: t.Any) -> None:
        self._portal.close()


def _given_up(left: Job) -> MailError:
    return NotSent(
        "these recipients, who were refused for the time being, are given up",
        stage="rcpt",
        message_id=left["id"],
        recipients=tuple(left["env"]["to"]),
    )


def _ensure_connection(producer: t.Any) -> None:
    producer.connection.ensure_connection(
        max_retries=2, interval_start=0, interval_step=0.2, timeout=_BROKER_SECONDS
    )


def _name_of_mailer(job: Job) -> str:
    """Return the name in a job that may be anything: what is wrong with it ``handle`` says."""
    name = job.get("mailer") if isinstance(job, dict) else None
    return name if isinstance(name, str) else ""


def _id_of(job: Job) -> str:
    message_id = job.get("id") if isinstance(job, dict) else None
    return message_id if isinstance(message_id, str) else "a job without an id"
