"""One table of the MAIL_* keys: how each is read, what it means, its default.

The documentation is made of it, ``flask mail config`` shows it.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from amail import ConfigError
from amail import values as read
from amail.frames import warn
from amail.keys import Config, Given, Key, did_you_mean, given_in, option
from amail_flask import foreign
from amail_flask.queueing import read_queue

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping


SECTIONS: dict[str, dict[str, Key]] = {
    "The server": {
        "MAIL_URL": Key(
            read.url,
            "`smtp://user:password@host:port`, `smtps://...`, `file:///folder`, `console://`, "
            "`memory://`, `null://`, or a list of them: failover in that order. Wins over "
            "server, port, TLS and credentials",
            "url",
        ),
        "MAIL_SERVER": option("host", "host name or address"),
        "MAIL_PORT": option("port", "where it listens", "25; 465 or 587 as the TLS mode says"),
        "MAIL_USE_TLS": Key(
            read.truth,
            "STARTTLS, required",
            by_default="True for port 587, and where credentials would go over clear text",
        ),
        "MAIL_USE_SSL": Key(read.truth, "TLS from the start", by_default="True for port 465"),
        "MAIL_USERNAME": option("username", "who logs in, with MAIL_PASSWORD"),
        "MAIL_PASSWORD": option("password", "goes with it, or a [token source](oauth.md)"),
        "MAIL_ALLOW_INSECURE_AUTH": option(
            "allow_insecure_auth", "credentials over clear text, to anywhere"
        ),
        "MAIL_TLS_VERIFY": option("tls_verify", "False trusts any certificate"),
        "MAIL_TLS_SERVER_NAME": option(
            "tls_server_name", "the name in the certificate", "the host"
        ),
        "MAIL_CA_FILE": option("ca_file", "trusted besides the system's authorities (PEM)"),
        "MAIL_SSL_CERTFILE": option("client_cert", "certificate of the client (PEM)"),
        "MAIL_SSL_KEYFILE": option("client_key", "its key (PEM)"),
        "MAIL_LOCAL_HOSTNAME": option("local_hostname", "the name in EHLO", "worked out once"),
        "MAIL_MAX_CONNECTIONS": option("max_connections", "sessions at a time, of each process"),
        "MAIL_PIPELINE_DEPTH": option(
            "pipeline_depth", "messages of `send_many` on their way over one session"
        ),
        "MAIL_MAX_EMAILS": option("max_messages", "messages a session; 0 is any number"),
        "MAIL_RATE_LIMIT": Key(
            read.several,
            'messages in a time, of each process: "14/s", "500/h", or a list of which each holds; '
            "the others wait",
            "rate",
        ),
    },
    "The messages": {
        "MAIL_DEFAULT_SENDER": Key(
            read.sender,
            "author of messages that name none: a str or (name, address)",
            "default_sender",
        ),
        "MAIL_ASCII_ATTACHMENTS": Key(read.truth, "write names of attachments in ASCII", "", False),
        "MAIL_SUBJECT_PREFIX": Key(read.line, "in front of each subject, once"),
        "MAIL_DKIM_KEY": Key(
            read.key,
            "sign: private key as text or path, RSA or Ed25519. Needs `amail-asyncio[dkim]`",
            "key",
        ),
        "MAIL_DKIM_SELECTOR": Key(read.text, "where in DNS its public half is", "selector"),
        "MAIL_DKIM_DOMAIN": Key(read.text, "who signs", "domain"),
    },
    "Sending, and not sending": {
        "MAIL_TIMEOUT": Key(
            read.seconds,
            "seconds for `send` and `send_sync` once a session is free, over all relays of a list; "
            "`send_later` has 660",
            "timeout",
            25.0,
        ),
        "MAIL_SUPPRESS_SEND": Key(
            read.truth,
            "check and compose, send nothing",
            by_default="`app.testing`, as it is when sending",
        ),
        "MAIL_REDIRECT_TO": Key(
            read.several,
            "who gets it in place of everybody who is not allowed: an address or several",
            "redirect_to",
        ),
        "MAIL_ALLOWED_RECIPIENTS": Key(
            read.several,
            "addresses and domains (`*@example.com`) that get mail; all others do not",
            "allowed",
        ),
        "MAIL_QUEUE": Key(
            read_queue,
            'where `send_later` leaves messages: "memory", "folder:///path", or "celery" for the '
            'Celery app in `app.extensions["celery"]`',
            default="memory",
        ),
        "MAIL_DRAIN_TIMEOUT": Key(
            read.seconds_from_0, "seconds at exit for what `send_later` was given", default=10.0
        ),
        "MAIL_DEBUG": Key(
            read.truth,
            "log the stages of each session, never credentials or bodies",
            by_default="`app.debug`",
        ),
        "MAIL_PROTOCOL_TRACE": option(
            "trace", "log all that is said to servers and by them, but credentials and content"
        ),
        "MAIL_LOG_ADDRESSES": option("log_addresses", "name addresses in full in logs"),
        "MAIL_MAILERS": Key(
            read.mailers, "further mailers by name, each a dict of these keys", default={}
        ),
    },
}
"""The keys as the documentation has them, which is made of this."""
KEYS = {name: key for keys in SECTIONS.values() for name, key in keys.items()}

PLACE = ("MAIL_SERVER", "MAIL_PORT", "MAIL_USERNAME", "MAIL_PASSWORD")
BESIDE_URL = frozenset({*PLACE, "MAIL_USE_TLS", "MAIL_USE_SSL"})
"""Keys that have no effect where there is a MAIL_URL."""


@dataclass(frozen=True, repr=False)
class MailConfig(Config):
    """The MAIL_* keys of one mailer; ``mailers`` are those of MAIL_MAILERS, by name."""

    mailers: Mapping[str, MailConfig] = field(default_factory=dict)

    @classmethod
    def read(cls, config: Mapping[str, t.Any]) -> MailConfig:
        """Read a Flask config. Raises ConfigError, naming the key and never its value.

        A key that does not exist gets a warning that says which one may be meant; so does one of
        Flask-Mailman or flask-mailing, which is then read as ours.
        """
        given = foreign.translated(config)
        ours = {
            name: value
            for name, value in config.items()
            if name.startswith("MAIL_") and name not in foreign.KEYS
        }
        given.update(given_in(ours, KEYS, "app.config", _warn_unknown("")))
        made = cls.of(given, KEYS)
        further = made["MAIL_MAILERS"].items()
        return replace(made, mailers={name: _further(name, own, given) for name, own in further})

    @property
    def names_no_server(self) -> bool:
        """True where MAIL_SERVER is there and empty, and no URL."""
        return "MAIL_SERVER" in self.empty and not self["MAIL_URL"]


def _further(name: str, own: Mapping[str, t.Any], given: Mapping[str, Given]) -> MailConfig:
    """Return the config of one of MAIL_MAILERS: its own keys, and else those of the app.

    One that says where its server is inherits nothing that is about the app's server.
    """
    place = f"MAIL_MAILERS[{name!r}]"
    has_server = bool(own.get("MAIL_URL") or own.get("MAIL_SERVER"))
    left_out = {"MAIL_MAILERS", *(SECTIONS["The server"] if has_server else ())}
    inherited = {key: each for key, each in given.items() if key not in left_out}
    keys = given_in(own, KEYS.keys() - {"MAIL_MAILERS"}, place, _warn_unknown(f"{place}: "))
    without_effect = sorted(BESIDE_URL & keys.keys())
    if without_effect and "MAIL_URL" in inherited and not inherited["MAIL_URL"].is_nothing:
        raise ConfigError(
            f"{place}: {without_effect[0]} has no effect beside the MAIL_URL of the app, which it "
            "inherits; give it a MAIL_URL or a MAIL_SERVER of its own"
        )
    try:
        return MailConfig.of({**inherited, **keys}, KEYS)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def _warn_unknown(place: str) -> Callable[[str], None]:
    return lambda name: warn(f"{place}{name} is no key of amail_flask{did_you_mean(name, KEYS)}")
