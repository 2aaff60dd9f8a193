"""Flask-Mail's Message and helpers, over amail's."""

from __future__ import annotations

import contextlib
import copy
import typing as t
import warnings

from flask import current_app, has_app_context

from amail import Address, MessageError
from amail import Message as _Message

if t.TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from amail import Receipt
    from amail.address import Person
    from amail_flask.sends import Connection


class Message(_Message):
    """amail's Message. Inside an app context ``as_bytes`` knows the app's default sender.

    As Flask-Mail does, it makes one text of a ``sender`` that is a tuple.
    """

    @property
    def sender(self) -> Person | None:
        """The author; None for the app's default sender."""
        return self._sender

    @sender.setter
    def sender(self, person: Person | None) -> None:
        if isinstance(person, tuple):
            with contextlib.suppress(MessageError):  # which sending will raise
                person = str(Address.of(person))
        self._sender = person

    def is_bad_headers(self) -> bool:
        """Return ``has_bad_headers()``, whose old name this is."""
        warnings.warn("is_bad_headers is has_bad_headers", DeprecationWarning, stacklevel=2)
        return self.has_bad_headers()

    def as_bytes(self) -> bytes:
        """Return the content as it would be sent. Raises MessageError."""
        if self.sender is None and has_app_context() and "mail" in current_app.extensions:
            message = copy.copy(self)
            message.sender = current_app.extensions["mail"].default_sender
            return _Message.as_bytes(message)
        return super().as_bytes()

    def send(self, connection: Connection) -> Coroutine[t.Any, t.Any, Receipt]:
        """Send through a connection: ``await message.send(connection)``."""
        return connection.send(self)


def sanitize_address(addr: Person, encoding: str = "utf-8") -> str:
    """Return a person as text, ``name <address>``, or raise InvalidAddress.

    ``encoding`` is there for Flask-Mail's sake: the text is Unicode, and composing encodes it.
    """
    return str(Address.of(addr))


def sanitize_addresses(addresses: Iterable[Person], encoding: str = "utf-8") -> list[str]:
    """Return several people as text; see ``sanitize_address``."""
    return [sanitize_address(addr, encoding) for addr in addresses]
