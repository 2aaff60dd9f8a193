"""One afternoon of a mailer, in each kind of event loop (row C37).

The whole suite runs in another loop with AMAIL_LOOP=uvloop, or eager from Python 3.12 on.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import typing as t
import warnings

import pytest

from amail import Mailer
from amail.errors import DeliveryUnknown, RecipientsRejected, SendTimeout
from amail.smtp.extensions import Extensions
from amail.smtp.protocol import Deadlines, SMTPProtocol, Waits
from amail.smtp.transaction import Transaction
from amail.testing import OK, FaultServer, Hang
from tests.loops import LOOPS
from tests.messages import tokened
from tests.musts import PASSWORD
from tests.transports.ends import letter

if t.TYPE_CHECKING:
    from tests.servers.authority import Authority


def loops() -> list[str]:
    names = ["asyncio"]
    if sys.version_info >= (3, 12):
        names.append("eager")
    try:
        LOOPS["uvloop"]().close()
    except ImportError:
        return names
    return [*names, "uvloop"]


async def a_mailers_life(authority: Authority) -> None:
    for_client = authority.client_context()
    async with FaultServer(tls=authority.server_context(), users={"ada": PASSWORD}) as server:
        login = {"username": "ada", "password": PASSWORD, "tls": "starttls"}
        async with Mailer(server.url, **login, ssl_context=for_client) as mailer:  # type: ignore[arg-type]
            messages = [tokened(f"token-{number:032x}") for number in range(100)]
            receipts = await asyncio.gather(*map(mailer.send, messages))
            assert {receipt.outcome for receipt in receipts} == {"accepted"}
            results = [result async for result in mailer.send_many(messages, ordered=True)]
            assert [result.message for result in results] == messages

            server.change(rcpt="550 5.1.1 no such user")
            with pytest.raises(RecipientsRejected):
                await mailer.send(messages[0])
            server.change(rcpt=OK, final=Hang())
            with pytest.raises(DeliveryUnknown):
                await mailer.send(messages[0], timeout=0.2)
            sending = asyncio.ensure_future(mailer.send(messages[0]))
            await server.reached("final", 202)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            server.change(final=OK)
            large = tokened("token-" + "f" * 32)
            large.attach("large.bin", data=bytes(2_000_000))
            assert (await mailer.send(large)).outcome == "accepted"
        assert server.connections <= 8
        assert not server.violations
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("name", loops())
def test_c37_a_mailer_lives_in_any_loop(authority: Authority, name: str) -> None:
    with warnings.catch_warnings(), asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        warnings.simplefilter("error")
        runner.run(a_mailers_life(authority))
        gc.collect()


class Prompt(asyncio.Transport):
    """Answers MAIL and RCPT before the write has returned."""

    protocol: SMTPProtocol

    def write(self, data: t.Any) -> None:
        if bytes(data).startswith(b"MAIL"):
            self.protocol.data_received(b"250 ok\r\n250 ok\r\n")

    def is_closing(self) -> bool:
        return False


async def a_transaction_whose_deadline_has_passed() -> None:
    transport = Prompt()
    transport.protocol = SMTPProtocol(transport, Waits(60, 60, 60))
    envelope, content = letter()
    transaction = Transaction(envelope, content, Extensions(pipelining=True), pipelined=True)
    now = asyncio.get_running_loop().time()
    await transport.protocol.run(transaction, Deadlines(now, now))
    assert isinstance(transaction.outcome, SendTimeout)


@pytest.mark.parametrize("name", loops())
def test_a_deadline_that_has_passed_is_kept_in_any_loop(name: str) -> None:
    """uvloop's handle of a timer that is due at once cannot be asked when that is."""
    with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        runner.run(a_transaction_whose_deadline_has_passed())
