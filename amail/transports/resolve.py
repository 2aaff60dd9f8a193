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


def resolve(where: Where | None, *, timeout: float, options: SMTPOptions) -> Transport:
    """Make a Transport. Without ``where`` the options alone say it.

    Raises ConfigError, also for SMTP options that would have no effect.
    """
    if where is None:
        if options.get("host") is None and options.get("socket_path") is None:
            raise ConfigError("where: is missing; write a URL such as smtp://host:port, or host=")
        return SMTPTransport(SMTPSettings(**options), timeout=timeout)
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
    if isinstance(where, Transport) and not isinstance(where, type):
        return where
    raise ConfigError(
        "where: must be a URL, SMTPSettings or a Transport (an object with send and aclose), "
        f"not {type(where).__name__}"
    )


def _from_url(url: str) -> Transport:
    scheme, found, rest = url.partition("://")
    if not found:
        raise ConfigError("where: is no URL; write smtp://host:port, smtps://host or memory://")
    if scheme.lower() not in {"memory", "null"}:
        raise ConfigError("where: URLs are smtp://host:port, smtps://host, memory:// or null://")
    if rest:
        raise ConfigError(f"where: nothing stands behind {scheme.lower()}://")
    return MemoryTransport() if scheme.lower() == "memory" else NullTransport()
