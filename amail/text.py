"""Which characters text from outside may bring into a header or a log.

Nothing here knows a header's syntax.

Invariant: what ``header_text`` returns holds no control character, no line break and no surrogate.
"""

from __future__ import annotations

import re
import typing as t

if t.TYPE_CHECKING:
    from amail.errors import MessageError

# An RFC 5322 fold: a line break is one only where white space and then text follow it.
_FOLD = re.compile(r"\r\n[ \t]+(?=[^ \t\r\n])")
# C0 but TAB, DEL, C1 but NEL, surrogates.
_FORBIDDEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
# TAB, NEL, line and paragraph separator come along with pasted text and mean a space.
_PASTED = re.compile("[\t\x85\u2028\u2029]")
_SEPARATOR = re.compile("[\x85\u2028\u2029]")


def place(text: str, position: int) -> str:
    """Name the code point at ``position`` (counted from 0) without quoting the text around it."""
    return f"U+{ord(text[position]):04X} at position {position}"


def as_text(value: object, field: str, error: type[MessageError]) -> str:
    """Return ``value`` as a plain str. Lazy strings of other libraries are resolved.

    Raises ``error`` for bytes, numbers and containers, which are mistakes and not text.
    """
    if type(value) is str:
        return value
    if isinstance(value, str):
        # Not str(value): for an enum member that is the member's name, not its text.
        return str.__str__(value)
    if value is None or type(value).__module__ == "builtins":
        raise error(f"{field}: must be a str, not {type(value).__name__}")
    return str(value)


def header_text(
    text: str,
    field: str,
    error: type[MessageError],
    *,
    unfold: bool = False,
    separators: bool = True,
) -> str:
    """Return ``text`` fit for a header: pasted line separators and tabs become one space each.

    With ``unfold`` a CRLF that is followed by white space and text becomes one space too
    (RFC 5322, section 2.2.3). Raises ``error`` for any other control character or a surrogate,
    and without ``separators`` for Unicode's line separators.
    """
    if text.isascii() and text.isprintable():
        return text
    if unfold:
        text = _FOLD.sub(" ", text)
    found = _FORBIDDEN.search(text)
    if found is None and not separators:
        found = _SEPARATOR.search(text)
    if found:
        raise error(
            f"{field}: {place(text, found.start())} cannot stand in a header; "
            "take out line breaks and control characters"
        )
    return _PASTED.sub(" ", text)


def printable(text: str, limit: int = 500) -> str:
    """Return ``text`` fit for a log or an error: control characters escaped, cut at ``limit``.

    What a server says may hold anything, a line break that would begin another log record too.
    """
    if len(text) <= limit and text.isprintable():
        return text
    shown = ""
    for point in text[: limit + 1]:
        escaped = point if point.isprintable() else ascii(point)[1:-1]
        if len(shown) + len(escaped) > limit:
            return f"{shown}..."
        shown += escaped
    return shown


def masked(path: str) -> str:
    """Return an address as logs name it: whose it is cannot be told, but where it leads."""
    return f"{path[:1]}***@{path.rpartition('@')[2]}"
