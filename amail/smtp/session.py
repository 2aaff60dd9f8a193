"""One SMTP session: opened by aiosmtplib stage by stage, then run by our own protocol.

Opening is greeting, EHLO, STARTTLS, TLS, AUTH; each failure knows its stage because each stage is a
call of its own, and what went wrong is told by types and codes, never by a text. Then the protocol
takes over the transport and aiosmtplib's object is let go, which kept no password and no token.

A session ends in one of three ways: ``quit`` (politely), ``abort`` (at once), ``forget`` (its loop
or process is gone: not an octet is written).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import ipaddress
import itertools
import logging
import random
import re
import socket
import ssl
import typing as t
from dataclasses import dataclass, replace

import aiosmtplib

from amail.errors import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeliveryUnknown,
    MailError,
    NotSent,
    ProtocolError,
    RecipientsRejected,
    SenderRejected,
    SendTimeout,
    ServerBusy,
    TLSError,
)
from amail.frames import drop_frames
from amail.receipt import Receipt, Reply
from amail.smtp import commands, hints
from amail.smtp.auth import Exchange, choose_mechanism, refusal
from amail.smtp.credentials import ask_token
from amail.smtp.dial import dial
from amail.smtp.extensions import Extensions
from amail.smtp.manners import Manners
from amail.smtp.protocol import Deadlines, SMTPProtocol, Waits
from amail.smtp.trace import Trace
from amail.smtp.transaction import Transaction
from amail.transports.server_info import Certificate, ServerInfo

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail.envelope import Envelope
    from amail.errors import Outcome, SendError, Stage
    from amail.mime import Content
    from amail.smtp.settings import SMTPSettings, TokenSource
    from amail.transports.server_info import Observer

_logger = logging.getLogger("amail.smtp")
_wire = logging.getLogger("amail.smtp.trace")
_numbers = itertools.count(1)

_NO_DEADLINES = Deadlines()
_QUIT_SECONDS = 2.0
_CLOSE_SECONDS = 0.5
_FQDN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}(?:\.[A-Za-z0-9][A-Za-z0-9-]{0,62})+")
_PRIVATE = [
    ipaddress.ip_network(network)
    for network in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("fc00::/7", "fe80::/10"),
    )
]
_NO_EHLO = frozenset({500, 502, 504})


@dataclass(slots=True)
class Way:
    """Until when a message may take, who hears that its last octet is written, and its ``fate``.

    The latter is for who left, and holds what became of it as far as is known. ``is_careful`` has
    one command said at a time.
    """

    deadlines: Deadlines = _NO_DEADLINES
    on_written: Callable[[], None] | None = None
    fate: Outcome = "not_sent"
    is_careful: bool = False


class Session:
    """An open session. Used by one task at a time; only its pool keeps it."""

    def __init__(
        self,
        transport: asyncio.Transport,
        sock: socket.socket,
        extensions: Extensions,
        settings: SMTPSettings,
        manners: Manners,
        *,
        trace: Trace | None = None,
    ) -> None:
        self.extensions = extensions
        self.relay = settings.relay
        self._transport = transport
        self._socket = sock
        self._manners = manners
        self._depth = settings.pipeline_depth
        self._was_used = False
        self._left = settings.max_messages or None
        self._warned_of_dsn = False
        self.info = ServerInfo(self.relay)
        loop = asyncio.get_running_loop()
        # Sessions opened together shall not end together.
        self._ends_at = loop.time() + settings.max_age * random.uniform(0.9, 1.1)  # noqa: S311
        waits = Waits(settings.command_timeout, settings.data_timeout, settings.final_timeout)
        self._protocol = SMTPProtocol(transport, waits, self._depth, trace)
        self._loop = loop
        transport.set_protocol(self._protocol)

    @property
    def reusable(self) -> bool:
        """True only when proven clean and neither spent nor too old."""
        return (
            self._protocol.usable
            and (self._left is None or self._left > 0)
            and self._loop.time() < self._ends_at
        )

    @property
    def usable(self) -> bool:
        """True while it is connected and in step."""
        return self._protocol.usable

    @property
    def unsettled(self) -> asyncio.Future[None] | None:
        """Done when the reply has come that a caller did not wait for; None if there is none."""
        return self._protocol.unsettled

    @property
    def can_follow(self) -> bool:
        """True while another message may begin before the reply to the last one has come.

        Not where all of it goes out at once: its envelope alone would be said no earlier.
        """
        if not self.is_pipelined or (self._depth == 1 and self._is_bold):
            return False
        return self._protocol.can_follow

    @property
    def is_pipelined(self) -> bool:
        """True where several commands go out in one write."""
        return self._manners.pipelining and self.extensions.pipelining

    @property
    def _is_chunked(self) -> bool:
        return self._manners.chunking and self.extensions.chunking

    @property
    def _is_bold(self) -> bool:
        """Tell whether content may go out with its envelope."""
        is_able = self.is_pipelined and self._is_chunked and not self._protocol.left_open
        return is_able and self._manners.is_bold(self._loop.time())

    async def send(self, envelope: Envelope, content: Content, way: Way) -> Receipt:
        """Run one transaction. Raises MailError; only a proven clean session stays reusable.

        Cancelling this aborts the session at once, unless the reply may still come to what was
        written last (``unsettled``, ``settle``), or the one before awaits its own. A note on the
        CancelledError says what is known of the message, and so does ``way.fate``.
        """
        way.fate = "not_sent"
        is_second = self._protocol.can_follow
        pipelined = self.is_pipelined and not way.is_careful
        chunked = self._is_chunked and not way.is_careful
        # Some take BDAT of one message under the envelope of another one that came to nothing.
        reset_first = (self._protocol.left_open and not is_second) or (
            pipelined and chunked and self._was_used
        )
        transaction = Transaction(
            envelope,
            content,
            self.extensions,
            pipelined=pipelined,
            chunked=chunked,
            reset_first=reset_first,
            relay=self.relay,
        )
        at_once = self._is_bold and not way.is_careful
        self._was_used = True
        if self._left is not None:
            self._left -= 1
        if envelope.mail_options or envelope.rcpt_options:
            self._warn_of_dsn(envelope)
        try:
            await self._protocol.run(transaction, way.deadlines, way.on_written, at_once=at_once)
        except BaseException as error:
            is_whole = transaction.outcome is not None and transaction.in_step
            if not is_whole and not self._protocol.awaits_reply:
                self.abort()
            way.fate = _fate(transaction)
            _say_what_is_known(error, transaction)
            raise
        self._learn(transaction)
        if transaction.outcome is None:
            way.fate = "unknown"
            raise transaction.unknown("no reply came in time")
        outcome = self._conclude(transaction)
        if isinstance(outcome, Receipt):
            return outcome
        try:
            raise outcome
        finally:
            # Or its traceback would hold this frame, and this frame it: a cycle around the content.
            transaction.outcome = outcome = None  # type: ignore[assignment]
            del transaction

    def _learn(self, transaction: Transaction) -> None:
        """Note what a message tells of how its server may be spoken to."""
        if transaction.is_at_odds:
            self._manners.forgo_chunking()
        if not transaction.went_at_once:
            return
        outcome = transaction.outcome
        if isinstance(outcome, RecipientsRejected | SenderRejected):
            self._manners.envelope_was_refused(self._loop.time())
        is_unknown = outcome is None or isinstance(outcome, DeliveryUnknown)
        if is_unknown and transaction.is_answered_in_part and self._protocol.connected:
            self._manners.forgo_pipelining()

    def settle(self) -> list[Receipt | MailError]:
        """Return what the messages came to whose callers had left."""
        return [self._conclude(transaction) for transaction in self._protocol.settle()]

    def _conclude(self, transaction: Transaction) -> Receipt | MailError:
        if not transaction.in_step and not self._protocol.awaits_reply:
            self.abort()
        if transaction.outcome is None:
            raise AssertionError("a transaction ended without an outcome")
        return transaction.outcome

    def _warn_of_dsn(self, envelope: Envelope) -> None:
        """Say once a session that notifications were asked for and cannot be had."""
        missing = commands.left_out(envelope, self.extensions)
        if missing and not self._warned_of_dsn:
            self._warned_of_dsn = True
            _logger.warning(
                "%s does not offer DSN (RFC 3461); sent without %s", self.relay, ", ".join(missing)
            )

    async def quit(self) -> None:
        """Say QUIT, wait two seconds at most, close. Raises nothing; a cancelled one aborts."""
        try:
            async with asyncio.timeout(_QUIT_SECONDS):
                await self._protocol.quit()
        except TimeoutError:
            pass
        except BaseException:
            self.abort()
            raise
        self._transport.close()
        try:
            # Over TLS closing waits for the other side, which may be gone.
            await asyncio.wait({self._protocol.lost}, timeout=_CLOSE_SECONDS)
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop the connection at once, whatever it is doing.

        A child process may have a descriptor of it, so closing ours would not end it.
        """
        self._protocol.stop()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._transport.abort()

    def forget(self) -> None:
        """Close this process's descriptor and nothing else: no octet, no call of the loop.

        For sessions whose loop is closed, and for those a forked child inherited: the connection,
        and the loop that watches it, still belong to the parent.
        """
        self._socket.close()


def _fate(transaction: Transaction) -> Outcome:
    """Say what became of a message whose sender was cancelled."""
    if transaction.outcome is not None:
        fate: Outcome = getattr(transaction.outcome, "outcome", "not_sent")
        return fate
    return "unknown" if transaction.last_octet_written else "not_sent"


def _say_what_is_known(error: BaseException, transaction: Transaction) -> None:
    message_id = transaction.content.message_id
    if isinstance(transaction.outcome, Receipt):
        error.add_note(f"{message_id}: the server had accepted the message")
    elif transaction.last_octet_written:
        note = f"{message_id}: delivery unknown: no reply was awaited after the last octet"
        error.add_note(note)
        _logger.warning("%s", note)
    else:
        error.add_note(f"{message_id}: not sent")


async def open_session(
    settings: SMTPSettings,
    context: ssl.SSLContext | None,
    deadline: float,
    observe: Observer | None = None,
    *,
    refused: Callable[[SMTPSettings, str], None] | None = None,
    manners: Manners | None = None,
) -> Session:
    """Open a session: greeted, encrypted where that was asked for, authenticated.

    ``context`` is needed for TLS, ``deadline`` is a reading of the loop's clock. ``observe`` is
    told at each stage what is known of the server by then, ``refused`` the password or the token
    that it refuses for good; ``manners`` is how it may be spoken to. Raises ConfigError and the
    kinds of NotSent; cancelling it drops the connection first and waits for nothing.
    """
    manners = manners or Manners(settings)
    opening = _Opening(settings, context, deadline, observe, refused=refused, manners=manners)
    # In an empty context: the loop's reader of this session would keep the caller's alive.
    task = asyncio.get_running_loop().create_task(opening.run(), context=contextvars.Context())
    try:
        session = await asyncio.shield(task)
    except BaseException:
        opening.abort()
        if not opening.waits_for_server:
            task.cancel()
        task.add_done_callback(_let_go)
        raise
    else:
        session.info = opening.info
        return session
    finally:
        del task  # or its exception would hold this frame, and this frame it: a cycle


def _trace_of(settings: SMTPSettings) -> Trace:
    """Return the trace of a session, whose lines bear its number."""
    number = next(_numbers)

    def log(line: str) -> None:
        _wire.debug("%s #%d %s", settings.relay, number, line)

    return Trace(log, show_addresses=settings.log_addresses)


def _let_go(task: asyncio.Task[Session]) -> None:
    """Retrieve what came of an opening that nobody awaits any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


class _Opening:
    """The way to an open session. ``stage`` is where it stands, ``info`` what is known by then."""

    def __init__(
        self,
        settings: SMTPSettings,
        context: ssl.SSLContext | None,
        deadline: float,
        observe: Observer | None,
        *,
        refused: Callable[[SMTPSettings, str], None] | None,
        manners: Manners,
    ) -> None:
        self.stage: Stage = "dns"
        self.info = ServerInfo(settings.relay)
        self._observe = observe
        self._tell_refused = refused
        self._manners = manners
        self._settings = settings
        self._context = context
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._handshake_is_late = False
        self._asks_for_token = False
        self._exchange: Exchange | None = None
        self._extensions = Extensions()
        self._trace = _trace_of(settings) if settings.trace else None
        self._name: str | None = None  # in EHLO

    @property
    def waits_for_server(self) -> bool:
        """True while dropping the connection is enough to end it."""
        return self._socket is not None and not self._asks_for_token

    def abort(self) -> None:
        """Drop the connection: whatever waits for the server ends at once.

        Not by closing the socket, which is asyncio's, and not through the transport, which
        aiosmtplib may have let go to say goodbye for half a minute.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    async def run(self) -> Session:
        """Go all the way. Raises ConfigError and the kinds of NotSent."""
        settings = self._settings
        _logger.debug("%s: opening a session", settings.relay)
        began = self._loop.time()
        self._socket = await dial(
            settings,
            self._within(settings.connect_timeout),
            lambda addresses: self._found(addresses=addresses),
        )
        self._found(address=_peer(self._socket), seconds=self._loop.time() - began)
        self._name = ehlo_name(settings, self._socket)
        smtp = aiosmtplib.SMTP(
            hostname=settings.tls_server_name or settings.host,
            sock=self._socket,
            local_hostname=self._name,
            start_tls=False,
            use_tls=settings.effective_tls == "implicit",
            tls_context=self._context,
        )
        try:
            await self._greeting(smtp)
            await self._ehlo(smtp)
            if settings.effective_tls == "starttls":
                await self._starttls(smtp)
                await self._ehlo(smtp)
            if settings.effective_tls != "none":
                self._assert_encrypted(smtp)
            if settings.username:
                self._enter("auth")
                await self._authenticate(smtp)
            return self._take_over(smtp)
        except MailError as error:
            self._leave(smtp, error)
            if self.stage == "auth":
                drop_frames(error)
            raise
        except Exception as error:
            translated = self._translated(error)
            self._leave(smtp, translated)
            if self.stage == "auth":
                drop_frames(error)
            if self._is_showable(error):
                raise translated from error
        raise translated  # out here, where what quotes the credentials is no context of it

    def _leave(self, smtp: aiosmtplib.SMTP, error: MailError) -> None:
        """Drop the connection; a server that is in order and will not have us gets a QUIT first."""
        transport = t.cast("asyncio.Transport | None", smtp.transport)
        is_refusal = isinstance(error, ConnectError | AuthenticationError) and not error.retryable
        if is_refusal and transport is not None:
            transport.write(commands.QUIT)
        self.abort()

    # Stages

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        _logger.debug("%s: %s", self._settings.relay, stage)

    async def _greeting(self, smtp: aiosmtplib.SMTP) -> None:
        late = None
        is_implicit = self._settings.effective_tls == "implicit"
        self._enter("tls" if is_implicit else "greeting")
        if is_implicit:
            seconds = self._within(self._settings.connect_timeout)
            late = self._loop.call_later(seconds, self._handshake_late, smtp)
        try:
            response = await smtp.connect(timeout=self._within(self._settings.command_timeout))
        except aiosmtplib.SMTPException as error:
            # It awaits the handshake and the greeting in one call; what it raises on what tells.
            if isinstance(error, aiosmtplib.SMTPResponseException) or isinstance(
                error.__cause__, aiosmtplib.SMTPException
            ):
                self._enter("greeting")
            raise
        finally:
            if late is not None:
                late.cancel()
        if is_implicit:
            self._found_tls(smtp)
        self._traced(None, response.code, response.message)
        self._found(greeting=self._reply(response.code, response.message))

    def _handshake_late(self, smtp: aiosmtplib.SMTP) -> None:
        if smtp.protocol is None:
            self._handshake_is_late = True
            self.abort()

    async def _ehlo(self, smtp: aiosmtplib.SMTP) -> None:
        self._enter("ehlo")
        timeout = self._settings.command_timeout
        try:
            response = await smtp.ehlo(timeout=self._within(timeout))
        except aiosmtplib.SMTPHeloError as error:
            if error.code not in _NO_EHLO:
                raise
            response = await smtp.helo(timeout=self._within(timeout))
        self._traced(f"EHLO {self._name}", response.code, response.message)
        self._extensions = Extensions.from_ehlo(smtp.esmtp_extensions)
        offered = self._extensions.offered
        auth = tuple(offered.get("AUTH", "").upper().split())
        self._found(extensions=offered, size=self._extensions.size, auth=auth)

    async def _starttls(self, smtp: aiosmtplib.SMTP) -> None:
        self._enter("starttls")
        if not smtp.supports_extension("starttls"):
            raise TLSError(
                f"{self._settings.relay} does not offer STARTTLS, which tls asks for; nothing was "
                "sent in the clear. Use the port that speaks TLS from the start (smtps://, 465), "
                'or tls="none" where nobody else can listen',
                stage="starttls",
                relay=self._settings.relay,
            )
        # Its one timeout is for the reply and for the handshake; a deadline for both is ours.
        timeout = self._within(self._settings.command_timeout)
        try:
            response = await smtp.starttls(tls_context=self._context, timeout=timeout)
            self._traced("STARTTLS", response.code, response.message)
        except (aiosmtplib.SMTPException, OSError) as error:
            # It awaits the reply and the handshake in one call; what it raises on what tells.
            of_the_reply = (aiosmtplib.SMTPResponseException, aiosmtplib.SMTPReadTimeoutError)
            left = isinstance(error, aiosmtplib.SMTPServerDisconnected) and error.__cause__ is None
            if not left and not isinstance(error, of_the_reply):
                self._enter("tls")
            raise
        self._found_tls(smtp)

    def _assert_encrypted(self, smtp: aiosmtplib.SMTP) -> None:
        if smtp.transport is None or smtp.transport.get_extra_info("ssl_object") is None:
            raise TLSError(
                f"{self._settings.relay}: the session is not encrypted although TLS was asked for",
                stage="tls",
                retryable=True,
                relay=self._settings.relay,
            )

    async def _authenticate(self, smtp: aiosmtplib.SMTP) -> None:
        """Say who we are, once. Frames from here on hold secrets: ``run`` drops them."""
        settings = self._settings
        if settings.effective_tls == "none":
            self._check_clear_text(smtp)
        mechanism = choose_mechanism(settings, smtp.server_auth_methods)
        timeout = settings.command_timeout
        secret = await self._secret()
        exchange = self._exchange = Exchange(mechanism, settings, secret)
        response = await smtp.execute_command(*exchange.command, timeout=self._within(timeout))
        self._traced(f"AUTH {mechanism}", response.code, response.message)
        while response.code == 334 and exchange.has_answer:
            response = await smtp.execute_command(
                exchange.answer(response.message), timeout=self._within(timeout)
            )
            self._traced("", response.code, response.message)
        if response.code == 235:
            self._found(authenticated=True, mechanism=mechanism)
            return
        reply = self._reply(response.code, response.message)
        if not 400 <= reply.code < 600:
            raise self._refused(reply)
        if reply.permanent:
            if self._tell_refused is not None:
                self._tell_refused(settings, secret)
            self._forget_token()
        raise refusal(settings, reply, exchange.complaint)

    async def _secret(self) -> str:
        settings = self._settings
        if settings.oauth_token is not None:
            return await self._token_of(settings.oauth_token)
        if settings.password is None:
            raise ConfigError("password: is missing, while username is set")
        return settings.password

    async def _token_of(self, source: TokenSource) -> str:
        settings = self._settings
        self._asks_for_token = True
        try:
            seconds = self._within(settings.command_timeout)
            return await ask_token(source, seconds, settings.relay)
        finally:
            self._asks_for_token = False

    def _forget_token(self) -> None:
        """Have a source that keeps its token ask for another one next time."""
        forget = getattr(self._settings.oauth_token, "forget", None)
        try:
            if callable(forget):
                forget()
        except Exception as error:  # noqa: BLE001 - the server's refusal is what counts
            _logger.warning("oauth_token.forget() raised %s", type(error).__name__)

    def _check_clear_text(self, smtp: aiosmtplib.SMTP) -> None:
        """Credentials go over clear text inside this machine, or where that was clearly wanted."""
        settings = self._settings
        if settings.allow_insecure_auth or settings.socket_path is not None:
            return
        peer = smtp.get_transport_info("peername")
        address = ipaddress.ip_address(peer[0].partition("%")[0])
        if address.is_loopback:
            return
        if settings.tls == "none" and _is_private(address):
            _warn_of_clear_text()
            return
        raise ConfigError(
            f"credentials would go to {settings.relay} in the clear. Write either of:\n"
            '    tls="starttls"             (or "implicit", port 465)\n'
            "    allow_insecure_auth=True   (anybody on the way can read them)"
        )

    def _take_over(self, smtp: aiosmtplib.SMTP) -> Session:
        """Make a Session of the transport, in the order that leaves nothing of aiosmtplib behind.

        Otherwise its connect lock stays held and a cycle keeps it alive until the next collection.
        """
        transport = t.cast("asyncio.Transport | None", smtp.transport)
        if transport is None or transport.is_closing() or self._socket is None:
            raise ConnectionLost(
                f"{self._settings.relay} closed the connection while it was being opened",
                stage=self.stage,
                retryable=True,
                relay=self._settings.relay,
            )
        session = Session(
            transport,
            self._socket,
            self._extensions,
            self._settings,
            self._manners,
            trace=self._trace,
        )
        smtp.transport = None
        smtp.close()
        return session

    # What is known of the server

    def _found(self, **details: t.Any) -> None:
        self.info = replace(self.info, **details)
        if self._observe is not None:
            self._observe(self.info)

    def _traced(self, command: str | None, code: int, message: str) -> None:
        """Show a command, without what it is said with, and its reply."""
        if self._trace is None:
            return
        if command is not None:
            self._trace.sent(f"{command}\r\n".encode())
        self._trace.heard(code, message)

    def _found_tls(self, smtp: aiosmtplib.SMTP) -> None:
        if cipher := smtp.get_transport_info("cipher"):
            certificate = Certificate.from_peer(smtp.get_transport_info("peercert") or {})
            self._found(tls=cipher[1], cipher=cipher[0], certificate=certificate)

    # Failures

    def _within(self, seconds: float) -> float:
        return max(0.001, min(seconds, self._deadline - self._loop.time()))

    def _translated(self, error: Exception) -> SendError:
        """Say in our words what aiosmtplib or asyncio raised at the stage we stand at."""
        if isinstance(error, aiosmtplib.SMTPResponseException) and error.code > 0:
            self._traced(None, error.code, error.message)
            return self._refused(self._reply(error.code, error.message))
        relay, stage = self._settings.relay, self.stage
        details: dict[str, t.Any] = {"stage": stage, "relay": relay, "retryable": True}
        if not isinstance(error, aiosmtplib.SMTPException | OSError):
            text = f"{relay}: {type(error).__name__} at the stage {stage!r}"
            return ConnectError(text, stage=stage, relay=relay)
        if isinstance(error, aiosmtplib.SMTPResponseException):
            details["retryable"] = stage != "greeting"  # later it will be the same port
            text = f"{relay} does not speak SMTP on this port; is it the right one? Check host and "
            return ProtocolError(f"{text}port (587 or 465 for submission)", **details)
        cause = error if isinstance(error, ssl.SSLError) else error.__cause__
        if stage == "tls" and isinstance(cause, ssl.SSLError):
            return self._tls_failed(cause)
        if isinstance(error, aiosmtplib.SMTPTimeoutError) or self._handshake_is_late:
            hint = self._hint_for_silence() if stage == "greeting" else ""
            return SendTimeout(f"{relay}: no answer at the stage {stage!r}{hint}", **details)
        if stage in {"starttls", "tls"}:
            # A connection that ends behind the 220 looks like one that ends before it.
            return TLSError(f"{relay} closed the connection before TLS was agreed on", **details)
        return ConnectionLost(f"{relay} closed the connection at the stage {stage!r}", **details)

    def _hint_for_silence(self) -> str:
        hint = ", where a mail server speaks first: check host and port"
        if self._settings.effective_tls == "implicit":
            return hint
        return f'{hint}; if that port speaks TLS first (465 does), use smtps:// (tls="implicit")'

    def _is_showable(self, error: BaseException | None) -> bool:
        """Tell whether no text in a chain of exceptions quotes the credentials."""
        while error is not None and self._exchange is not None:
            if self._exchange.showable(str(error)) != str(error):
                return False
            error = error.__cause__ or error.__context__
        return True

    def _reply(self, code: int, message: str) -> Reply:
        text = message.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if self._exchange is not None:
            text = self._exchange.showable(text)
        return Reply.from_lines(code, text.split("\n"))

    def _refused(self, reply: Reply) -> SendError:
        relay, stage = self._settings.relay, self.stage
        details: dict[str, t.Any] = {
            "stage": stage,
            "relay": relay,
            "reply": reply,
            "retryable": reply.transient,
        }
        kind: type[NotSent]
        match stage:
            case _ if not 400 <= reply.code < 600:
                kind, text = ProtocolError, "answers what does not belong there"
            case "starttls":
                kind, text = TLSError, "refuses STARTTLS"
            case _ if reply.transient:
                kind, text = ServerBusy, "has no time for us now"
            case "ehlo":
                kind, text = ConnectError, "refuses EHLO (see local_hostname)"
            case _:
                kind, text = ConnectError, "refuses the session"
        text = hints.with_hint(f"{relay} {text}: {reply}", hints.about_sessions(reply))
        return kind(text, **details)

    def _tls_failed(self, cause: ssl.SSLError) -> TLSError:
        relay = self._settings.relay
        details: dict[str, t.Any] = {"stage": "tls", "relay": relay}
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"{relay}: {self._not_trusted(cause)}; nothing was sent"
            return TLSError(text, **details)
        if cause.reason == "WRONG_VERSION_NUMBER":
            text = "does not speak TLS from the start on this port: use smtp:// and STARTTLS "
            text += '(tls="starttls")'
            return TLSError(f"{relay} {text}", **details)
        reason = (cause.reason or "handshake failure").replace("_", " ").lower()
        if "protocol" in reason:
            text = f"does not speak a protocol that is safe, which is TLS 1.2 or newer: {reason}"
            return TLSError(f"{relay} {text}", **details)
        return TLSError(f"{relay}: no TLS session: {reason}", **details)

    def _not_trusted(self, cause: ssl.SSLCertVerificationError) -> str:
        why = cause.verify_message.rstrip(".")
        match cause.verify_code:
            case 10:
                return (
                    "the server's certificate has expired: renew it at the server, or check the "
                    "clock of this machine"
                )
            case 9:
                return "the server's certificate is not yet valid: check the clock of this machine"
            case 62 | 64:
                return (
                    f"the server's certificate has another name: {why}. Write the one it has as "
                    "host, or into tls_server_name"
                )
        own = "If it is your own, name its authority in ca_file"
        if self._settings.ssl_context is not None:
            own = "If it is your own, load its authority into ssl_context"
        elif self._settings.ca_file is not None:
            own = "The file of ca_file does not hold the authority that signed it"
        return f"the certificate is not trusted: {why}. {own}"


def _peer(sock: socket.socket) -> str | None:
    """Return the address at the other end, None where it has none, or has gone already."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return None
    with contextlib.suppress(OSError):
        return str(sock.getpeername()[0])
    return None


@functools.cache  # once a process
def _warn_of_clear_text() -> None:
    _logger.warning("credentials go over a private network in the clear, as tls none asks")


def _is_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell RFC 1918, unique local and link-local addresses."""
    return any(address in network for network in _PRIVATE)


def ehlo_name(settings: SMTPSettings, sock: socket.socket) -> str:
    """Return the name to say in EHLO (RFC 5321, section 4.1.4), without asking DNS.

    ``local_hostname``, else this machine's name if it is a full one, else the address literal of
    the socket.
    """
    if settings.local_hostname is not None:
        return settings.local_hostname
    name = socket.gethostname()
    if _FQDN.fullmatch(name):
        return name
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return "localhost"
    address = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"
