"""Sending: the coroutine that ``send`` returns, which says so when nobody awaits it."""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Callable, Coroutine, Generator

if t.TYPE_CHECKING:
    from types import TracebackType

    from amail.receipt import Receipt

    Wrapped = Coroutine[t.Any, t.Any, Receipt]

_logger = logging.getLogger("amail")


class Sending(Coroutine[t.Any, t.Any, "Receipt"]):
    """A coroutine that sends the message with this id.

    One that is dropped before it has begun, because an ``await`` was forgotten or its loop ended,
    logs an error: the message was not sent. Python's warning says neither which, nor is it seen
    where warnings are not.
    """

    __slots__ = ("__name__", "_begun", "_coroutine", "_message_id")

    def __init__(self, coroutine: Wrapped, message_id: str) -> None:
        self.__name__: str = getattr(coroutine, "__qualname__", "send")  # for the repr of a task
        self._begun = False
        self._coroutine = coroutine
        self._message_id = message_id

    def inside(self, wrap: Callable[[Wrapped], Wrapped]) -> Sending:
        """Return one around this, of what ``wrap`` makes of the coroutine."""
        self._begun = True
        return Sending(wrap(self._coroutine), self._message_id)

    def __getattr__(self, name: str) -> t.Any:
        """Return what tools look at, ``cr_frame`` and its like, as it is of the coroutine."""
        if name.startswith("cr_"):
            return getattr(self._coroutine, name)
        raise AttributeError(name)

    def send(self, value: t.Any, /) -> t.Any:
        """Run up to the next wait; as a coroutine's."""
        self._begun = True
        return self._coroutine.send(value)

    @t.overload
    def throw(
        self, kind: type[BaseException], value: object = None, tb: TracebackType | None = None, /
    ) -> t.Any: ...
    @t.overload
    def throw(
        self, kind: BaseException, value: None = None, tb: TracebackType | None = None, /
    ) -> t.Any: ...
    def throw(self, kind: t.Any, *rest: t.Any) -> t.Any:
        """Raise where it waits; as a coroutine's."""
        self._begun = True
        return self._coroutine.throw(kind, *rest)

    def close(self) -> None:
        """End it; as a coroutine's."""
        self._begun = True
        self._coroutine.close()

    def __await__(self) -> Generator[t.Any, None, Receipt]:
        self._begun = True
        return self._coroutine.__await__()

    def __del__(self) -> None:
        if not self._begun:
            _logger.error("%s: not sent: what send() returned was never awaited", self._message_id)
