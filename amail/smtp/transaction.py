"""One message over an open session: replies in, commands out, one outcome. Sans-IO.

    RSET? ─► MAIL ─► RCPT ... ─► DATA ─► content ─► dot ─► accepted, rejected
                 refused ─┴────────┴─► rejected       └─► no reply: unknown
    RSET? ─► MAIL ─► RCPT ... ─► BDAT n LAST, content ─► the same        (with CHUNKING, RFC 3030)

No socket, no clock, no loop. Who drives it writes what ``begin`` and ``receive`` return, sends the
content, behind ``content_command``, when ``stage`` is "body", says ``content_written`` together
with the write that holds its last octet, and hands on what happens: ``receive``, ``lost``,
``timed_out``, ``malformed``. When ``outcome`` is set the transaction is over. Where it
``fits_one_flight`` the content may go out together with what ``begin`` returns: then every reply
decides, and what the server says last counts only if it is in keeping with what it said before.

Invariant: exactly one outcome, and "not sent" only if the last octet was never written, or the
server said of an earlier command that this message is not to come.
"""

from __future__ import annotations

import typing as t

from amail.errors import (
    AuthenticationError,
    ConnectionLost,
    DeliveryUnknown,
    MessageRejected,
    MessageTooLarge,
    NotSent,
    ProtocolError,
    RecipientsRejected,
    SenderRejected,
    SendTimeout,
    ServerBusy,
    UTF8Required,
)
from amail.receipt import Receipt, Reply
from amail.smtp import commands, hints
from amail.smtp.replies import decode_reply

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.errors import MailError, SendError, Stage
    from amail.mime import Content
    from amail.smtp.extensions import Extensions

MAX_GROUP = 64 * 1024
"""Octets of commands in one write (RFC 2920, section 3.1, speaks of TCP's window)."""

MAX_FLIGHT = 64 * 1024
"""Octets of content that may be sent before the server has answered to its envelope."""


class Transaction:
    """State of one message on its way through one session.

    ``pipelined`` allows groups of commands in one write (RFC 2920), ``chunked`` BDAT in place of
    DATA; both only where they are offered. ``reset_first`` has RSET written before the envelope, as
    an earlier one may have been left open. ``relay`` goes into receipt and errors.

    Raises MessageTooLarge, UTF8Required or NotSent for what the server says it cannot take.
    """

    __slots__ = (
        "_answered",
        "_chunked",
        "_closing",
        "_commands",
        "_content",
        "_envelope",
        "_in_group",
        "_mail_at",
        "_pipelined",
        "_refused",
        "_relay",
        "_sender_refused",
        "_took_it_back",
        "in_step",
        "is_at_odds",
        "last_octet_written",
        "left_open",
        "outcome",
        "stage",
        "went_at_once",
    )

    def __init__(
        self,
        envelope: Envelope,
        content: Content,
        extensions: Extensions,
        *,
        pipelined: bool,
        chunked: bool = False,
        reset_first: bool = False,
        relay: str | None = None,
    ) -> None:
        self._envelope = envelope
        self._content = content
        self._relay = relay
        self._pipelined = pipelined and extensions.pipelining
        self._chunked = chunked and extensions.chunking
        self.stage: Stage = "mail"
        self._check_extensions(extensions)
        self._commands = [commands.RSET] if reset_first else []
        self._mail_at = len(self._commands)
        self._commands += (
            commands.mail(envelope, content, extensions),
            *commands.rcpts(envelope, extensions),
        )
        if not self._chunked:
            self._commands.append(commands.DATA)
        self._answered = 0
        self._in_group = 0  # commands that were written; those beyond are not
        self._sender_refused: tuple[int, bytes] | None = None
        self._refused: dict[str, Reply] = {}
        self._closing: tuple[Stage, int, bytes] | None = None  # where and how a 421 was said
        self._took_it_back = False  # something was taken behind such a reply, or a refused sender
        self.outcome: Receipt | MailError | None = None
        self.last_octet_written = False
        # The server may still hold an envelope, so RSET goes before the next one.
        self.left_open = reset_first
        # The content went out with the envelope. The last reply is at odds with those before.
        self.went_at_once = self.is_at_odds = False
        # Every reply was read and understood: the session can take another message.
        self.in_step = True

    @property
    def content(self) -> Content:
        """What is sent after DATA, or in BDAT."""
        return self._content

    @property
    def is_chunked(self) -> bool:
        """True where the content is counted and not stuffed, and no dot ends it."""
        return self._chunked

    @property
    def content_command(self) -> bytes:
        """What stands in front of the content in the same write."""
        return commands.bdat(len(self._content)) if self._chunked else b""

    @property
    def fits_one_flight(self) -> bool:
        """True where commands and content can go out in one write, nothing having been said yet.

        A large one would be in vain if it were refused, and of one that all recipients have to
        take a part could be gone (RFC 3030, section 4.2).
        """
        return (
            self._chunked
            and self._pipelined
            and not self._envelope.all_recipients
            and len(self._content) <= MAX_FLIGHT
            and self._end_of_group(0) == len(self._commands)
        )

    @property
    def is_answered_in_part(self) -> bool:
        """True while some commands have a reply and some that were written do not."""
        return 0 < self._answered < self._in_group

    # What the driver asks and says

    def begin(self) -> bytes:
        """Return the first commands."""
        return self._next_group()

    def receive(self, code: int, raw: bytes) -> bytes:
        """Take one complete reply; return the commands that are due now, if any."""
        match self.stage:
            case "final":
                self._on_final(code, raw)
            case "body":
                self._on_early(code, raw)
            case _ if code == 421 and not self.last_octet_written:
                self._busy(code, raw)
            case _:
                return self._on_command_reply(code, raw)
        return b""

    def content_written(self) -> None:
        """Note that the write holding the last octet of the content is being made."""
        self.last_octet_written = True
        self.went_at_once = self._answered < self._in_group
        if not self.went_at_once:
            self.stage = "final"

    def content_failed(self, error: MailError) -> None:
        """End because the content cannot be read. Its last octet was not written."""
        self._fail(error)

    def lost(self, pending: bytes = b"") -> None:
        """End because the connection did. ``pending`` is the beginning of a reply that came."""
        if self._ends_refused():
            return
        if not self.last_octet_written:
            text = f"the connection was lost at the stage {self.stage!r}; nothing was sent"
            self._fail(ConnectionLost(text, **self._details(retryable=True)))
        elif pending.startswith(b"250-"):
            self._fail(
                self.unknown("the connection was lost within the reply; probably it was accepted")
            )
        else:
            self._fail(self.unknown("the connection was lost before the reply came"))

    def timed_out(self) -> None:
        """End because a deadline passed."""
        if self._ends_refused():
            return
        if self.last_octet_written:
            self._fail(self.unknown("no reply came in time"))
        else:
            text = f"no answer in time at the stage {self.stage!r}; nothing was sent"
            self._fail(SendTimeout(text, **self._details(retryable=True)))

    def unknown(self, reason: str) -> DeliveryUnknown:
        """Return what is known as long as no reply has come to the last octet. Ends nothing."""
        text = (
            f"delivery is unknown: {reason}. The server may hold the message; sending it again may "
            "make a second copy"
        )
        refused = {} if self._took_it_back else self._refused
        concerned = [path for path in self._envelope.forward_paths if path not in refused]
        details = self._details(recipients=tuple(concerned), stage="final")
        return DeliveryUnknown(text, refused=refused, **details)

    def malformed(self, reason: str) -> None:
        """End because what came is no reply."""
        if self.last_octet_written:
            self._fail(self.unknown(f"what the server answered is no reply: {reason}"))
        else:
            self._protocol_error(reason)

    # Replies

    def _on_command_reply(self, code: int, raw: bytes) -> bytes:
        paths = self._envelope.forward_paths
        position = self._answered - self._mail_at
        self._answered += 1
        if code == 421:
            self.in_step = False
            if not self._taken_by_nobody:
                self._closing = self._closing or (self.stage, code, raw)
        elif code < 300 and (self._closing or self._sender_refused):
            self._took_it_back = True
        if position < 0:
            self._on_rset(code)
        elif position == 0:
            self._on_mail(code, raw)
        elif position <= len(paths):
            self._on_rcpt(paths[position - 1], code, raw)
            if position == len(paths):
                self.stage = "final" if self.last_octet_written else "data"
        elif position == len(paths) + 1:
            return self._on_data(code, raw)
        else:
            self._on_lone_dot()
        if self.outcome is not None or self._answered < self._in_group or self.last_octet_written:
            return b""
        return self._next_group()

    def _on_rset(self, code: int) -> None:
        if 200 <= code < 300:
            self.left_open = False
        elif self.last_octet_written:
            self.in_step = False  # what comes of the message is for the other replies to say
        else:
            self._protocol_error(f"RSET was answered with {code}")

    def _on_mail(self, code: int, raw: bytes) -> None:
        if 200 <= code < 300:
            self.left_open = True
            self.stage = "rcpt"
        elif code >= 400:
            self._sender_refused = code, raw
        else:
            self.malformed(f"MAIL was answered with {code}")

    def _on_rcpt(self, path: str, code: int, raw: bytes) -> None:
        if code >= 400:
            self._refused[path] = decode_reply(code, raw)
        elif code >= 300:
            self.malformed(f"RCPT was answered with {code}")

    def _on_data(self, code: int, raw: bytes) -> bytes:
        if code == 354:
            if not self._taken_by_nobody:
                self.stage = "body"
                return b""
            if len(self._refused) < len(self._envelope.forward_paths):
                # It took recipients without the sender: under which one would the dot go out?
                self.in_step = False
                self._reject_envelope()
                return b""
            # Nobody would get it, so it ends before it begins.
            self._commands.append(commands.DOT)
            self._in_group += 1
            return commands.DOT
        if code < 400:
            self._protocol_error(f"DATA was answered with {code}")
        elif self._taken_by_nobody:
            self._reject_envelope()
        else:
            self._reject_message("the server refused the message at DATA", code, raw)
        return b""

    def _on_lone_dot(self) -> None:
        self.left_open = False
        self._reject_envelope()

    def _on_early(self, code: int, raw: bytes) -> None:
        """Take a reply that came before the content was sent: the server has made up its mind."""
        self.in_step = False
        if code == 421:
            self._busy(code, raw)
        elif code < 400:
            self._protocol_error(f"the server answered {code} before the content was sent")
        else:
            text = "the server rejected the message while it was being sent"
            self._reject_message(text, code, raw)

    def _on_final(self, code: int, raw: bytes) -> None:
        if 300 <= code < 400:
            self.malformed(f"the content was answered with {code}")
            return
        if self._took_it_back:
            self._be_at_odds("the server took a part of the envelope, having refused it")
            return
        if self._closing is not None or self._taken_by_nobody:
            self._on_final_of_refused(code)
            return
        self.left_open = False
        if code < 300:
            reply = decode_reply(code, raw)
            if self._chunked and (reply.enhanced or "").startswith("2.1."):
                # It is about an address (RFC 3463, 3.2): a reply too many, and ours is to come.
                self._be_at_odds(f"what the server answered is about an address: {reply}")
                return
            accepted = self._envelope.forward_paths
            if self._refused:
                accepted = tuple([path for path in accepted if path not in self._refused])
            self.outcome = Receipt(
                message_id=self._content.message_id,
                envelope=self._envelope,
                reply=reply,
                accepted=accepted,
                refused=dict(self._refused),
                relay=self._relay,
                queue_id=reply.queue_id,
            )
            return
        self.in_step = self.in_step and code != 421
        if self._chunked and code in _NO_SUCH_COMMAND:
            self.is_at_odds = True
            self._protocol_error(f"BDAT was answered with {code}", decode_reply(code, raw))
            return
        self._reject_message("the server rejected the message", code, raw)

    def _on_final_of_refused(self, code: int) -> None:
        """Take what is said to content that went out with an envelope that was refused."""
        if code < 300:
            self._be_at_odds("the server took the content, having refused the envelope")
            return
        self.in_step = self.in_step and code != 421
        self._refuse_as_said()

    # Commands

    def _next_group(self) -> bytes:
        """Return the commands that can be written now, or end if the envelope is refused."""
        if self._sender_refused or (self._before_content and self._envelope_refused):
            self._reject_envelope()
            return b""
        first = self._in_group
        if first == len(self._commands):  # BDAT is no command of its own, the content is part of it
            self.stage = "body"
            return b""
        until = first + 1
        if self._pipelined:
            until = self._end_of_group(first)
        self._in_group = until
        group = self._commands[first:until]
        return group[0] if len(group) == 1 else b"".join(group)

    def _end_of_group(self, first: int) -> int:
        """Where all recipients are needed DATA waits for their replies (RFC 2920, 3.1)."""
        end = len(self._commands)
        if self._envelope.all_recipients and not self._chunked and first < end - 1:
            end -= 1
        octets = 0
        for position in range(first, end):
            octets += len(self._commands[position])
            if octets > MAX_GROUP and position > first:
                return position
        return end

    @property
    def _before_content(self) -> bool:
        return self._in_group == len(self._commands) - (not self._chunked)

    @property
    def _envelope_refused(self) -> bool:
        all_needed = self._envelope.all_recipients and bool(self._refused)
        return all_needed or self._taken_by_nobody

    @property
    def _taken_by_nobody(self) -> bool:
        refused_by_all = len(self._refused) == len(self._envelope.forward_paths)
        return self._sender_refused is not None or refused_by_all

    # Outcomes

    def _check_extensions(self, extensions: Extensions) -> None:
        content = self._content
        if content.needs_utf8 and not extensions.smtputf8:
            raise UTF8Required(
                "an address with characters beyond ASCII needs SMTPUTF8, which the server does not "
                "offer",
                **self._details(),
            )
        if content.needs_8bit and not (extensions.eightbitmime or content.needs_utf8):
            text = "the content has 8-bit octets and the server does not offer 8BITMIME"
            raise NotSent(text, **self._details())
        if extensions.size is not None and len(content) > extensions.size:
            text = f"the message has {len(content)} octets; the server takes {extensions.size}"
            raise MessageTooLarge(
                hints.with_hint(f"{text} (SIZE)", hints.SMALLER), **self._details()
            )

    def _be_at_odds(self, reason: str) -> None:
        """End where replies contradict each other: who was refused is not known either."""
        self.is_at_odds = True
        self._refused.clear()
        self._fail(self.unknown(reason))

    def _refuse_as_said(self) -> None:
        """End with what was said to the envelope, be it that the server closes the session."""
        if self._closing is None:
            self._reject_envelope()
        else:
            self.stage, code, raw = self._closing
            self._say_busy(code, raw)

    def _reject_envelope(self) -> None:
        if self._sender_refused is not None:
            self._reject_sender(*self._sender_refused)
            return
        self.stage = "rcpt"
        refused = self._refused
        paths = self._envelope.forward_paths
        by_all = len(refused) == len(paths)
        what = "every recipient" if by_all else f"{len(refused)} of {len(paths)} recipients"
        path, reply = next(iter(refused.items()))
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        # One that is refused for now may be taken later, so may the message.
        retryable = any(each.transient for each in refused.values())
        details = self._details(reply, retryable=retryable, recipients=tuple(refused))
        text = f"the server refused {what}: {path}: {reply}{more}"
        hint = hints.about_recipient(reply)
        self.outcome = RecipientsRejected(hints.with_hint(text, hint), refused=refused, **details)

    def _reject_sender(self, code: int, raw: bytes) -> None:
        self.stage = "mail"
        reply = decode_reply(code, raw)
        if code == 503:
            self._protocol_error("MAIL was answered with 503", reply)
        elif code == 530:
            text = f"the server wants authentication: {reply}; set username and password"
            self._fail(AuthenticationError(text, **self._details(reply)))
        elif _is_too_large(reply):
            self._reject_size(reply)
        else:
            sender = f"<{self._envelope.reverse_path}>"
            text = f"the server refused the sender {sender}: {reply}"
            hint = hints.about_sender(reply)
            self._reject(SenderRejected(hints.with_hint(text, hint), **self._details(reply)))

    def _reject_message(self, text: str, code: int, raw: bytes) -> None:
        reply = decode_reply(code, raw)
        # 552 alone may mean a full mailbox here; only the enhanced code tells.
        too_large = reply.enhanced is not None and _is_too_large(reply)
        if too_large:
            self._reject_size(reply)
            return
        hint = hints.about_sender(reply) or hints.about_sessions(reply)
        text = hints.with_hint(f"{text}: {reply}", hint)
        self._reject(MessageRejected(text, **self._details(reply)))

    def _reject_size(self, reply: Reply) -> None:
        text = f"the message has {len(self._content)} octets, more than the server takes: {reply}"
        text = hints.with_hint(text, hints.SMALLER)
        self._reject(MessageTooLarge(text, **self._details(reply)))

    def _ends_refused(self) -> bool:
        """End with the refusal if everybody had been refused before the session ended.

        Postfix hangs up with 421 right behind a refusal where it counts too many errors. Content
        that is on the wire may be taken by who takes a recipient without the sender.
        """
        if self._closing is None and not self._taken_by_nobody:
            return False
        if self._took_it_back and self.last_octet_written:
            return False
        self._refuse_as_said()
        self.in_step = False
        return True

    def _busy(self, code: int, raw: bytes) -> None:
        if not self._ends_refused():
            self._say_busy(code, raw)

    def _say_busy(self, code: int, raw: bytes) -> None:
        reply = decode_reply(code, raw)
        text = f"the server closes the session: {reply}"
        text = hints.with_hint(text, hints.about_sessions(reply))
        self._fail(ServerBusy(text, **self._details(reply)))

    def _protocol_error(self, reason: str, reply: Reply | None = None) -> None:
        text = f"the server does not keep to SMTP: {reason}; nothing was sent"
        self._fail(ProtocolError(text, **self._details(reply, retryable=True)))

    def _reject(self, error: SendError) -> None:
        self.outcome = error

    def _fail(self, error: MailError) -> None:
        """End in a way after which nobody knows where the session stands."""
        self.in_step = False
        self.outcome = error

    def _details(self, reply: Reply | None = None, **others: t.Any) -> dict[str, t.Any]:
        return {
            "stage": self.stage,
            "reply": reply,
            "retryable": reply is not None and reply.transient,
            "message_id": self._content.message_id,
            "recipients": self._envelope.forward_paths,
            "relay": self._relay,
            **others,
        }


_NO_SUCH_COMMAND = frozenset({500, 502, 503, 504})


def _is_too_large(reply: Reply) -> bool:
    """Tell by RFC 1870 and RFC 3463, section 3.4, whether size is what a refusal is about."""
    if reply.enhanced is not None:
        return reply.permanent and reply.enhanced.endswith((".3.4", ".2.3"))
    return reply.code == 552
