"""FAULTS.md, its rows from RSET to the last reply, in every way of sending.

Whatever a server does to one message, it has one outcome, and one that is true; so have the others.
What differs is how much a message has risked before it was answered: where its content went out
with its envelope, a session that ends leaves it unknown; where it waited, it is sent again.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

import pytest

from amail.testing import OK, Bytes, Close, Drip, Early, Hang, Partial, Reset, Say
from tests.messages import tokened
from tests.smtp.modes import DEPTH, Mode, in_every_mode
from tests.smtp.outcomes import accepted, assert_dropped, assert_kept, said, send, talking_to
from tests.smtp.test_following import outcomes

if t.TYPE_CHECKING:
    from amail.testing import Script, Stage
    from tests.musts import Musts

SOON = 0.15
WAITS = {"command_timeout": SOON, "final_timeout": SOON}

CLOSING = "421 4.3.2 closing"
GARBAGE = Bytes(b"2x0 what?\r\n")


@dataclass(frozen=True)
class Fault:
    """What a server does once, and what the message comes to that it does it to.

    ``outcome`` where the content waits for the envelope's replies, ``at_once`` where it does not,
    if that differs. ``keeps``: the session is used again.
    """

    row: str
    stage: Stage
    script: Script
    outcome: str
    at_once: str | None = None
    keeps: bool = False

    def outcome_in(self, mode: Mode) -> str:
        if not self.comes_in(mode):
            return "accepted"
        return self.at_once if mode.at_once and self.at_once is not None else self.outcome

    def comes_in(self, mode: Mode) -> bool:
        """Tell whether the stage is ever reached: RSET is, where one flight follows another."""
        if self.stage == "data":
            return mode.says_data
        return mode.at_once or self.stage != "rset"


FAULTS = [
    Fault("f71_rset_refused", "rset", "500 5.5.1 what?", "accepted"),
    Fault("f71_rset_refused_for_now", "rset", "451 4.3.0 later", "accepted"),
    Fault("f71_rset_fin", "rset", Close(), "unknown"),
    Fault("f71_rset_hang", "rset", Hang(), "unknown"),
    Fault("f71_rset_421", "rset", Say(CLOSING, then=Close()), "accepted"),
    Fault("f45_mail_fin", "mail", Close(), "accepted", at_once="unknown"),
    Fault("f45_mail_rst", "mail", Reset(), "accepted", at_once="unknown"),
    Fault("f44_mail_hang", "mail", Hang(), "accepted", at_once="unknown"),
    Fault("f38_mail_421", "mail", CLOSING, "accepted"),
    Fault("f38_mail_421_fin", "mail", Say(CLOSING, then=Close()), "accepted"),
    Fault("f39_mail_451", "mail", "451 4.3.0 later", "rejected", keeps=True),
    Fault("f40_mail_550", "mail", "550 5.7.1 not you", "rejected", keeps=True),
    Fault("f41_mail_552", "mail", "552 5.3.4 too large", "rejected", keeps=True),
    Fault("f42_mail_530", "mail", "530 5.7.0 who are you?", "accepted"),
    Fault("f43_mail_503", "mail", "503 5.5.1 not now", "accepted"),
    Fault("f47_mail_garbage", "mail", GARBAGE, "accepted", at_once="unknown"),
    Fault("f49_mail_354", "mail", "354 go", "accepted", at_once="unknown"),
    Fault("f50_rcpt_550", "rcpt", "550 5.1.1 who?", "rejected", keeps=True),
    Fault("f51_rcpt_450", "rcpt", "450 4.2.1 later", "rejected", keeps=True),
    Fault("f54_rcpt_452", "rcpt", "452 4.5.3 too many", "rejected", keeps=True),
    Fault("f55_rcpt_251", "rcpt", "251 2.1.5 forwarded", "accepted", keeps=True),
    Fault("f56_rcpt_421", "rcpt", CLOSING, "accepted"),
    Fault("f57_rcpt_hang", "rcpt", Hang(), "accepted", at_once="unknown"),
    Fault("f57_rcpt_fin", "rcpt", Close(), "accepted", at_once="unknown"),
    Fault("f58_data_554", "data", "554 5.6.0 no", "rejected", keeps=True),
    Fault("f59_data_fin", "data", Close(), "accepted"),
    Fault("f60_body_early", "body", Early("552 5.3.4 no", after=50), "rejected", keeps=True),
    Fault("f61_body_fin", "body", Close(after=50), "unknown"),
    Fault("f61_body_rst", "body", Reset(after=50), "unknown"),
    Fault("f64_final_hang", "final", Hang(), "unknown"),
    Fault("f65_final_fin", "final", Close(), "unknown"),
    Fault("f65_final_rst", "final", Reset(), "unknown"),
    Fault("f65_final_partial", "final", Partial("25"), "unknown"),
    Fault("f47_final_garbage", "final", GARBAGE, "unknown"),
    Fault("f47_final_354", "final", "354 go", "unknown"),
    Fault("f66_final_451", "final", "451 4.3.0 later", "rejected", keeps=True),
    Fault("f66_final_421", "final", CLOSING, "rejected"),
    Fault("f67_final_554", "final", "554 5.7.1 spam", "rejected", keeps=True),
    Fault("f69_final_drip", "final", Drip("250 2.0.0 ok", 0.001), "accepted", keeps=True),
    Fault("f70_final_250_421", "final", Bytes(b"250 2.0.0 ok\r\n421 4.3.2 bye\r\n"), "accepted"),
]

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=[fault.row for fault in FAULTS])


@in_every_mode
@each_fault
async def test_what_a_server_does_to_a_message_comes_to_what_is_true_in_every_mode(
    musts: Musts, fault: Fault, mode: Mode
) -> None:
    server = mode.server()
    async with talking_to(server, musts, **WAITS, **mode.settings) as mailer:
        accepted(await send(musts, mailer))
        server.change({fault.stage: [OK] * _times(fault, before=1) + [fault.script, OK]})
        connections = server.connections
        result = await send(musts, mailer)
        assert getattr(result, "outcome", None) == fault.outcome_in(mode), repr(result)
        if not fault.comes_in(mode) or fault.keeps:
            await assert_kept(musts, server, mailer)
        elif server.connections > connections:
            await assert_kept(musts, server, mailer)  # it was sent again, over a fresh one
        else:
            server.release()
            await assert_dropped(musts, server, mailer)


def _times(fault: Fault, *, before: int) -> int:
    """How often a stage was reached by that many messages."""
    return before - (fault.stage == "rset")


COUNT, AT = 12, 3


@in_every_mode
@each_fault
async def test_in_send_many_the_others_are_accepted_or_were_in_flight_with_it(
    musts: Musts, fault: Fault, mode: Mode
) -> None:
    server = mode.server(**{fault.stage: {_times(fault, before=AT + 1): fault.script}})
    async with talking_to(server, musts, max_connections=1, **WAITS, **mode.settings) as mailer:
        results = await outcomes(musts, mailer, [tokened(musts.token()) for _ in range(COUNT)])
        server.release()
        assert results[:AT] == ["accepted"] * AT
        assert results[AT] == fault.outcome_in(mode)
        behind = results[AT + 1 :]
        assert set(behind) <= {"accepted", "unknown"}
        dies = fault.comes_in(mode) and not fault.keeps
        assert behind.count("unknown") <= (mode.depth - 1 if dies else 0)
        assert mailer.stats().leased == 0
        assert len(set(server.messages)) == len(server.messages)


@in_every_mode
async def test_every_mode_is_what_its_name_says(musts: Musts, mode: Mode) -> None:
    server = mode.server()
    async with talking_to(server, musts, max_connections=1, **mode.settings) as mailer:
        messages = [tokened(musts.token()) for _ in range(2 * DEPTH)]
        assert await outcomes(musts, mailer, messages) == ["accepted"] * len(messages)
        assert ("DATA" in said(server)) == mode.says_data
        assert ("BDAT" in said(server)) != mode.says_data
        assert ("RSET" in said(server)) == mode.at_once
