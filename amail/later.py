"""Later: messages that the background loop of this process sends while nobody waits.

Nothing outlives the process. Invariant: what becomes of each message is logged, unless a server has
it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import typing as t
from concurrent import futures
from dataclasses import dataclass, field

from amail.errors import MailError, QueueFull
from amail.threads import in_users_thread

if t.TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from amail.portal import Portal
    from amail.receipt import Receipt

    Sending = Coroutine[t.Any, t.Any, Receipt]
    Tell = Callable[[Receipt | MailError], Callable[[], object] | None]

_logger = logging.getLogger("amail.queue")

_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that was left to be sent in the background. May be awaited.

    ``message_id`` is its Message-ID, ``engine`` where it waits. ``putting`` is done when the queue
    holds it; None where it does already.
    """

    message_id: str
    engine: str = "memory"
    putting: futures.Future[None] | None = field(default=None, repr=False, compare=False)

    def __await__(self) -> Generator[t.Any, None, Queued]:
        """Be done when the queue holds the message. Raises what kept it from that."""
        if self.putting is not None:
            # To leave is not to take it back: it may be on its way already.
            yield from asyncio.shield(asyncio.wrap_future(self.putting)).__await__()
        return self


class MemoryQueue:
    """Holds ``length`` messages at most, those under way among them. After a fork it is empty."""

    def __init__(self, length: int = _LENGTH) -> None:
        self._length = length
        self._pending: set[futures.Future[None]] = set()
        self._pending_in = os.getpid()

    def check_room(self) -> None:
        """Raise QueueFull where there is no room for one more."""
        if len(self._pending_here()) >= self._length:
            raise QueueFull(
                f"{self._length} messages wait to be sent in the background; try again later, or "
                "await mail.send(message), which waits its turn",
                stage="pool",
                retryable=True,
            )

    def put(self, message_id: str, sending: Sending, portal: Portal, tell: Tell) -> None:
        """Have a message sent on the portal's loop. Raises what ``Portal.submit`` does.

        ``tell`` is given what came of it, in that loop, and returns what to call of the user's, in
        a thread of its own; None where nobody listens.
        """
        pending = self._pending_here()
        background = portal.submit(_send(message_id, sending, tell))
        pending.add(background)
        background.add_done_callback(pending.discard)

    def drain(self, timeout: float) -> int:
        """Wait up to so many seconds for what was put; return how much is left."""
        return len(futures.wait(list(self._pending_here()), timeout=timeout).not_done)

    def _pending_here(self) -> set[futures.Future[None]]:
        if self._pending_in != os.getpid():
            self._pending_in, self._pending = os.getpid(), set()  # the parent's are the parent's
        return self._pending


async def _send(message_id: str, sending: Sending, tell: Tell) -> None:
    came_to: Receipt | MailError
    try:
        came_to = await sending
    except asyncio.CancelledError as error:
        known = "; ".join(getattr(error, "__notes__", ())) or "it is not known to be sent"
        _logger.error("%s: ended before it was done: %s", message_id, known)  # noqa: TRY400
        raise
    except MailError as error:
        _log_failure(message_id, error)
        came_to = error
    except Exception:
        _logger.exception("%s: could not be sent in the background", message_id)
        return
    telling = tell(came_to)
    if telling is not None:
        await in_users_thread(telling, "amail-receiver")


def _log_failure(message_id: str, error: MailError) -> None:
    """Log what became of a message; not the text of the error, which names recipients."""
    reply = getattr(error, "reply", None)
    outcome: str = getattr(error, "outcome", "not_sent")
    _logger.error(
        "%s: could not be sent in the background: %s, %s at the stage %s, %s",
        message_id,
        outcome.replace("_", " "),
        type(error).__name__,
        getattr(error, "stage", None),
        "no reply" if reply is None else str(reply.code),
    )
