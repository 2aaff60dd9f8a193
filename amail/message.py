"""Message and Attachment: what an author writes, in Flask-Mail's vocabulary.

Invariant: a message keeps its identity. The unique part of its Message-ID is drawn when it is
made, its Date when it is first composed; composing it again unchanged gives the same octets.
"""

from __future__ import annotations

import copy
import hashlib
import os
import pathlib
import re
import secrets
import time
import typing as t

from amail.address import Address, People, Person
from amail.errors import InvalidAddress, InvalidAttachment, InvalidHeader, MessageError
from amail.limits import Limits
from amail.mime import compose
from amail.mime.attachments import (
    check_content_type,
    check_disposition,
    guess_type,
    part_headers,
)
from amail.mime.invite import check_invite
from amail.mime.lists import unsubscribe_fields
from amail.mime.reader import read_content
from amail.record import pack, unpack
from amail.text import as_text, place

if t.TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Mapping

    from amail.mime.attachments import Prepared

Data: t.TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | t.BinaryIO"
Priority: t.TypeAlias = t.Literal["highest", "high", "normal", "low", "lowest", 1, 2, 3, 4, 5]

_IMAGE_SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "image/webp"),
)
_INVITE = "calendar; method="  # the key in alts, with the method behind it
_INVITE_FILE = ("invite.ics", "application/ics")


class Attachment:
    """A file that goes with a message.

    ``data`` is bytes, str (the content itself, sent as UTF-8), a path as ``pathlib.Path``, an open
    binary file (read from where it stands, when first composed) or a message with ``as_bytes()``.
    ``content_type`` is guessed from ``filename`` where it is not given. ``disposition`` is
    "attachment" or "inline"; ``headers`` are further fields of the part, such as Content-ID.

    Raises InvalidAttachment for a description that cannot be written. The data is looked at when
    the message is composed.
    """

    def __init__(
        self,
        filename: str | None = None,
        content_type: str | None = None,
        data: Data | None = None,
        disposition: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if data is None:
            raise InvalidAttachment("attachment.data: give bytes, str, a Path or an open file")
        self.has_explicit_type = content_type is not None
        self.filename = filename
        self.content_type = guess_type(filename, data) if content_type is None else content_type
        self.data: Data = bytes(data) if isinstance(data, (bytearray, memoryview)) else data
        self.disposition = disposition or "attachment"
        self.headers: dict[str, str] = dict(part_headers(headers, "attachment"))
        # Set by composing: (data, content_type, what they were encoded to).
        self.prepared: tuple[object, str, Prepared] | None = None
        check_content_type(self.content_type, "attachment")
        check_disposition(self.disposition, "attachment")

    def __getstate__(self) -> dict[str, t.Any]:
        return {**self.__dict__, "prepared": None}

    def __repr__(self) -> str:
        return f"<Attachment {self.content_type!r} from {type(self.data).__name__}>"


class Drawn(t.NamedTuple):
    """What was drawn for a message: the unique part of its id, the id, its epoch seconds."""

    unique: str
    message_id: str | None
    date: float | None


class Identity:
    """What makes a message this one: its Message-ID and its Date, given or drawn."""

    __slots__ = ("_drawn_date", "_drawn_id", "_unique", "given_date", "given_message_id")

    def __init__(
        self, message_id: str | None = None, date: float | dt.datetime | None = None
    ) -> None:
        self.given_message_id = message_id
        self.given_date = date
        self._unique = os.urandom(16).hex()
        self._drawn_id: str | None = None
        self._drawn_date: float | None = None

    @property
    def date(self) -> float | dt.datetime | None:
        """The date given, else the one drawn, else None."""
        return self._drawn_date if self.given_date is None else self.given_date

    def draw_date(self) -> float:
        """Return the time of the first call of this."""
        if self._drawn_date is None:
            self._drawn_date = time.time()
        return self._drawn_date

    @property
    def message_id(self) -> str | None:
        """The Message-ID given, else the one made, else None."""
        return self._drawn_id if self.given_message_id is None else self.given_message_id

    def message_id_at(self, domain: str) -> str:
        """Return the Message-ID, made with the domain of the first call of this."""
        if self._drawn_id is None:
            self._drawn_id = f"<{self._unique}@{domain}>"
        return self._drawn_id

    @property
    def drawn(self) -> Drawn:
        """What was drawn so far. Setting it makes this identity the one it was drawn for."""
        return Drawn(self._unique, self._drawn_id, self._drawn_date)

    @drawn.setter
    def drawn(self, drawn: Drawn) -> None:
        self._unique, self._drawn_id, self._drawn_date = drawn


class Message:
    """One message. Every attribute may be changed at any time; sending takes a snapshot.

    A person is a str ("Ada <ada@x.org>"), a ``(name, address)`` tuple or an Address.
    ``recipients``, ``cc`` and ``bcc`` are one str or Address, or an iterable of people; they
    become lists. ``alts`` maps a subtype of text ("html", "calendar") or a full media type to
    text. ``date`` is epoch seconds or an aware datetime; None is the time of the first sending.
    ``envelope_from`` is where bounces go, "" for nowhere. ``priority`` is 1 (highest) to 5 or a
    name. Nothing is checked before the message is composed, by sending, ``as_bytes`` or
    ``validate``.
    """

    def __init__(  # noqa: PLR0917 - the order is Flask-Mail's
        self,
        subject: str = "",
        recipients: People = None,
        body: str | None = None,
        html: str | None = None,
        alts: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        sender: Person | None = None,
        cc: People = None,
        bcc: People = None,
        attachments: Iterable[Attachment] | None = None,
        reply_to: Person | list[Person] | None = None,
        date: float | dt.datetime | None = None,
        charset: str | None = None,
        extra_headers: Mapping[str, str] | None = None,
        mail_options: list[str] | None = None,
        rcpt_options: list[str] | None = None,
        *,
        envelope_from: Person | None = None,
        message_id: str | None = None,
        in_reply_to: str | None = None,
        references: str | Iterable[str] | None = None,
        priority: Priority | None = None,
    ) -> None:
        self.subject = subject
        self._recipients = _listed(recipients, "recipients")
        self.body = body
        self.alts: dict[str, str] = dict(alts) if alts else {}
        if html is not None:
            self.alts["html"] = html
        self.sender = sender
        self._cc = [] if cc is None else _listed(cc, "cc")
        self._bcc = [] if bcc is None else _listed(bcc, "bcc")
        self.attachments: list[Attachment] = list(attachments) if attachments else []
        self.reply_to = reply_to
        self.charset = charset
        self.extra_headers = extra_headers
        self.mail_options: list[str] = mail_options or []
        self.rcpt_options: list[str] = rcpt_options or []
        self.envelope_from = envelope_from
        self.in_reply_to = in_reply_to
        self.references = references
        self.priority = priority
        self.identity = Identity(message_id, date)

    @property
    def recipients(self) -> list[Person]:
        """Who stands in To."""
        return self._recipients

    @recipients.setter
    def recipients(self, people: People) -> None:
        self._recipients = _listed(people, "recipients")

    @property
    def cc(self) -> list[Person]:
        """Who stands in Cc."""
        return self._cc

    @cc.setter
    def cc(self, people: People) -> None:
        self._cc = _listed(people, "cc")

    @property
    def bcc(self) -> list[Person]:
        """Who gets the message without being named in it."""
        return self._bcc

    @bcc.setter
    def bcc(self, people: People) -> None:
        self._bcc = _listed(people, "bcc")

    @property
    def html(self) -> str | None:
        """The html alternative, ``alts["html"]``."""
        return self.alts.get("html")

    @html.setter
    def html(self, html: str | None) -> None:
        if html is None:
            self.alts.pop("html", None)
        else:
            self.alts["html"] = html
            for key in filter(_is_invite, tuple(self.alts)):
                self.alts[key] = self.alts.pop(key)

    @property
    def date(self) -> float | dt.datetime | None:
        """The date as given, else that of the first composing, else None."""
        return self.identity.date

    @date.setter
    def date(self, date: float | dt.datetime | None) -> None:
        self.identity.given_date = date

    @property
    def message_id(self) -> str | None:
        """The Message-ID. None only as long as the sender, whose domain it has, is unknown."""
        for name, value in (self.extra_headers or {}).items():
            if isinstance(name, str) and name.lower() == "message-id" and value:
                return str(value).strip(" ")
        if self.identity.message_id is None and self.sender is not None:
            return self.identity.message_id_at(Address.of(self.sender, field="sender").ascii_domain)
        return self.identity.message_id

    @message_id.setter
    def message_id(self, message_id: str | None) -> None:
        self.identity.given_message_id = message_id

    @property
    def msgId(self) -> str | None:  # noqa: N802 - Flask-Mail's name
        """Flask-Mail's name of ``message_id``."""
        return self.message_id

    @msgId.setter
    def msgId(self, message_id: str | None) -> None:  # noqa: N802 - Flask-Mail's name
        self.message_id = message_id

    @property
    def send_to(self) -> set[Person]:
        """Everybody the message goes to, as written."""
        return {*self.recipients, *self.cc, *self.bcc}

    def add_recipient(self, recipient: Person) -> None:
        """Add one person to To."""
        self.recipients.append(recipient)

    def attach(
        self,
        filename: str | None = None,
        content_type: str | None = None,
        data: Data | None = None,
        disposition: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Attach ``data``: bytes, a str (the content itself), a Path or an open binary file.

        Raises InvalidAttachment for a description that cannot be written.
        """
        self.attachments.append(Attachment(filename, content_type, data, disposition, headers))

    def attach_file(self, path: str | os.PathLike[str] | t.Any) -> None:
        """Attach the file at ``path``, or an upload (Werkzeug's FileStorage).

        A file is looked at when the message is composed and read while it is being sent.
        """
        if isinstance(path, (str, os.PathLike)):
            file = pathlib.Path(path)
            self.attach(file.name, data=file)
        elif hasattr(path, "stream"):
            content_type = getattr(path, "mimetype", None) or None
            self.attach(path.filename or None, content_type, path.stream)
        else:
            raise InvalidAttachment(
                f"attach_file: must be a path or an upload, not {type(path).__name__}; "
                "attach(filename, content_type, data) takes content"
            )

    def embed(
        self, content: Data, filename: str | None = None, content_type: str | None = None
    ) -> str:
        """Attach an image that html shows, and return its id: ``<img src="cid:{id}">``."""
        if filename is None and content_type is None and isinstance(content, bytes):
            content_type = _image_type(content)
        if filename is None and isinstance(content, os.PathLike):
            filename = os.path.basename(os.fspath(content))
        content_id = f"{secrets.token_hex(16)}@inline"
        self.attach(filename, content_type, content, "inline", {"Content-ID": f"<{content_id}>"})
        return content_id

    def add_invite(self, ics: str | bytes, method: str = "REQUEST") -> None:
        """Add a calendar object: as the last alternative and once more as the file invite.ics.

        ``ics`` is the whole object (RFC 5545), bytes in UTF-8; ``method`` says what it asks for
        and must be its METHOD (RFC 6047): "REQUEST" invites, "CANCEL" calls off. An invite that
        was added before is replaced, and ``html`` may be set later.

        Raises InvalidHeader for a method that is none or not that of ``ics``, MessageError where
        ``ics`` is no calendar object.
        """
        text, method = check_invite(ics, method)
        self.alts = {key: value for key, value in self.alts.items() if not _is_invite(key)}
        self.alts[f"{_INVITE}{method}"] = text
        self.attachments = [
            attachment
            for attachment in self.attachments
            if (attachment.filename, attachment.content_type) != _INVITE_FILE
        ]
        self.attach(*_INVITE_FILE, text)

    def add_unsubscribe(self, url: str | None = None, mailto: Person | None = None) -> None:
        """Say how to leave the list: ``url``, a mail to ``mailto``, or both (RFC 2369).

        With an https url readers leave with one click: their provider posts
        ``List-Unsubscribe=One-Click`` to it, without cookies, and that alone has to do it
        (RFC 8058). An http url gives no one-click. ``mailto`` is an address or a mailto: URL. The
        fields are put into ``extra_headers`` in place of those that were there.

        Raises InvalidHeader for any other url, InvalidAddress for a mailto that is no address.
        """
        fields = unsubscribe_fields(url, mailto)
        self._set_headers({"List-Unsubscribe": None, "List-Unsubscribe-Post": None, **fields})

    def mark_auto_submitted(self) -> None:
        """Say that no human wrote this, so that no machine answers it (RFC 3834, section 5).

        Sets ``Auto-Submitted: auto-generated``, and for Exchange, which does not look at that,
        ``X-Auto-Response-Suppress: OOF, AutoReply``: no absence notes and other answers, while
        bounces still come. The fields are put into ``extra_headers``.
        """
        self._set_headers(
            {
                "Auto-Submitted": "auto-generated",
                "X-Auto-Response-Suppress": "OOF, AutoReply",
            }
        )

    @staticmethod
    def make_id(key: str, *, domain: str) -> str:
        """Return a Message-ID that is always the same for the same ``key`` and ``domain``.

        Given as ``message_id``, it makes what is sent twice by different processes the same
        message to whoever compares ids. The key is hashed: it does not show, but who guesses it
        can tell that it was this one.

        Raises InvalidHeader for an empty key, InvalidAddress for a domain that is none
        (RFC 5322, section 3.6.4).
        """
        text = as_text(key, "make_id: key", InvalidHeader)
        if not text:
            raise InvalidHeader("make_id: key: is empty; give what the message is about")
        domain = as_text(domain, "make_id: domain", InvalidAddress)
        address = Address.of(("", f"id@{domain}"), field="make_id: domain")
        unique = hashlib.blake2b(_key_octets(text), digest_size=16, person=b"Message-ID")
        return f"<{unique.hexdigest()}@{address.ascii_domain.lower()}>"

    def validate(self) -> None:
        """Check everything that sending would, or raise the MessageError it would raise."""
        compose(self._copy())

    def has_bad_headers(self) -> bool:
        """Tell whether a header field or an address is one that composing refuses."""
        probe = self._copy()
        if probe.sender is None:
            probe.sender = "unknown@localhost"
        try:
            compose(probe)
        except (InvalidHeader, InvalidAddress):
            return True
        except MessageError:
            return False
        return False

    def renew(self) -> None:
        """Make this another message: the next composing draws a new Message-ID and Date."""
        self.identity = Identity(date=self.identity.given_date)

    def as_bytes(self) -> bytes:
        """Return the content as it would be sent. Raises MessageError."""
        _, content = compose(self)
        return bytes(content)

    def as_string(self) -> str:
        """Return the content as text (it is ASCII unless an address needs SMTPUTF8)."""
        return self.as_bytes().decode("utf-8", "replace")

    def to_dict(self, *, inline_files: bool = True) -> dict[str, t.Any]:
        """Return the message as a dict that ``json.dumps`` takes, for a queue or a store.

        It holds everything an author sets, attachments included: a file object is read, an
        attached message is kept by its octets, and the file at a path is read too or, without
        ``inline_files``, named by its absolute path. This is the moment the message is finished
        (RFC 5322, section 3.6.1): a Date that was not given is drawn, as the first sending does.

        Raises MessageError, with the key's name, for what no message can be composed of.
        """
        if self.identity.given_date is None:
            self.identity.draw_date()
        return pack(self, inline_files=inline_files)

    @classmethod
    def from_dict(cls, record: dict[str, t.Any], *, allow_paths: bool = False) -> t.Self:
        """Make the message that ``to_dict`` wrote: it composes to the same octets and envelope.

        The record may come from somebody else: what is not as ``to_dict`` writes it is refused,
        and nothing is opened. With ``allow_paths`` an attachment may name any file that this
        process can read, so allow that only for records that nobody else can have written.

        Raises MessageError with the key's name.
        """
        unpacked = unpack(record, allow_paths=allow_paths)
        message = cls(**unpacked.message)
        message.identity.drawn = Drawn(**unpacked.drawn)
        for number, fields in enumerate(unpacked.attachments):
            is_explicit = fields.pop("has_explicit_type")
            try:
                attachment = Attachment(**fields)
            except InvalidAttachment as error:
                raise InvalidAttachment(f"attachments[{number}]: {error}") from None
            attachment.has_explicit_type = is_explicit
            message.attachments.append(attachment)
        return message

    @classmethod
    def from_bytes(cls, eml: bytes, *, limits: Limits = Limits()) -> t.Self:  # noqa: B008 - frozen
        """Read a message as it stands in an .eml file (RFC 5322 and MIME).

        Bcc becomes ``bcc``: who sends the message again sends it to them, and no content names
        them. Trace fields, such as Received and DKIM-Signature, are left out. A Message-ID or
        Content-ID that could not be written again becomes one made of it. Composing the message
        again says the same in other octets, so signatures do not survive.

        Raises MessageError for what has no place in a Message (signed and encrypted messages,
        groups of people, two of a field that stands once) and for what cannot be read with
        certainty; MessageTooLarge for more octets than ``limits`` allows.
        """
        if not isinstance(eml, bytes | bytearray | memoryview):
            raise MessageError(f"from_bytes: must be bytes, not {type(eml).__name__}")
        fields = read_content(bytes(eml), limits)._asdict()
        files = fields.pop("attachments")
        try:
            return cls(**fields, attachments=[Attachment(*file) for file in files])
        except InvalidAttachment as error:
            raise InvalidAttachment(f"from_bytes: {error}") from None

    def _set_headers(self, fields: Mapping[str, str | None]) -> None:
        """Set extra_headers anew, in any letter case once; those of None are taken out."""
        try:
            given = dict(self.extra_headers or {})
        except (TypeError, ValueError):
            raise InvalidHeader("extra_headers: must be a dict of names and values") from None
        lower = {name.lower() for name in fields}
        kept = {name: text for name, text in given.items() if str(name).lower() not in lower}
        self.extra_headers = kept | {name: text for name, text in fields.items() if text}

    def _copy(self) -> t.Self:
        """Copy the message to compose it for trial: what that draws does not stay with this one."""
        probe = copy.copy(self)
        probe.identity = copy.copy(self.identity)
        return probe

    def __bytes__(self) -> bytes:
        return self.as_bytes()

    def __str__(self) -> str:
        return self.as_string()

    def __repr__(self) -> str:
        alternatives = ", ".join(["body"] * bool(self.body) + [repr(key) for key in self.alts])
        return (
            f"<{type(self).__name__} to {len(self.send_to)}, of {alternatives or 'nothing'}, "
            f"{len(self.attachments)} attachment(s)>"
        )


def _listed(people: People, field: str) -> list[Person]:
    """Make a list of one person or several; empty entries are left for composing to drop."""
    if people is None:
        return []
    if isinstance(people, str | Address):
        return [people]
    try:
        return list(t.cast("Iterable[Person]", people))
    except TypeError:
        raise InvalidAddress(
            f"{field}: must be an address or a list of them, not {type(people).__name__}"
        ) from None


def _is_invite(key: object) -> bool:
    return isinstance(key, str) and key.startswith(_INVITE)


def _key_octets(key: str) -> bytes:
    try:
        return key.encode("utf-8")
    except UnicodeEncodeError as error:
        position = error.start
    raise InvalidHeader(f"make_id: key: {place(key, position)} is half a character (a surrogate)")


def _image_type(content: bytes) -> str | None:
    for signature, content_type in _IMAGE_SIGNATURES:
        if signature.match(content):
            return content_type
    return None
