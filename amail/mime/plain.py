"""The body of nearly every message, at a glance: a text, an html or both, in plain ASCII.

Invariant: what comes out of here is octet by octet what ``render`` makes of the same message the
careful way.
"""

from __future__ import annotations

import typing as t

from amail.mime.bodies import seven_bit
from amail.mime.multipart import Entity, boundary, multipart_header

if t.TYPE_CHECKING:
    from amail.limits import Limits
    from amail.message import Message

_TEXT, _HTML = (
    f'Content-Type: text/{subtype}; charset="utf-8"\nContent-Transfer-Encoding: 7bit\n'
    for subtype in ("plain", "html")
)


def plain_entity(message: Message, message_id: str, limits: Limits) -> Entity | None:
    """Compose text and html, or return None where only the careful path knows.

    What is refused, encoded, warned of or has further parts is left to that.
    """
    body, alts = message.body, message.alts
    if message.attachments or message.charset is not None or type(alts) is not dict:
        return None
    html = alts.get("html")
    if len(alts) > (html is not None):
        return None  # there are further alternatives
    if html and body:
        return _alternative(body, html, message_id, limits)
    header, text = (_HTML, html) if html else (_TEXT, body)
    if type(text) is not str or "cid:" in text or len(text) > limits.message_size:
        return None
    octets = seven_bit(text)
    return None if octets is None else Entity(header.replace("\n", "\r\n"), (octets,))


def _alternative(text: str, html: str, message_id: str, limits: Limits) -> Entity | None:
    if type(text) is not str or type(html) is not str or "cid:" in html:
        return None  # html that shows an image may be more than one part
    if len(text) + len(html) > limits.message_size:
        return None
    name = boundary(message_id, 1)
    # Nothing but the texts can be other than plain, so one look at it all is enough.
    whole = f"--{name}\n{_TEXT}\n{text}\n--{name}\n{_HTML}\n{html}\n--{name}--"
    octets = seven_bit(whole)
    if octets is None or whole.count(name) > 3:
        return None
    return Entity(multipart_header("alternative", name), (octets,))
