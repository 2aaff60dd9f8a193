"""MAIL_QUEUE: where send_later leaves messages, unless it is the memory of this process."""

from __future__ import annotations

import typing as t

from amail import ConfigError
from amail.queues.files import folder_of
from amail.secret import Secret

if t.TYPE_CHECKING:
    from flask import Flask

    from amail import Message as AnyMessage
    from amail import Portal
    from amail.later import Queued
    from amail_flask.state import State

_LEDGER = "?ledger="


class Engine(t.Protocol):
    """What keeps messages that are to be sent later, for an app and all its mailers."""

    def send_later(self, state: State, message: AnyMessage, due: float = 0.0) -> Queued:
        """Compose a message with the mailer of ``state`` and keep it until the time ``due``."""
        ...

    def drain(self, timeout: float) -> int:
        """Wait for what this process sends of it; return how much is left, as far as is known."""
        ...

    def end(self) -> None:
        """Have this process begin nothing any more of what waits."""
        ...


def read_queue(value: object) -> str:
    """Read a MAIL_QUEUE. Raises ValueError."""
    text = value if isinstance(value, str) else ""
    if text.startswith("folder://"):
        folder_of(text)
    elif text.startswith(f"celery{_LEDGER}redis"):
        return Secret(text)
    elif text not in {"memory", "celery"}:
        raise ValueError(
            'must be "memory", "folder:///var/spool/app-mail", "celery", or '
            '"celery?ledger=redis://host/database"'
        )
    return text


def engine_of(name: str, app: Flask | None, state: State, portal: Portal) -> Engine | None:
    """Return what a MAIL_QUEUE stands for, None for memory. Raises ConfigError.

    ``state`` is the app's own, whose mailers are those of the app.
    """
    kind, _, ledger = name.partition(_LEDGER)
    if kind == "memory":
        return None
    if app is None:
        raise ConfigError(f"MAIL_QUEUE: {kind!r} needs an app; there is none here")
    if kind != "celery":
        try:
            from amail_flask.folder import FolderEngine  # noqa: PLC0415 - not on every system
        except ImportError as error:
            raise ConfigError(
                f"MAIL_QUEUE: this system has no {error.name}, which it takes"
            ) from error
        return FolderEngine(name, app, state, portal)
    try:
        from amail_flask.celery import AppQueue  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            'MAIL_QUEUE: "celery" needs pip install "amail-asyncio[celery]"'
        ) from error
    return AppQueue(app, state, portal, ledger)
