"""The one seam: an envelope and content go in, a receipt or a SendError comes out."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.mime import Content
    from amail.receipt import Receipt


@t.runtime_checkable
class Transport(t.Protocol):
    """Anything that takes an envelope and content.

    A wrapper is a Transport that holds a Transport. A Transport may also have ``stats()``.
    """

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Hand the content to the recipients of the envelope.

        ``deadline`` is a reading of ``time.monotonic()``; every wait inside obeys it. Raises a
        SendError, whose ``outcome`` says what became of the message, and nothing else.
        """
        ...

    async def aclose(self) -> None:
        """Let go of every resource. Idempotent; a later ``send`` may open it anew."""
        ...
