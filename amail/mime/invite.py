"""Calendar objects that ask for something: their METHOD is that of their part (RFC 6047, 2.4)."""

from __future__ import annotations

import re

from amail.errors import InvalidHeader, MessageError

_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,39}")
_FOLD = re.compile(r"\r?\n[ \t]")  # RFC 5545, section 3.1
_OCTET_FOLD = re.compile(rb"\r?\n[ \t]")
_METHOD = re.compile(r"^METHOD(?:;[^:\r\n]*)?:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_CALENDAR = re.compile(r"BEGIN:VCALENDAR\r?\n.*\nEND:VCALENDAR\s*", re.IGNORECASE | re.DOTALL)


def check_invite(ics: object, method: object) -> tuple[str, str]:
    """Return a calendar object as text whose lines end in CRLF, and its method in upper case.

    Raises MessageError for what is no calendar object, InvalidHeader for a method that is no token
    or not the one in the object.
    """
    if not isinstance(method, str) or not _TOKEN.fullmatch(method):
        raise InvalidHeader(
            "add_invite: method: must be a word such as REQUEST, CANCEL or REPLY (RFC 5546)"
        )
    text = _text(ics)
    if not _CALENDAR.fullmatch(text):
        raise MessageError(
            "add_invite: ics: must be text from BEGIN:VCALENDAR to END:VCALENDAR (RFC 5545)"
        )
    method = method.upper()
    if not _methods(text):
        raise InvalidHeader(
            f"add_invite: method: the ics names none; it needs a line METHOD:{method} (RFC 6047)"
        )
    check_method(text, method, "add_invite")
    return text.replace("\r\n", "\n").replace("\n", "\r\n"), method


def check_method(text: str, method: str, field: str) -> None:
    """Refuse a calendar object whose METHOD is another one than its part's parameter."""
    if not _methods(text) <= {method.upper()}:
        raise InvalidHeader(
            f"{field}: method: the calendar object says another METHOD than the parameter method "
            "does; they must agree (RFC 6047, section 2.4)"
        )


def _methods(text: str) -> set[str]:
    return {found.strip().upper() for found in _METHOD.findall(_FOLD.sub("", text))}


def _text(ics: object) -> str:
    if isinstance(ics, str):
        return str.__str__(ics).removeprefix("\ufeff")
    if not isinstance(ics, bytes):
        raise MessageError(f"add_invite: ics: must be str or bytes, not {type(ics).__name__}")
    # Old writers fold within a character.
    for octets in (ics, _OCTET_FOLD.sub(b"", ics)):
        try:
            return octets.decode("utf-8-sig")
        except UnicodeDecodeError:
            continue
    raise MessageError("add_invite: ics: is not in UTF-8, which calendar objects are written in")
