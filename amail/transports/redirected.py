"""Redirected: keeps mail away from whom it is not meant for, as on a staging system.

Invariant: ``transport`` is given no forward-path but those that are allowed and those to redirect
to, whatever stands in the message.
"""

from __future__ import annotations

import typing as t
from collections.abc import Iterable
from dataclasses import replace

from amail.address import Address
from amail.errors import ConfigError, InvalidAddress
from amail.receipt import Receipt, Reply
from amail.transports.base import Wrapper

if t.TYPE_CHECKING:
    from amail.address import People
    from amail.envelope import Envelope
    from amail.mime import Content
    from amail.transports.base import Transport


class Redirected(Wrapper):
    """Sends to ``redirect_to`` in place of everybody who is not in ``allowed``.

    ``redirect_to``: one or several addresses; without it such recipients get nothing. ``allowed``:
    addresses ("ada@example.com") and whole domains ("example.com", "*@example.com"; not what is
    below them); without it nobody is. The letter case makes no difference.

    The content stays as it is, To and Cc too. In the receipt ``envelope`` is the one asked for,
    ``accepted`` and ``refused`` are those that it was really sent to, and ``suppressed`` are those
    of the envelope that it was kept from. Where nobody is left nothing is sent, and the receipt's
    relay is "suppressed". Closing this closes ``transport``. Raises ConfigError.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        redirect_to: People = None,
        allowed: str | Iterable[str] | None = None,
    ) -> None:
        super().__init__(transport)
        self._redirect_to = _addresses(redirect_to)
        self._allowed = frozenset(map(_pattern, _listed("allowed", allowed)))
        if not self._redirect_to and not self._allowed:
            raise ConfigError("redirect_to: is missing, and so is allowed; write one of them")

    def __repr__(self) -> str:
        return f"<Redirected over {self._transport!r}>"

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Send to whom it may go; see Transport."""
        paths = envelope.forward_paths
        allowed = tuple(path for path in paths if self._is_allowed(path))
        suppressed = tuple(path for path in paths if path not in allowed)
        if not suppressed:
            return await self._transport.send(envelope, content, deadline=deadline)
        left = tuple(dict.fromkeys((*allowed, *self._redirect_to)))
        if not left:
            return _nothing_sent(envelope, content)
        inner = replace(envelope, forward_paths=left)
        receipt = await self._transport.send(inner, content, deadline=deadline)
        kept_from = tuple(path for path in suppressed if path not in left)
        return replace(receipt, envelope=envelope, suppressed=(*receipt.suppressed, *kept_from))

    def _is_allowed(self, path: str) -> bool:
        key = _key(path)
        if key is None:
            return False
        return key in self._allowed or key.rpartition("@")[2] in self._allowed


def _nothing_sent(envelope: Envelope, content: Content) -> Receipt:
    return Receipt(
        message_id=content.message_id,
        envelope=envelope,
        reply=Reply(250, "2.0.0", "suppressed: none of the recipients is allowed"),
        accepted=(),
        relay="suppressed",
        suppressed=envelope.forward_paths,
    )


def _addresses(people: People) -> tuple[str, ...]:
    try:
        found = [Address.of(each, field="redirect_to") for each in _listed("redirect_to", people)]
    except InvalidAddress as error:
        raise ConfigError(str(error)) from None
    if not all(each.addr_spec.isascii() for each in found):
        # Only the content says that SMTPUTF8 is needed, and it is the same for everybody.
        raise ConfigError("redirect_to: must be an address whose local part is ASCII")
    return tuple(dict.fromkeys(each.addr_spec for each in found))


def _listed(setting: str, value: t.Any) -> list[t.Any]:
    """Return one or several as a list."""
    if isinstance(value, str | Address):
        return [value]
    if value is not None and not isinstance(value, Iterable):
        raise ConfigError(f"{setting}: must be a list of addresses, not {type(value).__name__}")
    return list(value or ())


def _pattern(pattern: object) -> str:
    """Return an address, or a domain without "@", to be compared with a key."""
    text = pattern.strip() if isinstance(pattern, str) else ""
    local_part, at, domain = text.rpartition("@")
    is_domain = not at or local_part in {"", "*"}
    key = _key(f"any@{domain}" if is_domain else text)
    if key is None:
        raise ConfigError(
            f"allowed: {pattern!r} is none; write ada@example.com, example.com or *@example.com"
        )
    return key.partition("@")[2] if is_domain else key


def _key(path: str) -> str | None:
    """Return an address as it is compared: in lower case, its domain as DNS has it."""
    try:
        address = Address(path)
    except InvalidAddress:
        return None
    return f"{address.local_part}@{address.ascii_domain}".lower()
