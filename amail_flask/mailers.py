"""A config becomes a mailer: its relays, and what its keys switch on around them.

From the outside in: Redirected, so that who gets nothing counts for nothing; Throttled; DKIMSigned,
once for all relays; Failover; the relays.
"""

from __future__ import annotations

import contextlib
import copy
import os
import typing as t

from amail import ConfigError, Mailer, Message, SMTPSettings, SMTPTransport, UsageError
from amail.frames import warn
from amail.transports.failover import Failover
from amail.transports.redirected import Redirected
from amail.transports.throttled import Throttled
from amail_flask.config import KEYS, PLACE

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from amail.smtp.settings import SMTPOptions, TLSMode
    from amail.transports.base import Transport
    from amail_flask.config import MailConfig

_SETTINGS = frozenset(SMTPSettings.__dataclass_fields__)
_OPTIONS = tuple(
    name for name, key in KEYS.items() if key.setting in _SETTINGS and name not in PLACE
)
_BY_SETTING = {key.setting: name for name, key in KEYS.items() if key.setting}

_FILES = ("MAIL_CA_FILE", "MAIL_SSL_CERTFILE", "MAIL_SSL_KEYFILE")
_DKIM = ("MAIL_DKIM_KEY", "MAIL_DKIM_SELECTOR", "MAIL_DKIM_DOMAIN")


def mailer_over(transport: Transport, config: MailConfig) -> Mailer:
    """Make a mailer that composes as a config says. Raises ConfigError."""
    prefix = config["MAIL_SUBJECT_PREFIX"]
    with _naming_keys(config):
        return Mailer(
            transport,
            default_sender=config["MAIL_DEFAULT_SENDER"],
            ascii_attachments=config["MAIL_ASCII_ATTACHMENTS"],
            prepare=_prefixing(prefix) if prefix else None,
        )


def make_mailer(config: MailConfig) -> Mailer:
    """Make the mailer of a config. No connection is opened. Raises ConfigError, naming the key."""
    _check_files(config)
    with _naming_keys(config):
        relays = list(_relays(config))
        transport = (
            relays[0]
            if len(relays) == 1
            else Failover(relays, timeout_for_all=config["MAIL_TIMEOUT"])
        )
        return mailer_over(_wrapped(transport, config), config)


def _relays(config: MailConfig) -> t.Iterator[Transport]:
    places = relays_of(config)
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


def relays_of(config: MailConfig) -> list[str | SMTPSettings]:
    """Return where messages go, in the order of failover: settings, or a URL of another kind.

    Raises ConfigError.
    """
    urls = config["MAIL_URL"]
    if urls is None:
        return [_from_keys(config)]
    if isinstance(urls, str):
        return [_from_url(urls, config, "")]
    return [_from_url(url, config, f"relay {n}: ") for n, url in enumerate(urls, 1)]


def _from_url(url: str, config: MailConfig, where: str) -> str | SMTPSettings:
    if url.partition(":")[0].lower() not in {"smtp", "smtps"}:
        return str(url)
    options = {KEYS[name].setting: config[name] for name in _OPTIONS if name in config.sources}
    with _naming_keys(config, where):
        return SMTPSettings.from_url(url, **t.cast("SMTPOptions", options))


def _from_keys(config: MailConfig) -> SMTPSettings:
    if config.names_no_server:
        raise ConfigError(
            "MAIL_SERVER: is empty; name a server, or set MAIL_URL. Without the key it is "
            f"{KEYS['MAIL_SERVER'].default}"
        )
    options: dict[str, t.Any] = {
        KEYS[name].setting: config[name] for name in (*PLACE, *_OPTIONS) if config[name] is not None
    }
    if callable(options.get("password")):
        options["oauth_token"] = options.pop("password")
    mode = _tls_mode(config)
    with _naming_keys(config):
        if mode is None:
            # What is set to False is not inferred either.
            inferred = SMTPSettings(**options).effective_tls
            refused = {"starttls": "MAIL_USE_TLS", "implicit": "MAIL_USE_SSL"}.get(inferred)
            if refused is not None and config[refused] is False:
                mode = "none"
        return SMTPSettings(**options, tls=mode)


def _tls_mode(config: MailConfig) -> TLSMode | None:
    use_tls, use_ssl, port = (config[f"MAIL_{name}"] for name in ("USE_TLS", "USE_SSL", "PORT"))
    if use_tls and use_ssl:
        raise ConfigError(
            "MAIL_USE_TLS and MAIL_USE_SSL: set one of them; TLS is STARTTLS (port 587), SSL is "
            "TLS from the start (port 465)"
        )
    if use_tls and port == 465:
        warn("MAIL_PORT 465 is usually spoken with MAIL_USE_SSL")
    if use_ssl and port == 587:
        warn("MAIL_PORT 587 is usually spoken with MAIL_USE_TLS")
    if use_tls:
        return "starttls"
    return "implicit" if use_ssl else None


@contextlib.contextmanager
def _naming_keys(config: MailConfig, where: str = "") -> Iterator[None]:
    """Have what amail refuses in here named by our key in place of its setting."""
    try:
        yield
    except ConfigError as error:
        setting, _, rest = str(error).partition(": ")
        if setting in KEYS:
            raise
        name = _BY_SETTING.get(setting, setting)
        text = f"{name}: {rest}"
        is_own = name in _OPTIONS and name in config.sources
        if not is_own and config["MAIL_URL"] and setting in {*_SETTINGS, "where", "url"}:
            # It is written there, and so is what the setting is called.
            text = f"MAIL_URL: {where}{rest if setting in {'where', 'url'} else error}"
        raise ConfigError(text) from error


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
