"""The one seam: an envelope and content go in, a receipt or a SendError comes out."""

from __future__ import annotations

import typing as t
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace

from amail.transports.server_info import ServerInfo

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from amail.envelope import Envelope
    from amail.errors import MailError, Outcome
    from amail.mime import Content
    from amail.receipt import Receipt

    OnResolved = Callable[[Receipt | MailError], object]
    """Told what became of a message that had been unknown."""

when_written: ContextVar[Callable[[], None] | None] = ContextVar("when_written", default=None)
"""Set by who sends many: called when the last octet is written, and only the reply is missing.

There the next message can follow over the same session, which takes one round trip less. A
transport that does not call it is asked for the next one when it has sent this one.
"""

reply_until: ContextVar[float | None] = ContextVar("reply_until", default=None)
"""Set by who gives a transport a part of the time only: until when the last reply may take.

A reading of ``time.monotonic()``, later than the ``deadline``. Once the last octet is written
nobody else can be asked, so that ending the wait at the deadline would only make it unknown.
"""

time_for_all: ContextVar[Callable[[], tuple[float, float]] | None] = ContextVar(
    "time_for_all", default=None
)
"""Set by who has so many seconds for several transports, from when the first of them begins.

Called with no deadline given, the moment at which waiting is over (a slot is held, say), and where
that happens again. Returns until when the content and until when the last reply may take: readings
of ``time.monotonic()``.
"""

drain_seconds: ContextVar[float] = ContextVar("drain_seconds", default=10.0)
"""Set by who closes a transport, through whatever wraps it: how long ``aclose`` lets those finish
that are being sent."""


@t.runtime_checkable
class Transport(t.Protocol):
    """Anything that takes an envelope and content.

    A wrapper is a Transport that holds a Transport. A Transport may also have ``stats()``,
    ``verify()``, which returns a ServerInfo, ``listen(on_resolved)``, which has that told what late
    replies settle and returns whether there are any, and ``concurrency``, an int: how many sends
    are worth having under way at once.
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

    def __add__(self, other: PoolStats) -> PoolStats:
        """Return the numbers of both together."""
        mine, its = (
            [getattr(each, field.name) for field in fields(each)] for each in (self, other)
        )
        return PoolStats(*map(sum, zip(mine, its, strict=True)))

    def without(self, outcomes: Mapping[Outcome, int]) -> PoolStats:
        """Leave out what was not the end of a message: tries after which another one was made."""
        left = {name: max(0, getattr(self, name) - count) for name, count in outcomes.items()}
        return replace(self, **left)


class Wrapper:
    """The part of a wrapper that hands everything on but ``send``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def concurrency(self) -> int:
        """That of the transport below."""
        return getattr(self._transport, "concurrency", 1)

    def stats(self) -> PoolStats:
        """Return the numbers of the transport below; all zero where it keeps none."""
        return stats_of(self._transport)

    async def verify(self) -> ServerInfo:
        """Verify the transport below."""
        return await verified(self._transport)

    def listen(self, on_resolved: OnResolved) -> bool:
        """Have it told of late replies below; False where there are none."""
        return listening(self._transport, on_resolved)

    async def aclose(self) -> None:
        """Close the transport below."""
        await self._transport.aclose()


def stats_of(transport: Transport) -> PoolStats:
    """Return a transport's numbers; all zero where it keeps none."""
    stats = getattr(transport, "stats", None)
    return PoolStats() if stats is None else stats()


def listening(transport: Transport, on_resolved: OnResolved) -> bool:
    """Have ``on_resolved`` told what late replies settle; False for a transport without any."""
    listen: Callable[[OnResolved], bool] | None = getattr(transport, "listen", None)
    return listen is not None and listen(on_resolved)


async def verified(transport: Transport) -> ServerInfo:
    """Ask a transport's server; one that has none is named by its kind."""
    verify = getattr(transport, "verify", None)
    if verify is None:
        return ServerInfo(relay=type(transport).__name__)
    info: ServerInfo = await verify()
    return info
