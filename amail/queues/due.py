"""When a message is due that is not to be sent at once: in so many seconds, or at a time."""

from __future__ import annotations

import time
from datetime import datetime

from amail.errors import UsageError


def due_at(countdown: float | None, eta: datetime | None) -> float:
    """Return when a message is to be sent, in seconds since 1970; 0 is at once.

    Raises UsageError.
    """
    if countdown is not None and eta is not None:
        raise UsageError("countdown, eta: give one of them")
    if countdown is not None:
        if isinstance(countdown, bool) or not isinstance(countdown, int | float):
            raise UsageError("countdown: must be a number of seconds")
        if not 0 <= countdown < float("inf"):
            raise UsageError("countdown: must be a number of seconds from 0")
        return time.time() + countdown
    if eta is not None:
        if not isinstance(eta, datetime) or eta.utcoffset() is None:
            raise UsageError("eta: must be a datetime with a time zone: datetime.now(UTC) + ...")
        return eta.timestamp()
    return 0.0
