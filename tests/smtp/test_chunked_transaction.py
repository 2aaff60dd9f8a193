"""One message in one write (RFC 3030): every reply decides, and none is believed against another.

``verdict`` says once more, from what the server said and nothing else, what a message came to; all
that a server can say is gone through.
"""

from __future__ import annotations

import itertools
import typing as t
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.envelope import Envelope
from amail.errors import (
    ConnectionLost,
    DeliveryUnknown,
    MessageRejected,
    NotSent,
    ProtocolError,
    RecipientsRejected,
    Rejected,
    SenderRejected,
    SendError,
    SendTimeout,
    ServerBusy,
)
from amail.mime import Content
from amail.receipt import Receipt
from amail.smtp.extensions import Extensions
from amail.smtp.transaction import MAX_FLIGHT, MAX_GROUP, Transaction
from tests.strategies import EXAMPLES

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ADA, BOB, CARL = "ada@example.com", "bob@example.org", "carl@example.org"
BOTH = Extensions(pipelining=True, chunking=True)
CHUNKING = Extensions(chunking=True)
OCTETS = b"Subject: x\r\n\r\n.a dot\r\n"

End = t.Literal["lost", "lost within a reply", "timed out", "malformed"]
ENDS: tuple[End, ...] = t.get_args(End)
CODES = (250, 354, 421, 450, 503, 550)


def content(octets: bytes = OCTETS) -> Content:
    return Content([octets], message_id="<1@example.com>")


def begun(
    *paths: str,
    extensions: Extensions = BOTH,
    reset_first: bool = False,
    octets: bytes = OCTETS,
    **envelope: t.Any,
) -> tuple[Transaction, bytes]:
    """A transaction, and the commands that are written first."""
    transaction = Transaction(
        Envelope(ADA, paths or (BOB,), **envelope),
        content(octets),
        extensions,
        pipelined=True,
        chunked=True,
        reset_first=reset_first,
        relay="mx.example.org:25",
    )
    return transaction, transaction.begin()


def in_flight(*paths: str, **options: t.Any) -> Transaction:
    """A transaction of which everything is written and nothing answered."""
    transaction, _ = begun(*paths, **options)
    assert transaction.fits_one_flight
    transaction.content_written()
    return transaction


def answer(transaction: Transaction, *replies: str) -> bytes:
    octets = b""
    for reply in replies:
        assert transaction.outcome is None
        octets = transaction.receive(int(reply[:3]), f"{reply}\r\n".encode())
    return octets


def end(transaction: Transaction, how: End) -> None:
    match how:
        case "lost":
            transaction.lost()
        case "lost within a reply":
            transaction.lost(b"250-ok\r\n25")
        case "timed out":
            transaction.timed_out()
        case "malformed":
            transaction.malformed("octets without a code")


def failed(transaction: Transaction) -> SendError:
    assert isinstance(transaction.outcome, SendError)
    return transaction.outcome


# All that a server can say


@dataclass(frozen=True)
class Said:
    """The codes that came, in their order, and what came instead of the next one."""

    recipients: int
    reset_first: bool
    codes: tuple[int, ...]
    end: End | None

    @property
    def _at(self) -> int:
        return int(self.reset_first)

    @property
    def mail(self) -> int | None:
        return self.codes[self._at] if len(self.codes) > self._at else None

    @property
    def rcpts(self) -> tuple[int, ...]:
        return self.codes[self._at + 1 : self._at + 1 + self.recipients]

    @property
    def final(self) -> int | None:
        return self.codes[-1] if len(self.codes) == self._at + 2 + self.recipients else None

    @property
    def to_commands(self) -> tuple[int, ...]:
        return self.codes if self.final is None else self.codes[:-1]


def verdict(said: Said) -> str:
    """What became of the message, as far as anybody can tell who read all replies."""
    if has_3yz(said):
        return "unknown"  # the replies are to something else
    if said.final is None:
        is_believed = said.end != "malformed" and is_refused(said) and not goes_on(said)
        return how_refused(said) if is_believed else "unknown"
    if said.final < 300:
        return "unknown" if is_refused(said) else "accepted"
    if goes_on(said):
        return "unknown"
    if is_refused(said):
        return how_refused(said)
    return "not_sent" if said.final == 503 else "rejected"


def has_3yz(said: Said) -> bool:
    return any(300 <= code < 400 for code in said.codes[said.reset_first :])


def is_refused(said: Said) -> bool:
    """The server said no to the sender, or to every recipient, or that it closes."""
    if said.mail is not None and said.mail >= 400:
        return True
    to_all = len(said.rcpts) == said.recipients and all(code >= 400 for code in said.rcpts)
    return to_all or 421 in said.to_commands


def goes_on(said: Said) -> bool:
    """The server took something after it had refused the sender or had said that it closes."""
    no = [
        place
        for place, code in enumerate(said.to_commands)
        if code == 421 or (place == said.reset_first and code >= 400)
    ]
    return bool(no) and any(code < 300 for code in said.to_commands[no[0] :])


def how_refused(said: Said) -> str:
    """A 421 and a sequence of commands that is found bad concern the session, not the message."""
    for place, code in enumerate(said.to_commands):
        refused = said.to_commands[said.reset_first + 1 : place]
        is_over = len(refused) == said.recipients and all(each >= 400 for each in refused)
        if code == 421 and not is_over:
            return "not_sent"
        if place == said.reset_first and code >= 400:
            return "not_sent" if code == 503 else "rejected"
    return "rejected"


def play(said: Said) -> Transaction:
    """Have a server say it; the replies that nobody waits for any more are not said."""
    paths = tuple(f"r{number}@example.org" for number in range(said.recipients))
    transaction = in_flight(*paths, reset_first=said.reset_first)
    for code in said.codes:
        if transaction.outcome is None:
            assert transaction.receive(code, b"%d text\r\n" % code) == b""
    if transaction.outcome is None:
        assert said.end is not None, "nobody has anything to do"
        end(transaction, said.end)
    return transaction


def everything(recipients: int, *, reset_first: bool) -> Iterator[Said]:
    replies = reset_first + 1 + recipients + 1
    for count in range(replies + 1):
        for codes in itertools.product(CODES, repeat=count):
            for how in ENDS if count < replies else (None,):
                yield Said(recipients, reset_first, codes, how)


@pytest.mark.parametrize("reset_first", [True, False], ids=["rset_first", "first_of_its_session"])
@pytest.mark.parametrize("recipients", [1, 2])
def test_whatever_the_server_says_to_one_flight_there_is_one_outcome_and_it_is_true(
    recipients: int, reset_first: bool
) -> None:
    wrong = []
    for said in everything(recipients, reset_first=reset_first):
        transaction = play(said)
        outcome = getattr(transaction.outcome, "outcome", None)
        if outcome != verdict(said):
            wrong.append((said, outcome, verdict(said)))
        _check_session(said, transaction)
    assert not wrong, f"{len(wrong)}, among them {wrong[:5]}"


def _check_session(said: Said, transaction: Transaction) -> None:
    """Only who heard every reply, and none against another, keeps the session."""
    if isinstance(transaction.outcome, DeliveryUnknown):
        assert not transaction.in_step, said
        assert not transaction.outcome.refused or not goes_on(said) or has_3yz(said), said
    if transaction.in_step:
        assert said.final is not None, said
        assert 421 not in said.codes, said
        assert not said.reset_first or said.codes[0] < 300, said
    if isinstance(transaction.outcome, Receipt):
        codes = dict(zip(transaction.outcome.envelope.forward_paths, said.rcpts, strict=True))
        refused = {path: code for path, code in codes.items() if code >= 400}
        assert {p: reply.code for p, reply in transaction.outcome.refused.items()} == refused
        assert {*transaction.outcome.accepted} == {*codes} - {*refused}


_CODE = st.one_of(st.sampled_from([250, 250, 250, *CODES]), st.integers(200, 599))


@st.composite
def _sayings(draw: st.DrawFn) -> Said:
    recipients, reset_first = draw(st.integers(1, 8)), draw(st.booleans())
    whole = reset_first + recipients + 2
    codes = tuple(draw(st.lists(_CODE, min_size=0, max_size=whole)))
    return Said(
        recipients, reset_first, codes, None if len(codes) == whole else draw(st.sampled_from(ENDS))
    )


sayings = _sayings()


@EXAMPLES
@given(sayings)
def test_accepted_is_what_mail_a_recipient_and_the_content_were_taken_for(said: Said) -> None:
    transaction = play(said)
    taken = [code for code in said.rcpts if code < 300]
    if isinstance(transaction.outcome, Receipt):
        assert said.mail is not None
        assert said.final is not None
        assert said.mail < 300
        assert said.final < 300
        assert taken
    _check_session(said, transaction)


@EXAMPLES
@given(sayings)
def test_no_is_what_the_server_said_and_did_not_take_back(said: Said) -> None:
    outcome = play(said).outcome
    if isinstance(outcome, Rejected | NotSent):
        assert max(said.codes) >= 400
        assert not goes_on(said)
        assert said.final >= 400 if said.final is not None else is_refused(said)


# What goes out in one flight


def test_the_commands_of_one_flight_are_one_write_and_the_content_is_counted() -> None:
    transaction, octets = begun(BOB, CARL, reset_first=True)
    assert octets == (
        b"RSET\r\nMAIL FROM:<ada@example.com>\r\n"
        b"RCPT TO:<bob@example.org>\r\nRCPT TO:<carl@example.org>\r\n"
    )
    assert transaction.content_command == b"BDAT %d LAST\r\n" % len(OCTETS)
    assert transaction.is_chunked
    transaction.content_written()
    assert transaction.went_at_once
    assert answer(transaction, "250 ok", "250 ok", "250 ok", "550 5.1.1 who?") == b""
    assert transaction.stage == "final"
    answer(transaction, "250 2.0.0 taken, queued as 4F1A2B")
    receipt = transaction.outcome
    assert isinstance(receipt, Receipt)
    assert (receipt.accepted, [*receipt.refused]) == ((BOB,), [CARL])
    assert receipt.queue_id == "4F1A2B"
    assert (transaction.in_step, transaction.left_open) == (True, False)


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, True),
        ({"octets": b"x" * (MAX_FLIGHT - 2) + b"\r\n"}, True),
        ({"octets": b"x" * (MAX_FLIGHT - 1) + b"\r\n"}, False),
        ({"all_recipients": True}, False),
        ({"extensions": CHUNKING}, False),
        ({"extensions": Extensions(pipelining=True)}, False),
    ],
    ids=["small", "of_64_kib", "larger", "all_recipients", "no_pipelining", "no_chunking"],
)
def test_what_fits_one_flight(options: dict[str, t.Any], fits: bool) -> None:
    transaction, _ = begun(BOB, CARL, **options)
    assert transaction.fits_one_flight == fits


def test_recipients_for_more_than_one_write_wait_for_their_replies() -> None:
    paths = [f"{number:04}{'x' * 50}@example.org" for number in range(MAX_GROUP // 70)]
    assert not begun(*paths)[0].fits_one_flight
    assert begun(*paths[: len(paths) // 2])[0].fits_one_flight


@pytest.mark.parametrize("extensions", [BOTH, CHUNKING], ids=["pipelined", "lock_step"])
def test_without_a_flight_the_content_waits_for_the_replies_to_its_recipients(
    extensions: Extensions,
) -> None:
    transaction, octets = begun(BOB, CARL, extensions=extensions)
    said = octets
    while transaction.stage != "body":
        octets = answer(transaction, *["250 ok"] * octets.count(b"\r\n"))
        said += octets
    assert said.count(b"RCPT") == 2
    assert b"BDAT" not in said, "it goes out with the content, in the driver's write"
    transaction.content_written()
    assert (transaction.stage, transaction.went_at_once) == ("final", False)
    answer(transaction, "250 ok")
    assert isinstance(transaction.outcome, Receipt)


@pytest.mark.parametrize("extensions", [BOTH, CHUNKING], ids=["pipelined", "lock_step"])
@pytest.mark.parametrize("all_needed", [True, False], ids=["all_needed", "some_will_do"])
def test_f52_content_that_waits_is_not_sent_to_nobody_nor_to_some_where_all_are_needed(
    extensions: Extensions, all_needed: bool
) -> None:
    transaction, octets = begun(BOB, CARL, extensions=extensions, all_recipients=all_needed)
    codes = iter(["250 ok", "250 ok" if all_needed else "550 5.1.1 no", "550 5.1.1 who?"])
    while transaction.outcome is None:
        assert transaction.stage != "body", "the content is for nobody"
        octets = answer(transaction, *itertools.islice(codes, octets.count(b"\r\n")))
    error = failed(transaction)
    assert isinstance(error, RecipientsRejected)
    assert [*error.refused] == ([CARL] if all_needed else [BOB, CARL])
    assert (transaction.in_step, transaction.left_open) == (True, True)


# What is said to content that went out for nobody


def flight(*replies: str, paths: Sequence[str] = (BOB,), reset_first: bool = False) -> Transaction:
    """What the server says to one flight."""
    transaction = in_flight(*paths, reset_first=reset_first)
    answer(transaction, *replies)
    return transaction


@pytest.mark.parametrize(
    "last", ["554 5.5.1 no valid recipients", "503 5.5.1 what?", "250 2.0.0 ok"]
)
@pytest.mark.parametrize(
    ("replies", "kind", "stage", "code"),
    [
        (["550 5.7.1 not you", "503 5.5.1 no MAIL"], SenderRejected, "mail", 550),
        (["250 ok", "550 5.1.1 who?"], RecipientsRejected, "rcpt", 550),
        (["250 ok", "450 4.2.1 later"], RecipientsRejected, "rcpt", 450),
        (["421 4.3.2 closing", "421 4.3.2 closing"], ServerBusy, "mail", 421),
        (["250 ok", "421 4.3.2 closing"], ServerBusy, "rcpt", 421),
    ],
)
def test_f40_f50_f56_the_envelope_is_refused_as_it_was_said_unless_the_content_is_taken(
    replies: list[str], kind: type[SendError], stage: str, code: int, last: str
) -> None:
    transaction = flight(*replies, last)
    error = failed(transaction)
    if last.startswith("250"):
        assert type(error) is DeliveryUnknown
        assert error.recipients == (BOB,)
        assert not error.refused
        assert not transaction.in_step
        assert transaction.is_at_odds
        return
    assert type(error) is kind
    assert error.reply is not None
    assert (error.stage, error.reply.code) == (stage, code)
    assert transaction.in_step == (code != 421)


@pytest.mark.parametrize("how", ["lost", "timed out"])
@pytest.mark.parametrize(
    "replies",
    [
        ["503 5.5.1 nested MAIL", "250 2.1.5 ok"],
        ["550 5.7.1 not you", "250 2.1.5 ok"],
        ["421 4.3.2 closing", "250 2.1.5 ok"],
    ],
)
def test_recipients_taken_without_the_sender_are_no_refusal_to_rely_on(
    replies: list[str], how: End
) -> None:
    """Exim 4.96 takes RCPT and BDAT under the sender of an envelope before."""
    transaction = flight(*replies)
    end(transaction, how)
    assert type(failed(transaction)) is DeliveryUnknown
    assert not transaction.in_step


def test_a_refused_rset_says_nothing_about_the_message_and_ends_the_session() -> None:
    transaction = flight("500 what", "250 ok", "250 ok", "250 taken", reset_first=True)
    assert isinstance(transaction.outcome, Receipt)
    assert not transaction.in_step


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_bdat_that_is_offered_and_not_known_is_not_sent_and_remembered(code: int) -> None:
    transaction = flight("250 ok", "250 ok", f"{code} 5.5.1 what is BDAT?")
    error = failed(transaction)
    assert type(error) is ProtocolError
    assert (error.outcome, error.stage, error.retryable) == ("not_sent", "final", True)
    assert transaction.is_at_odds
    assert not transaction.in_step


def test_f46_a_reply_about_an_address_is_no_acceptance_of_the_content() -> None:
    """A reply too many came before: what counts as the last one is to the last recipient."""
    transaction = flight("250 2.1.0 ok", "250 2.1.0 ok", "250 2.1.5 ok")
    assert type(failed(transaction)) is DeliveryUnknown
    assert transaction.is_at_odds
    assert not transaction.in_step


@pytest.mark.parametrize(
    ("reply", "kind"), [("554 5.7.1 spam", MessageRejected), ("421 4.3.2 no", MessageRejected)]
)
def test_f66_f67_content_that_is_refused_is_rejected(reply: str, kind: type[Rejected]) -> None:
    transaction = flight("250 ok", "250 ok", reply)
    assert type(failed(transaction)) is kind
    assert transaction.in_step == (not reply.startswith("421"))
    assert not transaction.left_open


# What waits may be told before its content is written


@pytest.mark.parametrize(
    ("how", "kind"),
    [("lost", ConnectionLost), ("timed out", SendTimeout), ("malformed", ProtocolError)],
)
@pytest.mark.parametrize("replies", [[], ["250 ok"], ["250 ok", "250 ok"]])
def test_f44_f61_an_end_before_the_last_octet_is_not_sent(
    replies: list[str], how: End, kind: type[NotSent]
) -> None:
    transaction, _ = begun()
    answer(transaction, *replies)
    end(transaction, how)
    assert type(failed(transaction)) is kind
    assert failed(transaction).retryable
    assert not transaction.in_step


@pytest.mark.parametrize(
    ("reply", "kind", "outcome"),
    [
        ("552 5.3.4 too large", Rejected, "rejected"),
        ("421 4.3.2 closing", ServerBusy, "not_sent"),
        ("250 2.0.0 ok", ProtocolError, "not_sent"),
    ],
)
def test_f60_a_reply_within_the_content_ends_it(
    reply: str, kind: type[SendError], outcome: str
) -> None:
    transaction, _ = begun(octets=b"x" * MAX_FLIGHT + b"\r\n")
    answer(transaction, "250 ok", "250 ok")
    assert transaction.stage == "body"
    answer(transaction, reply)
    assert isinstance(failed(transaction), kind)
    assert failed(transaction).outcome == outcome
    assert not transaction.in_step
    assert not transaction.last_octet_written
