"""Mail: the Flask extension. Finds this app's mailer and crosses to the loop that owns its pool."""

from __future__ import annotations

import asyncio
import copy
import time
import typing as t
import weakref

from flask import current_app, has_app_context
from werkzeug.local import LocalProxy

from amail import UsageError
from amail.secret import hides_arguments
from amail.threads import check_may_block
from amail_flask import commands
from amail_flask.config import MailConfig
from amail_flask.sends import Sends
from amail_flask.state import State

if t.TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Mapping
    from datetime import datetime
    from email.message import EmailMessage

    from flask import Flask

    from amail import Message as AnyMessage
    from amail import Receipt, Result
    from amail.address import People, Person
    from amail.later import Queued
    from amail.many import Messages
    from amail_flask.message import Message


class Mail(Sends):
    """Sends mail from a Flask app, configured by its ``MAIL_*`` keys.

    mail = Mail(app), or mail = Mail() and mail.init_app(app) for each app.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self.app = app = _behind_proxy(app)
        self.state: State | None = None
        self._states: weakref.WeakSet[State] = weakref.WeakSet()
        self._name: str | None = None
        if app is not None:
            self.state = self.init_app(app)

    @hides_arguments
    def init_app(self, app: Flask) -> State:
        """Read the config of an app and make its mailer. No connection is opened.

        An app whose config has not changed since keeps the mailer and the sessions that it has.
        Raises ConfigError for keys that cannot work.
        """
        app = _behind_proxy(app)
        config = MailConfig.read(app.config)
        state = app.extensions.get("mail")
        if not isinstance(state, State) or not state.is_of(config):
            state = app.extensions["mail"] = State(config, app=app, debug=app.debug)
        self._states.update(state.every)
        if commands.mail.name not in app.cli.commands:
            app.cli.add_command(commands.mail)
        return state

    @hides_arguments
    def init_mail(
        self, config: Mapping[str, t.Any], debug: bool | int = False, testing: bool = False
    ) -> State:
        """Make a state of a mapping with ``MAIL_*`` keys, for no app."""
        return State(MailConfig.read(config), app=None, testing=testing, debug=bool(debug))

    def using(self, name: str) -> Mail:
        """Return the same over another mailer, ``name`` of ``MAIL_MAILERS``.

        May be called before there is an app; whether there is such a mailer is looked at when it
        sends, which raises UsageError.
        """
        other = copy.copy(self)
        other._name = name
        return other

    def send(self, message: AnyMessage) -> Coroutine[t.Any, t.Any, Receipt]:
        """Take a snapshot of the message now, and return a coroutine that sends it.

        The coroutine returns the Receipt. Raises MessageError at once, and UsageError in a view
        that is not async, where it could not be awaited. The coroutine raises a SendError whose
        ``outcome`` says what became of the message.
        """
        return self._state().send(message)

    def send_many(
        self, messages: Messages, *, concurrency: int | None = None, ordered: bool = False
    ) -> AsyncGenerator[Result, None]:
        """Send messages from an iterable or async iterable, and yield one Result for each.

            async for result in mail.send_many(messages):
                result.message, result.receipt, result.error

        As ``Mailer.send_many`` of amail: pulled lazily, and composed here. At most twice
        ``concurrency`` are held; None means twice as many as there are connections, so that none
        waits for its next message. Signals are sent for each, by the app of this call.
        """
        return self._state().send_many(messages, concurrency=concurrency, ordered=ordered)

    def send_raw(
        self,
        content: bytes | EmailMessage,
        *,
        sender: Person,
        recipients: People,
        timeout: float | None = None,
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        """Check what was composed elsewhere now, and return a coroutine that sends it as it is.

        As ``Mailer.send_raw`` of amail. There is no Message, so ``email_dispatched`` is not sent,
        ``record_messages`` records nothing, and the other signals have ``message=None``.
        """
        return self._state().send_raw(
            content, sender=sender, recipients=recipients, timeout=timeout
        )

    def send_sync(self, message: AnyMessage, timeout: float | None = None) -> Receipt:
        """Send a message and wait, for views that are not async, shells and commands.

        ``timeout`` is in seconds from now and covers everything. Raises as ``send`` does, and
        UsageError in a thread that runs an event loop.
        """
        return self._state().send_sync(message, timeout)

    def send_later(
        self,
        message: AnyMessage,
        *,
        countdown: float | None = None,
        eta: datetime | None = None,
    ) -> Queued:
        """Leave a message to be sent in the background, where ``MAIL_QUEUE`` says.

        The message is composed now: what it says, and what its file objects hold, is settled. In
        memory it waits for the loop of this process; at a clean exit the queue is drained for up to
        ``MAIL_DRAIN_TIMEOUT`` seconds, and what is lost, or cannot be sent, is logged. Other queues
        outlive the process, and know what is to be sent ``countdown`` seconds from now, or at
        ``eta``, at the earliest.

        Raises MessageError, UsageError, and QueueFull while a thousand messages wait in memory. A
        queue that cannot be reached raises NotSent, and DeliveryUnknown where nobody can tell
        whether it has the message; in an event loop what is returned does so when it is awaited.
        """
        return self._state().send_later(message, countdown=countdown, eta=eta)

    def render(
        self, name: str, /, *, strict: bool = False, inline_css: bool = False, **context: t.Any
    ) -> Message:
        """Return the message that ``mail/NAME.subject.txt``, ``.txt`` and ``.html`` of the app say.

            message = mail.render("welcome", user=user)
            message.recipients = [user.email]

        Context processors add to the context. See ``amail.templates.Templates`` for ``strict`` and
        ``inline_css``. ``url_for`` makes absolute links. Raises MessageError, and ConfigError where
        a link would lead to the host that the request names and nothing else.
        """
        templates = self._state().templates
        return templates.render(name, strict=strict, inline_css=inline_css, **context)

    def drain(self, timeout: float) -> int:
        """Wait up to so many seconds for what ``send_later`` was given; return how much is left.

        Raises UsageError in a thread that runs an event loop.
        """
        check_may_block("mail.drain")
        until = time.monotonic() + timeout
        return sum(state.drain(max(0.0, until - time.monotonic())) for state in self._state().every)

    def close(self) -> None:
        """End this process's sessions. Sending again opens new ones.

        Raises UsageError in a thread that runs an event loop.
        """
        check_may_block("mail.close")
        for state in self._state().every:
            state.close()

    async def _drain_and_close(self) -> None:
        """Do for every app of this extension what is done at the exit of a process."""
        await asyncio.gather(*(state.drain_and_close() for state in list(self._states)))

    def __getattr__(self, name: str) -> t.Any:
        """Look up what the app's state has: ``mail.suppress``, ``mail.default_sender``."""
        if name.startswith("_") or name in {"app", "state"}:
            raise AttributeError(name)
        if self._app() is None:
            raise AttributeError(f"Mail has no {name!r} outside of an app")
        return getattr(self._state(), name)

    def _whose_signals(self) -> Flask | None:
        return self._app()

    def _app(self) -> Flask | None:
        """Return the current app if it is one of ours, else the one this was made for."""
        if has_app_context() and "mail" in current_app.extensions:
            return t.cast("Flask", current_app._get_current_object())  # type: ignore[attr-defined]
        return self.app

    def _state(self) -> State:
        app = self._app()
        if app is None:
            raise UsageError(
                "there is no app here: write with app.app_context(), or make Mail(app)"
                if not has_app_context()
                else "this app does not know the extension: call mail.init_app(app)"
            )
        state: State = app.extensions["mail"]
        return state.using(self._name)


A = t.TypeVar("A", "Flask", "Flask | None")


def _behind_proxy(app: A) -> A:
    """Return the app itself where ``current_app`` was given, which is another one later."""
    if isinstance(app, LocalProxy):
        behind: A = app._get_current_object()
        return behind
    return app
