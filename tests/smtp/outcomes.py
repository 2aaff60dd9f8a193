"""What tests of the SMTP transport say about an outcome, and about the session it left behind."""

from __future__ import annotations

import contextlib
import typing as t

import pytest

from amail import Mailer, Receipt
from amail.errors import DeliveryUnknown, MailError, NotSent, Rejected
from tests.messages import tokened

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amail.errors import SendError, Stage
    from amail.testing import FaultServer
    from tests.musts import Musts

N = t.TypeVar("N", bound=NotSent)
R = t.TypeVar("R", bound=Rejected)

PIPELINING = pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "one_by_one"])


@contextlib.asynccontextmanager
async def talking_to(server: FaultServer, musts: Musts, **settings: t.Any) -> AsyncIterator[Mailer]:
    """Start a server whose notes are compared at the end; a mailer for it, with these settings."""
    async with musts.watch(server), Mailer(server.url, **settings) as mailer:
        yield mailer


async def send(
    musts: Musts, mailer: Mailer, recipients: int = 1, **fields: t.Any
) -> Receipt | MailError:
    """Send a message of its own, and let its outcome be compared with what the servers hold."""
    token = musts.token()
    with musts.not_counting():
        sending = mailer.send(tokened(token, recipients, **fields))
    return await musts.outcome_of(sending, token=token)


def said(server: FaultServer) -> list[str]:
    """The verbs that clients said, in their order."""
    return [command.line.partition(" ")[0] for command in server.commands]


# Outcomes


def accepted(result: Receipt | MailError, *, attempts: int = 1) -> Receipt:
    """The message was accepted, after so many tries."""
    assert isinstance(result, Receipt), repr(result)
    assert (result.outcome, result.attempts) == ("accepted", attempts)
    return result


def not_sent(
    result: Receipt | MailError,
    kind: type[N],
    *,
    stage: Stage,
    retryable: bool,
    code: int | None = None,
) -> N:
    """The message was certainly not taken, and the error says why."""
    assert type(result) is kind, repr(result)
    assert result.outcome == "not_sent"
    _check_details(result, stage, retryable, code)
    return result


def rejected(
    result: Receipt | MailError, kind: type[R], *, stage: Stage, retryable: bool, code: int | None
) -> R:
    """The server answered no, and the error says how."""
    assert type(result) is kind, repr(result)
    assert result.outcome == "rejected"
    _check_details(result, stage, retryable, code)
    return result


def unknown(result: Receipt | MailError) -> DeliveryUnknown:
    """Nobody can tell whether the message was taken, and nothing invites to try again."""
    assert type(result) is DeliveryUnknown, repr(result)
    assert result.outcome == "unknown"
    assert not isinstance(result, TimeoutError | ConnectionError)
    _check_details(result, "final", False, None)
    return result


def _check_details(error: SendError, stage: Stage, retryable: bool, code: int | None) -> None:
    assert (error.stage, error.retryable) == (stage, retryable), str(error)
    assert (error.reply.code if error.reply else None) == code, str(error)
    assert error.relay
    assert error.message_id
    assert error.recipients


# Sessions


async def assert_kept(musts: Musts, server: FaultServer, mailer: Mailer) -> None:
    """The next message is accepted over the session of the last one."""
    connections = server.connections
    accepted(await send(musts, mailer))
    assert server.connections == connections
    assert server.messages[-1].connection == connections


async def assert_dropped(musts: Musts, server: FaultServer, mailer: Mailer) -> None:
    """Nothing is left of any session, none said QUIT; the next message opens a fresh one."""
    await server.all_closed()
    assert mailer.stats().open == 0
    assert "QUIT" not in said(server)
    connections = server.connections
    accepted(await send(musts, mailer))
    assert server.connections == connections + 1
