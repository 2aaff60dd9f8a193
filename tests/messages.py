"""Messages that tests send."""

from __future__ import annotations

import typing as t

from amail import Message
from tests.musts import BODY

ADA = "ada@example.com"


def tokened(token: str, recipients: int = 1, **fields: t.Any) -> Message:
    """A message that can be found again: its token is in each forward-path and in the body.

    The body also holds the canary that no log may show.
    """
    to = [f"{token}+{number}@example.org" for number in range(1, recipients + 1)]
    fields = {"body": f"{token}\n{BODY}\n.a dot\n", "sender": ADA, "recipients": to, **fields}
    return Message("Hello", **fields)
