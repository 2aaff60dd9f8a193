"""Mailer: what an application calls. Composes on the caller's side, hands over to a Transport."""

from __future__ import annotations

import copy
import difflib
import os
import time
import typing as t
from dataclasses import replace

from amail.address import Address
from amail.errors import ConfigError, MailerClosed, MessageError, UsageError
from amail.limits import Limits
from amail.many import send_many
from amail.message import Message
from amail.mime import compose, compose_raw
from amail.secret import hides_arguments
from amail.sending import Sending
from amail.smtp.settings import SMTPOptions, check_seconds
from amail.transports.base import listening, stats_of, verified
from amail.transports.failover import resolve_all

if t.TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
    from email.message import EmailMessage
    from types import TracebackType

    from amail.address import People, Person
    from amail.envelope import Envelope
    from amail.many import Messages
    from amail.mime import Content
    from amail.receipt import Receipt, Result
    from amail.transports.base import OnResolved, PoolStats, Transport
    from amail.transports.resolve import Where
    from amail.transports.server_info import ServerInfo

_OPTIONS = frozenset(SMTPOptions.__annotations__)
_CONCURRENCY = 10


class Mailer:
    """Sends messages to one place, any number at a time.

    ``where`` is a URL ("smtp://user:password@host:port", "smtps://host", "memory://"),
    SMTPSettings, a Transport, or a list of these: failover in that order. Every field of
    SMTPSettings is also a keyword, beside a URL or in place of it:
    ``Mailer(host="smtp.example.com", port=587)``.
    ``default_sender`` is the author of messages that name none. ``all_recipients`` sends to every
    recipient or to none. ``timeout``: seconds from the moment a session is free until the content
    is written. ``prepare`` is called with each message on the caller's side and returns it or
    another one, or raises Vetoed. ``on_resolved`` is called in the loop with the Receipt or the
    SendError of a message that had been unknown, when the late reply comes.

    Use it as ``async with Mailer(...) as mailer``, or call ``aclose()`` at the end. It belongs to
    the loop that first uses it. The constructor does no I/O. Raises ConfigError.
    """

    @hides_arguments
    def __init__(
        self,
        where: Where | Sequence[Where] | None = None,
        *,
        default_sender: Person | None = None,
        all_recipients: bool = False,
        timeout: float = 60.0,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        prepare: Callable[[Message], Message] | None = None,
        on_resolved: OnResolved | None = None,
        ascii_attachments: bool = False,
        **smtp_options: t.Unpack[SMTPOptions],
    ) -> None:
        if isinstance(where, Mailer):
            raise ConfigError("where: is a Mailer itself; give it mailer.transport")
        _check_names(smtp_options)
        check_seconds("timeout", timeout)
        self.default_sender = default_sender
        self.ascii_attachments = ascii_attachments
        if default_sender is not None:
            _check_default_sender(default_sender)
        self._all_recipients = all_recipients
        self._limits = limits
        self._prepare = prepare
        self._transport = resolve_all(where, timeout=timeout, options=smtp_options)
        if on_resolved is not None:
            _listen(self._transport, on_resolved)
        self._closed = False

    @classmethod
    @hides_arguments
    def from_env(cls, name: str = "MAIL_URL", **options: t.Any) -> t.Self:
        """Make a mailer of the URL in an environment variable. Raises ConfigError without it."""
        url = os.environ.get(name)
        if not url:
            raise ConfigError(f"{name}: is not set; write {name}=smtp://user:password@host:port")
        try:
            return cls(url, **options)
        except ConfigError as error:
            if not str(error).startswith("url: "):
                raise
            raise ConfigError(str(error).replace("url", name, 1)) from None

    def __repr__(self) -> str:
        # One that was refused has none, and may be shown in a traceback.
        return f"<{type(self).__name__} over {getattr(self, '_transport', None)!r}>"

    @property
    def transport(self) -> Transport:
        """What messages are handed to."""
        return self._transport

    def send(
        self,
        message: Message,
        *,
        envelope: Envelope | None = None,
        timeout: float | None = None,
        all_recipients: bool | None = None,
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        """Take a snapshot of the message now, and return a coroutine that sends it.

        The coroutine returns the Receipt. ``envelope`` sends to other recipients than the message
        names. ``timeout`` is in seconds from now and covers everything, waiting for a free session
        and the server's last reply too.

        Raises MessageError at once. The coroutine raises a SendError whose ``outcome`` says what
        became of the message, or UsageError.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        composed = self.compose(message, envelope=envelope, all_recipients=all_recipients)
        return self._deliver(*composed, deadline)

    def compose(
        self,
        message: Message,
        *,
        envelope: Envelope | None = None,
        all_recipients: bool | None = None,
    ) -> tuple[Envelope, Content]:
        """Compose a message as ``send`` does, and send nothing: for queues. Raises MessageError."""
        if all_recipients is None:
            all_recipients = self._all_recipients
        if envelope is not None and all_recipients:
            envelope = replace(envelope, all_recipients=True)
        if self._prepare is not None:
            message = self._prepare(message)
        _check_is_message(message, "send" if self._prepare is None else "what prepare returned")
        return compose(
            message,
            default_sender=self.default_sender,
            limits=self._limits,
            ascii_attachments=self.ascii_attachments,
            all_recipients=all_recipients,
            envelope=envelope,
        )

    def deliver(
        self, envelope: Envelope, content: Content, *, timeout: float | None = None
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        """Return a coroutine that sends what was composed before, by ``compose`` of any mailer.

        ``timeout`` and what it raises are as those of ``send``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._deliver(envelope, content, deadline)

    def send_raw(
        self,
        content: bytes | EmailMessage,
        *,
        sender: Person,
        recipients: People,
        timeout: float | None = None,
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        """Check what was composed elsewhere now, and return a coroutine that sends it as it is.

        ``sender`` is where bounces go, "" for nowhere; ``recipients`` are who gets it, whoever
        stands in its fields. ``timeout`` as in ``send``. ``prepare`` is not asked.

        Octets that can be sent go out untouched. LF at every line end becomes CRLF (CR or LF
        alone beside CRLF is refused); Bcc and Resent-Bcc are taken out, with a warning in the log;
        Date and Message-ID are added where they are missing, a new id by each call: give the
        content its own, so that sending it again is the same message. A change that a signature in
        the content covers is refused.

        Raises MessageError at once: for lines over 998 octets, NUL, a header that is not one of
        RFC 5322 with one From and raw text in UTF-8 at most (which needs SMTPUTF8), an EmailMessage
        that the standard library renders with other fields than it has, and past the limits. The
        coroutine raises as that of ``send`` does. 8-bit octets need 8BITMIME.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        if isinstance(content, Message):
            raise UsageError("send_raw: a Message is composed by send(message)")
        composed = compose_raw(
            content,
            sender=sender,
            recipients=recipients,
            limits=self._limits,
            all_recipients=self._all_recipients,
        )
        return self._deliver(*composed, deadline)

    def send_many(
        self, messages: Messages, *, concurrency: int | None = None, ordered: bool = False
    ) -> AsyncGenerator[Result, None]:
        """Send messages from an iterable or async iterable, and yield one Result for each.

            async for result in mailer.send_many(messages):
                result.message, result.receipt, result.error

        They are pulled lazily, composed and sent ``concurrency`` at once (None: as many as there
        are connections), and yielded as they finish, or in their order if ``ordered``. Where the
        server has PIPELINING each begins while the last reply to the one before is on its way, so
        that it takes one round trip. What becomes of one message never stops the others. At most
        ``2 * concurrency`` of them are held here, so that any number costs the same memory. A plain
        iterable is pulled in the event loop: one that waits for something should be async.

        Leave the loop early inside ``contextlib.aclosing``: those under way are then cancelled at
        once, the rest is not sent; ``messages`` is closed if it is an async generator. Raises
        UsageError at once; while iterating also ConfigError, what ``messages`` or ``prepare``
        raises, behind the results of those under way.
        """
        usual: int = getattr(self._transport, "concurrency", _CONCURRENCY)
        at_once = usual if concurrency is None else concurrency
        return send_many(self.send, messages, concurrency=at_once, ordered=ordered)

    def connect(self) -> Connection:
        """Return a scope for sending one message after another, over one session if possible.

        async with mailer.connect() as connection:
            await connection.send(message)
        """
        return Connection(self)

    async def verify(self) -> ServerInfo:
        """Open a session with the server, with TLS and AUTH, and return what it says of itself.

        Nothing is said of a message. Of several relays each is asked, and the first one's answer
        returned; where there is no server (memory://, file://) there is nothing to ask. Raises the
        NotSent that a message would get.
        """
        self._check_is_open()
        return await verified(self._transport)

    def stats(self) -> PoolStats:
        """Return the transport's numbers; all zero where it keeps none."""
        return stats_of(self._transport)

    async def aclose(self) -> None:
        """Let those finish that are being sent, refuse who waits, end every session. Idempotent."""
        self._closed = True
        await self._transport.aclose()

    async def __aenter__(self) -> t.Self:
        self._closed = False
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _deliver(self, envelope: Envelope, content: Content, deadline: float | None) -> Sending:
        return Sending(self._handed_over(envelope, content, deadline), content.message_id)

    async def _handed_over(
        self, envelope: Envelope, content: Content, deadline: float | None
    ) -> Receipt:
        self._check_is_open(message_id=content.message_id, recipients=envelope.forward_paths)
        return await self._transport.send(envelope, content, deadline=deadline)

    # A forgotten await is warned of under this name: "coroutine 'Mailer.send' was never awaited".
    _handed_over.__qualname__ = "Mailer.send"

    def _check_is_open(self, **details: t.Any) -> None:
        if self._closed:
            text = "the mailer is closed; nothing was sent. Enter it again with async with"
            raise MailerClosed(text, stage="pool", **details)


class _Sender(t.Protocol):
    def send(self, message: Message, /) -> Coroutine[t.Any, t.Any, Receipt]: ...


class Connection:
    """Sends one message after another. It holds a slot only while a message is under way."""

    def __init__(self, mailer: _Sender) -> None:
        self._mailer = mailer

    def send(
        self, message: Message, envelope_from: Person | None = None
    ) -> Coroutine[t.Any, t.Any, Receipt]:
        """Send as ``Mailer.send`` does. Bounces go to ``envelope_from`` if it is given."""
        if envelope_from is not None:
            message = copy.copy(message)  # the same message, with the same Message-ID
            message.envelope_from = envelope_from
        return self._mailer.send(message)

    async def __aenter__(self) -> t.Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Leave the session to the pool, which ends it when it is not wanted any more."""


def _check_names(options: SMTPOptions) -> None:
    for name in options:
        if name not in _OPTIONS:
            close = difflib.get_close_matches(name, _OPTIONS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{name}: there is no such option{hint}")


def _listen(transport: Transport, on_resolved: OnResolved) -> None:
    if not listening(transport, on_resolved):
        kind = type(transport).__name__
        raise ConfigError(f"on_resolved: {kind} has no late replies; leave it out")


def _check_is_message(message: object, where: str) -> None:
    if not isinstance(message, Message):
        raise UsageError(f"{where}: must be a Message, not {type(message).__name__}")


def _check_default_sender(person: Person) -> None:
    try:
        Address.of(person, field="default_sender")
    except MessageError as error:
        raise ConfigError(str(error)) from error
