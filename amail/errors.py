"""The exception tree. Whatever fails inside amail reaches the caller as one of these.

MailError
├── ConfigError(ValueError)       settings that cannot work
├── UsageError(RuntimeError)      wrong loop, sync call in a loop, used after it was closed
├── MessageError(ValueError)      cannot be composed as written; nearly always before any I/O
│   ├── InvalidAddress  InvalidHeader  InvalidAttachment
│   └── MessageTooLarge (also Rejected)   UTF8Required (also NotSent)
└── SendError                     .outcome .stage .retryable .reply .message_id .recipients .relay
    ├── NotSent                   certainly not taken: safe to send again
    │   ├── ConnectError(ConnectionError)   ConnectionLost(ConnectionError)   ServerBusy
    │   ├── TLSError   AuthenticationError   ProtocolError
    │   ├── SendTimeout(TimeoutError)   PoolTimeout(TimeoutError)
    │   └── QueueFull   MailerClosed   Vetoed
    ├── Rejected                  the server answered no
    │   └── SenderRejected   RecipientsRejected (.refused)   MessageRejected
    └── DeliveryUnknown           the content went out, no reply came; not a TimeoutError
                                  (.accepted .refused)
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Mapping

    from amail.receipt import Reply

Outcome = t.Literal["accepted", "rejected", "not_sent", "unknown"]
"""What became of a message. Exactly one of these is true of every send."""

Stage = t.Literal[
    "pool",
    "dns",
    "connect",
    "tls",
    "greeting",
    "ehlo",
    "starttls",
    "auth",
    "mail",
    "rcpt",
    "data",
    "body",
    "final",
]
"""Where in the life of a send something happened, in the order they are passed."""


class MailError(Exception):
    """Everything that amail raises is one of these."""


class ConfigError(MailError, ValueError):
    """A setting that cannot work. Names the setting and what to write; never its secret value."""


class UsageError(MailError, RuntimeError):
    """The call itself is wrong: the wrong loop, a sync call in a loop, a forgotten ``await``."""


class MessageError(MailError, ValueError):
    """The message cannot be sent as it is written; nothing was sent.

    Raised by the call, before any I/O, but for what shows only while sending: a file that changed,
    or what the server says it cannot take.
    """


class InvalidAddress(MessageError):
    """An address that cannot be used as written (RFC 5321, section 4.1.2)."""


class InvalidHeader(MessageError):
    """A header field that cannot be written as given (RFC 5322, section 2.2)."""


class InvalidAttachment(MessageError):
    """An attachment that cannot be read or described as given."""


class SendError(MailError):
    """A send that did not end in acceptance.

    ``outcome`` says what became of the message: "rejected", "not_sent" or "unknown".
    ``stage`` is where it ended, ``reply`` the server's reply (None if there was none),
    ``retryable`` whether the same message may succeed later, ``recipients`` the forward-paths
    concerned, ``relay`` the server as "host:port".
    """

    outcome: t.ClassVar[Outcome]
    stage: Stage | None

    def __init__(
        self,
        message: str = "",
        *,
        stage: Stage | None = None,
        reply: Reply | None = None,
        retryable: bool = False,
        message_id: str | None = None,
        recipients: tuple[str, ...] = (),
        relay: str | None = None,
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.reply = reply
        self.retryable = retryable
        self.message_id = message_id
        self.recipients = recipients
        self.relay = relay


class NotSent(SendError):
    """Certainly not taken by the server: the last octet of the content was never written."""

    outcome = "not_sent"


class ConnectError(NotSent, ConnectionError):
    """No session could be opened: name resolution, TCP, or a greeting or EHLO that says no."""


class ConnectionLost(NotSent, ConnectionError):
    """The connection ended before the last octet of the content was written."""


class ServerBusy(NotSent):
    """The server says it is closing or has too many connections (421, or a 4yz greeting)."""


class TLSError(NotSent):
    """TLS was required and could not be had: not offered, or the certificate was not trusted."""


class AuthenticationError(NotSent):
    """The server did not accept the credentials, or wants them where none were given."""


class ProtocolError(NotSent):
    """The other end does not speak SMTP as RFC 5321 describes it."""


class SendTimeout(NotSent, TimeoutError):
    """A deadline passed before the last octet of the content was written."""


class PoolTimeout(NotSent, TimeoutError):
    """No session became free in time."""


class QueueFull(NotSent):
    """The bounded queue of ``send_later`` is full."""


class MailerClosed(NotSent):
    """The mailer was closed before this message was sent."""


class Vetoed(NotSent):
    """Raised by an application's ``prepare`` hook to stop a message."""


class Rejected(SendError):
    """The server answered no, to the message or to every recipient."""

    outcome = "rejected"


class SenderRejected(Rejected):
    """The server refused the reverse-path (the reply to MAIL)."""


class RecipientsRejected(Rejected):
    """The server refused every recipient, or one while all were required.

    ``refused`` maps each refused forward-path to the server's reply.
    """

    refused: Mapping[str, Reply]

    def __init__(
        self,
        message: str = "",
        *,
        refused: Mapping[str, Reply] | None = None,
        **details: t.Any,
    ) -> None:
        super().__init__(message, **details)
        self.refused = dict(refused or {})


class MessageRejected(Rejected):
    """The server refused the content (the reply to DATA or to its end)."""


class DeliveryUnknown(SendError):
    """The last octet of the content was written and no complete reply came (RFC 1047).

    The server may hold the message or not. Sending again may make a second copy, so amail never
    does that by itself. Deliberately no TimeoutError: ``except TimeoutError: retry`` must never
    send twice.

    ``recipients`` are the forward-paths of which nothing is known. Of the others, ``accepted`` are
    those an earlier transaction of the same message was accepted for, and ``refused`` maps those
    who certainly did not get it to replies.
    """

    outcome = "unknown"
    accepted: tuple[str, ...]
    refused: Mapping[str, Reply]

    def __init__(
        self,
        message: str = "",
        *,
        accepted: tuple[str, ...] = (),
        refused: Mapping[str, Reply] | None = None,
        **details: t.Any,
    ) -> None:
        super().__init__(message, **details)
        self.accepted = accepted
        self.refused = dict(refused or {})


class MessageTooLarge(MessageError, Rejected):
    """Larger than the configured limit, or than the server's SIZE (RFC 1870)."""


class UTF8Required(MessageError, NotSent):
    """An address needs SMTPUTF8 (RFC 6531) and the server does not offer it."""
