"""The one seam: an envelope and content go in, a receipt or a SendError comes out."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.mime import Content
    from amail.receipt import Receipt


@t.runtime_checkable
class Transport(t.Protocol):
    """Anything that takes an envelope and content.

    A wrapper is a Transport that holds a Transport. A Transport may also have ``stats()``, and
    ``concurrency``, an int: how many sends are worth having under way at once.
    """

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Hand the content to the recipients of the envelope.

        ``deadline`` is a reading of ``time.monotonic()``; every wait inside obeys it. Raises
        MailError and nothing else; a SendError's ``outcome`` says what became of the message.
        """
        ...

    async def aclose(self) -> None:
        """Let go of every resource. Idempotent; a later ``send`` may open it anew."""
        ...


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A transport's numbers now, and since it was made.

    Now: sessions ``open`` and how many of them are ``idle``, slots ``leased``, sends ``waiting``
    for a slot. Since it was made: messages by outcome, and ``reconnects``: sessions that were found
    dead when they were wanted and were replaced without the caller noticing.
    """

    open: int = 0
    idle: int = 0
    leased: int = 0
    waiting: int = 0
    accepted: int = 0
    rejected: int = 0
    not_sent: int = 0
    unknown: int = 0
    reconnects: int = 0
