"""Warnings about a config, shown at the line of the application that led to them."""

from __future__ import annotations

import sys
import warnings


def warn(text: str) -> None:
    """Warn at the nearest frame that is not ours."""
    level = 1
    frame = sys._getframe()  # as warnings does for its stacklevel
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("amail"):
        frame = frame.f_back
        level += 1
    warnings.warn(text, stacklevel=level)
