"""The signals of amail_flask (blinker)."""

from __future__ import annotations

import blinker

_signals = blinker.Namespace()

email_dispatched = _signals.signal(
    "email-dispatched",
    doc="""A message was accepted, or would have been sent while sending is suppressed.

    Sent by the app, with ``message``: the amail Message.
    """,
)
