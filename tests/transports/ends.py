"""An end for tests of wrappers, and a clock for them."""

from __future__ import annotations

import asyncio
import selectors
import time
import typing as t

from amail import Message, NullTransport, Receipt
from amail.errors import MailError
from amail.mime import compose
from tests.messages import ADA

if t.TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest

    from amail import Envelope
    from amail.mime import Content

T = t.TypeVar("T")


class End:
    """A Transport that does what it is told, one thing a send; the last one stays.

    ``tried`` holds what it was given.
    """

    def __init__(self, name: str, *outcomes: MailError | Callable[[Receipt], Receipt]) -> None:
        self.tried: list[tuple[Envelope, Content, float | None]] = []
        self.closed = 0
        self.concurrency = 3
        self._outcomes = list(outcomes)
        self._accepting = NullTransport(relay=name)

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        self.tried.append((envelope, content, deadline))
        await asyncio.sleep(0)
        receipt = await self._accepting.send(envelope, content)
        if not self._outcomes:
            return receipt
        outcome = self._outcomes[0] if len(self._outcomes) == 1 else self._outcomes.pop(0)
        if isinstance(outcome, MailError):
            # A fresh one each time, as ends in the field raise.
            raise type(outcome)(*outcome.args, **vars(outcome))
        return outcome(receipt)

    async def aclose(self) -> None:
        self.closed += 1

    def from_now_on(self, *outcomes: MailError | Callable[[Receipt], Receipt]) -> None:
        self._outcomes = list(outcomes)


def letter(*recipients: str, **fields: t.Any) -> tuple[Envelope, Content]:
    """An envelope and content, for each of these recipients."""
    to = recipients or ("bob@example.org",)
    return compose(Message("Hello", list(to), **{"body": "Hi", "sender": ADA, **fields}))


class Clock:
    """The clock of the process, which can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        real = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self.ahead)


class _NoWaiting(selectors.DefaultSelector):
    """Looks for what has happened, and in place of waiting puts the clock forward."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self._clock.ahead += timeout
        return super().select(0)


def run_in_virtual_time(main: Coroutine[t.Any, t.Any, T], clock: Clock) -> T:
    """Run a coroutine in a loop in which every wait is over at once, as if it had lasted.

    For what needs no socket and no thread: those would not be waited for.
    """

    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(_NoWaiting(clock))

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)
