"""What is logged, mailed to those who look after an application; and what amail logs, shown.

MailHandler is in the place of ``logging.handlers.SMTPHandler``, which holds up who logs for as long
as the mail server takes, and sends a mail for every repetition.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import typing as t
from collections import OrderedDict, deque

from amail.errors import ConfigError, MessageError, QueueFull, UsageError
from amail.message import Message
from amail.portal import Portal
from amail.smtp.settings import check_seconds
from amail.sync import SyncMailer

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail.address import People, Person
    from amail.transports.resolve import Where

_SIGNATURES = 1000
_SUBJECT = 120


@t.runtime_checkable
class SendsLater(t.Protocol):
    """What may be given in place of a URL: amail_flask's Mail, a SyncMailer."""

    def send_later(self, message: Message) -> object:
        """Leave a message to be sent, and return at once."""
        ...


class _Kind:
    """Records of one signature: when the last one was mailed, and how many were not since."""

    __slots__ = ("mailed_at", "suppressed")

    def __init__(self) -> None:
        self.mailed_at = float("-inf")
        self.suppressed = 0


class MailHandler(logging.Handler):
    """Mails records: one of a kind in ``interval`` seconds, ``limit`` of all kinds together.

    handler = MailHandler(mail, recipients=["admin@example.com"])
    app.logger.addHandler(handler)

    ``where``: amail_flask's Mail, a SyncMailer, or what SyncMailer takes, such as a URL. ``sender``
    is the author, that of ``where`` if None. ``subject`` stands in front of the first line of what
    was logged, the level and the logger's name if it is None.

    Of one kind are records of one logger, level and place with the same text before its arguments
    are put in, and where there is an exception, those of one type that was raised at one place.
    What was not mailed is counted, and the next mail says how much that was.

    Never blocks who logs, and raises nothing: a mail that cannot be queued is counted too, and one
    that cannot be sent is logged by "amail.queue". Records of amail itself are not mailed, or a
    mail that fails would lead to the next. At the exit of the process those that wait have the
    drain timeout of ``where``; of a URL that is ``drain_timeout`` seconds. Raises ConfigError and
    MessageError.
    """

    def __init__(
        self,
        where: SendsLater | Where,
        *,
        recipients: People,
        sender: Person | None = None,
        subject: str | None = None,
        level: int | str = logging.ERROR,
        interval: float = 300.0,
        limit: int = 20,
        drain_timeout: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(level)
        check_seconds("interval", interval)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError("limit: must be a whole number from 1")
        self._recipients, self._sender, self._subject = recipients, sender, subject
        self._check_people()
        self._interval, self._limit, self._clock = interval, limit, clock
        self._kinds: OrderedDict[t.Hashable, _Kind] = OrderedDict()
        self._mailed: deque[float] = deque()  # when, in the last interval
        self._others = 0  # not mailed because of the limit, or of a full queue
        self._here = threading.local()
        self._portal = Portal(drain_timeout=drain_timeout)
        self._mailer: SendsLater
        if isinstance(where, SendsLater):
            self._mailer = where
        else:
            self._mailer = SyncMailer(where, portal=self._portal, default_sender=sender)

    def emit(self, record: logging.LogRecord) -> None:
        """Mail a record, or count it."""
        if _is_amails(record.name) or getattr(self._here, "emits", False):
            return
        self._here.emits = True
        try:
            self._mail(record)
        except Exception:  # noqa: BLE001 - whatever it is, who logs goes on
            self.handleError(record)
        finally:
            self._here.emits = False

    def close(self) -> None:
        """Let those that wait be sent, for the drain timeout. Not in a running loop: it returns."""
        with contextlib.suppress(UsageError):
            self._portal.close()
        super().close()

    def _mail(self, record: logging.LogRecord) -> None:
        now = self._clock()
        kind = self._kind_of(record)
        if now - kind.mailed_at < self._interval:
            kind.suppressed += 1
            return
        while self._mailed and now - self._mailed[0] >= self._interval:
            self._mailed.popleft()
        if len(self._mailed) >= self._limit:
            self._others += 1
            return
        try:
            self._mailer.send_later(self._message(record, kind))
        except QueueFull:
            self._others += 1
            return
        self._mailed.append(now)
        kind.mailed_at, kind.suppressed, self._others = now, 0, 0

    def _kind_of(self, record: logging.LogRecord) -> _Kind:
        signature = _signature(record)
        kind = self._kinds.setdefault(signature, _Kind())
        self._kinds.move_to_end(signature)
        if len(self._kinds) > _SIGNATURES:
            _, forgotten = self._kinds.popitem(last=False)
            self._others += forgotten.suppressed
        return kind

    def _message(self, record: logging.LogRecord, kind: _Kind) -> Message:
        body = [self.format(record)]
        if kind.suppressed:
            body.append(f"Logged {kind.suppressed} more time(s) since the last mail about it.")
        if self._others:
            body.append(f"{self._others} other record(s) were not mailed, being too many.")
        message = Message(
            self._subject_of(record),
            self._recipients,
            "\n\n".join(body) + "\n",
            sender=self._sender,
        )
        message.mark_auto_submitted()
        return message

    def _subject_of(self, record: logging.LogRecord) -> str:
        prefix = self._subject or f"{record.levelname} in {record.name}"
        first = next(iter(record.getMessage().split("\n", 1)))
        text = "".join(point if point.isprintable() else " " for point in f"{prefix}: {first}")
        return text if len(text) <= _SUBJECT else f"{text[:_SUBJECT]}..."

    def _check_people(self) -> None:
        sender = "unknown@localhost" if self._sender is None else self._sender
        if not self._recipients:
            raise MessageError("recipients: there is nobody to mail to")
        Message("", self._recipients, sender=sender).validate()


def _is_amails(name: str) -> bool:
    return name == "amail" or name.startswith("amail.")


def _signature(record: logging.LogRecord) -> t.Hashable:
    raised: tuple[object, ...] = ()
    if record.exc_info and record.exc_info[0] is not None:
        kind, _, traceback = record.exc_info
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        place = traceback and (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
        raised = (kind, place)
    return (record.name, record.levelno, record.pathname, record.lineno, str(record.msg), raised)


def show_debug(handler: logging.Handler, name: str = "amail") -> None:
    """Have all shown that this logger is told, by ``handler`` where nothing else is set up."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    each: logging.Logger | None = logger
    while each is not None:
        if not all(isinstance(its, logging.NullHandler) for its in each.handlers):
            return
        each = each.parent if each.propagate else None
    logger.addHandler(handler)
