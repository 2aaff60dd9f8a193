"""Ids of other programs that no author could give -> ids made of them, so that they can be sent.

Gmail's Content-ID has no "@", some Message-IDs have none or two. What is made of an id is the same
each time; two ids that differ stay different.
"""

from __future__ import annotations

import hashlib
import logging
import typing as t
from urllib.parse import unquote

from amail.errors import InvalidAttachment, InvalidHeader
from amail.mime.attachments import CID, check_content_id
from amail.mime.fields import check_message_id
from amail.mime.tokens import without_comments

if t.TYPE_CHECKING:
    import re
    from collections.abc import Iterable

_logger = logging.getLogger("amail")


def message_id(text: str, domain: str) -> str | None:
    """Return a Message-ID that can be written, None for no text. Warns of one it had to make."""
    given = without_comments(text).strip(" \t")
    if not given:
        return None
    try:
        return check_message_id(given)
    except InvalidHeader:
        _logger.warning("the Message-ID of what was read is none; another one was made of it")
        return f"<{_made_of(given)}@{domain}>"


def settle_content_ids(parts: Iterable[dict[str, str]]) -> dict[str, str]:
    """Make each Content-ID among the fields of parts one that can be written, and the only one.

    Returns what html has to show instead: id -> id, without brackets. Of several that are alike
    it shows the first.
    """
    instead: dict[str, str] = {}
    seen: set[str] = set()
    for place, fields in enumerate(parts):
        for name in [name for name in fields if name.lower() == "content-id"]:
            given = fields[name].strip(" ").removeprefix("<").removesuffix(">")
            made = given if _can_be_written(given) else f"{_made_of(given)}@inline"
            instead.setdefault(given, made)
            if made in seen:
                made = f"{_made_of(f'{place} {made}')}@inline"
            seen.add(made)
            if made != given:
                fields[name] = f"<{made}>"
    return instead


def with_content_ids(html: str, instead: dict[str, str]) -> str:
    """Return html with other ids behind ``cid:`` (RFC 2392, section 2)."""

    def other(found: re.Match[str]) -> str:
        given = unquote(found[1])
        made = instead.get(given, given)
        return found[0] if made == given else f"cid:{made}"

    return CID.sub(other, html)


def _can_be_written(content_id: str) -> bool:
    try:
        check_content_id(content_id, "")
    except InvalidAttachment:
        return False
    return True


def _made_of(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()
