"""One table of the MAIL_* keys: what each means, its default, how it is read.

The documentation is made of it (``as_markdown``), ``flask mail config`` shows it.
"""

from __future__ import annotations

import contextlib
import difflib
import typing as t
from dataclasses import dataclass, field, replace

from amail import ConfigError, SMTPSettings
from amail_flask import converters, foreign
from amail_flask.warn import warn

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from amail.smtp.settings import SMTPOptions, TLSMode


class _Key(t.NamedTuple):
    """``setting`` is amail's name for it; ``by_default`` says in words what no default can."""

    meaning: str
    convert: Callable[[object], t.Any]
    default: t.Any = None
    setting: str = ""
    by_default: str = ""


SECTIONS: dict[str, dict[str, _Key]] = {
    "The server": {
        "MAIL_URL": _Key(
            "`smtp://user:password@host:port`, `smtps://...`, `file:///folder`, `console://`, "
            "`memory://`, `null://`, or a list of them: failover in that order. Wins over "
            "server, port, TLS and credentials",
            converters.url,
            setting="url",
        ),
        "MAIL_SERVER": _Key("host name or address", converters.text, "127.0.0.1", "host"),
        "MAIL_PORT": _Key(
            "where it listens",
            converters.whole_number,
            None,
            "port",
            "25; 465 or 587 as the TLS mode says",
        ),
        "MAIL_USE_TLS": _Key(
            "STARTTLS, required",
            converters.truth,
            None,
            "",
            "True for port 587, and where credentials would go over clear text",
        ),
        "MAIL_USE_SSL": _Key("TLS from the start", converters.truth, None, "", "True for port 465"),
        "MAIL_USERNAME": _Key("goes with MAIL_PASSWORD", converters.credential, None, "username"),
        "MAIL_PASSWORD": _Key("goes with MAIL_USERNAME", converters.credential, None, "password"),
        "MAIL_ALLOW_INSECURE_AUTH": _Key(
            "credentials over clear text, to anywhere",
            converters.truth,
            False,
            "allow_insecure_auth",
        ),
        "MAIL_TLS_VERIFY": _Key(
            "False trusts any certificate", converters.truth, True, "tls_verify"
        ),
        "MAIL_TLS_SERVER_NAME": _Key(
            "the name in the certificate", converters.text, None, "tls_server_name", "the host"
        ),
        "MAIL_CA_FILE": _Key(
            "trusted besides the system's authorities (PEM)", converters.path, None, "ca_file"
        ),
        "MAIL_SSL_CERTFILE": _Key(
            "certificate of the client (PEM)", converters.path, None, "client_cert"
        ),
        "MAIL_SSL_KEYFILE": _Key("its key (PEM)", converters.path, None, "client_key"),
        "MAIL_LOCAL_HOSTNAME": _Key(
            "the name in EHLO", converters.text, None, "local_hostname", "worked out once"
        ),
        "MAIL_MAX_CONNECTIONS": _Key(
            "sessions at a time, of each process", converters.whole_number, 5, "max_connections"
        ),
        "MAIL_MAX_EMAILS": _Key(
            "messages a session; 0 is any number", converters.whole_number, 100, "max_messages"
        ),
        "MAIL_RATE_LIMIT": _Key(
            'messages in a time, of each process: "14/s", "500/h", or a list of which each holds; '
            "the others wait",
            converters.several,
            setting="rate",
        ),
    },
    "The messages": {
        "MAIL_DEFAULT_SENDER": _Key(
            "author of messages that name none: a str or (name, address)",
            converters.sender,
            setting="default_sender",
        ),
        "MAIL_ASCII_ATTACHMENTS": _Key(
            "write names of attachments in ASCII", converters.truth, False
        ),
        "MAIL_SUBJECT_PREFIX": _Key("in front of each subject, once", converters.line),
        "MAIL_DKIM_KEY": _Key(
            "sign: private key as text or path, RSA or Ed25519. Needs `amail-asyncio[dkim]`",
            converters.key,
            setting="key",
        ),
        "MAIL_DKIM_SELECTOR": _Key(
            "where in DNS its public half is", converters.text, None, "selector"
        ),
        "MAIL_DKIM_DOMAIN": _Key("who signs", converters.text, None, "domain"),
    },
    "Sending, and not sending": {
        "MAIL_TIMEOUT": _Key(
            "seconds for `send` and `send_sync` once a session is free; `send_later` has 660",
            converters.seconds,
            25.0,
            "timeout",
        ),
        "MAIL_SUPPRESS_SEND": _Key(
            "check and compose, send nothing",
            converters.truth,
            None,
            "",
            "`app.testing`, as it is when sending",
        ),
        "MAIL_REDIRECT_TO": _Key(
            "who gets it in place of everybody who is not allowed: an address or several",
            converters.several,
            setting="redirect_to",
        ),
        "MAIL_ALLOWED_RECIPIENTS": _Key(
            "addresses and domains (`*@example.com`) that get mail; all others do not",
            converters.several,
            setting="allowed",
        ),
        "MAIL_QUEUE": _Key(
            'where `send_later` keeps messages: "memory" is the only one',
            converters.queue,
            "memory",
        ),
        "MAIL_DRAIN_TIMEOUT": _Key(
            "seconds at exit for what `send_later` was given",
            converters.seconds_or_none_at_all,
            10.0,
        ),
        "MAIL_DEBUG": _Key(
            "log the stages of each session, never credentials or bodies",
            converters.truth,
            None,
            "",
            "`app.debug`",
        ),
        "MAIL_MAILERS": _Key(
            "further mailers by name, each a dict of these keys", converters.mailers, {}
        ),
    },
}
KEYS: dict[str, _Key] = {name: key for keys in SECTIONS.values() for name, key in keys.items()}

_OF_THE_SERVER = frozenset(SECTIONS["The server"])
_PLACE = ("MAIL_SERVER", "MAIL_PORT", "MAIL_USERNAME", "MAIL_PASSWORD")
BESIDE_URL = frozenset({*_PLACE, "MAIL_USE_TLS", "MAIL_USE_SSL"})
"""Keys that have no effect where there is a MAIL_URL."""

_SETTINGS = frozenset(SMTPSettings.__dataclass_fields__)
_OPTIONS = tuple(
    name for name, key in KEYS.items() if key.setting in _SETTINGS and name not in _PLACE
)
_BY_SETTING = {key.setting: name for name, key in KEYS.items() if key.setting}


class _Given(t.NamedTuple):
    """A value as it was written, and where."""

    value: t.Any
    source: str

    @property
    def is_nothing(self) -> bool:
        return self.value is None or self.value == ""


@dataclass(frozen=True, repr=False)
class MailConfig:
    """The MAIL_* keys of one mailer, converted.

    ``sources`` says of those that were set where. ``mailers`` are those of MAIL_MAILERS, by name.
    ``names_no_server`` is True where MAIL_SERVER is there and empty, and no URL.
    """

    values: Mapping[str, t.Any]
    sources: Mapping[str, str]
    names_no_server: bool = False
    mailers: Mapping[str, MailConfig] = field(default_factory=dict)

    @classmethod
    def read(cls, config: Mapping[str, t.Any]) -> MailConfig:
        """Read a Flask config. Raises ConfigError, naming the key and never its value.

        A key that does not exist gets a warning that says which one may be meant; so does one of
        Flask-Mailman or flask-mailing, which is then read as ours.
        """
        given = {
            ours: _Given(value, theirs)
            for ours, (value, theirs) in foreign.translated(config).items()
        }
        for name, value in config.items():
            if name in KEYS:
                given[name] = _Given(value, "app.config")
            elif name.startswith("MAIL_") and name not in foreign.KEYS:
                _warn_unknown(name)
        made = cls._of(given)
        further = made["MAIL_MAILERS"].items()
        return replace(made, mailers={name: _further(name, own, given) for name, own in further})

    @classmethod
    def _of(cls, given: Mapping[str, _Given]) -> MailConfig:
        values = {name: key.default for name, key in KEYS.items()}
        sources = {}
        for name, (value, source) in given.items():
            if not given[name].is_nothing:
                try:
                    values[name] = KEYS[name].convert(value)
                except ValueError as error:
                    raise ConfigError(f"{name}: {error}") from None
                sources[name] = source
        server = given.get("MAIL_SERVER")
        is_missing = server is not None and server.is_nothing and not values["MAIL_URL"]
        return cls(values, sources, is_missing)

    def __getitem__(self, name: str) -> t.Any:
        return self.values[name]

    def __repr__(self) -> str:
        return f"<MailConfig of {', '.join(sorted(self.sources)) or 'defaults'}>"

    @property
    def relays(self) -> list[str | SMTPSettings]:
        """Where messages go, in the order of failover: settings, or a URL of another kind.

        Raises ConfigError.
        """
        urls = self["MAIL_URL"]
        if urls is None:
            return [self._from_keys()]
        if isinstance(urls, str):
            return [self._from_url(urls, "")]
        return [self._from_url(url, f"relay {n}: ") for n, url in enumerate(urls, 1)]

    @contextlib.contextmanager
    def naming_its_keys(self, where: str = "") -> Iterator[None]:
        """Have what amail refuses in here named by our key in place of its setting."""
        try:
            yield
        except ConfigError as error:
            setting, _, rest = str(error).partition(": ")
            if setting in KEYS:
                raise
            name = _BY_SETTING.get(setting, setting)
            if name in _OPTIONS and name in self.sources:
                text = f"{name}: {rest}"
            elif self["MAIL_URL"] and setting in {*_SETTINGS, "where", "url"}:
                # It is written there, and so is what the setting is called.
                text = f"MAIL_URL: {where}{rest if setting in {'where', 'url'} else error}"
            else:
                text = f"{name}: {rest}"
            raise ConfigError(text) from error

    def _from_url(self, url: str, where: str) -> str | SMTPSettings:
        if url.partition(":")[0].lower() not in {"smtp", "smtps"}:
            return str(url)
        options = {KEYS[name].setting: self[name] for name in _OPTIONS if name in self.sources}
        with self.naming_its_keys(where):
            return SMTPSettings.from_url(url, **t.cast("SMTPOptions", options))

    def _from_keys(self) -> SMTPSettings:
        if self.names_no_server:
            raise ConfigError(
                "MAIL_SERVER: is empty; name a server, or set MAIL_URL. Without the key it is "
                f"{KEYS['MAIL_SERVER'].default}"
            )
        options: dict[str, t.Any] = {
            KEYS[name].setting: self[name]
            for name in (*_PLACE, *_OPTIONS)
            if self[name] is not None
        }
        mode = self._tls_mode()
        with self.naming_its_keys():
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
            warn("MAIL_PORT 465 is usually spoken with MAIL_USE_SSL")
        if use_ssl and port == 587:
            warn("MAIL_PORT 587 is usually spoken with MAIL_USE_TLS")
        if use_tls:
            return "starttls"
        return "implicit" if use_ssl else None


def _further(name: str, own: Mapping[str, t.Any], given: Mapping[str, _Given]) -> MailConfig:
    """Return the config of one of MAIL_MAILERS: its own keys, and else those of the app.

    One that says where its server is inherits nothing that is about the app's server.
    """
    place = f"MAIL_MAILERS[{name!r}]"
    has_server = bool(own.get("MAIL_URL") or own.get("MAIL_SERVER"))
    inherited = {
        key: each
        for key, each in given.items()
        if key != "MAIL_MAILERS" and not (has_server and key in _OF_THE_SERVER)
    }
    keys = {}
    for key, value in own.items():
        if key not in KEYS or key == "MAIL_MAILERS":
            _warn_unknown(key, place)
        else:
            keys[key] = _Given(value, place)
    without_effect = sorted(BESIDE_URL & keys.keys())
    if without_effect and "MAIL_URL" in inherited and not inherited["MAIL_URL"].is_nothing:
        raise ConfigError(
            f"{place}: {without_effect[0]} has no effect beside the MAIL_URL of the app, which it "
            "inherits; give it a MAIL_URL or a MAIL_SERVER of its own"
        )
    try:
        return MailConfig._of({**inherited, **keys})
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _warn_unknown(name: str, place: str = "") -> None:
    close = difflib.get_close_matches(name, KEYS, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    warn(f"{place}{': ' * bool(place)}{name} is no key of amail_flask{hint}")


def as_markdown() -> str:
    """Return the table as docs/flask.md has it."""
    lines = []
    for title, keys in SECTIONS.items():
        lines += [f"### {title}", "", "| key | default | meaning |", "|---|---|---|"]
        for name, key in keys.items():
            default = key.by_default or ("" if key.default is None else f"`{key.default!r}`")
            lines.append(f"| {name} | {default} | {key.meaning} |")
        lines.append("")
    return "\n".join(lines)
