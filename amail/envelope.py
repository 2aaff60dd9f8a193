"""Where a message goes and where its bounces go (RFC 5321, section 2.3.1). Values only.

Invariant: an Envelope that exists can be written into MAIL and RCPT as it is. Nothing in it can end
a path or a line.
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Iterable
from dataclasses import dataclass

from amail.errors import InvalidAddress, MessageError

_NOT_IN_PATH = re.compile(r"[\x00-\x20\x7f-\xa0<>\u2028\u2029\ud800-\udfff]")
_PLAIN = re.compile(r"[!-;=?-~]*(?: [!-;=?-~]+)+")
_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?:=[!-<>-~]+)?")
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"
_EVENT = "(?:SUCCESS|FAILURE|DELAY)"
# The parameters of delivery status notifications: where each stands, its values, what to write.
_DSN = {
    "RET": ("mail_options", re.compile("FULL|HDRS", re.IGNORECASE), "FULL or HDRS"),
    "ENVID": ("mail_options", re.compile(f"{_XTEXT}{{1,100}}"), "up to 100 characters of xtext"),
    "NOTIFY": (
        "rcpt_options",
        re.compile(f"NEVER|{_EVENT}(?:,{_EVENT})*", re.IGNORECASE),
        "NEVER alone, or a list such as FAILURE,DELAY,SUCCESS",
    ),
    "ORCPT": (
        "rcpt_options",
        re.compile(f"[A-Za-z0-9-]+;{_XTEXT}{{1,500}}"),
        "rfc822;address, the address as xtext",
    ),
}
DSN = frozenset(_DSN)
"""The keywords of the parameters that only a server with DSN knows (RFC 3461, section 4)."""
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
    (SIZE, BODY, SMTPUTF8), or where RET, ENVID, NOTIFY or ORCPT is not as RFC 3461 has it.
    """

    reverse_path: str
    forward_paths: tuple[str, ...]
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()
    all_recipients: bool = False

    def __post_init__(self) -> None:
        if self.mail_options or self.rcpt_options or not self._is_plainly_fine():
            self._check()

    def _is_plainly_fine(self) -> bool:
        """Tell at a glance what holds of nearly all; the careful look is for the rest."""
        paths = self.forward_paths
        if type(paths) is not tuple:
            return False
        try:
            joined = " ".join((self.reverse_path, *paths))
        except TypeError:
            return False
        if len(paths) > 1 and len(set(paths)) < len(paths):
            return False
        return joined.count(" ") == len(paths) and _PLAIN.fullmatch(joined) is not None

    def _check(self) -> None:
        for name in ("forward_paths", "mail_options", "rcpt_options"):
            object.__setattr__(self, name, _tuple(getattr(self, name), name))
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
        if self.mail_options or self.rcpt_options:
            _check_options(self.mail_options, "mail_options")
            _check_options(self.rcpt_options, "rcpt_options")


def _check_options(options: tuple[str, ...], field: str) -> None:
    for option in options:
        _check_option(option, field)


def _tuple(value: object, name: str) -> tuple[t.Any, ...]:
    """Make what was given immutable. One str is a mistake, not a tuple of letters."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise MessageError(f"envelope: {name} must be a tuple, not {type(value).__name__}")
    return tuple(value)


def _check_option(option: object, field: str) -> None:
    """Check an ESMTP parameter, and what RFC 3461 says of those of DSN."""
    if not isinstance(option, str) or not _OPTION.fullmatch(option):
        raise MessageError("envelope: an option is KEYWORD or KEYWORD=value (RFC 5321)")
    keyword, _, value = option.partition("=")
    keyword = keyword.upper()
    if keyword in _TRANSPORTS_OWN:
        raise MessageError(f"envelope: {keyword} is written by itself")
    if keyword in _DSN:
        where, values, right = _DSN[keyword]
        if field != where:
            raise MessageError(f"{field}: {keyword} belongs into {where} (RFC 3461)")
        if not values.fullmatch(value):
            raise MessageError(f"{field}: {keyword} is {right} (RFC 3461)")
