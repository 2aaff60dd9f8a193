"""Where a message goes and where its bounces go (RFC 5321, section 2.3.1). Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Envelope:
    """One SMTP envelope.

    ``reverse_path`` is an addr-spec, or "" for the null reverse-path. ``forward_paths`` are
    addr-specs without duplicates. ``mail_options`` and ``rcpt_options`` are ESMTP parameters
    ("RET=HDRS", "NOTIFY=NEVER"). With ``all_recipients`` the message goes to every recipient
    or to none: one refusal and nothing is sent.
    """

    reverse_path: str
    forward_paths: tuple[str, ...]
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()
    all_recipients: bool = False
