"""Secret: a str that no repr shows. And calls that are refused without showing their arguments.

What is in a local variable gets into tracebacks that show them (error trackers do), into debuggers
and crash reports; what is pickled gets into queues, caches and files.
"""

from __future__ import annotations

import functools
import typing as t

from amail.errors import ConfigError
from amail.frames import drop_frames

if t.TYPE_CHECKING:
    from collections.abc import Callable

_TELLING = 8

P = t.ParamSpec("P")
R = t.TypeVar("R")


class Secret(str):
    """A str whose repr does not show it, and which is copied but never pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    def __copy__(self) -> t.Self:
        return self

    def __deepcopy__(self, memo: object) -> t.Self:
        return self

    def __reduce_ex__(self, protocol: object) -> t.NoReturn:
        raise TypeError(
            "a password is not pickled; make settings and mailers in the process that uses them"
        )


def quotes(text: str, secret: str) -> bool:
    """Tell whether a part of a secret that is long enough to matter stands in a text."""
    width = min(len(secret), _TELLING)
    return bool(secret) and any(
        secret[i : i + width] in text for i in range(len(secret) - width + 1)
    )


def hides_arguments(call: Callable[P, R]) -> Callable[P, R]:
    """Have what refuses a call show neither its arguments nor the frames that held them."""

    @functools.wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (ConfigError, TypeError) as error:
            drop_frames(error)
            del args, kwargs
            raise

    return wrapper
