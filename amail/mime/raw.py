"""What was composed elsewhere -> (Envelope, Content): checked, and changed only where it has to be.

Invariant: content that comes out of here has no line end but CRLF, no line over 998 octets, no NUL,
a header of whole fields, one From, and no Bcc. Octets that were so already are the same octets.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
import typing as t

from amail.address import Address
from amail.envelope import Envelope
from amail.errors import InvalidHeader, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.mime.content import Content
from amail.mime.entities import Field, only, read_head, without_bcc
from amail.mime.fields import format_date, people
from amail.mime.headers import fold
from amail.mime.mailboxes import read_mailboxes
from amail.mime.stdlib import render
from amail.mime.tokens import without_comments
from amail.text import place, printable

if t.TYPE_CHECKING:
    from email.message import EmailMessage

    from amail.address import People, Person
    from amail.mime.entities import Head

_logger = logging.getLogger("amail")

_DEFAULT_LIMITS = Limits()
_LONGEST_LINE = 998
_ONCE = frozenset(  # RFC 5322, section 3.6; RFC 2045, section 3
    (
        *("from", "sender", "reply-to", "to", "cc", "message-id", "in-reply-to", "references"),
        *("subject", "date", "mime-version", "content-type", "content-transfer-encoding"),
        *("content-id", "content-description", "content-disposition"),
    )
)
_SIGNATURES = frozenset(("dkim-signature", "arc-message-signature"))

_CR = re.compile(rb"\r")
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_BLANK_BEFORE_COLON = re.compile(rb"^([!-9;-~]+)[ \t]+:", re.MULTILINE)
# Controls but TAB, and what else some reader takes for the end of a line.
_NOT_IN_HEADER = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_MESSAGE_ID = re.compile(r"<[^\s<>]{1,900}>")


def compose_raw(
    content: bytes | EmailMessage,
    *,
    sender: Person,
    recipients: People,
    limits: Limits = _DEFAULT_LIMITS,
    all_recipients: bool = False,
) -> tuple[Envelope, Content]:
    """Make an envelope, and content of octets or of an EmailMessage that somebody else composed.

    What may be changed of the content: LF at every line end becomes CRLF, Bcc and Resent-Bcc are
    taken out with a warning, Date and Message-ID are added if they are missing. Where a signature
    in the content (DKIM, ARC) covers a field that would have to be changed, that is an error.

    Raises MessageError: InvalidAddress for sender and recipients, InvalidHeader for a field,
    MessageTooLarge, and MessageError itself for octets that cannot stand in a message.
    """
    author = None if sender == "" else _reverse_path(sender)
    envelope = Envelope(
        "" if author is None else author.addr_spec,
        _forward_paths(recipients, limits),
        all_recipients=all_recipients,
    )
    octets = _octets(content)
    if len(octets) > limits.message_size:
        raise _too_large(len(octets), limits)
    octets = _with_line_ends(octets)
    _check_lines(octets)
    head = read_head(octets, 0, len(octets))
    fields = _fields(head, octets)
    added = _missing(fields, author)
    message_id = added.get("Message-ID") or _message_id(fields)
    made = Content(
        _changed(octets, head, fields, added, message_id),
        message_id=message_id,
        needs_utf8=not (
            octets[: head.end].isascii()
            and envelope.reverse_path.isascii()
            and "".join(envelope.forward_paths).isascii()
        ),
        needs_8bit=not octets.isascii(),
    )
    if len(made) > limits.message_size:
        raise _too_large(len(made), limits)
    return envelope, made


class Composed(t.NamedTuple):
    """What content that was composed before says of itself."""

    message_id: str
    header_is_ascii: bool


def check_composed(octets: bytes) -> Composed:
    """Check content that was composed here once, and may have been anywhere since.

    It is as ``compose`` and ``compose_raw`` write it, or MessageError is raised.
    """
    if not octets.endswith(b"\r\n") or _with_line_ends(octets) is not octets:
        raise MessageError("content: its lines do not end in CRLF")
    _check_lines(octets)
    head = read_head(octets, 0, len(octets))
    fields = _fields(head, octets)
    for name in ("Date", "Message-ID"):
        if not _has(fields, name):
            raise InvalidHeader(f"{name}: is missing")
    if _has(fields, "Bcc") or _has(fields, "Resent-Bcc"):
        raise InvalidHeader("Bcc: stands in the content, where everybody would read it")
    return Composed(_message_id(fields), octets[: head.end].isascii())


def _too_large(size: int, limits: Limits) -> MessageTooLarge:
    return MessageTooLarge(
        f"the message has {size} octets; {limits.message_size} are allowed (limits.message_size)"
    )


# The envelope


def _reverse_path(sender: Person | None) -> Address:
    if sender is None:
        raise MessageError('sender: give the address that bounces go to, or "" for nowhere')
    return Address.of(sender, field="sender")


def _forward_paths(recipients: People, limits: Limits) -> tuple[str, ...]:
    paths = tuple([address.addr_spec for address in people(recipients, "recipients")])
    if not paths:
        raise MessageError("recipients: there is none; the fields of the content name nobody here")
    if len(paths) > limits.recipients:
        raise MessageError(f"recipients: {len(paths)}; {limits.recipients} are allowed (limits)")
    return paths


# The octets


def _octets(content: object) -> bytes:
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content)
    if hasattr(content, "policy") and hasattr(content, "as_bytes"):
        return render(t.cast("EmailMessage", content))
    hint = '; open the file with mode "rb"' if isinstance(content, str) else ""
    raise MessageError(
        f"content: must be bytes or an EmailMessage, not {type(content).__name__}{hint}"
    )


def _with_line_ends(octets: bytes) -> bytes:
    """Return the octets with CRLF at each line end and at the end.

    LF is taken for a line end only where there is no CR at all. Octets that have both could be two
    messages, depending on who reads them.
    """
    if b"\r" not in octets:
        octets = octets.replace(b"\n", b"\r\n")
    else:
        pairs = octets.count(b"\r\n")
        if octets.count(b"\n") != pairs or octets.count(b"\r") != pairs:
            # Where nothing is CRLF, the lines end in LF and a CR is what is out of place.
            found = next((_BARE if pairs else _CR).finditer(octets))
            bare = "LF" if found[0] == b"\n" else "CR"
            raise MessageError(
                f"content: a bare {bare} at octet {found.start()}; lines end in CRLF, or all of "
                "them in LF"
            )
    return octets if octets.endswith(b"\r\n") else octets + b"\r\n"


def _check_lines(octets: bytes) -> None:
    """Refuse NUL and lines over 998 octets (RFC 5321, section 4.5.3.1.6; RFC 5322, section 2)."""
    position = octets.find(b"\0")
    if position >= 0:
        raise MessageError(f"content: NUL at octet {position}; encode the part it stands in")
    start = 0
    while start < len(octets):
        end = octets.rfind(b"\n", start, start + _LONGEST_LINE + 2)
        if end < 0:
            line = octets.count(b"\n", 0, start) + 1
            raise MessageError(
                f"content: line {line} has more than {_LONGEST_LINE} octets (RFC 5322); fold it, "
                "or encode the part it stands in"
            )
        start = end + 1


# The header


def _fields(head: Head, octets: bytes) -> tuple[Field, ...]:
    """Return the fields of the header, checked."""
    if not head.fields:
        raise MessageError("content: does not begin with a header field")
    found = _BLANK_BEFORE_COLON.search(octets, 0, head.end)
    if found:
        raise InvalidHeader(f"{_shown(found[1])}: there is a blank between the name and the colon")
    fields = tuple([Field(name.decode("ascii"), _text(name, lines)) for name, lines in head.fields])
    seen: set[str] = set()
    for name, _ in fields:
        lower = name.lower()
        if lower in seen and lower in _ONCE:
            raise InvalidHeader(f"{name}: the field stands twice")
        seen.add(lower)
    for name in ("From", "Date", "Message-ID"):
        if not only(fields, name) and (name == "From" or _has(fields, name)):
            raise InvalidHeader(f"{name}: is {'empty' if _has(fields, name) else 'missing'}")
    return fields


def _text(name: bytes, lines: list[bytes]) -> str:
    """Return the text of a field, or raise InvalidHeader for what cannot stand in one."""
    if b"" in [line.strip(b" \t") for line in lines[1:]]:
        raise InvalidHeader(f"{_shown(name)}: one of its lines is blank")
    value = b"".join(lines).strip(b" \t")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        octet, position = value[error.start], error.start
        raise InvalidHeader(
            f"{_shown(name)}: the octet {octet:02X} at position {position} is no UTF-8; text "
            "beyond ASCII is written as encoded-words (RFC 2047)"
        ) from None
    found = _NOT_IN_HEADER.search(text)
    if found:
        raise InvalidHeader(
            f"{_shown(name)}: {place(text, found.start())} cannot stand in a header"
        )
    return text


def _shown(name: bytes) -> str:
    return printable(name.decode("ascii"), 76)


def _has(fields: tuple[Field, ...], name: str) -> bool:
    return name.lower() in [field.name.lower() for field in fields]


def _message_id(fields: tuple[Field, ...]) -> str:
    message_id = without_comments(only(fields, "Message-ID")).strip(" \t")
    if not _MESSAGE_ID.fullmatch(message_id):
        raise InvalidHeader("Message-ID: must be one id <...> without blanks (RFC 5322)")
    return message_id


def _missing(fields: tuple[Field, ...], author: Address | None) -> dict[str, str]:
    """Return Date and Message-ID where there are none, as a submission server adds them.

    RFC 6409, sections 8.2 and 8.3. The id has the sender's domain, or the first author's.
    """
    added = {}
    if not _has(fields, "Date"):
        added["Date"] = format_date(time.time())
    if not _has(fields, "Message-ID"):
        if author is None:
            authors = read_mailboxes(only(fields, "From"), "From")
            if not authors:
                raise InvalidHeader("Message-ID: is missing, and From names nobody to make it of")
            author = authors[0]
        added["Message-ID"] = f"<{secrets.token_hex(16)}@{author.ascii_domain}>"
    return added


def _changed(
    octets: bytes,
    head: Head,
    fields: tuple[Field, ...],
    added: dict[str, str],
    message_id: str,
) -> list[bytes]:
    """Return the octets without Bcc and with the fields that were missing, below the others."""
    hidden = [name for name, _ in fields if name.lower() in {"bcc", "resent-bcc"}]
    if not hidden and not added:
        return [octets]
    signed = _signed(fields)
    for name in (*hidden, *added):
        if name.lower() in signed:
            raise InvalidHeader(
                f"{name}: would have to be {'added' if name in added else 'taken out'}, which "
                "breaks a signature that covers it; do so before signing"
            )
    header = octets[: head.end]
    if hidden:
        header, _ = without_bcc(header)
        _logger.warning("%s: the content had a Bcc field; it was taken out", message_id)
    written = "".join([fold(name, text.split(" ")) for name, text in added.items()])
    return [header, written.encode(), octets[head.end :]]


def _signed(fields: tuple[Field, ...]) -> set[str]:
    """Return the names that the signatures among the fields cover (RFC 6376, section 3.5)."""
    names: set[str] = set()
    for field in fields:
        if field.name.lower() in _SIGNATURES:
            for tag in field.text.split(";"):
                key, _, value = tag.partition("=")
                if key.strip() == "h":
                    names.update([name.strip(" \t").lower() for name in value.split(":")])
    return names
