"""NullTransport: accepts everything and keeps nothing. For a mailer that must not send."""

from __future__ import annotations

import typing as t

from amail.receipt import Receipt, Reply

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.mime import Content


class NullTransport:
    """Accepts everything. ``relay`` is what receipts say in place of a server."""

    def __init__(self, relay: str = "null") -> None:
        self._relay = relay

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Drop the message; see Transport."""
        return Receipt(
            message_id=content.message_id,
            envelope=envelope,
            reply=Reply(250, "2.0.0", "not sent anywhere"),
            accepted=envelope.forward_paths,
            relay=self._relay,
        )

    async def aclose(self) -> None:
        """Do nothing."""
