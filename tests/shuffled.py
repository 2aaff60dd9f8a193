"""A loop that runs tasks in an order drawn from a seed, where asyncio goes by first come."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque


class ShuffledLoop(asyncio.SelectorEventLoop):
    """Of the tasks that are ready one behind the other, any may be next.

    No task overtakes a callback: asyncio itself counts on those of one future coming in order, and
    protocols on no octets before the connection was made.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._ready = _Shuffled(random.Random(seed))


class _Shuffled(deque[asyncio.Handle]):
    """Handles that are ready. A task at the front may change places with any behind it."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def popleft(self) -> asyncio.Handle:
        """Take the next one."""
        tasks = sum(1 for _ in itertools.takewhile(_is_task, self))
        if tasks > 1:
            other = self._rng.randrange(tasks)
            self[0], self[other] = self[other], self[0]
        return super().popleft()


def _is_task(handle: asyncio.Handle) -> bool:
    """Tell whether a handle lets a task go on."""
    return isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)  # type: ignore[attr-defined]
