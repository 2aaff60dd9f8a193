"""A URL, settings or a Transport becomes a Transport."""

from __future__ import annotations

import typing as t

from amail.errors import ConfigError
from amail.smtp.settings import SMTPSettings
from amail.smtp.transport import SMTPTransport
from amail.transports.base import Transport
from amail.transports.memory import MemoryTransport
from amail.transports.null import NullTransport

if t.TYPE_CHECKING:
    from amail.smtp.settings import SMTPOptions

Where: t.TypeAlias = str | SMTPSettings | Transport
"""Where messages go: a URL (smtp://, smtps://, memory://, null://), settings, or a Transport."""


def resolve(where: Where, *, timeout: float, options: SMTPOptions) -> Transport:
    """Make a Transport. Raises ConfigError, also for SMTP options that would have no effect."""
    if isinstance(where, str) and where.partition(":")[0].lower() in {"smtp", "smtps"}:
        return SMTPTransport(SMTPSettings.from_url(where, **options), timeout=timeout)
    if options:
        raise ConfigError(
            f"{next(iter(options))}: SMTP options go with an smtp:// or smtps:// URL; "
            "put them where the settings or the transport are made"
        )
    if isinstance(where, SMTPSettings):
        return SMTPTransport(where, timeout=timeout)
    if isinstance(where, str):
        return _from_url(where)
    if isinstance(where, Transport):
        return where
    raise ConfigError(
        "where: must be a URL, SMTPSettings or a Transport (an object with send and aclose), "
        f"not {type(where).__name__}"
    )


def _from_url(url: str) -> Transport:
    scheme, found, rest = url.partition("://")
    if not found:
        raise ConfigError("where: is no URL; write smtp://host:port, smtps://host or memory://")
    if rest:
        raise ConfigError(f"where: nothing stands behind {scheme.lower()}://")
    match scheme.lower():
        case "memory":
            return MemoryTransport()
        case "null":
            return NullTransport()
    raise ConfigError("where: URLs are smtp://host:port, smtps://host, memory:// or null://")
