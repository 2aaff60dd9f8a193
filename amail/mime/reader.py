"""Content -> what its author wrote: the other way round of composing. Pure, no I/O.

Each field and part ends in one place of a Reading, or MessageError says which cannot be kept. What
is left out, because it is not the author's or composing makes it anew, is named here: trace
fields; the text around the parts of a multipart; comments in dates, in the Message-ID and behind
addresses; transfer encodings, and charsets but for one that all texts have; parameters of
text/plain and text/html; Content-* fields of texts and multiparts; where in the message an
attachment stood. Of a field that stands several times, and may, the lowest is kept, with a warning
in the log.
"""

from __future__ import annotations

import binascii
import logging
import re
import typing as t

from amail.errors import InvalidHeader, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.mime import foreign
from amail.mime.charsets import allowed
from amail.mime.dates import read_date
from amail.mime.decoding import decode
from amail.mime.entities import only, read_entities
from amail.mime.flowed import unflow
from amail.mime.mailboxes import read_mailboxes
from amail.mime.tokens import without_comments
from amail.mime.words import decode_words, parameterized
from amail.text import header_text, printable

if t.TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable

    from amail.address import Address
    from amail.mime.entities import Entity, Field

_logger = logging.getLogger("amail")

_DEFAULT_LIMITS = Limits()

# Added on the way or by a mailbox, and true of that way alone.
_TRACE = re.compile(
    r"received|received-spf|return-path|delivered-to|envelope-to|x-original-to|x-received"
    r"|resent-.*|dkim-signature|domainkey-signature|x-google-dkim-signature|arc-.*"
    r"|authentication-results|x-authentication-results|status|x-status|content-.*|mime-version"
)
_OWN = frozenset(
    (
        *("from", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "in-reply-to"),
        *("references", "x-priority", "importance"),
    )
)
_OF_ONE_PERSON = frozenset(
    ("sender", "disposition-notification-to", "return-receipt-to", "errors-to")
)
_OWN_OF_PARTS = frozenset(
    ("content-type", "content-transfer-encoding", "content-disposition", "mime-version")
)
_PRIORITY = re.compile(r"([1-5])(?:[ (].*)?")
_IMPORTANCE = ("high", "high", "normal", "low", "low")  # of X-Priority 1 to 5
_LEVELS = {"high": 2, "normal": 3, "low": 4}
_TOKEN = re.compile(r"[A-Za-z0-9!#$&+.^_-]+")
_SPACE = b" \t\r\n"


class ReadAttachment(t.NamedTuple):
    """A file that came with a message, in the order of Attachment's arguments."""

    filename: str | None
    content_type: str
    data: bytes
    disposition: str
    headers: dict[str, str]


class Reading(t.NamedTuple):
    """What a message says, by the names that Message has for it."""

    subject: str
    sender: Address | None
    recipients: list[Address]
    cc: list[Address]
    bcc: list[Address]
    reply_to: list[Address] | None
    date: dt.datetime | None
    charset: str | None
    message_id: str | None
    in_reply_to: str | None
    references: list[str] | None
    priority: t.Literal[1, 2, 3, 4, 5] | None
    extra_headers: dict[str, str]
    body: str | None
    alts: dict[str, str]
    attachments: list[ReadAttachment]


def read_content(octets: bytes, limits: Limits = _DEFAULT_LIMITS) -> Reading:
    """Read the octets of a message. Raises MessageError for what a Message cannot hold."""
    if len(octets) > limits.message_size:
        raise MessageTooLarge(
            f"the message has {len(octets)} octets; {limits.message_size} are read "
            "(limits.message_size)"
        )
    entity = read_entities(octets)
    fields = entity.fields
    parts = _Parts(entity)
    extra = _extra_headers(fields)
    priority = _priority(fields, extra)
    sender = _person(fields, "From")
    return Reading(
        subject=_text(only(fields, "Subject"), "Subject"),
        sender=sender,
        recipients=read_mailboxes(only(fields, "To"), "To"),
        cc=read_mailboxes(only(fields, "Cc"), "Cc"),
        bcc=read_mailboxes(only(fields, "Bcc"), "Bcc"),
        reply_to=read_mailboxes(only(fields, "Reply-To"), "Reply-To") or None,
        date=_date(fields),
        charset=parts.charset,
        message_id=foreign.message_id(
            _text(only(fields, "Message-ID"), "Message-ID"),
            "localhost" if sender is None else sender.ascii_domain,
        ),
        in_reply_to=_text(only(fields, "In-Reply-To"), "In-Reply-To") or None,
        references=_ids(only(fields, "References"), "References") or None,
        priority=priority,
        extra_headers=extra,
        body=parts.body,
        alts=parts.alts,
        attachments=parts.attachments,
    )


def _text(raw: str, name: str) -> str:
    """Return free text with its encoded-words decoded. Raises InvalidHeader for controls."""
    return header_text(decode_words(raw), name, InvalidHeader)


def _ids(raw: str, name: str) -> list[str]:
    return _text(raw, name).replace("><", "> <").split()


def _person(fields: tuple[Field, ...], name: str) -> Address | None:
    people = read_mailboxes(only(fields, name), name)
    if len(people) > 1:
        raise InvalidHeader(f"{name}: {len(people)} mailboxes; a message has one here")
    return people[0] if people else None


def _date(fields: tuple[Field, ...]) -> dt.datetime | None:
    raw = only(fields, "Date")
    return read_date(raw, "Date") if raw else None


def _extra_headers(fields: tuple[Field, ...]) -> dict[str, str]:
    """Return the fields that Message has no name for, each once."""
    extra: dict[str, str] = {}
    others = [
        field
        for field in fields
        if field.name.lower() not in _OWN and not _TRACE.fullmatch(field.name.lower())
    ]
    for name, text in _lowest(others):
        if name.lower() in _OF_ONE_PERSON:
            person = _person(fields, name)
            extra[name] = "" if person is None else str(person)
        else:
            extra[name] = _text(text, name)
    return {name: text for name, text in extra.items() if text}


def _lowest(fields: Iterable[Field]) -> Iterable[Field]:
    """Return each field once. What was added on the way stands above what an author wrote."""
    found: dict[str, Field] = {}
    repeated: dict[str, str] = {}
    for field in fields:
        lower = field.name.lower()
        if lower in found:
            repeated[lower] = printable(field.name, 76)
        found[lower] = field
    for name in repeated.values():
        _logger.warning("%s: the field stands several times; the lowest was read", name)
    return found.values()


def _priority(fields: tuple[Field, ...], extra: dict[str, str]) -> t.Literal[1, 2, 3, 4, 5] | None:
    """Return the priority. Two fields that differ are kept among the others as they are."""
    number, importance = only(fields, "X-Priority"), only(fields, "Importance")
    found = _PRIORITY.fullmatch(number)
    priority = _LEVELS.get(importance.lower()) if not number else found and int(found[1])
    if priority and importance.lower() in {"", _IMPORTANCE[priority - 1]}:
        return t.cast("t.Literal[1, 2, 3, 4, 5]", priority)
    for name, raw in (("X-Priority", number), ("Importance", importance)):
        if raw:
            extra[name] = _text(raw, name)
    return None


class _Parts:
    """Sorts the parts of a message into body, alternatives and attachments."""

    def __init__(self, entity: Entity) -> None:
        self.body: str | None = None
        self.alts: dict[str, str] = {}
        self.attachments: list[ReadAttachment] = []
        self._charsets: set[str | None] = set()
        if entity.media_type in {"application/pkcs7-mime", "application/x-pkcs7-mime"}:
            raise _not_kept(entity)
        self._content(entity)
        instead = foreign.settle_content_ids([file.headers for file in self.attachments])
        if "html" in self.alts:
            self.alts["html"] = foreign.with_content_ids(self.alts["html"], instead)

    @property
    def charset(self) -> str | None:
        """The charset of all texts, if it is one and not what composing takes by itself."""
        if len(self._charsets) != 1:
            return None
        [charset] = self._charsets
        return None if charset in {"utf-8", "us-ascii"} else charset

    def _content(self, entity: Entity, *, is_alternative: bool = False) -> bool:
        """Take in what is shown, and tell whether there was text in it."""
        match entity.type, entity.subtype:
            case "multipart", "mixed":
                found = False
                for part in entity.parts:
                    found = self._other(part) if found else self._content(part)
            case "multipart", "related":
                root = _root(entity)
                found = self._content(root)
                for part in entity.parts:
                    if part is not root:
                        self._other(part, is_related=True)
            case "multipart", "alternative":
                found = True in [self._content(part, is_alternative=True) for part in entity.parts]
            case "multipart", _:
                raise _not_kept(entity)
            case _ if _is_text(entity, is_alternative=is_alternative):
                self._add_text(entity)
                found = True
            case _ if is_alternative and not entity.one("Content-Disposition"):
                raise MessageError(f"{entity.media_type}: an alternative that is no text")
            case _:
                self._attach(entity)
                found = False
        return found

    def _other(self, entity: Entity, *, is_related: bool = False) -> bool:
        """Take in what stands behind the text."""
        if entity.media_type == "multipart/mixed":
            for part in entity.parts:
                self._other(part, is_related=is_related)
        elif entity.type == "multipart":
            raise _not_kept(entity)
        else:
            self._attach(entity, is_related=is_related)
        return True

    def _add_text(self, entity: Entity) -> None:
        name = entity.media_type
        text = decode(_octets(entity), entity.parameters.get("charset"))
        if text is None:
            raise MessageError(f"{name}: its octets are not in the charset it names")
        self._charsets.add(allowed(entity.parameters.get("charset") or "us-ascii"))
        text = text.replace("\r\n", "\n")
        flowed = entity.parameters.get("format", "").lower() == "flowed"
        if name == "text/plain" and flowed:
            text = unflow(text, delete_space=entity.parameters.get("delsp", "").lower() == "yes")
        if name == "text/plain" and self.body is None and not self.alts:
            self.body = text
            return
        key = entity.subtype if entity.type == "text" else name
        if name not in {"text/plain", "text/html"}:
            key += _parameters(entity, without={"charset", "name"})
        if key in self.alts:
            raise MessageError(f"{name}: two alternatives of one type")
        self.alts[key] = text

    def _attach(self, entity: Entity, *, is_related: bool = False) -> None:
        if entity.media_type in {"message/partial", "message/external-body"}:
            raise _not_kept(entity)
        disposition, parameters = _disposition(entity)
        if not disposition:
            disposition = "inline" if is_related or entity.type == "text" else "attachment"
        headers = {
            name: _text(raw, f"{entity.media_type}: {name}")
            for name, raw in _lowest(entity.fields)
            if raw and name.lower() not in _OWN_OF_PARTS
        }
        self.attachments.append(
            ReadAttachment(
                parameters.get("filename") or entity.parameters.get("name") or None,
                entity.media_type + _parameters(entity, without={"name"}),
                _octets(entity),
                "inline" if disposition == "inline" else "attachment",
                headers,
            )
        )


def _not_kept(entity: Entity) -> MessageError:
    return MessageError(
        f"{entity.media_type}: cannot be read into a Message, for composing it again would not "
        "give the same; keep the octets"
    )


def _root(entity: Entity) -> Entity:
    """Return the part that a multipart/related is about (RFC 2387, section 3.2)."""
    start = entity.parameters.get("start")
    for part in entity.parts:
        if start and part.one("Content-ID") == start:
            return part
    return entity.parts[0]


def _disposition(entity: Entity) -> tuple[str, dict[str, str]]:
    return parameterized(entity.one("Content-Disposition"), "Content-Disposition")


def _is_text(entity: Entity, *, is_alternative: bool) -> bool:
    """Tell text to be shown from a file: it has no name, but for calendars beside other text."""
    disposition, parameters = _disposition(entity)
    if disposition not in {"", "inline"} or parameters.get("filename"):
        return False
    if entity.parameters.get("name") and not is_alternative:
        return False
    # Not all alternatives are of type text; composing gives each a charset.
    return entity.type == "text" or (not disposition and "charset" in entity.parameters)


def _parameters(entity: Entity, *, without: set[str]) -> str:
    return "".join(
        [
            f"; {name}={text if _TOKEN.fullmatch(text) else _quoted(text)}"
            for name, text in entity.parameters.items()
            if name not in without
        ]
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _octets(entity: Entity) -> bytes:
    """Take off the transfer encoding (RFC 2045, section 6). Raises MessageError."""
    encoding = without_comments(entity.one("Content-Transfer-Encoding")).strip(" \t;").lower()
    match encoding:
        case "" | "7bit" | "8bit" | "binary":
            return entity.body
        case "quoted-printable":
            return binascii.a2b_qp(entity.body)
        case "base64":
            return _base64(entity)
        case _:
            raise MessageError(f"{entity.media_type}: its transfer encoding is not known")


def _base64(entity: Entity) -> bytes:
    characters = entity.body.translate(None, _SPACE).rstrip(b"=")
    try:
        return binascii.a2b_base64(characters + b"=" * (-len(characters) % 4), strict_mode=True)
    except binascii.Error:
        raise MessageError(f"{entity.media_type}: its base64 is broken") from None
