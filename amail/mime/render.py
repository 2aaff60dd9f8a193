"""Message -> (Envelope, Content): which part nests in which, and where the whole goes.

    mixed
    ├── alternative                 text and html, in the order of preference (RFC 2046, 5.1.4)
    │   ├── text/plain
    │   ├── related                 html and the images it shows (RFC 2387)
    │   │   ├── text/html
    │   │   └── image/png           inline, with a Content-ID
    │   └── text/calendar           further alternatives
    └── application/pdf             attachments

A level that would hold one part only is left out, but for mixed around an attachment.
Invariant: composing the same unchanged message again gives the same octets.
"""

from __future__ import annotations

import itertools
import logging
import typing as t
from functools import lru_cache

from amail.address import Address
from amail.envelope import Envelope
from amail.errors import InvalidAttachment, InvalidHeader, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.mime.attachments import CID, Part, attachment_part
from amail.mime.bodies import encode_text
from amail.mime.charsets import allowed
from amail.mime.content import Content
from amail.mime.fields import Fields, esmtp_options, format_date, people
from amail.mime.headers import HeaderWriter, media_type
from amail.mime.invite import check_method
from amail.mime.multipart import Entity, multipart
from amail.mime.plain import plain_entity
from amail.text import as_text

if t.TYPE_CHECKING:
    from collections.abc import Sequence

    from amail.address import Person
    from amail.message import Message

_logger = logging.getLogger("amail")

_SMALL = 64 * 1024
_DEFAULT_LIMITS = Limits()


def compose(
    message: Message,
    *,
    default_sender: Person | None = None,
    limits: Limits = _DEFAULT_LIMITS,
    ascii_attachments: bool = False,
    all_recipients: bool = False,
    envelope: Envelope | None = None,
) -> tuple[Envelope, Content]:
    """Compose a message: a snapshot that later changes of the message do not reach.

    ``default_sender`` is the author where the message names none. With ``ascii_attachments`` file
    names are written in ASCII. Given an ``envelope``, the content goes there whatever the message
    says, and the message need not name a recipient.

    Raises MessageError: InvalidAddress, InvalidHeader, InvalidAttachment, MessageTooLarge. Does no
    I/O but to look at files attached by their path and to read file objects.
    """
    author = _author(message, default_sender)
    to = people(message.recipients, "recipients")
    cc = people(message.cc, "cc")
    bcc = people(message.bcc, "bcc")
    fields = Fields(message, limits)
    if envelope is None:
        envelope = _envelope(message, author, [*to, *cc, *bcc], limits, all_recipients)
    named = [address.addr_spec for address in (author, *to, *cc, *fields.addresses())]
    needs_utf8 = not "".join((envelope.reverse_path, *envelope.forward_paths, *named)).isascii()
    charset = _charset(message.charset)
    writer = HeaderWriter(charset, utf8=needs_utf8)

    message_id = fields.message_id or message.identity.message_id_at(author.ascii_domain)
    date = fields.date or format_date(message.identity.draw_date())
    head = [writer.mailboxes("From", [author])]
    if fields.sender is not None:
        head.append(writer.mailboxes("Sender", [fields.sender]))
    if fields.reply_to:
        head.append(writer.mailboxes("Reply-To", fields.reply_to))
    if to:
        head.append(writer.mailboxes("To", to))
    elif not cc:
        head.append("To: undisclosed-recipients:;\r\n")
    if cc:
        head.append(writer.mailboxes("Cc", cc))
    if fields.subject:
        head.append(writer.unstructured("Subject", fields.subject))
    head.append(f"Date: {date}\r\nMessage-ID: {message_id}\r\n")
    head += (fields.write(writer), "MIME-Version: 1.0\r\n")
    body = plain_entity(message, message_id, limits)
    if body is None:
        body = _Structure(
            message, writer, charset, message_id, limits=limits, ascii_names=ascii_attachments
        ).entity()
    head += (body.header, "\r\n")
    content = Content(
        ["".join(head).encode(), *body.body],
        message_id=message_id,
        needs_utf8=needs_utf8,
        needs_8bit=needs_utf8 or body.is_8bit,
    )
    if len(content) > limits.message_size:
        raise _too_large(len(content), limits)
    return envelope, content


def _author(message: Message, default_sender: Person | None) -> Address:
    sender = message.sender if message.sender is not None else default_sender
    if type(sender) is str:
        return _author_of(sender)
    if sender is None:
        raise MessageError("sender: the message has none; give it one, or set default_sender")
    if isinstance(sender, (list, set)):
        raise MessageError("sender: must be one person; the others can stand in reply_to")
    return Address.of(sender, field="sender")


@lru_cache(maxsize=64)  # nearly every message has the author of the one before
def _author_of(sender: str) -> Address:
    return Address.of(sender, field="sender")


def _envelope(
    message: Message,
    author: Address,
    recipients: list[Address],
    limits: Limits,
    all_recipients: bool,
) -> Envelope:
    if len(recipients) == 1:
        forward_paths: tuple[str, ...] = (recipients[0].addr_spec,)
    else:
        mailboxes: dict[tuple[str, str], str] = {}
        for address in recipients:
            mailboxes.setdefault(address.mailbox, address.addr_spec)
        forward_paths = tuple(mailboxes.values())
    if not forward_paths:
        raise MessageError("recipients: the message has none, nor in cc or bcc")
    if len(forward_paths) > limits.recipients:
        raise MessageError(
            f"recipients: {len(forward_paths)}; {limits.recipients} are allowed (limits)"
        )
    reverse_path = author.addr_spec
    if message.envelope_from is not None:
        reverse_path = _reverse_path(message.envelope_from)
    return Envelope(
        reverse_path,
        forward_paths,
        esmtp_options(message.mail_options, "mail_options"),
        esmtp_options(message.rcpt_options, "rcpt_options"),
        all_recipients,
    )


def _reverse_path(person: Person) -> str:
    """Return the address bounces go to; "" asks for none (RFC 5321, section 4.5.5)."""
    if person == "":
        return ""
    return Address.of(person, field="envelope_from").addr_spec


def _charset(charset: object) -> str:
    """Return the name of an allowed charset, or raise MessageError."""
    if charset is None:
        return "utf-8"
    name = allowed(as_text(charset, "charset", MessageError))
    if name is None:
        raise MessageError(
            "charset: not one that mail is written in; leave it out for UTF-8, which holds all text"
        )
    return name


def _too_large(size: int, limits: Limits) -> MessageTooLarge:
    return MessageTooLarge(
        f"the message has {size} octets; {limits.message_size} are allowed (limits.message_size)"
    )


class _Structure:
    """Builds the tree of parts of one message."""

    def __init__(
        self,
        message: Message,
        writer: HeaderWriter,
        charset: str,
        message_id: str,
        *,
        limits: Limits,
        ascii_names: bool,
    ) -> None:
        self._message = message
        self._writer = writer
        self._charset = charset
        self._message_id = message_id
        self._numbers = itertools.count(1)
        self._limits = limits
        self._ascii_names = ascii_names

    def entity(self) -> Entity:
        message = self._message
        texts = self._texts()
        size = sum([len(text) for _, text, _ in texts])
        if size > self._limits.message_size:
            raise _too_large(size, self._limits)
        attached = self._attachments() if message.attachments else []
        html = "".join([text for name, text, _ in texts if name == "text/html"])
        related, others = self._sorted(attached, html)
        alternatives = []
        for name, text, field in texts:
            entity = self._text(name, text, field)
            if related and name == "text/html":
                entity = self._multipart("related", [entity, *related], root="text/html")
            alternatives.append(entity)
        if not alternatives and not attached:
            return self._text("text/plain", "", "body")
        if len(alternatives) > 1:
            alternatives = [self._multipart("alternative", alternatives)]
        return self._multipart("mixed", [*alternatives, *others]) if others else alternatives[0]

    def _texts(self) -> list[tuple[str, str, str]]:
        """List the body and its alternatives as (media type, text, field), empty ones left out."""
        message = self._message
        texts = []
        if message.body:
            texts.append(("text/plain", as_text(message.body, "body", MessageError), "body"))
        for key, value in message.alts.items():
            if value:
                name = as_text(key, "alts", InvalidHeader)
                field = "html" if name == "html" else "alts"
                texts.append((_alternative(name), as_text(value, field, MessageError), field))
        return texts

    def _text(self, name: str, text: str, field: str) -> Entity:
        charset, encoding, octets = encode_text(text, self._charset, field)
        if name in {"text/plain", "text/html"}:
            header = f'Content-Type: {name}; charset="{charset}"\r\n'
        else:
            media = media_type(name, field, InvalidHeader)
            method = media.parameter("method")
            if method is not None and media.full == "text/calendar":
                check_method(text, method, field)
            parameters = [pair for pair in media.parameters if pair[0] != "charset"]
            header = self._writer.with_parameters(
                "Content-Type", media.full, [*parameters, ("charset", charset)]
            )
        return Entity(f"{header}Content-Transfer-Encoding: {encoding}\r\n", (octets,))

    def _attachments(self) -> list[Part]:
        attachments = list(self._message.attachments)
        if len(attachments) > self._limits.attachments:
            raise InvalidAttachment(
                f"attachments: {len(attachments)}; {self._limits.attachments} are allowed (limits)"
            )
        parts = []
        seen: set[str] = set()
        size = 0
        for number, attachment in enumerate(attachments):
            part = attachment_part(
                attachment,
                self._writer,
                self._limits,
                ascii_names=self._ascii_names,
                field=f"attachments[{number}]",
            )
            if part.content_id is not None:
                if part.content_id in seen:
                    raise InvalidAttachment(f"attachments[{number}]: its Content-ID is given twice")
                seen.add(part.content_id)
            size += len(part.body)
            if size > self._limits.message_size:
                raise _too_large(size, self._limits)
            parts.append(part)
        return parts

    @staticmethod
    def _sorted(attached: list[Part], html: str) -> tuple[list[Entity], list[Entity]]:
        """Part the attachments into those that belong to the html and the others.

        One with a Content-ID belongs to it if its disposition is inline or if the html shows it.
        """
        shown = frozenset(CID.findall(html) if "cid:" in html else ())
        missing = shown.difference([part.content_id for part in attached]) if shown else ()
        if missing:
            _logger.warning("html shows %d image(s) by cid: that are not attached", len(missing))
        related: list[Entity] = []
        others: list[Entity] = []
        for part in attached:
            belongs = (
                html
                and part.content_id is not None
                and (part.disposition == "inline" or part.content_id in shown)
            )
            (related if belongs else others).append(_entity(part))
        return related, others

    def _multipart(self, subtype: str, parts: Sequence[Entity], root: str | None = None) -> Entity:
        return multipart(subtype, parts, self._message_id, self._numbers, root)


def _entity(part: Part) -> Entity:
    body = part.body
    if not isinstance(body, bytes) and len(body) <= _SMALL:
        body = b"".join(body.chunks())
    return Entity(part.header, (body,), part.is_8bit)


def _alternative(name: str) -> str:
    """Return the media type of a key of ``alts``: a subtype of text, or a full type."""
    if name == "html":
        return "text/html"
    full = name if "/" in name else f"text/{name}"
    found = media_type(full, "alts", InvalidHeader)
    if found.type in {"multipart", "message"}:
        raise InvalidHeader("alts: an alternative cannot be a multipart or a message")
    return found.full if not found.parameters else full
