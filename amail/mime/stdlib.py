"""An EmailMessage of the standard library -> octets, with a look at how it wrote its fields.

Nothing of it is imported here: who has an EmailMessage has the package.

Invariant: in what comes out of here each header field, of every part, is one field.
"""

from __future__ import annotations

import re
import typing as t

from amail.errors import InvalidHeader, MessageError
from amail.text import printable

if t.TYPE_CHECKING:
    from email.message import EmailMessage
    from email.policy import Policy

_ONE_FIELD = re.compile(rb"[!-9;-~]+:(?:[^\r\n]++|\r\n[ \t])*+\r\n")


def render(message: EmailMessage) -> bytes:
    """Render a message with CRLF at its line ends, internationalised if an address asks for it.

    Raises InvalidHeader where a field comes out as more than itself. The standard library decodes
    what only looks like an encoded line break, and on many versions writes it as a real one.
    """
    try:
        policy = _policy(message)
        octets = message.as_bytes(policy=policy)
        written = [
            (name, policy.fold_binary(name, value))
            for part in message.walk()
            for name, value in part.raw_items()  # items() would tidy up what is written raw
        ]
    except Exception as error:  # noqa: BLE001 - the package raises whatever comes up
        kind = type(error).__name__
    else:
        for name, field in written:
            if not _ONE_FIELD.fullmatch(field):
                raise InvalidHeader(
                    f"{printable(name, 76)}: comes out as more than one field; take out line "
                    "breaks, and what looks like an encoded one"
                )
        return octets
    # Raised out here, so that no text of the message hangs on it as its context.
    raise MessageError(f"content: the email package cannot render it ({kind})")


def _policy(message: EmailMessage) -> Policy[t.Any]:
    policy: t.Any = message.policy.clone(linesep="\r\n")
    if hasattr(policy, "utf8") and not _has_ascii_addresses(message):
        policy = policy.clone(utf8=True)
    return t.cast("Policy[t.Any]", policy)


def _has_ascii_addresses(message: EmailMessage) -> bool:
    return all(
        address.addr_spec.isascii()
        for _, value in message.items()
        for address in getattr(value, "addresses", ())
    )
