"""A config becomes a mailer: its relays, and what its keys switch on around them.

From the outside in: Redirected, so that who gets nothing counts for nothing; Throttled; DKIMSigned,
once for all relays; Failover; the relays.
"""

from __future__ import annotations

import copy
import os
import typing as t

from amail import ConfigError, Mailer, Message, SMTPSettings, SMTPTransport, UsageError
from amail.transports.failover import Failover
from amail.transports.redirected import Redirected
from amail.transports.throttled import Throttled

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail.transports.base import Transport
    from amail_flask.config import MailConfig

_FILES = ("MAIL_CA_FILE", "MAIL_SSL_CERTFILE", "MAIL_SSL_KEYFILE")
_DKIM = ("MAIL_DKIM_KEY", "MAIL_DKIM_SELECTOR", "MAIL_DKIM_DOMAIN")


class Mailers(t.NamedTuple):
    """A mailer, and the transports at the end of it, in the order of failover."""

    mailer: Mailer
    relays: tuple[Transport, ...]


def mailer_over(transport: Transport, config: MailConfig) -> Mailer:
    """Make a mailer that composes as a config says. Raises ConfigError."""
    prefix = config["MAIL_SUBJECT_PREFIX"]
    with config.naming_its_keys():
        return Mailer(
            transport,
            default_sender=config["MAIL_DEFAULT_SENDER"],
            ascii_attachments=config["MAIL_ASCII_ATTACHMENTS"],
            prepare=_prefixing(prefix) if prefix else None,
        )


def make_mailer(config: MailConfig) -> Mailers:
    """Make the mailer of a config. No connection is opened. Raises ConfigError, naming the key."""
    _check_files(config)
    with config.naming_its_keys():
        relays = tuple(_relays(config))
        transport = relays[0] if len(relays) == 1 else Failover(relays)
        return Mailers(mailer_over(_wrapped(transport, config), config), relays)


def _relays(config: MailConfig) -> t.Iterator[Transport]:
    places = config.relays
    for place in places:
        if isinstance(place, SMTPSettings):
            yield SMTPTransport(
                place,
                timeout=config["MAIL_TIMEOUT"],
                timeout_covers_reply=True,
                # While another relay may do, nobody waits for one to come back.
                **({"patience": 0.0} if len(places) > 1 else {}),
            )
        else:
            yield Mailer(place).transport


def _wrapped(transport: Transport, config: MailConfig) -> Transport:
    if any(config[name] for name in _DKIM):
        transport = _signed(transport, config)
    if config["MAIL_RATE_LIMIT"] is not None:
        transport = Throttled(transport, config["MAIL_RATE_LIMIT"])
    redirect_to, allowed = config["MAIL_REDIRECT_TO"], config["MAIL_ALLOWED_RECIPIENTS"]
    if redirect_to is not None or allowed is not None:
        if not redirect_to and not allowed:
            raise ConfigError(
                "MAIL_ALLOWED_RECIPIENTS: is empty; name addresses or domains, set "
                "MAIL_REDIRECT_TO, or leave the key out to send to everybody"
            )
        transport = Redirected(transport, redirect_to=redirect_to, allowed=allowed)
    return transport


def _signed(transport: Transport, config: MailConfig) -> Transport:
    for name in _DKIM:
        if not config[name]:
            raise ConfigError(f"{name}: is missing; signing needs {', '.join(_DKIM)}")
    try:
        from amail.transports.dkim import DKIMSigned  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"MAIL_DKIM_KEY: {error}") from error
    key, selector, domain = (config[name] for name in _DKIM)
    return DKIMSigned(transport, domain=domain, selector=selector, key=key)


def _check_files(config: MailConfig) -> None:
    """Find out when the app starts, and not with the first message."""
    for name in _FILES:
        path = config[name]
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"{name}: there is no file that can be read at {os.fspath(path)!r}")


def _prefixing(prefix: str) -> Callable[[Message], Message]:
    def prefixed(message: Message) -> Message:
        if not isinstance(message, Message):
            raise UsageError(f"send: must be a Message, not {type(message).__name__}")
        if str(message.subject or "").startswith(prefix):
            return message
        message = copy.copy(message)  # the same message, with the same Message-ID
        message.subject = f"{prefix}{message.subject or ''}"
        return message

    return prefixed
