"""SyncMailer: a mailer for code without an event loop, over a Portal."""

from __future__ import annotations

import os
import typing as t
import weakref

from amail.errors import UsageError
from amail.later import MemoryQueue, Queued
from amail.mailer import Mailer
from amail.portal import Portal
from amail.secret import hides_arguments
from amail.threads import check_may_block, loop_is_running
from amail.transports.base import drain_seconds

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from email.message import EmailMessage

    from amail.address import People, Person
    from amail.envelope import Envelope
    from amail.message import Message
    from amail.receipt import Receipt
    from amail.transports.base import PoolStats
    from amail.transports.resolve import Where
    from amail.transports.server_info import ServerInfo

R = t.TypeVar("R")


class SyncMailer:
    """Mailer without ``await``. Takes what Mailer takes; thread-safe.

    with SyncMailer("smtp://localhost:1025") as mailer:
        mailer.send(message)

    ``portal`` is the background loop to use, one of its own if none is given.
    """

    @hides_arguments
    def __init__(
        self,
        where: Where | Sequence[Where] | None = None,
        *,
        portal: Portal | None = None,
        **options: t.Any,
    ) -> None:
        self._mailer = Mailer(where, **options)
        self._portal = Portal() if portal is None else portal
        self._owns_portal = portal is None
        self._queue = MemoryQueue()
        self._ends_with_portal_in: int | None = None

    def __repr__(self) -> str:
        return f"<SyncMailer of {self._mailer!r}>"

    def send(
        self,
        message: Message,
        *,
        envelope: Envelope | None = None,
        timeout: float | None = None,
        all_recipients: bool | None = None,
    ) -> Receipt:
        """Send a message and wait for its receipt; see ``Mailer.send``.

        Raises UsageError in a thread that runs an event loop.
        """
        _check_may_wait("send")
        return self._wait_for(
            self._mailer.send(
                message, envelope=envelope, timeout=timeout, all_recipients=all_recipients
            )
        )

    def send_raw(
        self,
        content: bytes | EmailMessage,
        *,
        sender: Person,
        recipients: People,
        timeout: float | None = None,
    ) -> Receipt:
        """Send what was composed elsewhere and wait for its receipt; see ``Mailer.send_raw``.

        Raises UsageError in a thread that runs an event loop.
        """
        _check_may_wait("send_raw")
        return self._wait_for(
            self._mailer.send_raw(content, sender=sender, recipients=recipients, timeout=timeout)
        )

    def send_later(self, message: Message) -> Queued:
        """Leave a message to be sent by the background loop, and return at once.

        It is composed now, and waits in memory: a portal that is closed, as at the exit of the
        process, has ``drain_timeout`` seconds for it, and what is lost, or cannot be sent, is
        logged. Never blocks, in a running loop neither. Raises MessageError, and QueueFull while a
        thousand messages wait.
        """
        self._queue.check_room()
        sending = self._mailer.send(message)
        message_id = str(message.message_id)
        try:
            self._end_with_portal()
        except BaseException:
            sending.close()
            raise
        self._queue.put(message_id, sending, self._portal, lambda _: None)
        return Queued(message_id)

    def verify(self) -> ServerInfo:
        """Open a session and return what the server says of itself; see ``Mailer.verify``.

        Raises UsageError in a thread that runs an event loop.
        """
        _check_may_wait("verify")
        return self._wait_for(self._mailer.verify())

    def stats(self) -> PoolStats:
        """Return the mailer's numbers."""
        return self._mailer.stats()

    def close(self) -> None:
        """End every session. Idempotent; may be called from any thread without a loop."""
        check_may_block("mailer.close")
        self._portal.call_sync(self._mailer.aclose())
        if self._owns_portal:
            self._portal.close()
        self._ends_with_portal_in = None

    def _wait_for(self, sending: Coroutine[t.Any, t.Any, R]) -> R:
        try:
            self._end_with_portal()
        except BaseException:
            sending.close()
            raise
        return self._portal.call_sync(sending)

    def _end_with_portal(self) -> None:
        if self._ends_with_portal_in != os.getpid():
            self._portal.at_close(_closer(self._mailer))
            self._ends_with_portal_in = os.getpid()

    def __enter__(self) -> t.Self:
        self._portal.call_sync(self._mailer.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _check_may_wait(name: str) -> None:
    if loop_is_running():
        raise UsageError(
            f"SyncMailer.{name} would block the running event loop; use Mailer and await it"
        )


def _closer(mailer: Mailer) -> Callable[[], Awaitable[None]]:
    """Return what ends a mailer's sessions with the portal, without keeping the mailer alive."""
    reference = weakref.ref(mailer.transport)

    async def close() -> None:
        transport = reference()
        if transport is not None:
            drain_seconds.set(0.0)  # in this task; the portal has drained
            await transport.aclose()

    return close
