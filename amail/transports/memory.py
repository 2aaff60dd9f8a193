"""MemoryTransport: keeps what it is given. For tests, and for a mailer that must not send."""

from __future__ import annotations

import typing as t

from amail.receipt import Receipt, Reply
from amail.transports.base import PoolStats

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.mime import Content


class Delivered(t.NamedTuple):
    """What a MemoryTransport was given."""

    envelope: Envelope
    content: Content


class MemoryTransport:
    """Accepts everything. ``messages`` lists what came, oldest first; ``clear()`` empties it.

    ``relay`` is what receipts say in place of a server.
    """

    def __init__(self, relay: str = "memory") -> None:
        self.messages: list[Delivered] = []
        self._relay = relay
        self._accepted = 0

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Keep the message; see Transport."""
        self.messages.append(Delivered(envelope, content))
        self._accepted += 1
        return Receipt(
            message_id=content.message_id,
            envelope=envelope,
            reply=Reply(250, "2.0.0", "kept in memory"),
            accepted=envelope.forward_paths,
            relay=self._relay,
        )

    def clear(self) -> None:
        """Forget what came so far."""
        self.messages.clear()

    def stats(self) -> PoolStats:
        """Return how many messages came."""
        return PoolStats(accepted=self._accepted)

    async def aclose(self) -> None:
        """Do nothing: what was kept stays."""
