"""Config keys of Flask-Mailman and flask-mailing: what they are called here."""

from __future__ import annotations

import pathlib
import typing as t

from amail import ConfigError
from amail.frames import warn
from amail.keys import Given

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Config = Mapping[str, t.Any]


def _sender(config: Config) -> t.Any:
    name = config.get("MAIL_FROM_NAME")
    return (name, config["MAIL_FROM"]) if name else config["MAIL_FROM"]


def _url(config: Config) -> str | None:
    """Return what a backend of Flask-Mailman is here; None for the one over SMTP."""
    name = config["MAIL_BACKEND"]
    # Where it is named by its module: "flask_mailman.backends.locmem.EmailBackend".
    kind = str(name).removeprefix("flask_mailman.backends.").removesuffix(".EmailBackend")
    folder = config.get("MAIL_FILE_PATH")
    if kind == "file" and folder:
        return pathlib.Path(folder).absolute().as_uri()
    if kind not in _BACKENDS:
        raise ConfigError(
            "MAIL_BACKEND: is no backend that has a like here; write MAIL_URL, as in "
            '"console://" or "file:///folder"'
        )
    return _BACKENDS[kind]


_BACKENDS = {"smtp": None, "console": "console://", "dummy": "null://", "locmem": "memory://"}

# Theirs -> ours, and what ours is then.
_SAME: dict[str, tuple[str, Callable[[Config], t.Any]]] = {
    "MAIL_FROM": ("MAIL_DEFAULT_SENDER", _sender),
    "MAIL_BACKEND": ("MAIL_URL", _url),
    "SUPPRESS_SEND": ("MAIL_SUPPRESS_SEND", lambda config: config["SUPPRESS_SEND"]),
    "VALIDATE_CERTS": ("MAIL_TLS_VERIFY", lambda config: config["VALIDATE_CERTS"]),
}
# Theirs -> what to write in place of it, and the key which it completes, if that is one of theirs.
_OTHER: dict[str, tuple[str, str | None]] = {
    "MAIL_FROM_NAME": ('MAIL_DEFAULT_SENDER = ("name", "address")', "MAIL_FROM"),
    "MAIL_FILE_PATH": ('MAIL_URL = "file:///folder"', "MAIL_BACKEND"),
    "MAIL_SEND_OPTIONS": ("mail_options of each Message", None),
    "MAIL_DEFAULT_CHARSET": ("charset of each Message", None),
    "MAIL_USE_LOCALTIME": ("date of each Message", None),
    "MAIL_TEMPLATE_FOLDER": ("render_template in the view", None),
    "USE_CREDENTIALS": ("MAIL_USERNAME and MAIL_PASSWORD, or neither", None),
}

KEYS = frozenset(_SAME) | frozenset(_OTHER)


def translated(config: Config) -> dict[str, Given]:
    """Return what a config says in their words, by our keys.

    Each of theirs gets a warning that names ours, and ours wins where both are set. Raises
    ConfigError for a backend that there is not: its messages would go to a server.
    """
    found: dict[str, Given] = {}
    for theirs in sorted(KEYS & config.keys()):
        if config[theirs] is None or config[theirs] == "":
            continue
        if theirs in _OTHER:
            instead, completes = _OTHER[theirs]
            if completes is None or completes not in config:
                warn(f"{theirs} is no key of amail_flask; write {instead}")
            continue
        ours, value_of = _SAME[theirs]
        if ours in config:
            warn(f"{theirs} is not looked at, for there is {ours}")
            continue
        value = value_of(config)
        if value is not None:
            found[ours] = Given(value, theirs)
            warn(f"{theirs} is read as {ours}; write that")
    return found
