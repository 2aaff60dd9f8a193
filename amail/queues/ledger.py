"""A ledger: which jobs were sent. It removes the doubles that a queue's redelivery makes.

    begin ──► "begun" ──► sent       the key is kept for days; who begins it again is told "sent"
                     ├──► unknown    likewise; never begun again by itself
                     └──► release    certainly not sent: may be begun again at once
                     └──► (nothing)  the worker died: may be begun again when its lease has ended

Invariant: of those who begin a key, one at a time has it, for a lease that is longer than a try may
take. What no ledger can remove: a worker that dies between the server's reply and ``sent`` leaves
a key that is sent once more when the lease has ended.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

State = t.Literal["begun", "busy", "sent", "unknown"]

LEASE = 900.0
"""Seconds: more than the 660 that one try may take."""
KEPT = 7 * 86_400.0
"""Seconds for which it is known what was sent: longer than any queue redelivers."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a ledger says to who begins a key.

    "begun": go on. "busy": another worker has it. "sent", "unknown": it was done; ``deferred`` then
    are those of the recipients, numbered from 0, who were left for later.
    """

    state: State
    deferred: tuple[int, ...] = ()


class Ledger(t.Protocol):
    """Who else handles the same job. Shared by every worker of a queue.

    A ``key`` is 64 hexadecimal digits. A ``token`` is made by who begins: whatever it says later
    about a key that is no longer its own changes nothing. What any of these raises is taken for a
    ledger that cannot be had just now.
    """

    @property
    def lease(self) -> float:
        """Seconds after which a key may be begun again that nobody has said more of."""
        ...

    async def begin(self, key: str, token: str) -> Entry:
        """Take a key, if nobody has it and it was not done."""
        ...

    async def sent(self, key: str, token: str, deferred: tuple[int, ...] = ()) -> None:
        """Note that a server has it."""
        ...

    async def unknown(self, key: str, token: str, deferred: tuple[int, ...] = ()) -> None:
        """Note that nobody knows whether a server has it: it is never begun again."""
        ...

    async def release(self, key: str, token: str) -> None:
        """Give a key back that certainly was not sent."""
        ...
