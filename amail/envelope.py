"""Where a message goes and where its bounces go (RFC 5321, section 2.3.1). Values only.

Invariant: an Envelope that exists can be written into MAIL and RCPT as it is. Nothing in it can end
a path or a line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from amail.errors import InvalidAddress, MessageError

_NOT_IN_PATH = re.compile(r"[\x00-\x20\x7f-\xa0<>\u2028\u2029\ud800-\udfff]")
_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?:=[!-<>-~]+)?")
# What these say follows from the content and from what the server offers.
_TRANSPORTS_OWN = frozenset({"SIZE", "BODY", "SMTPUTF8"})


@dataclass(frozen=True, slots=True)
class Envelope:
    """One SMTP envelope.

    ``reverse_path`` is an addr-spec, or "" for the null reverse-path. ``forward_paths`` are
    addr-specs without duplicates. ``mail_options`` and ``rcpt_options`` are ESMTP parameters
    ("RET=HDRS", "NOTIFY=NEVER"). With ``all_recipients`` the message goes to every recipient
    or to none: one refusal and nothing is sent.

    Raises InvalidAddress for a path that could be read as more than a path, and MessageError for
    an envelope without a forward-path, or with a parameter that is malformed or the transport's own
    (SIZE, BODY, SMTPUTF8).
    """

    reverse_path: str
    forward_paths: tuple[str, ...]
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()
    all_recipients: bool = False

    def __post_init__(self) -> None:
        if not self.forward_paths:
            raise MessageError("envelope: there is no forward-path; name a recipient")
        if "" in self.forward_paths:
            raise InvalidAddress("envelope: a forward-path is empty")
        if len(set(self.forward_paths)) < len(self.forward_paths):
            raise InvalidAddress("envelope: a forward-path is given twice")
        for path in (self.reverse_path, *self.forward_paths):
            if not isinstance(path, str):
                raise InvalidAddress(f"envelope: a path is a str, not {type(path).__name__}")
            if found := _NOT_IN_PATH.search(path):
                point = f"U+{ord(found[0]):04X} at position {found.start()}"
                raise InvalidAddress(f"envelope: {point} cannot stand in a path (RFC 5321)")
        for option in (*self.mail_options, *self.rcpt_options):
            if not isinstance(option, str) or not _OPTION.fullmatch(option):
                raise MessageError("envelope: an option is KEYWORD or KEYWORD=value (RFC 5321)")
            if option.partition("=")[0].upper() in _TRANSPORTS_OWN:
                raise MessageError(f"envelope: {option.partition('=')[0]} is written by itself")
