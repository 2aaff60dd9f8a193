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

email_accepted = _signals.signal(
    "email-accepted",
    doc="""A server took responsibility for a message.

    Sent by the app, with ``message`` (None for ``send_raw``) and ``receipt``.
    """,
)

email_failed = _signals.signal(
    "email-failed",
    doc="""A message was rejected, not sent, or nobody knows: ``error.outcome`` says which.

    Sent by the app, with ``message`` (None for ``send_raw``) and ``error``, a MailError. What is
    raised at the call, because a message cannot be composed, is not signalled.
    """,
)

email_resolved = _signals.signal(
    "email-resolved",
    doc="""The late reply came to a message that had been unknown.

    Sent by the app from a thread of its own, with ``receipt`` or ``error``, the other being None;
    both have the message's ``message_id``.
    """,
)
