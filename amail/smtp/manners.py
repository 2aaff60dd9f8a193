"""What was learnt of a server: does it bear groups of commands, and BDAT? Knows no SMTP, no clock.

Servers that offer PIPELINING and lose commands exist, and such that offer CHUNKING and do not know
BDAT. Invariant: what a server answered badly to is not said to it again in the life of a pool.
"""

from __future__ import annotations

import logging
import typing as t

if t.TYPE_CHECKING:
    from amail.smtp.settings import SMTPSettings

_logger = logging.getLogger("amail.smtp")

WARY_SECONDS = 60.0
"""That long after a refused envelope the next ones go ahead of their content."""


class Manners:
    """How a server may be spoken to. ``pipelining`` and ``chunking`` are what it bears so far."""

    def __init__(self, settings: SMTPSettings) -> None:
        self.pipelining = settings.pipelining
        self.chunking = settings.chunking
        self._relay = settings.relay
        self._wary_until = float("-inf")

    def is_bold(self, now: float) -> bool:
        """Tell whether content may go out with its envelope, refusals being rare."""
        return now >= self._wary_until

    def envelope_was_refused(self, now: float) -> None:
        """Be wary for a while: some hang up after a few contents for which nobody was there."""
        self._wary_until = now + WARY_SECONDS

    def forgo_pipelining(self) -> None:
        """Say one command at a time from now on."""
        if self.pipelining:
            self.pipelining = False
            text = "%s answers badly to several commands in a write: one at a time from now on"
            _logger.warning(text, self._relay)

    def forgo_chunking(self) -> None:
        """Say DATA from now on."""
        if self.chunking:
            self.chunking = False
            _logger.warning("%s answers badly to BDAT: DATA from now on", self._relay)
