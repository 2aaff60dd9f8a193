"""Sends: what a Mail and the state of an app can both do, as they can in Flask-Mail."""

from __future__ import annotations

import abc
import contextlib
import typing as t

import blinker

import amail
from amail import UsageError
from amail_flask.message import Message
from amail_flask.signals import email_dispatched

if t.TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from flask import Flask

    from amail import Message as AnyMessage
    from amail import Receipt


class Sends(abc.ABC):
    """Ways of sending that are made of ``send``."""

    @abc.abstractmethod
    def send(self, message: AnyMessage) -> Coroutine[t.Any, t.Any, Receipt]:
        """Take a snapshot of the message now, and return a coroutine that sends it."""

    @abc.abstractmethod
    def _whose_signals(self) -> Flask | None:
        """Return the app that dispatches messages; None where that is not one app."""

    def send_message(self, *args: t.Any, **kwargs: t.Any) -> Coroutine[t.Any, t.Any, Receipt]:
        """Send a message made of these arguments: ``await mail.send_message("Hi", [...])``."""
        return self.send(Message(*args, **kwargs))

    def connect(self) -> Connection:
        """Return a scope for sending one message after another, over one session if possible.

        async with mail.connect() as connection:
            await connection.send(message)
        """
        return Connection(self)

    @contextlib.contextmanager
    def record_messages(self) -> Iterator[list[AnyMessage]]:
        """Collect the messages that are dispatched meanwhile, for tests."""
        outbox: list[AnyMessage] = []

        def record(app: Flask, message: AnyMessage) -> None:
            outbox.append(message)

        app = self._whose_signals()
        with email_dispatched.connected_to(record, blinker.ANY if app is None else app):
            yield outbox


class Connection(amail.Connection):
    """Sends one message after another. It holds a session only while a message is under way."""

    def __init__(self, mail: Sends) -> None:
        super().__init__(mail)
        self.mail = mail

    def send_message(self, *args: t.Any, **kwargs: t.Any) -> Coroutine[t.Any, t.Any, Receipt]:
        """Send a message made of these arguments."""
        return self.send(Message(*args, **kwargs))

    def __enter__(self) -> t.NoReturn:
        raise UsageError("write async with mail.connect() as connection, in an async view")

    def __exit__(self, *exc_info: object) -> None:
        """Be there for ``with``, so that ``__enter__`` can say what to write."""
