"""ServerInfo: what is known of a server without sending to it, and how that reads. Values only.

Invariant: no line holds a secret, nor a control character that a server said.
"""

from __future__ import annotations

import datetime as dt
import ssl
import typing as t
from dataclasses import dataclass, field

from amail.text import printable

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from amail.receipt import Reply

    Observer = Callable[["ServerInfo"], None]
    """Told what is known of a server, each time something more is."""

_DAYS_TO_RENEW = 14


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate that was verified (RFC 5280).

    ``names`` are the host names and addresses it is for, ``subject`` and ``issuer`` who holds and
    who signed it, ``not_after`` when it ends.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_after: dt.datetime

    @classmethod
    def from_peer(cls, found: Mapping[str, t.Any]) -> Certificate | None:
        """Read what ``ssl.SSLSocket.getpeercert`` returns; None where nothing was verified."""
        if "notAfter" not in found:
            return None
        names = tuple(name for _, name in found.get("subjectAltName", ()))
        subject = _name(found.get("subject", ()), "commonName")
        ends = ssl.cert_time_to_seconds(found["notAfter"])
        return cls(
            subject or ", ".join(names[:1]),
            _name(found.get("issuer", ()), "organizationName", "commonName"),
            names,
            dt.datetime.fromtimestamp(ends, dt.UTC),
        )

    def __str__(self) -> str:
        """Say for whom it is, who signed it, and when it ends; to renew where that is soon."""
        return self.as_of(dt.datetime.now(dt.UTC))

    def as_of(self, now: dt.datetime) -> str:
        """Say it as of a moment."""
        days = (self.not_after - now).days
        soon = f": renew it (fewer than {_DAYS_TO_RENEW} days)" if days < _DAYS_TO_RENEW else ""
        return (
            f"for {printable(self.subject)}, signed by {printable(self.issuer)}, expires "
            f"{self.not_after:%Y-%m-%d}, in {days} day{'s' * (days != 1)}{soon}"
        )


def _name(found: t.Iterable[t.Iterable[tuple[str, str]]], *wanted: str) -> str:
    """Join the wanted attributes of a distinguished name."""
    attributes = dict(pair for each in found for pair in each)
    return " ".join(attributes[name] for name in wanted if name in attributes)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server said of itself in a session that was opened all the way, and held no message.

    ``relay`` is the server as "host:port". ``extensions`` are those of its last EHLO reply, in
    capitals, with their parameters; ``size`` is the largest content in octets (RFC 1870), None
    without a limit; ``auth`` are the mechanisms it offers (RFC 4954), and ``authenticated`` says
    whether the credentials were accepted, False where there are none. ``tls`` is the version of the
    protocol ("TLSv1.3") and ``cipher`` its suite; None in the clear.

    ``addresses`` are those of the host name, ``address`` is the one the session is with, after so
    many ``seconds``; ``greeting`` is the server's first reply. ``certificate`` is None in the
    clear, and where nobody verified it. ``mechanism`` is the one that the credentials went by.

    Its str says all that in lines of plain language.
    """

    relay: str
    extensions: Mapping[str, str] = field(default_factory=dict, hash=False)
    size: int | None = None
    auth: tuple[str, ...] = ()
    authenticated: bool = False
    tls: str | None = None
    cipher: str | None = None
    addresses: tuple[str, ...] = ()
    address: str | None = None
    seconds: float | None = field(default=None, compare=False)
    greeting: Reply | None = None
    certificate: Certificate | None = None
    mechanism: str | None = None

    def __str__(self) -> str:
        """Say what is known, a line for each thing."""
        return "\n".join(f"{what:<12} {text}" for what, text in self.lines())

    def lines(self) -> Iterator[tuple[str, str]]:
        """Say what is known in the order in which it is found out: what it is about, and a text."""
        yield "relay", self.relay
        if self.addresses:
            yield "addresses", ", ".join(self.addresses)
        if self.address is not None:
            after = "" if self.seconds is None else f" in {self.seconds * 1000:.0f} ms"
            yield "connected", f"to {self.address}{after}"
        if self.greeting is not None:
            yield "greeting", str(self.greeting)
        if self.tls is not None:
            yield "TLS", f"{self.tls}, {self.cipher}"
            unverified = "not verified, so that anybody can pose as this server (tls_verify)"
            yield "certificate", str(self.certificate or unverified)
        if self.greeting is not None and self.extensions:
            yield from self._offered()
        if self.authenticated:
            by = f" by AUTH {self.mechanism}" if self.mechanism else ""
            yield "credentials", f"accepted{by}"

    def _offered(self) -> Iterator[tuple[str, str]]:
        offered = [f"{name} {value}".strip() for name, value in self.extensions.items()]
        clear = "" if self.tls else " (in the clear)"
        yield "extensions", f"{printable(', '.join(offered))}{clear}"
        yield "AUTH", f"{printable(', '.join(self.auth)) or 'not offered'}{clear}"
        if self.size is not None:
            yield "SIZE", f"messages of up to {self.size:,} octets"
