"""SyncMailer: a mailer for code without an event loop, over a Portal."""

from __future__ import annotations

import typing as t

from amail.errors import UsageError
from amail.mailer import Mailer
from amail.portal import Portal

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.message import Message
    from amail.receipt import Receipt
    from amail.transports.base import PoolStats
    from amail.transports.resolve import Where


class SyncMailer:
    """Mailer without ``await``. Takes what Mailer takes; thread-safe.

    with SyncMailer("smtp://localhost:1025") as mailer:
        mailer.send(message)

    ``portal`` is the background loop to use, one of its own if none is given.
    """

    def __init__(
        self, where: Where | None = None, *, portal: Portal | None = None, **options: t.Any
    ) -> None:
        self._mailer = Mailer(where, **options)
        self._portal = Portal() if portal is None else portal
        self._owns_portal = portal is None

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
        sending = self._mailer.send(
            message, envelope=envelope, timeout=timeout, all_recipients=all_recipients
        )
        try:
            return self._portal.call_sync(sending)
        except UsageError as error:
            raise UsageError(
                "SyncMailer.send would block the running event loop; use Mailer and await it"
            ) from error

    def stats(self) -> PoolStats:
        """Return the mailer's numbers."""
        return self._mailer.stats()

    def close(self) -> None:
        """End every session. Idempotent; may be called from any thread without a loop."""
        self._portal.call_sync(self._mailer.aclose())
        if self._owns_portal:
            self._portal.close()

    def __enter__(self) -> t.Self:
        self._portal.call_sync(self._mailer.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
