"""One table: MAIL_* key -> default and converter. Strings from the environment are understood."""

from __future__ import annotations

import difflib
import math
import typing as t
import warnings
from dataclasses import dataclass

from amail import ConfigError, SMTPSettings

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from amail.smtp.settings import SMTPOptions, TLSMode

_TRUE = frozenset({"1", "true", "yes", "on", "t", "y"})
_FALSE = frozenset({"0", "false", "no", "off", "f", "n"})


def _bool(value: object) -> bool:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
    elif isinstance(value, int) and value in {0, 1}:
        return bool(value)
    raise ValueError("must be True or False")


def _int(value: object) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("must be a whole number")


def _seconds(value: object) -> float:
    try:
        seconds = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        seconds = math.nan
    if isinstance(value, bool) or not 0 < seconds < math.inf:
        raise ValueError("must be a number of seconds, more than 0")
    return seconds


def _seconds_or_none_at_all(value: object) -> float:
    return 0.0 if str(value).strip() in {"0", "0.0"} else _seconds(value)


def _str(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"must be a str, not {type(value).__name__}")


def _path(value: object) -> str:
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        return t.cast("str", value)
    raise ValueError("must be a path")


def _queue(value: object) -> str:
    if value != "memory":
        raise ValueError('must be "memory", the only queue there is')
    return "memory"


def _sender(value: object) -> t.Any:
    return value  # the mailer checks it


class _Key(t.NamedTuple):
    convert: Callable[[object], t.Any]
    default: t.Any = None


KEYS: dict[str, _Key] = {
    "MAIL_SERVER": _Key(_str, "127.0.0.1"),
    "MAIL_PORT": _Key(_int),
    "MAIL_USE_TLS": _Key(_bool),
    "MAIL_USE_SSL": _Key(_bool),
    "MAIL_USERNAME": _Key(_str),
    "MAIL_PASSWORD": _Key(_str),
    "MAIL_DEFAULT_SENDER": _Key(_sender),
    "MAIL_MAX_EMAILS": _Key(_int, 100),
    "MAIL_SUPPRESS_SEND": _Key(_bool),
    "MAIL_DEBUG": _Key(_bool),
    "MAIL_ASCII_ATTACHMENTS": _Key(_bool, default=False),
    "MAIL_URL": _Key(_str),
    "MAIL_TIMEOUT": _Key(_seconds, 25.0),
    "MAIL_MAX_CONNECTIONS": _Key(_int, 5),
    "MAIL_TLS_VERIFY": _Key(_bool),
    "MAIL_TLS_SERVER_NAME": _Key(_str),
    "MAIL_CA_FILE": _Key(_path),
    "MAIL_SSL_CERTFILE": _Key(_path),
    "MAIL_SSL_KEYFILE": _Key(_path),
    "MAIL_ALLOW_INSECURE_AUTH": _Key(_bool),
    "MAIL_LOCAL_HOSTNAME": _Key(_str),
    "MAIL_QUEUE": _Key(_queue, "memory"),
    "MAIL_DRAIN_TIMEOUT": _Key(_seconds_or_none_at_all, 10.0),
}

# Keys whose value goes into a field of SMTPSettings as it is.
_FIELDS = {
    "MAIL_MAX_EMAILS": "max_messages",
    "MAIL_MAX_CONNECTIONS": "max_connections",
    "MAIL_TLS_VERIFY": "tls_verify",
    "MAIL_TLS_SERVER_NAME": "tls_server_name",
    "MAIL_CA_FILE": "ca_file",
    "MAIL_SSL_CERTFILE": "client_cert",
    "MAIL_SSL_KEYFILE": "client_key",
    "MAIL_ALLOW_INSECURE_AUTH": "allow_insecure_auth",
    "MAIL_LOCAL_HOSTNAME": "local_hostname",
}
_PLACE = {
    "MAIL_SERVER": "host",
    "MAIL_PORT": "port",
    "MAIL_USERNAME": "username",
    "MAIL_PASSWORD": "password",
}


@dataclass(frozen=True)
class MailConfig:
    """The MAIL_* keys of one app, converted. ``given`` holds those that were set, by key."""

    values: Mapping[str, t.Any]
    given: frozenset[str]

    @classmethod
    def read(cls, config: Mapping[str, t.Any]) -> MailConfig:
        """Read a Flask config. Raises ConfigError, naming the key and never its value.

        A key that does not exist gets a warning that says which one may be meant.
        """
        values = {name: key.default for name, key in KEYS.items()}
        given = set()
        for name, value in config.items():
            if not name.startswith("MAIL_"):
                continue
            if name not in KEYS:
                _warn_unknown(name)
            elif value is not None and value != "":
                try:
                    values[name] = KEYS[name].convert(value)
                except ValueError as error:
                    raise ConfigError(f"{name}: {error}") from None
                given.add(name)
        return cls(values, frozenset(given))

    def __getitem__(self, name: str) -> t.Any:
        return self.values[name]

    def __repr__(self) -> str:
        return f"<MailConfig of {', '.join(sorted(self.given)) or 'defaults'}>"

    @property
    def where(self) -> str | SMTPSettings:
        """Where messages go: settings, or a URL of another kind. Raises ConfigError."""
        url = self["MAIL_URL"]
        options: dict[str, t.Any] = {
            field: self[name]
            for name, field in _FIELDS.items()
            if name in self.given or (self[name] is not None and url is None)
        }
        try:
            if url is None:
                return self._from_keys(options)
            if url.partition(":")[0].lower() not in {"smtp", "smtps"}:
                return str(url)
            return SMTPSettings.from_url(url, **t.cast("SMTPOptions", options))
        except ConfigError as error:
            raise ConfigError(_in_our_words(str(error))) from error

    def _from_keys(self, options: dict[str, t.Any]) -> SMTPSettings:
        options |= {field: self[name] for name, field in _PLACE.items() if self[name] is not None}
        mode = self._tls_mode()
        if mode is None:
            # What is set to False is not inferred either.
            inferred = SMTPSettings(**options).effective_tls
            refused = {"starttls": "MAIL_USE_TLS", "implicit": "MAIL_USE_SSL"}.get(inferred)
            if refused is not None and self[refused] is False:
                mode = "none"
        return SMTPSettings(**options, tls=mode)

    def _tls_mode(self) -> TLSMode | None:
        use_tls, use_ssl, port = self["MAIL_USE_TLS"], self["MAIL_USE_SSL"], self["MAIL_PORT"]
        if use_tls and use_ssl:
            raise ConfigError(
                "MAIL_USE_TLS and MAIL_USE_SSL: set one of them; TLS is STARTTLS (port 587), SSL "
                "is TLS from the start (port 465)"
            )
        if use_tls and port == 465:
            warnings.warn("MAIL_PORT 465 is usually spoken with MAIL_USE_SSL", stacklevel=7)
        if use_ssl and port == 587:
            warnings.warn("MAIL_PORT 587 is usually spoken with MAIL_USE_TLS", stacklevel=7)
        if use_tls:
            return "starttls"
        return "implicit" if use_ssl else None


def _in_our_words(text: str) -> str:
    """Name the key in place of the setting that an error is about."""
    field, colon, rest = text.partition(":")
    for key, name in {**_PLACE, **_FIELDS, "MAIL_URL": "url"}.items():
        if field == name:
            return f"{key}{colon}{rest}"
    return text


def _warn_unknown(name: str) -> None:
    close = difflib.get_close_matches(name, KEYS, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    warnings.warn(f"{name} is no key of amail_flask{hint}", stacklevel=6)
