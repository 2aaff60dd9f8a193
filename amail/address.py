"""One mailbox: a display name and a strictly read addr-spec (RFC 5322, 3.4; RFC 5321, 4.1.2).

Invariant: an Address that exists can be written between ``<`` and ``>`` of an SMTP command and
into any address header as it is. Whatever could be read as two mailboxes, or as another one, is
refused when the Address is made.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t
import unicodedata
from collections.abc import Iterable

import idna

from amail.errors import InvalidAddress, InvalidHeader
from amail.text import as_text, header_text, place

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_WORDS = r"[A-Za-z0-9_]++(?:-[A-Za-z0-9_]++)*+"
_DOT_ATOM = re.compile(rf"[{_ATEXT}]++(?:\.[{_ATEXT}]++)*+")
# What nearly all people look like: (name), (address), (local part), (domain). The careful path
# looks at everything else; "--" matches nothing here, so that it sees every xn-- label.
_COMMON = re.compile(
    rf"(?:([A-Za-z0-9]++(?: ++[A-Za-z0-9]++)*+) <)?"
    rf"(([{_ATEXT}]++(?:\.[{_ATEXT}]++)*+)@({_WORDS}(?:\.{_WORDS})*+))(?(1)>)"
)
_NO_GROUPS = (None, "", "", "")
_NOT_LOCAL = re.compile(rf"[^{_ATEXT}.\x80-\U0010ffff]")
_NOT_DOMAIN = re.compile(r"[^A-Za-z0-9_.\x80-\U0010ffff-]")
_ASCII_LABEL = re.compile(_LABEL)
# A display name as it stands in front of "<": words without specials, and quoted strings.
_PHRASE = re.compile(r'(?:"(?:[^"\\]|\\.)*+"|[^"\\(),:;<>@\[\]]++)*+', re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_SPECIALS = frozenset('"\\(),:;<>@[].')

_MAX_ADDRESS = 254  # RFC 5321, 4.5.3.1.3: a path of 256 octets, less the angle brackets
_MAX_DOMAIN = 253
_MAX_LABEL = 63
_MAX_NAME = 4096
_MAX_PERSON = 2 * _MAX_NAME + _MAX_ADDRESS + 16

_ONE_ONLY = "write one address in one string and several as a list"


class Address:
    """An immutable mailbox, from ``"Ada <ada@x.org>"`` or from an address and a ``name``.

    ``name`` is the display name or "". ``local_part`` is without quotes. ``domain`` is ASCII (an
    internationalised one as its A-labels, IDNA 2008) unless the local part is non-ASCII; then it
    is Unicode and ``needs_utf8`` is True (SMTPUTF8, RFC 6531). ``addr_spec`` is what stands
    between the angle brackets of MAIL and RCPT and of the header.

    Raises InvalidAddress, and InvalidHeader where the display name holds control characters.
    """

    __slots__ = ("addr_spec", "domain", "local_part", "name", "needs_utf8")

    name: str
    local_part: str
    domain: str
    addr_spec: str
    needs_utf8: bool

    def __init__(self, address: str, *, name: str | None = None) -> None:
        self._read(address, name, "address")

    @classmethod
    def of(cls, person: Person, *, field: str = "address") -> Address:
        """Return the Address of a person: a str, a ``(name, address)`` tuple or an Address.

        ``field`` is what error texts call the place the person came from.
        """
        if isinstance(person, Address):
            return person
        made = cls.__new__(cls)
        if isinstance(person, tuple):
            if len(person) != 2:
                raise InvalidAddress(f"{field}: a tuple is (name, address), not {len(person)} long")
            made._read(person[1], person[0] or "", field)
        else:
            made._read(person, None, field)
        return made

    def _read(self, address: str, name: str | None, field: str) -> None:
        set_field = object.__setattr__
        text = address if type(address) is str else as_text(address, field, InvalidAddress)
        if len(text) <= _MAX_ADDRESS and "=?" not in text:
            common = _COMMON.fullmatch(text)
            phrase, spec, local_part, domain = common.groups() if common else _NO_GROUPS
            # A domain no longer than a label may be has no label that is too long.
            if spec and len(domain) <= _MAX_LABEL and (name is None or phrase is None):
                set_field(self, "name", _display_name(name, field) if name else phrase or "")
                set_field(self, "local_part", local_part)
                set_field(self, "domain", domain)
                set_field(self, "addr_spec", spec)
                set_field(self, "needs_utf8", False)
                return
        if len(text) > _MAX_PERSON:
            raise InvalidAddress(f"{field}: an address and its name end well before {len(text)}")
        text = text.strip(" \t")
        if name is None and text.endswith(">"):
            name, text = _split(text, field)
        set_field(self, "name", _display_name(name, field) if name else "")
        local_part, domain = _addr_spec(text, field)
        quoted = local_part if _is_dot_atom(local_part) else f'"{local_part}"'
        set_field(self, "local_part", local_part)
        set_field(self, "domain", domain)
        set_field(self, "addr_spec", f"{quoted}@{domain}")
        set_field(self, "needs_utf8", not local_part.isascii())

    @property
    def ascii_domain(self) -> str:
        """The domain as DNS has it: ``domain`` with A-labels throughout."""
        return self.domain if self.domain.isascii() else _domain(self.domain, "address")

    @property
    def mailbox(self) -> tuple[str, str]:
        """What makes two addresses the same mailbox: exact local part, domain in any case."""
        return self.local_part, self.domain.casefold()

    def __setattr__(self, name: str, value: object) -> t.NoReturn:
        raise AttributeError(f"an Address is immutable; make another one to change its {name}")

    def __delattr__(self, name: str) -> t.NoReturn:
        raise AttributeError("an Address is immutable")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Address):
            return NotImplemented
        return self.name == other.name and self.mailbox == other.mailbox

    def __hash__(self) -> int:
        return hash((self.name, self.mailbox))

    def __reduce__(self) -> tuple[t.Any, ...]:
        return Address.of, ((self.name, self.addr_spec),)

    def __str__(self) -> str:
        """Write the address as a person would; ``Address(str(address)) == address``."""
        if not self.name:
            return self.addr_spec
        name = self.name
        if not _SPECIALS.isdisjoint(name):
            name = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{name} <{self.addr_spec}>"

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"


Person: t.TypeAlias = str | tuple[str, str] | Address
"""One person, in any of the ways an author may write one."""

People: t.TypeAlias = Person | Iterable[Person | None] | None
"""One person or several. A tuple here is an iterable; a person with a name goes into a list."""


def _split(text: str, field: str) -> tuple[str, str]:
    """Take ``name <address>`` apart. A name that could be read as more than a name is refused."""
    start = text.rfind("<")
    phrase = text[: max(start, 0)].strip(" \t")
    if start < 0 or not _PHRASE.fullmatch(phrase):
        raise InvalidAddress(
            f'{field}: cannot be read as name <address>; put a name with any of ()<>@,;:\\"[] in '
            f"double quotes or write (name, address), and {_ONE_ONLY}"
        )
    spec = text[start + 1 : -1]
    if not spec:
        raise InvalidAddress(f"{field}: there is no address between < and >")
    return _QUOTED.sub(lambda quoted: _PAIR.sub(r"\1", quoted[1]), phrase), spec


def _display_name(name: str, field: str) -> str:
    text = header_text(as_text(name, field, InvalidAddress), f"{field} (name)", InvalidHeader)
    if len(text) > _MAX_NAME:
        raise InvalidHeader(f"{field} (name): {len(text)} characters, at most {_MAX_NAME} fit")
    return text.strip(" ")


def _is_dot_atom(local_part: str) -> bool:
    if local_part.isascii():
        return _DOT_ATOM.fullmatch(local_part) is not None
    return "" not in local_part.split(".")


def _addr_spec(text: str, field: str) -> tuple[str, str]:
    """Read an addr-spec the careful way: (local part without quotes, domain)."""
    if not text:
        raise InvalidAddress(f"{field}: the address is empty")
    if len(text) > _MAX_ADDRESS:
        raise _too_long(field, "an address", _MAX_ADDRESS)
    local_part, at, domain = text.rpartition("@")
    if not at:
        raise InvalidAddress(f'{field}: an address has an "@" between its two parts')
    if not local_part:
        raise InvalidAddress(f'{field}: there is nothing in front of the "@"')
    if not domain:
        raise InvalidAddress(f'{field}: there is no domain behind the "@"')
    local_part = _local_part(local_part, field)
    domain = _domain(domain, field)
    if not local_part.isascii():
        domain = _unicode_domain(domain)
    # Two more for the quotes that some local parts get.
    size = len(local_part.encode()) + 1 + len(domain.encode())
    if size + 2 * (not _is_dot_atom(local_part)) > _MAX_ADDRESS:
        raise _too_long(field, "an address", _MAX_ADDRESS)
    return local_part, domain


def _too_long(field: str, what: str, limit: int) -> InvalidAddress:
    return InvalidAddress(f"{field}: {what} has at most {limit} octets (RFC 5321)")


def _local_part(local_part: str, field: str) -> str:
    """Check a local part. Quotes are taken off where they hold nothing that needs them but dots."""
    offset = 0
    if len(local_part) > 2 and local_part[0] == local_part[-1] == '"':
        local_part, offset = local_part[1:-1], 1
    if "=?" in local_part:
        raise InvalidAddress(f'{field}: "=?" in a local part could be read as an encoded-word')
    found = _NOT_LOCAL.search(local_part)
    position = found.start() if found else _invisible(local_part)
    if position is not None:
        point = f"U+{ord(local_part[position]):04X} at position {position + offset}"
        raise InvalidAddress(f"{field}: {point} cannot stand in a local part; {_ONE_ONLY}")
    return local_part


def _invisible(text: str) -> int | None:
    """Find a code point nobody sees: format and control characters, spaces, surrogates."""
    if text.isascii():
        return None
    for position, character in enumerate(text):
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}:
            return position
    return None


def _domain(domain: str, field: str) -> str:
    """Check a domain and return its ASCII form. Names are the resolver's to judge, not ours."""
    if domain.startswith("["):
        return _literal(domain, field)
    found = _NOT_DOMAIN.search(domain)
    if found:
        raise InvalidAddress(
            f"{field}: {place(domain, found.start())} of the domain cannot stand there; {_ONE_ONLY}"
        )
    if not domain.isascii():
        domain = _mapped(domain, field)
    domain = domain.removesuffix(".")
    domain = ".".join([_label(label, field) for label in domain.split(".")])
    if len(domain) > _MAX_DOMAIN:
        raise _too_long(field, "a domain", _MAX_DOMAIN)
    return domain


def _mapped(domain: str, field: str) -> str:
    """Apply UTS 46, non-transitional. What the mapping would drop unseen is refused instead."""
    for position, character in enumerate(domain):
        if character.isascii():
            continue
        try:
            mapped = idna.uts46_remap(character, std3_rules=False)
        except idna.IDNAError:
            mapped = ""
        if not mapped:
            raise InvalidAddress(
                f"{field}: {place(domain, position)} of the domain cannot stand there (IDNA 2008)"
            )
    return idna.uts46_remap(domain, std3_rules=False)


def _label(label: str, field: str) -> str:
    if not label.isascii():
        try:
            return idna.alabel(label).decode("ascii")
        except (idna.IDNAError, UnicodeError) as reason:
            raise InvalidAddress(
                f"{field}: a label of the domain is not valid in IDNA 2008: "
                # The rest of idna's sentences quotes the label.
                f"{str(reason).partition(' of ')[0]}"
            ) from None
    if not _ASCII_LABEL.fullmatch(label):
        raise InvalidAddress(
            f"{field}: a label of a domain has 1 to 63 letters, digits, _ and inner hyphens"
        )
    if label[:4].lower() == "xn--" and _punycode(label[4:]) is None:
        raise InvalidAddress(f"{field}: a label of the domain begins with xn-- and is no Punycode")
    return label


def _punycode(encoded: str) -> str | None:
    """Decode Punycode (RFC 3492), or return None. Any label a registry sold is left alone."""
    try:
        decoded = encoded.encode("ascii").decode("punycode")
    except UnicodeError:
        return None
    if decoded.isascii() or any(unicodedata.category(point) == "Cc" for point in decoded):
        return None
    return decoded


def _unicode_domain(domain: str) -> str:
    """Write A-labels as Unicode, as an address with a non-ASCII local part has them (RFC 6531)."""
    labels = []
    for label in domain.split("."):
        try:
            labels.append(idna.ulabel(label) if label[:4].lower() == "xn--" else label)
        except (idna.IDNAError, UnicodeError):
            labels.append(label)
    return ".".join(labels)


def _literal(domain: str, field: str) -> str:
    """Check an address literal (RFC 5321, section 4.1.3)."""
    inner = domain[1:-1]
    try:
        if not domain.endswith("]") or "%" in inner:
            raise ValueError(domain)
        if inner[:5].lower() == "ipv6:":
            ipaddress.IPv6Address(inner[5:])
        else:
            ipaddress.IPv4Address(inner)
    except ValueError:
        raise InvalidAddress(
            f"{field}: an address literal is [192.0.2.1] or [IPv6:2001:db8::1]"
        ) from None
    return domain
