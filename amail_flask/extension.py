"""Mail: the Flask extension. Finds this app's mailer and crosses to the loop that owns its pool."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import time
import typing as t
import weakref
from dataclasses import dataclass

import blinker
from flask import current_app, has_app_context, has_request_context
from flask.logging import default_handler

from amail import MailError, UsageError
from amail.many import send_many
from amail.secret import hides_arguments
from amail.threads import loop_is_running
from amail_flask import commands
from amail_flask.config import MailConfig
from amail_flask.crossing import Crossing
from amail_flask.message import Message
from amail_flask.signals import email_dispatched
from amail_flask.state import State

if t.TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Coroutine,
        Generator,
        Iterator,
        Mapping,
    )
    from email.message import EmailMessage

    from flask import Flask

    from amail import Mailer, Receipt, Result
    from amail import Message as AnyMessage
    from amail.address import People, Person
    from amail.many import Messages

_CONCURRENCY = 5


@dataclass(frozen=True, slots=True)
class Queued:
    """A message that was left to be sent in the background. May be awaited.

    ``message_id`` is its Message-ID, ``engine`` where it waits.
    """

    message_id: str
    engine: str = "memory"

    def __await__(self) -> Generator[t.Any, None, Queued]:
        """Be done when the queue holds the message, which for memory is at once."""
        yield from ()
        return self


class Mail:
    """Sends mail from a Flask app, configured by its ``MAIL_*`` keys.

    mail = Mail(app), or mail = Mail() and mail.init_app(app) for each app.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self.app = app
        self.state: State | None = None
        self._states: weakref.WeakSet[State] = weakref.WeakSet()
        self._name: str | None = None
        if app is not None:
            self.state = self.init_app(app)

    @hides_arguments
    def init_app(self, app: Flask) -> State:
        """Read the config of an app and make its mailer. No connection is opened.

        Raises ConfigError for keys that cannot work.
        """
        config = MailConfig.read(app.config)
        state = State(config, app=app)
        app.extensions["mail"] = state
        self._states.update(state.every)
        if commands.mail.name not in app.cli.commands:
            app.cli.add_command(commands.mail)
        debug = config["MAIL_DEBUG"]
        if app.debug if debug is None else debug:
            _show_debug_log()
        return state

    @hides_arguments
    def init_mail(
        self, config: Mapping[str, t.Any], debug: bool | int = False, testing: bool = False
    ) -> State:
        """Make a state of a mapping with ``MAIL_*`` keys, for no app."""
        if config.get("MAIL_DEBUG", debug):
            _show_debug_log()
        return State(MailConfig.read(config), testing=testing, app=None)

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
        return self._send(message, None)

    def send_message(self, *args: t.Any, **kwargs: t.Any) -> Coroutine[t.Any, t.Any, Receipt]:
        """Send a message made of these arguments: ``await mail.send_message("Hi", [...])``."""
        return self.send(Message(*args, **kwargs))

    def send_many(
        self, messages: Messages, *, concurrency: int | None = None, ordered: bool = False
    ) -> AsyncGenerator[Result, None]:
        """Send messages from an iterable or async iterable, and yield one Result for each.

            async for result in mail.send_many(messages):
                result.message, result.receipt, result.error

        As ``Mailer.send_many`` of amail: they are pulled lazily and composed here, and at most
        ``2 * concurrency`` of them are held, here and in the background loop that sends them. None
        means twice as many as there are connections, so that none waits for its next message. The
        signals are sent for each, the app being the one of this call.
        """
        state, mailer, _ = self._sender("make it async def and write async for result in ...")
        crossing = Crossing(state.portal_for)

        def send(message: AnyMessage) -> Coroutine[t.Any, t.Any, Receipt]:
            mailer, suppressed = state.now()
            sending = mailer.send(message)
            return _deliver(state, message, sending, suppressed=suppressed, cross=crossing.call)

        usual = 2 * getattr(mailer.transport, "concurrency", _CONCURRENCY)
        at_once = usual if concurrency is None else concurrency
        return send_many(send, messages, concurrency=at_once, ordered=ordered)

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
        state, mailer, suppressed = self._sender(
            "make it async def and write await mail.send_raw(...)"
        )
        sending = mailer.send_raw(content, sender=sender, recipients=recipients, timeout=timeout)
        return _deliver(state, None, sending, suppressed=suppressed)

    def send_sync(self, message: AnyMessage, timeout: float | None = None) -> Receipt:
        """Send a message and wait, for views that are not async, shells and commands.

        ``timeout`` is in seconds from now and covers everything. Raises as ``send`` does, and
        UsageError in a thread that runs an event loop.
        """
        if loop_is_running():
            raise UsageError("this would block the event loop: write await mail.send(message)")
        state = self._state()
        if state.suppress:
            receipt = _run(state.nowhere.send(message, timeout=timeout))
            state.dispatched(message)
            return receipt
        sending = state.mailer.send(message, timeout=timeout)
        try:
            receipt = state.run(sending)
        except MailError as error:
            state.failed(message, error)
            raise
        state.accepted(message, receipt)
        return receipt

    def send_later(self, message: AnyMessage) -> Queued:
        """Leave a message to be sent by the background loop, and return at once.

        The message is composed now: what it says, and what its file objects hold, is settled. It
        waits in memory; at a clean exit the queue is drained for up to ``MAIL_DRAIN_TIMEOUT``
        seconds, and what is lost, or cannot be sent, is logged. Raises MessageError, and QueueFull
        while a thousand messages wait.
        """
        state = self._state()
        if not state.suppress:
            return Queued(state.queue(message))
        receipt = _run(state.nowhere.send(message))
        state.dispatched(message)
        return Queued(receipt.message_id)

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

        app = self._app()
        with email_dispatched.connected_to(record, blinker.ANY if app is None else app):
            yield outbox

    def drain(self, timeout: float) -> int:
        """Wait up to so many seconds for what ``send_later`` was given; return how much is left.

        Raises UsageError in a thread that runs an event loop.
        """
        _check_may_block("drain")
        until = time.monotonic() + timeout
        return sum(state.drain(max(0.0, until - time.monotonic())) for state in self._state().every)

    def close(self) -> None:
        """End this process's sessions. Sending again opens new ones.

        Raises UsageError in a thread that runs an event loop.
        """
        _check_may_block("close")
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

    def _send(
        self, message: AnyMessage, envelope_from: Person | None
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        state, mailer, suppressed = self._sender(
            "write mail.send_sync(message), or make it async def and write await mail.send(message)"
        )
        if envelope_from is None:
            sending = mailer.send(message)
        else:
            sending = mailer.connect().send(message, envelope_from)
        return _deliver(state, message, sending, suppressed=suppressed)

    def _sender(self, instead: str) -> tuple[State, Mailer, bool]:
        """Return the app's state, the mailer to use, and whether that one sends nothing.

        Raises UsageError, with what to write ``instead``, in a view that cannot await.
        """
        if has_request_context() and not loop_is_running():
            raise UsageError(f"this view is not async: {instead}")
        state = self._state()
        return state, *state.now()

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


class Connection:
    """Sends one message after another. It holds a session only while a message is under way."""

    def __init__(self, mail: Mail) -> None:
        self.mail = mail

    def send(
        self, message: AnyMessage, envelope_from: Person | None = None
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        """Send as ``Mail.send`` does. Bounces go to ``envelope_from`` if it is given."""
        return self.mail._send(message, envelope_from)

    def send_message(self, *args: t.Any, **kwargs: t.Any) -> Coroutine[t.Any, t.Any, Receipt]:
        """Send a message made of these arguments."""
        return self.send(Message(*args, **kwargs))

    async def __aenter__(self) -> t.Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Leave the session to the pool, which ends it when it is not wanted any more."""

    def __enter__(self) -> t.NoReturn:
        raise UsageError("write async with mail.connect() as connection, in an async view")

    def __exit__(self, *exc_info: object) -> None:
        """Be there for ``with``, so that ``__enter__`` can say what to write."""


async def _deliver(
    state: State,
    message: AnyMessage | None,
    sending: Coroutine[t.Any, t.Any, Receipt],
    *,
    suppressed: bool,
    cross: Callable[[Coroutine[t.Any, t.Any, Receipt]], Awaitable[Receipt]] | None = None,
) -> Receipt:
    if suppressed:
        receipt = await sending
        if message is not None:
            state.dispatched(message)
        return receipt
    try:
        receipt = await (cross or state.portal_for(sending).call)(sending)
    except MailError as error:
        state.failed(message, error)
        raise
    state.accepted(message, receipt)
    return receipt


# A forgotten await is warned of under this name: "coroutine 'Mail.send' was never awaited".
_deliver.__qualname__ = "Mail.send"


def _run(sending: Coroutine[t.Any, t.Any, Receipt]) -> Receipt:
    """Run a coroutine that waits for nothing, as one that sends nothing does."""
    try:
        sending.send(None)
    except StopIteration as done:
        return t.cast("Receipt", done.value)
    raise UsageError("a suppressed send had to wait")


def _check_may_block(name: str) -> None:
    if loop_is_running():
        raise UsageError(
            f"mail.{name} would block the event loop: write await asyncio.to_thread(mail.{name})"
        )


def _show_debug_log() -> None:
    """Let the stages of each session be seen, as MAIL_DEBUG asks for."""
    logger = logging.getLogger("amail")
    logger.setLevel(logging.DEBUG)
    handlers = [*logger.handlers, *logging.getLogger().handlers]
    if all(isinstance(handler, logging.NullHandler) for handler in handlers):
        logger.addHandler(default_handler)
