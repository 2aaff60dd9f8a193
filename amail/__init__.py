"""Compose mail and send it, on asyncio.

async with Mailer("smtp://user:password@smtp.example.com:587") as mailer:
    await mailer.send(Message("Hello", recipients=["bob@example.org"], body="Hi Bob"))
"""

import logging

from amail.address import Address
from amail.envelope import Envelope
from amail.errors import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeliveryUnknown,
    InvalidAddress,
    InvalidAttachment,
    InvalidHeader,
    MailerClosed,
    MailError,
    MessageError,
    MessageRejected,
    MessageTooLarge,
    NotSent,
    PoolTimeout,
    ProtocolError,
    QueueFull,
    RecipientsRejected,
    Rejected,
    SenderRejected,
    SendError,
    SendTimeout,
    ServerBusy,
    TLSError,
    UsageError,
    UTF8Required,
    Vetoed,
)
from amail.limits import Limits
from amail.mailer import Connection, Mailer
from amail.message import Attachment, Message
from amail.mime import Content
from amail.portal import Portal
from amail.receipt import Receipt, Reply, Result
from amail.smtp.settings import SMTPSettings
from amail.smtp.transport import SMTPTransport
from amail.sync import SyncMailer
from amail.transports.failover import RoundRobin
from amail.transports.memory import MemoryTransport
from amail.transports.null import NullTransport
from amail.transports.server_info import ServerInfo

__all__ = [
    "Address",
    "Attachment",
    "AuthenticationError",
    "ConfigError",
    "ConnectError",
    "Connection",
    "ConnectionLost",
    "Content",
    "DeliveryUnknown",
    "Envelope",
    "InvalidAddress",
    "InvalidAttachment",
    "InvalidHeader",
    "Limits",
    "MailError",
    "Mailer",
    "MailerClosed",
    "MemoryTransport",
    "Message",
    "MessageError",
    "MessageRejected",
    "MessageTooLarge",
    "NotSent",
    "NullTransport",
    "PoolTimeout",
    "Portal",
    "ProtocolError",
    "QueueFull",
    "Receipt",
    "RecipientsRejected",
    "Rejected",
    "Reply",
    "Result",
    "RoundRobin",
    "SMTPSettings",
    "SMTPTransport",
    "SendError",
    "SendTimeout",
    "SenderRejected",
    "ServerBusy",
    "ServerInfo",
    "SyncMailer",
    "TLSError",
    "UTF8Required",
    "UsageError",
    "Vetoed",
]

logging.getLogger("amail").addHandler(logging.NullHandler())
