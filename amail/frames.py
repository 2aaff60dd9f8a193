"""Frames: what an exception remembers of the code it passed, and whose line a warning is about.

The locals of a frame may be secrets.
"""

from __future__ import annotations

import sys
import typing as t
import warnings

if t.TYPE_CHECKING:
    from collections.abc import Iterator


def with_origins(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all it came from: causes, contexts, those in groups."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def drop_frames(error: BaseException) -> None:
    """Take the frames out of an exception and of all it came from; types and texts stay."""
    for each in with_origins(error):
        each.__traceback__ = None


def first_place(error: BaseException) -> str:
    """Return "file, line n" of the first code that was called where this was caught.

    "" if there was none: the call itself failed.
    """
    frame = error.__traceback__ and error.__traceback__.tb_next
    return f"{frame.tb_frame.f_code.co_filename}, line {frame.tb_lineno}" if frame else ""


def warn(text: str) -> None:
    """Warn at the line of the application that led here: the nearest frame that is not ours."""
    level = 1
    frame = sys._getframe()  # as warnings does for its stacklevel
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("amail"):
        frame = frame.f_back
        level += 1
    warnings.warn(text, stacklevel=level)
