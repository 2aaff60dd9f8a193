"""What a value of a config may be: of Python, or a str from the environment.

Each function returns what a value means, or raises ValueError with what it must be. The error never
shows the value.
"""

from __future__ import annotations

import math
import os
import typing as t
from collections.abc import Callable, Iterable, Mapping

from amail.address import Address
from amail.errors import ConfigError
from amail.secret import Secret
from amail.smtp.settings import SMTPSettings

if t.TYPE_CHECKING:
    from amail.address import Person

_TRUE = frozenset({"1", "true", "yes", "on", "t", "y"})
_FALSE = frozenset({"0", "false", "no", "off", "f", "n"})
_WITHOUT_SECRETS = frozenset({"file", "memory", "null", "console"})


class URL(Secret):
    """A URL, which may hold a password."""

    __slots__ = ()


def truth(value: object) -> bool:
    """Read True or False, or a word for it: "on", "no", "0"."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
    elif isinstance(value, int) and value in {0, 1}:
        return bool(value)
    raise ValueError("must be True or False")


def whole_number(value: object) -> int:
    """Read an int, or "587"."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("must be a whole number")


def seconds(value: object) -> float:
    """Read seconds: more than 0, and finite."""
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ValueError("must be a number of seconds, more than 0")
    return number


def seconds_from_0(value: object) -> float:
    """Read seconds, 0 too."""
    return 0.0 if str(value).strip() in {"0", "0.0"} else seconds(value)


def text(value: object) -> str:
    """Take a str."""
    if isinstance(value, str):
        return value
    raise ValueError(f"must be a str, not {type(value).__name__}")


def line(value: object) -> str:
    """Take a str that may stand in a header field."""
    if text(value).isprintable():
        return text(value)
    raise ValueError("must be on one line, without control characters")


def credential(value: object) -> Secret | Callable[..., object]:
    """Take a str, or an int: what ``from_prefixed_env`` makes of digits, which says the same.

    Or a callable, which is a source of access tokens.
    """
    if callable(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Secret(value)
    if isinstance(value, str):
        return Secret(value)
    raise ValueError(
        f"must be a str, not {type(value).__name__}; for from_prefixed_env, which reads JSON, put "
        "it in double quotes"
    )


def path(value: object) -> str | os.PathLike[str]:
    """Take a str or PathLike."""
    if isinstance(value, str | os.PathLike):
        return value
    raise ValueError("must be a path")


def key(value: object) -> str | os.PathLike[str]:
    """Take a private key as text, or the path of its file."""
    return Secret(value) if isinstance(value, str) else path(value)


def url(value: object) -> URL | tuple[URL, ...]:
    """Take a URL or a list of them."""
    if isinstance(value, str):
        return URL(value)
    urls = tuple(value) if isinstance(value, list | tuple) else ()
    if not urls or not all(isinstance(each, str) for each in urls):
        raise ValueError("must be a URL or a list of URLs")
    return tuple(map(URL, urls))


def sender(value: object) -> Person:
    """Take a person; JSON has a list for a name and an address. The mailer checks it."""
    is_pair = isinstance(value, list) and len(value) == 2
    return t.cast("Person", tuple(value) if is_pair else value)  # type: ignore[arg-type]


def several(value: object) -> tuple[t.Any, ...]:
    """Read a list, one, or a str with commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, Address):
        return (value,)
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        return tuple(value)
    raise ValueError(f"must be a str or a list, not {type(value).__name__}")


def mailers(value: object) -> dict[str, dict[str, t.Any]]:
    """Take the configs of several mailers by name: a dict of dicts."""
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(keys, Mapping) for name, keys in value.items()
    ):
        raise ValueError('must be a dict like {"bulk": {"MAIL_SERVER": "bulk.example.com"}}')
    return {name: dict(keys) for name, keys in value.items()}


def masked(value: object) -> str:
    """Return a value as it may be shown: no secret, and of a URL only where it leads."""
    if isinstance(value, tuple):
        return ", ".join(map(masked, value))
    if isinstance(value, URL):
        return _place(value)
    if isinstance(value, Secret):
        return "********"
    if isinstance(value, Mapping):
        return ", ".join(value)
    if callable(value):
        return type(value).__name__
    return "" if value is None else str(value)


def _place(url: URL) -> str:
    scheme = url.partition(":")[0].lower()
    if scheme in _WITHOUT_SECRETS:
        return str(url)
    try:
        settings = SMTPSettings.from_url(url)
    except ConfigError:  # of another kind, or one that cannot be read, by us neither
        return "********"
    return f"{scheme}://{'********@' * bool(settings.username)}{settings.relay}"
