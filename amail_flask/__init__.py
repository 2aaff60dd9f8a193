"""Flask-Mail's interface over amail: ``await mail.send(message)`` in async views."""

from amail import Attachment
from amail import InvalidHeader as BadHeaderError
from amail.later import Queued
from amail_flask.extension import Mail
from amail_flask.lifespan import lifespan
from amail_flask.message import Message, sanitize_address, sanitize_addresses
from amail_flask.sends import Connection
from amail_flask.signals import email_accepted, email_dispatched, email_failed, email_resolved

__all__ = [
    "Attachment",
    "BadHeaderError",
    "Connection",
    "Mail",
    "Message",
    "Queued",
    "email_accepted",
    "email_dispatched",
    "email_failed",
    "email_resolved",
    "lifespan",
    "sanitize_address",
    "sanitize_addresses",
]
