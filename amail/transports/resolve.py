"""A URL, settings or a Transport becomes a Transport."""

from __future__ import annotations

import typing as t
from importlib.metadata import entry_points
from urllib.parse import unquote, urlsplit

from amail.errors import ConfigError, MailError
from amail.smtp.settings import SMTPSettings
from amail.smtp.transport import SMTPTransport
from amail.transports.base import Transport
from amail.transports.console import ConsoleTransport
from amail.transports.file import FileTransport
from amail.transports.memory import MemoryTransport
from amail.transports.null import NullTransport

if t.TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoints

    from amail.smtp.settings import SMTPOptions

Where: t.TypeAlias = str | SMTPSettings | Transport
"""Where messages go: a URL (smtp://, smtps://, memory://, null://, console://, file:///folder, or
of a scheme that another package adds), settings, or a Transport."""

GROUP = "amail.transports"
"""The entry points by which other packages add URL schemes.

The name is the scheme, the object a callable that takes the URL, a str, and returns a Transport or
raises ConfigError. It is imported when a URL has its scheme.
"""

_SMTP = ("smtp", "smtps")
_PATIENCE_SECONDS = 10.0


def resolve(
    where: Where | None,
    *,
    timeout: float,
    options: SMTPOptions,
    patience: float = _PATIENCE_SECONDS,
) -> Transport:
    """Make a Transport. Without ``where`` the options alone say it.

    ``timeout`` and ``patience`` are those of SMTPTransport. Raises ConfigError, also for SMTP
    options that would have no effect.
    """

    def smtp(settings: SMTPSettings) -> Transport:
        return SMTPTransport(settings, timeout=timeout, patience=patience)

    if where is None:
        if options.get("host") is None and options.get("socket_path") is None:
            raise ConfigError("where: is missing; write a URL such as smtp://host:port, or host=")
        return smtp(SMTPSettings(**options))
    if isinstance(where, str) and where.partition(":")[0].lower() in _SMTP:
        return smtp(SMTPSettings.from_url(where, **options))
    if options:
        raise ConfigError(
            f"{next(iter(options))}: SMTP options go with an smtp:// or smtps:// URL; "
            "put them where the settings or the transport are made"
        )
    if isinstance(where, SMTPSettings):
        return smtp(where)
    if isinstance(where, str):
        return _from_url(where)
    if isinstance(where, Transport) and not isinstance(where, type):
        return where
    raise ConfigError(
        "where: must be a URL, SMTPSettings or a Transport (an object with send and aclose), "
        f"not {type(where).__name__}"
    )


def _from_url(url: str) -> Transport:
    scheme, found, _ = url.partition("://")
    scheme = scheme.lower()
    if not found:
        raise ConfigError("where: is no URL; write smtp://host:port, smtps://host or memory://")
    if scheme in _ENDS:
        return _ENDS[scheme](url)
    added = entry_points(group=GROUP)
    if scheme in added.names:
        return _added(added, scheme, url)
    known = ", ".join([*_SMTP, *_ENDS, *sorted(added.names)])
    # Without "://" in front of a user name and password they would be the scheme.
    shown = repr(scheme) if scheme.isalnum() and len(scheme) <= 20 else "that scheme"
    raise ConfigError(f"where: there is nothing for {shown}; URLs begin with one of {known}")


def _added(added: EntryPoints, scheme: str, url: str) -> Transport:
    """Have another package make the Transport."""
    try:
        made = added[scheme].load()(url)
    except MailError:
        raise
    except Exception as error:
        name = type(error).__name__
        text = f"where: the entry point {scheme!r} of {GROUP} raised {name}"
        raise ConfigError(f"{text}; it comes from {added[scheme].value}") from error
    if not isinstance(made, Transport):
        text = f"where: the entry point {scheme!r} of {GROUP} must return a Transport"
        raise ConfigError(f"{text}, not {type(made).__name__}")
    return made


def _bare(make: Callable[[], Transport]) -> Callable[[str], Transport]:
    """Return what makes a Transport of a URL in which nothing follows the scheme."""

    def from_url(url: str) -> Transport:
        scheme, _, rest = url.partition("://")
        if rest:
            raise ConfigError(f"where: nothing stands behind {scheme.lower()}://")
        return make()

    return from_url


def _file(url: str) -> Transport:
    parts = urlsplit(url)
    is_local = parts.netloc in {"", "localhost"}
    if not is_local or parts.query or parts.fragment or parts.path in {"", "/"}:
        raise ConfigError(
            "where: file:// names a folder by its absolute path, as in file:///var/mail/out; "
            "percent-encode # and ?"
        )
    return FileTransport(unquote(parts.path))


_ENDS: dict[str, Callable[[str], Transport]] = {
    "memory": _bare(MemoryTransport),
    "null": _bare(NullTransport),
    "console": _bare(ConsoleTransport),
    "file": _file,
}
