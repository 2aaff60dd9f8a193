"""One usual message, composed and judged."""

from __future__ import annotations

import typing as t

from amail.message import Message
from amail.mime import compose
from tests import oracle


def message(**fields: t.Any) -> Message:
    """Make a message with everything it needs but what the test is about."""
    usual = {"subject": "s", "recipients": ["bob@x.org"], "sender": "ada@example.com"}
    return Message(**{**usual, **fields})


def read(**fields: t.Any) -> oracle.Reading:
    """Compose such a message and return what the judges read."""
    return judged(message(**fields))


def judged(written: Message, **options: t.Any) -> oracle.Reading:
    """Compose a message and return what the judges read."""
    _, content = compose(written, **options)
    octets = bytes(content)
    assert len(octets) == len(content)
    return oracle.read(octets, utf8=content.needs_utf8)
