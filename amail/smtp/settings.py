"""SMTPSettings: every option of the SMTP transport spelled once, checked, and read from a URL.

Invariant: settings that exist can work, and no repr of them shows a secret.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import ssl
import typing as t
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import idna

from amail.errors import ConfigError
from amail.secret import Secret, hides_arguments

TLSMode: t.TypeAlias = t.Literal["none", "starttls", "implicit"]
TokenSource: t.TypeAlias = Callable[[], Awaitable[str]]
"""Returns an OAuth 2.0 access token; called in the mail loop, each time a session is opened.

It may have a method ``forget()``, called when the server did not accept the token.
"""

_TLS_MODES: t.Final[tuple[TLSMode, ...]] = t.get_args(TLSMode)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_PLACE = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:]*)(?::[0-9]*)?")
_EHLO_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[A-Za-z0-9:.]+\]")
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


class SMTPOptions(t.TypedDict, total=False):
    """The fields of SMTPSettings as keywords."""

    host: str
    port: int | None
    username: str | None
    password: str | None
    oauth_token: TokenSource | None
    tls: TLSMode | None
    tls_verify: bool
    tls_server_name: str | None
    ca_file: str | os.PathLike[str] | None
    client_cert: str | os.PathLike[str] | None
    client_key: str | os.PathLike[str] | None
    ssl_context: ssl.SSLContext | None
    local_hostname: str | None
    source_address: str | None
    socket_path: str | os.PathLike[str] | None
    allow_insecure_auth: bool
    max_connections: int
    max_messages: int
    max_age: float
    idle_timeout: float
    pipelining: bool
    chunking: bool
    pipeline_depth: int
    connect_timeout: float
    command_timeout: float
    data_timeout: float
    final_timeout: float
    pool_timeout: float
    trace: bool
    log_addresses: bool


@dataclass(frozen=True)
class SMTPSettings:
    """How to reach one SMTP server, and how to behave towards it.

    Where: ``host`` and ``port``, or ``socket_path`` of a Unix domain socket; ``source_address`` is
    the local IP address to bind. Who: ``username`` and ``password``, or ``username`` and
    ``oauth_token``, an async callable that returns an access token (see ``amail.oauth2``). They go
    over clear text to a loopback peer, to a private network only where ``tls="none"`` is written,
    else only with ``allow_insecure_auth``. ``local_hostname`` is the name in EHLO.

    ``tls`` is "none", "starttls" or "implicit"; None infers it: port 465 means implicit, 587
    starttls, a loopback host none, any other port starttls where there are credentials. STARTTLS is
    required or not used. ``tls_server_name`` is the name in the certificate (``host`` if None),
    ``ca_file`` is trusted besides the system's authorities, ``client_cert`` and ``client_key`` are
    PEM files. ``ssl_context`` replaces all of these. ``tls_verify=False`` trusts anybody.

    Pool: at most ``max_connections`` sessions at a time, each closed after ``max_messages`` (0: any
    number), ``max_age`` seconds, or ``idle_timeout`` seconds unused. ``pipelining=False`` says one
    command a write even where the server offers PIPELINING (RFC 2920), ``chunking=False`` says DATA
    even where it offers CHUNKING (RFC 3030). ``pipeline_depth``: where both are offered, that many
    messages of a ``send_many`` may be on their way over one session; if it dies, all are unknown.

    Seconds: ``connect_timeout`` for DNS and TCP, and again for the handshake of implicit TLS;
    ``command_timeout`` for each reply (that of STARTTLS together with its handshake);
    ``data_timeout`` for the reply to DATA and for each time without progress in the content;
    ``final_timeout`` for the reply to the content (RFC 5321, section 4.5.3.2: ten minutes; a short
    one makes duplicates); ``pool_timeout`` for a wait in which no session becomes free.

    The log: ``trace`` has every line that both sides say logged at DEBUG by "amail.smtp.trace",
    without credentials and content. Addresses are masked in the log (b***@example.org) unless
    ``log_addresses`` is set.

    Raises ConfigError, naming the setting and never a secret.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    oauth_token: TokenSource | None = field(default=None, repr=False, kw_only=True)
    tls: TLSMode | None = None
    tls_verify: bool = True
    tls_server_name: str | None = None
    ca_file: str | os.PathLike[str] | None = None
    client_cert: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    local_hostname: str | None = None
    source_address: str | None = None
    socket_path: str | os.PathLike[str] | None = None
    allow_insecure_auth: bool = False
    max_connections: int = 5
    max_messages: int = 100
    max_age: float = 300.0
    idle_timeout: float = 30.0
    pipelining: bool = True
    chunking: bool = True
    pipeline_depth: int = 1
    connect_timeout: float = 10.0
    command_timeout: float = 30.0
    data_timeout: float = 60.0
    final_timeout: float = 600.0
    pool_timeout: float = 30.0
    trace: bool = False
    log_addresses: bool = False

    def __post_init__(self) -> None:
        self._check_place()
        self._check_credentials()
        self._check_tls()
        for name in (
            "tls_verify",
            "allow_insecure_auth",
            "pipelining",
            "chunking",
            "trace",
            "log_addresses",
        ):
            if type(getattr(self, name)) is not bool:
                raise _wrong_type(name, "True or False", getattr(self, name))
        _whole_number("max_connections", self.max_connections, 1, 10_000)
        _whole_number("max_messages", self.max_messages, 0, 1_000_000)
        _whole_number("pipeline_depth", self.pipeline_depth, 1, 1000)
        for each in fields(self):
            if each.name.endswith("_timeout") or each.name == "max_age":
                check_seconds(each.name, getattr(self, each.name))

    def _check_place(self) -> None:
        object.__setattr__(self, "host", _host("host", self.host))
        if self.port is not None:
            _whole_number("port", self.port, 1, 65535)
        if self.local_hostname is not None:
            _ehlo_name("local_hostname", self.local_hostname)
        if self.socket_path is not None:
            _path("socket_path", self.socket_path)
        if self.source_address is not None:
            _ip_address("source_address", self.source_address)

    def _check_tls(self) -> None:
        if self.tls is not None and self.tls not in _TLS_MODES:
            raise ConfigError('tls: must be "none", "starttls" or "implicit"')
        if self.client_key is not None and self.client_cert is None:
            raise ConfigError("client_key: needs client_cert, the certificate it belongs to")
        if self.tls_server_name is not None:
            name = _host("tls_server_name", self.tls_server_name)
            object.__setattr__(self, "tls_server_name", name)
        for name in ("ca_file", "client_cert", "client_key"):
            if getattr(self, name) is not None:
                _path(name, getattr(self, name))
                if self.ssl_context is not None:
                    raise ConfigError(f"{name}: load it into ssl_context, which is given too")
        _ssl_context("ssl_context", self.ssl_context)

    @classmethod
    @hides_arguments
    def from_url(cls, url: str, **options: t.Unpack[SMTPOptions]) -> SMTPSettings:
        """Read "smtp://user:password@host:port?option=value"; smtps:// is implicit TLS.

        Options that are a scalar and no secret may stand in the URL; keywords win over them.
        User name and password are percent-encoded. Raises ConfigError.
        """
        return cls(**{**_from_url(url), **options})

    @property
    def effective_port(self) -> int:
        """``port``, or the one that the TLS mode and the credentials ask for."""
        if self.port is not None:
            return self.port
        if self.tls == "implicit":
            return 465
        return 587 if self.tls == "starttls" or (self.username and self.tls is None) else 25

    @property
    def effective_tls(self) -> TLSMode:
        """``tls``, or the mode inferred from port, host and credentials."""
        if self.tls is not None:
            return self.tls
        match self.effective_port:
            case _ if self.socket_path is not None:
                return "none"
            case 465:
                return "implicit"
            case 587:
                return "starttls"
            case _ if self.is_loopback:
                return "none"
        return "starttls" if self.username else "none"

    @property
    def is_loopback(self) -> bool:
        """True where the server is on this machine, as far as its name tells."""
        if self.socket_path is not None or self.host.rstrip(".").lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def relay(self) -> str:
        """The server as "host:port", as errors and receipts name it."""
        if self.socket_path is not None:
            return f"unix:{os.fspath(self.socket_path)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.effective_port}"

    def _check_credentials(self) -> None:
        for name in ("username", "password"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise _wrong_type(name, "a str", value)
            if _CONTROL.search(value):
                raise ConfigError(f"{name}: {_control_in(value)}")
            if _SURROGATE.search(value):
                raise ConfigError(f"{name}: cannot be written in UTF-8")
        if self.password is not None:
            object.__setattr__(self, "password", Secret(self.password))
        if self.oauth_token is not None:
            self._check_oauth_token()
        elif self.username and self.password is None:
            raise ConfigError("password: is missing, while username is set")
        if self.password is not None and not self.username:
            raise ConfigError("username: is missing, while password is set")

    def _check_oauth_token(self) -> None:
        if not callable(self.oauth_token):
            raise ConfigError(
                "oauth_token: must be an async function that returns the access token, not "
                f"{type(self.oauth_token).__name__}; for one that never changes write "
                "amail.oauth2.static_token(...)"
            )
        if self.password is not None:
            raise ConfigError("password: leave it out, oauth_token is in its place")
        if not self.username:
            raise ConfigError("username: is missing, while oauth_token is set")


# The one that was generated has the password among its arguments.
SMTPSettings.__init__ = hides_arguments(SMTPSettings.__init__)  # type: ignore[method-assign]


def _control_in(value: str) -> str:
    if value.endswith(("\r", "\n")):
        what = "a carriage return" if value.endswith("\r") else "a line feed"
        return f"ends with {what} (a trailing newline?), as lines of a file do; strip it"
    return "holds a control character; take it out"


def _host(name: str, host: object) -> str:
    if not isinstance(host, str):
        raise _wrong_type(name, "a host name or an IP address", host)
    text = host
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        text = host
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            text = ""
    if len(text) > 253 or not _HOST.fullmatch(text):
        raise ConfigError(
            f"{name}: must be a host name or an IP address alone; a port goes into port, "
            "a whole URL goes where the mailer is made"
        )
    return text


def _whole_number(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int:
        raise _wrong_type(name, "a whole number", value)
    if not least <= value <= most:
        raise ConfigError(f"{name}: must be from {least} to {most}, not {value}")


def check_seconds(name: str, value: object) -> None:
    """Raise ConfigError for anything but a finite number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a number of seconds", value)
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{name}: must be more than 0 seconds, and finite")


def _ehlo_name(name: str, value: object) -> None:
    if not isinstance(value, str) or not _EHLO_NAME.fullmatch(value):
        raise ConfigError(f"{name}: must be a host name or an address literal, in ASCII")


def _ip_address(name: str, value: object) -> None:
    try:
        # A number would be taken for the address that it counts.
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise ConfigError(f"{name}: must be an IP address of this machine") from None


def _path(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise _wrong_type(name, "a path", value)
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise ConfigError(f"{name}: must be a path; it is empty or holds U+0000")


def _ssl_context(name: str, value: object) -> None:
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise _wrong_type(name, "an ssl.SSLContext", value)


def _wrong_type(name: str, wanted: str, value: object) -> ConfigError:
    return ConfigError(f"{name}: must be {wanted}, not {type(value).__name__}")


# URLs


def _from_url(url: str) -> dict[str, t.Any]:
    _check_text(url)
    split = _split(url)
    if split is None:
        raise ConfigError(
            "url: cannot be read; write smtp://user:password@host:port and percent-encode "
            "characters such as / : @ # ? in user and password"
        )
    parts, port = split
    if parts.path not in {"", "/"} or parts.fragment or "@" in parts.query:
        raise ConfigError(
            "url: there is something behind the host; percent-encode / # ? and @ in user and "
            "password"
        )
    found = _parameters(parts.query)
    if parts.hostname:
        found["host"] = parts.hostname
    elif "socket_path" not in found:
        raise ConfigError("url: names no host; write smtp://host or smtp://host:port")
    if port is not None:
        found["port"] = port
    _add_scheme(parts.scheme.lower(), found)
    for name, text in (("username", parts.username), ("password", parts.password)):
        if text is not None:
            found[name] = _unquoted(name, text)
    return found


def _check_text(url: object) -> None:
    if not isinstance(url, str):
        raise _wrong_type("url", "a str", url)
    # urlsplit would drop some of them without a word.
    if url.endswith(("\r", "\n")):
        raise ConfigError(f"url: {_control_in(url)}")
    if _CONTROL.search(url) or " " in url:
        raise ConfigError("url: holds a space or a control character; percent-encode it")


def _split(url: str) -> tuple[SplitResult, int | None] | None:
    """Return the parts and the port; None instead of an exception, whose text would quote both."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    # Of "[::1]25" it reads what it likes.
    place = parts.netloc.rpartition("@")[2]
    return (parts, port) if _PLACE.fullmatch(place) else None


def _add_scheme(scheme: str, found: dict[str, t.Any]) -> None:
    if scheme == "smtps":
        if found.setdefault("tls", "implicit") != "implicit":
            raise ConfigError("url: smtps:// is implicit TLS; for another mode write smtp://")
    elif scheme != "smtp":
        raise ConfigError("url: must begin with smtp:// or smtps://")


def _unquoted(name: str, text: str) -> str:
    # Not "strict", whose exception would hold the octets.
    unquoted = unquote(text, errors="surrogateescape")
    if _SURROGATE.search(unquoted):
        raise ConfigError(f"url: {name} is not percent-encoded UTF-8")
    return unquoted


def _parameters(query: str) -> dict[str, t.Any]:
    """Read the options of a URL: every field that is a scalar and no secret."""
    kinds = {
        each.name: str(each.type)
        for each in fields(SMTPSettings)
        if str(each.type) in _CONVERTERS and each.name not in {"host", "port", "username"}
    }
    del kinds["password"]
    found: dict[str, t.Any] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError("url: behind ? stand option=value, joined by &") from None
    for name, text in pairs:
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, 1)
            hint = f"; did you mean {close[0]}?" if close else f". Options are {', '.join(kinds)}"
            raise ConfigError(f"url: there is no option {name!r}{hint}")
        if name in found:
            raise ConfigError(f"url: {name} is given twice")
        found[name] = _CONVERTERS[kinds[name]](name, text)
    return found


def _as_bool(name: str, text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ConfigError(f"url: {name} must be true or false")


def _as_number(kind: type[int | float]) -> t.Callable[[str, str], int | float]:
    def convert(name: str, text: str) -> int | float:
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"url: {name} must be a number") from None

    return convert


def _as_text(name: str, text: str) -> str:
    if not text:
        raise ConfigError(f"url: {name} is empty")
    return text


_CONVERTERS: dict[str, t.Callable[[str, str], t.Any]] = {
    "bool": _as_bool,
    "int": _as_number(int),
    "float": _as_number(float),
    "str | None": _as_text,
    "str | os.PathLike[str] | None": _as_text,
    "TLSMode | None": _as_text,
}
