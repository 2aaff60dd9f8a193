"""What a try has ended with: what of the job is left for later, and what a log may say of it."""

from __future__ import annotations

import typing as t

from amail.errors import ConfigError, MessageError, NotSent, SendError, UsageError
from amail.queues.job import Handled, rest_of

if t.TYPE_CHECKING:
    from amail.errors import MailError
    from amail.queues.job import Job


def left_of(job: Job, ended: Handled | MailError) -> Job | None:
    """Return the job that is left to be tried later, None if it has come to its end.

    It is the job itself where nothing was taken for a reason that may pass. Whether it will, nobody
    knows before the job expires: a password is put right, a disk is emptied.
    """
    match ended:
        case Handled():
            return ended.rest
        case MessageError():
            return None
        case NotSent() | ConfigError() | UsageError():
            return job
        case SendError():
            return rest_of(job, ended)
    return None


def said_of(error: MailError) -> str:
    """Say in a log what went wrong. The text of an error names recipients, which a log does not."""
    if not isinstance(error, SendError):
        return f"{type(error).__name__}: {error}"
    reply = "no reply" if error.reply is None else str(error.reply.code)
    return f"{type(error).__name__} at the stage {error.stage}, {reply}"
