"""Which header fields a message has, and what may stand in each (RFC 5322, section 3.6).

Invariant: every field RFC 5322 allows once is written at most once, and Bcc never.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import time
import typing as t
from collections.abc import Iterable
from functools import lru_cache

from amail.address import Address
from amail.errors import InvalidAddress, InvalidHeader, MessageError
from amail.mime.headers import HeaderWriter, check_name, fold
from amail.mime.lists import check_list_fields, list_id
from amail.text import as_text, header_text

if t.TYPE_CHECKING:
    from collections.abc import Sequence

    from amail.address import People, Person
    from amail.limits import Limits
    from amail.message import Message

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(
    rf"(?:(?:{'|'.join(_DAYS)}), )?[0-9]{{1,2}} (?:{'|'.join(_MONTHS)}) "
    r"(?:19|[2-9][0-9])[0-9]{2} "
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::(?:[0-5][0-9]|60))? (?:[+-][0-9]{4}|GMT|UT)"
)
_DOT_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++)*+"
_MESSAGE_ID = re.compile(rf"<{_DOT_ATOM}@(?:{_DOT_ATOM}|\[[!-Z^-~]{{1,250}}\])>")
_LONGEST_MESSAGE_ID = 900
_FAR_FUTURE = 10**15  # seconds; a whole number far beyond has no float
# An id somebody else made, which an answer has to repeat however odd it is.
_FOREIGN_ID = re.compile(r"<[!-;=?-~]{1,900}>")

_PRIORITIES = {
    1: ("1 (Highest)", "high"),
    2: ("2 (High)", "high"),
    3: ("3 (Normal)", "normal"),
    4: ("4 (Low)", "low"),
    5: ("5 (Lowest)", "low"),
}
_PRIORITY_NAMES = {"highest": 1, "high": 2, "normal": 3, "low": 4, "lowest": 5}

_REFUSED = frozenset(
    (
        *("from", "to", "cc", "bcc", "subject", "mime-version", "received", "return-path"),
        *("dkim-signature", "resent-bcc"),
    )
)
_SETTING = {
    "message-id": "message_id",
    "date": "date",
    "reply-to": "reply_to",
    "in-reply-to": "in_reply_to",
    "references": "references",
    "x-priority": "priority",
    "importance": "priority",
}
_ADDRESSES = frozenset(("disposition-notification-to", "return-receipt-to", "errors-to"))
_STRUCTURED = frozenset(
    (
        *("list-unsubscribe", "list-unsubscribe-post", "list-help", "list-subscribe", "list-post"),
        *("list-owner", "list-archive", "auto-submitted", "precedence", "x-priority"),
        *("importance", "x-auto-response-suppress"),
    )
)


def people(value: People, field: str) -> list[Address]:
    """Return the addresses of a field, in order and each mailbox once. Empty entries are dropped.

    Raises InvalidAddress for an entry that is none, or where only empty entries were given.
    """
    if not value and (value is None or type(value) is list):
        return []
    if type(value) is list and len(value) == 1 and type(value[0]) is str and "@" in value[0]:
        return [Address.of(value[0], field=field)]  # as in nearly every message
    if isinstance(value, (str, Address)):
        value = (value,)
    addresses: dict[tuple[str, str], Address] = {}
    empty = False
    try:
        for person in value:
            if person is None or (isinstance(person, str) and not person.strip(" \t")):
                empty = True
                continue
            address = Address.of(person, field=field)
            addresses.setdefault(address.mailbox, address)
    except InvalidAddress as error:
        raise InvalidAddress(f"{error}{_meant_as_pair(value)}") from None
    except TypeError:
        raise InvalidAddress(
            f"{field}: must be an address or a list of them, not {type(value).__name__}"
        ) from None
    if empty and not addresses:
        raise InvalidAddress(f"{field}: holds nothing but empty entries")
    return list(addresses.values())


def _meant_as_pair(value: Iterable[Person | None]) -> str:
    """Say what to write where a name and an address were given for a list of people."""
    match tuple(value):
        case (str(name), str(address)) if "@" in address and "@" not in name:
            return "; for one person with a name write [('Bob', 'b@x.org')]"
    return ""


class Fields:
    """The header fields of one message besides From, To, Cc and the MIME ones, checked."""

    # What a message has that sets none of them.
    sender: Address | None = None
    reply_to: Sequence[Address] = ()
    date: str | None = None
    message_id: str | None = None
    _in_reply_to: Sequence[str] = ()
    _references: Sequence[str] = ()
    _priority: int | None = None

    def __init__(self, message: Message, limits: Limits) -> None:
        self.subject = _subject(message.subject, limits)
        self._given: dict[str, tuple[str, str]] = {}
        if not _has_only_a_subject(message):
            self._read(message, limits)

    def _read(self, message: Message, limits: Limits) -> None:
        self._given = _extra_headers(message, limits)
        self.sender = self._sender() if self._given else None
        self.reply_to = self._reply_to(message)
        self.date = self._date(message)
        self.message_id = self._message_id(message)
        self._in_reply_to = _ids(self._one_of(message.in_reply_to, "in-reply-to"), "in_reply_to")
        self._references = _ids(self._one_of(message.references, "references"), "references")
        self._priority = self._check_priority(message.priority)

    def write(self, writer: HeaderWriter) -> str:
        """Write the fields that follow Message-ID."""
        lines = []
        if self._in_reply_to:
            lines.append(fold("In-Reply-To", self._in_reply_to))
        if self._references:
            lines.append(fold("References", self._references))
        if self._priority is not None:
            number, importance = _PRIORITIES[self._priority]
            lines.append(f"X-Priority: {number}\r\nImportance: {importance}\r\n")
        for lower, (name, text) in self._given.items():
            if lower in _ADDRESSES:
                lines.append(writer.mailboxes(name, [_one_address(text, name)]))
            elif lower in _STRUCTURED:
                lines.append(writer.structured(name, text))
            elif lower == "list-id":
                lines.append(writer.identified(name, *list_id(text, name)))
            else:
                lines.append(writer.unstructured(name, text))
        return "".join(lines)

    def addresses(self) -> list[Address]:
        """List the addresses in these fields, to see whether one needs SMTPUTF8."""
        found = list(self.reply_to)
        if self.sender is not None:
            found.append(self.sender)
        for lower, (name, text) in self._given.items():
            if lower in _ADDRESSES:
                found.append(_one_address(text, name))
        return found

    def _take(self, lower: str) -> str | None:
        found = self._given.pop(lower, None)
        return found[1] if found else None

    def _one_of(self, value: t.Any, lower: str) -> t.Any:
        """Return the message's own value of a field or that of extra_headers, never both."""
        extra = self._take(lower) if self._given else None
        if extra is None:
            return value
        if value:
            raise _twice(lower)
        return extra

    def _sender(self) -> Address | None:
        text = self._take("sender")
        return _one_address(text, "Sender") if text else None

    def _reply_to(self, message: Message) -> list[Address]:
        value = self._one_of(message.reply_to, "reply-to")
        return people([value] if isinstance(value, tuple) else value or None, "reply_to")

    def _date(self, message: Message) -> str | None:
        """Return the Date as given, or None where it is still to be drawn."""
        given = message.identity.given_date
        value = self._take("date") if self._given else None
        if value is None:
            return None if given is None else format_date(given)
        if given is not None:
            raise _twice("date")
        if not _DATE.fullmatch(value):
            raise InvalidHeader('extra_headers: Date: write "Tue, 24 Nov 2026 12:00:00 +0000"')
        return value

    def _message_id(self, message: Message) -> str | None:
        """Return the Message-ID as given, or None where it is made of the message's identity."""
        value = self._one_of(message.identity.given_message_id, "message-id")
        return None if value is None else check_message_id(value)

    def _check_priority(self, value: object) -> int | None:
        if value is None:
            return None
        if "x-priority" in self._given or "importance" in self._given:
            raise _twice("priority")
        number = _PRIORITY_NAMES.get(value.lower()) if isinstance(value, str) else value
        if type(number) is not int or number not in _PRIORITIES:
            raise InvalidHeader(
                f"priority: must be 1 to 5 or one of {', '.join(map(repr, _PRIORITY_NAMES))}"
            )
        return number


def _has_only_a_subject(message: Message) -> bool:
    """Tell at a glance, of nearly all messages, that there is no other field to be read."""
    identity = message.identity
    return (
        not message.extra_headers
        and message.reply_to is None
        and message.in_reply_to is None
        and message.references is None
        and message.priority is None
        and identity.given_date is None
        and identity.given_message_id is None
    )


def _extra_headers(message: Message, limits: Limits) -> dict[str, tuple[str, str]]:
    """Check extra_headers: lower-case name -> (name, text). Those without a value are left out."""
    given: dict[str, tuple[str, str]] = {}
    if not message.extra_headers:
        return given
    try:
        pairs = dict(message.extra_headers).items()
    except (TypeError, ValueError):
        raise InvalidHeader("extra_headers: must be a dict of names and values") from None
    if len(pairs) > limits.headers:
        raise InvalidHeader(f"extra_headers: {len(pairs)} fields; {limits.headers} are allowed")
    for name, value in pairs:
        lower = check_name(name).lower()
        if lower in _REFUSED or lower.startswith("content-"):
            raise InvalidHeader(f"extra_headers: {name} is written by amail; use the field for it")
        if lower in given:
            raise _twice(lower)
        if not value and not isinstance(value, int | float | bytes):
            continue
        where = f"extra_headers: {name}"
        text = as_text(value, where, InvalidHeader)
        if (
            len(text) > limits.header_size
            or len(text.encode(errors="replace")) > limits.header_size
        ):
            raise InvalidHeader(f"{where}: more than {limits.header_size} octets (limits)")
        text = header_text(text, where, InvalidHeader, unfold=True, separators=False)
        if text.strip(" "):
            given[lower] = name, text
    check_list_fields(given)
    return given


def _twice(lower: str) -> InvalidHeader:
    also = f" (also as {_SETTING[lower]})" if lower in _SETTING else ""
    return InvalidHeader(f"extra_headers: {lower} is given twice{also}")


def _one_address(text: str, name: str) -> Address:
    return Address.of(text, field=f"extra_headers: {name}")


def _subject(value: object, limits: Limits) -> str:
    if value is None or value == "":
        return ""
    text = as_text(value, "subject", InvalidHeader)
    if len(text) > limits.subject:
        raise InvalidHeader(f"subject: {len(text)} characters; {limits.subject} are allowed")
    return header_text(text, "subject", InvalidHeader, unfold=True)


def check_message_id(value: object) -> str:
    """Return a Message-ID, or raise InvalidHeader (RFC 5322, section 3.6.4)."""
    text = as_text(value, "message_id", InvalidHeader).strip(" ")
    if len(text) > _LONGEST_MESSAGE_ID or "=?" in text or not _MESSAGE_ID.fullmatch(text):
        raise InvalidHeader(
            f"message_id: write <unique@domain>, in ASCII, at most {_LONGEST_MESSAGE_ID} octets"
        )
    return text


def _ids(value: t.Any, field: str) -> list[str]:
    """Return message ids with their brackets, from one str or several."""
    if not value:
        return []
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    texts = value if several else [value]
    ids = []
    for text in texts:
        for word in header_text(as_text(text, field, InvalidHeader), field, InvalidHeader).split():
            for one in word.replace("><", "> <").split(" "):
                bracketed = one if one.startswith("<") else f"<{one}>"
                if "=?" in one or not _FOREIGN_ID.fullmatch(bracketed):
                    raise InvalidHeader(f"{field}: holds something that is no message id <...>")
                ids.append(bracketed)
    return ids


def format_date(value: object) -> str:
    """Write a date (RFC 5322, section 3.3) from epoch seconds or an aware datetime.

    Raises InvalidHeader for anything else and for years before 1900 or after 9999.
    """
    if type(value) is float and 0 <= value <= _FAR_FUTURE:
        return _format_epoch(int(value))  # as the clock gives it
    if isinstance(value, dt.datetime):
        return _format_datetime(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidHeader(
            f"date: must be epoch seconds or an aware datetime, not {type(value).__name__}"
        )
    if abs(value) > _FAR_FUTURE or not math.isfinite(value):
        raise InvalidHeader("date: must be a finite number of seconds")
    return _format_epoch(math.floor(value))


def _format_datetime(value: dt.datetime) -> str:
    offset = value.utcoffset()
    if offset is None:
        raise InvalidHeader("date: the datetime has no time zone; use datetime.now(timezone.utc)")
    minutes, seconds = divmod(round(offset.total_seconds()), 60)
    if seconds:
        return _format_epoch(math.floor(value.timestamp()))
    if value.year < 1900:
        raise InvalidHeader("date: the year must be from 1900 to 9999")
    sign = "-" if minutes < 0 else "+"
    hours, minutes = divmod(abs(minutes), 60)
    return _date_text(value.timetuple(), f"{sign}{hours:02d}{minutes:02d}")


@lru_cache(maxsize=4)  # messages sent within one second share its text
def _format_epoch(seconds: int) -> str:
    try:
        moment = time.gmtime(seconds)
    except (OverflowError, OSError, ValueError):
        moment = time.gmtime(-(2**33))
    if not 1900 <= moment.tm_year <= 9999:
        raise InvalidHeader("date: the year must be from 1900 to 9999")
    return _date_text(moment, "+0000")


def _date_text(moment: time.struct_time, zone: str) -> str:
    return (
        f"{_DAYS[moment.tm_wday]}, {moment.tm_mday:02d} {_MONTHS[moment.tm_mon - 1]} "
        f"{moment.tm_year} {moment.tm_hour:02d}:{moment.tm_min:02d}:{moment.tm_sec:02d} {zone}"
    )


_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,30}(?:=[!-<>-~]{1,500})?")
# Whether these are needed is told by the content, and the transport writes them.
_TRANSPORTS_OWN = frozenset({"SIZE", "BODY", "SMTPUTF8"})


def esmtp_options(options: object, field: str) -> tuple[str, ...]:
    """Check ESMTP parameters (RFC 5321, section 4.1.2), or raise MessageError."""
    if not options:
        return ()
    if not isinstance(options, list | tuple):
        raise MessageError(f'{field}: must be a list, such as ["RET=HDRS"]')
    checked: dict[str, str] = {}
    for option in options:
        text = as_text(option, field, MessageError)
        keyword = text.partition("=")[0].upper()
        if not _OPTION.fullmatch(text):
            raise MessageError(
                f"{field}: write KEYWORD or KEYWORD=value, without spaces and in ASCII "
                "(other characters as xtext, RFC 3461)"
            )
        if keyword in checked:
            raise MessageError(f"{field}: {keyword} is given twice")
        if keyword not in _TRANSPORTS_OWN:
            checked[keyword] = text
    return tuple(checked.values())
