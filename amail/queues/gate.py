"""Gate: whether a try that was interrupted had sent the last octet, asked without a race."""

from __future__ import annotations

import threading

from amail.errors import NotSent


class Gate:
    """Stands before the last octet of a content. Passed or shut, whichever is first, for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passed = self._shut = False

    def let_pass(self) -> None:
        """Let the last octet go out. Raises NotSent where the gate is shut."""
        with self._lock:
            if self._shut:
                raise NotSent("the try was interrupted before the content was sent", stage="body")
            self._passed = True

    def shut(self) -> bool:
        """Let nothing pass from now on; return whether it had passed."""
        with self._lock:
            self._shut = True
            return self._passed
