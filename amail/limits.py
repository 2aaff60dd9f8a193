"""How much of everything one message may hold. Every limit has a number; none means "no limit"."""

from __future__ import annotations

from dataclasses import dataclass, fields

from amail.errors import ConfigError

_LARGEST_HEADER = 64 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What composing refuses to go past.

    ``message_size`` is in octets as sent (before dot-stuffing), ``recipients`` counts envelope
    recipients, ``headers`` counts ``extra_headers`` and ``header_size`` is the octets one of their
    values may have, ``subject`` counts characters, ``filename`` octets of UTF-8 (longer names are
    cut, keeping the extension).

    Raises ConfigError for a limit that is not a positive integer.
    """

    message_size: int = 50 * 1024 * 1024
    attachments: int = 100
    recipients: int = 500
    headers: int = 200
    header_size: int = 4096
    subject: int = 1000
    filename: int = 200

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"limits.{limit.name}: must be a whole number from 1")
        if self.header_size > _LARGEST_HEADER:
            raise ConfigError(f"limits.header_size: {_LARGEST_HEADER} octets is the most")
