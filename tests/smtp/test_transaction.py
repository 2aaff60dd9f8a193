"""One message over a session: whatever the server answers, one outcome, and one that is true."""

from __future__ import annotations

import typing as t
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amail.envelope import Envelope
from amail.errors import (
    AuthenticationError,
    ConnectionLost,
    DeliveryUnknown,
    InvalidAttachment,
    MailError,
    MessageError,
    MessageRejected,
    MessageTooLarge,
    NotSent,
    ProtocolError,
    RecipientsRejected,
    Rejected,
    SenderRejected,
    SendError,
    SendTimeout,
    ServerBusy,
    UTF8Required,
)
from amail.mime import Content
from amail.receipt import Receipt, Reply
from amail.smtp.extensions import Extensions
from amail.smtp.transaction import MAX_GROUP, Transaction
from tests.strategies import EXAMPLES

if t.TYPE_CHECKING:
    from collections.abc import Iterable

    from amail.errors import Stage

MESSAGE_ID = "<1@example.com>"
ALL = Extensions(pipelining=True, smtputf8=True, eightbitmime=True, size_offered=True)
NONE = Extensions()
ADA, BOB, CARL = "ada@example.com", "bob@example.org", "carl@example.org"


def content(octets: bytes = b"Subject: x\r\n\r\nHi\r\n", **needs: bool) -> Content:
    return Content([octets], message_id=MESSAGE_ID, **needs)


def begun(
    *paths: str,
    extensions: Extensions = NONE,
    pipelined: bool = True,
    reset_first: bool = False,
    **envelope: t.Any,
) -> Transaction:
    """A transaction whose first commands were written."""
    transaction = Transaction(
        Envelope(ADA, paths or (BOB,), **envelope),
        content(),
        extensions,
        pipelined=pipelined,
        reset_first=reset_first,
        relay="mx.example.org:25",
    )
    transaction.begin()
    return transaction


def answer(transaction: Transaction, *replies: str) -> bytes:
    """Hand over complete replies, each "250 text"; what is due after the last."""
    octets = b""
    for reply in replies:
        assert transaction.outcome is None
        octets = transaction.receive(int(reply[:3]), f"{reply}\r\n".encode())
    return octets


def failed(transaction: Transaction) -> SendError:
    assert isinstance(transaction.outcome, SendError)
    return transaction.outcome


def at_the_end(*paths: str, **options: t.Any) -> Transaction:
    """A transaction whose content was written."""
    transaction = begun(*paths, **options)
    answer(transaction, "250 ok", *["250 ok"] * len(paths or (BOB,)), "354 go")
    transaction.content_written()
    return transaction


# Any server

CONTENT = b"content"
_ENDS = ("lost", "lost within a reply", "timed out", "malformed")
_BODIES = ("written", "written", "written", "failed", *_ENDS)


def end(transaction: Transaction, how: str) -> None:
    match how:
        case "lost":
            transaction.lost()
        case "lost within a reply":
            transaction.lost(b"250-ok\r\n25")
        case "timed out":
            transaction.timed_out()
        case "malformed":
            transaction.malformed("octets without a code")
        case "failed":
            transaction.content_failed(InvalidAttachment("a file has changed"))
        case "written":
            transaction.content_written()


@dataclass(frozen=True)
class Scenario:
    """What a server answers to each command, and when it stops answering."""

    paths: tuple[str, ...]
    pipelined: bool
    offered: bool
    all_recipients: bool
    reset_first: bool
    codes: dict[str, int]
    rcpt_codes: tuple[int, ...]
    body: str | int
    final: str | int
    answers: int
    end: str

    def code(self, command: bytes) -> int:
        if command == CONTENT:
            assert isinstance(self.final, int)
            return self.final
        verb = command[:4].decode().strip()
        if verb != "RCPT":
            return self.codes[verb]
        path = command.removeprefix(b"RCPT TO:<").partition(b">")[0].decode()
        return self.rcpt_codes[self.paths.index(path)]


@dataclass
class Played:
    """What was written and answered, and the transaction as it ended."""

    transaction: Transaction
    groups: list[list[bytes]]
    waiting: deque[bytes]
    answered: list[tuple[bytes, int]] = field(default_factory=list)
    was_in_body: bool = False

    @property
    def written(self) -> list[bytes]:
        return [command for group in self.groups for command in group]

    def code_of(self, start: bytes) -> int | None:
        codes = [code for command, code in self.answered if command.startswith(start)]
        return codes[0] if codes else None


def play(scenario: Scenario) -> Played:
    """Run a scenario to its outcome. Fails where nobody would have anything to do any more."""
    transaction = Transaction(
        Envelope(ADA, scenario.paths, all_recipients=scenario.all_recipients),
        content(),
        Extensions(pipelining=scenario.offered),
        pipelined=scenario.pipelined,
        reset_first=scenario.reset_first,
    )
    first = transaction.begin().splitlines(keepends=True)
    played = Played(transaction, [first], deque(first))
    left = scenario.answers
    while transaction.outcome is None:
        if transaction.stage == "body":
            played.was_in_body = True
            if isinstance(scenario.body, int):
                assert transaction.receive(scenario.body, b"%d now\r\n" % scenario.body) == b""
                assert transaction.outcome is not None, "a reply within the content ends it"
            else:
                end(transaction, scenario.body)
        elif left == 0 or (transaction.stage == "final" and isinstance(scenario.final, str)):
            how = scenario.final if isinstance(scenario.final, str) else scenario.end
            end(transaction, how)
            assert transaction.outcome is not None, f"{how} ends it"
        else:
            left -= 1
            assert played.waiting or transaction.stage == "final", "nobody has anything to do"
            command = played.waiting.popleft() if played.waiting else CONTENT
            code = scenario.code(command)
            octets = transaction.receive(code, b"%d text\r\n" % code)
            played.answered.append((command, code))
            if octets:
                assert not played.waiting, "written before the replies to the group before came"
                group = octets.splitlines(keepends=True)
                played.groups.append(group)
                played.waiting.extend(group)
    return played


_USUAL = {"RSET": 250, "MAIL": 250, "DATA": 354, ".": 554}
_ANY = st.one_of(
    st.sampled_from([250, 251, 354, 421, 450, 452, 503, 530, 550, 552]), st.integers(200, 599)
)
_TAKEN, _REFUSED = st.sampled_from([250, 251]), st.sampled_from([450, 452, 550, 553])
# A strategy is expensive to make: once here, and not again for each scenario.
_LONGER, _COUNT = st.sampled_from(["", "", "x" * 20_000]), st.integers(1, 8)
_EACH = st.sampled_from([_TAKEN, _REFUSED, st.one_of(_TAKEN, _REFUSED), _ANY])
_ODD = st.sets(st.sampled_from([*_USUAL]), max_size=2)
_BODY = st.one_of(st.sampled_from(_BODIES), st.integers(200, 599))
_END = st.sampled_from(_ENDS)
_FINAL = st.one_of(_TAKEN, _ANY, _END)
_ANSWERS = st.one_of(st.just(100), st.just(100), st.integers(0, 14))


@st.composite
def _scenarios(draw: st.DrawFn) -> Scenario:
    longer, count, each, odd = draw(_LONGER), draw(_COUNT), draw(_EACH), draw(_ODD)
    return Scenario(
        paths=tuple(f"r{number}{longer}@example.org" for number in range(count)),
        pipelined=draw(st.booleans()),
        offered=draw(st.booleans()),
        all_recipients=draw(st.booleans()),
        reset_first=draw(st.booleans()),
        codes={verb: draw(_ANY) if verb in odd else usual for verb, usual in _USUAL.items()},
        rcpt_codes=tuple(draw(each) for _ in range(count)),
        body=draw(_BODY),
        final=draw(_FINAL),
        answers=draw(_ANSWERS),
        end=draw(_END),
    )


scenarios = _scenarios()


@EXAMPLES
@given(scenarios)
def test_what_is_written_is_a_beginning_of_the_commands_in_their_order(scenario: Scenario) -> None:
    written = play(scenario).written
    commands = [b"RSET\r\n"] * scenario.reset_first
    commands.append(f"MAIL FROM:<{ADA}>\r\n".encode())
    commands += [f"RCPT TO:<{path}>\r\n".encode() for path in scenario.paths]
    commands += [b"DATA\r\n", b".\r\n"]
    assert written == commands[: len(written)]


@EXAMPLES
@given(scenarios)
def test_groups_are_single_commands_or_small_and_data_is_the_last_of_its_group(
    scenario: Scenario,
) -> None:
    for group in play(scenario).groups:
        assert b"DATA\r\n" not in group[:-1]
        assert len(group) == 1 or sum(map(len, group)) <= MAX_GROUP
        assert len(group) == 1 or (scenario.pipelined and scenario.offered)


@EXAMPLES
@given(scenarios)
def test_the_outcome_agrees_with_what_was_written_and_answered(scenario: Scenario) -> None:
    played = play(scenario)
    transaction, final = played.transaction, played.code_of(CONTENT)
    match transaction.outcome:
        case Receipt() as receipt:
            assert transaction.last_octet_written
            assert final is not None
            assert 200 <= final < 300
            codes = dict(zip(scenario.paths, scenario.rcpt_codes, strict=True))
            assert receipt.accepted == tuple(p for p in scenario.paths if codes[p] < 300)
            assert receipt.accepted
            assert {p: r.code for p, r in receipt.refused.items()} == {
                path: code for path, code in codes.items() if code >= 400
            }
        case Rejected() as error:
            assert error.reply is not None
            assert error.reply.code >= 400
            assert not transaction.last_octet_written or final == error.reply.code
        case DeliveryUnknown():
            assert transaction.last_octet_written
            assert final is None or 300 <= final < 400
        case error:
            assert isinstance(error, NotSent | InvalidAttachment)
            assert not transaction.last_octet_written
            assert not isinstance(error, InvalidAttachment) or scenario.body == "failed"


@EXAMPLES
@given(scenarios)
def test_only_a_session_in_step_may_go_on_and_an_envelope_left_open_is_known(
    scenario: Scenario,
) -> None:
    played = play(scenario)
    transaction = played.transaction
    if not transaction.in_step:
        assert isinstance(transaction.outcome, MailError)
        return
    assert not played.waiting, "replies are still to come"
    held = scenario.reset_first
    for command, code in played.answered:
        if command.startswith((b"RSET", b".", CONTENT)):
            held = False
        elif command.startswith(b"MAIL") and 200 <= code < 300:
            held = True
    assert transaction.left_open == held
    assert 421 not in [code for _, code in played.answered]


@EXAMPLES
@given(scenarios)
def test_nobody_gets_content_that_was_refused_to_all_of_them_or_to_one_where_all_are_needed(
    scenario: Scenario,
) -> None:
    played = play(scenario)
    refused = [
        code >= 400 for command, code in played.answered if command.startswith((b"RCPT", b"MAIL"))
    ]
    mail = played.code_of(b"MAIL")
    nobody = all(refused[1:]) or (mail is not None and mail >= 400)
    if scenario.all_recipients and any(refused):
        assert b"DATA\r\n" not in played.written
    if nobody:
        assert not played.was_in_body
        assert not isinstance(played.transaction.outcome, Receipt)
    if b".\r\n" in played.written:
        assert nobody
        assert played.code_of(b"DATA") == 354


# Groups


def test_without_pipelining_each_command_waits_for_the_reply_to_the_one_before() -> None:
    for extensions, pipelined in ((NONE, True), (Extensions(pipelining=True), False)):
        transaction = Transaction(
            Envelope(ADA, (BOB, CARL)), content(), extensions, pipelined=pipelined
        )
        assert transaction.begin() == b"MAIL FROM:<ada@example.com>\r\n"
        assert answer(transaction, "250 ok") == b"RCPT TO:<bob@example.org>\r\n"
        assert answer(transaction, "250 ok") == b"RCPT TO:<carl@example.org>\r\n"
        assert answer(transaction, "250 ok") == b"DATA\r\n"
        assert answer(transaction, "354 go") == b""
        assert transaction.stage == "body"


def test_with_pipelining_everything_up_to_data_is_one_write() -> None:
    transaction = Transaction(
        Envelope(ADA, (BOB,)), content(), ALL, pipelined=True, reset_first=True
    )
    assert transaction.begin() == (
        b"RSET\r\nMAIL FROM:<ada@example.com> SIZE=18\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
    )
    assert answer(transaction, "250 ok", "250 ok", "250 ok", "354 go") == b""
    assert transaction.stage == "body"


def test_where_all_recipients_are_needed_data_waits_for_their_replies() -> None:
    envelope = Envelope(ADA, (BOB, CARL), all_recipients=True)
    transaction = Transaction(envelope, content(), ALL, pipelined=True)
    assert transaction.begin().endswith(b"RCPT TO:<carl@example.org>\r\n")
    assert answer(transaction, "250 ok", "250 ok", "250 ok") == b"DATA\r\n"


def test_many_recipients_go_out_in_writes_of_64_kib_at_most() -> None:
    paths = tuple(f"{number:04}{'x' * 100}@example.org" for number in range(2000))
    transaction = Transaction(Envelope(ADA, paths), content(), ALL, pipelined=True)
    octets, sizes, commands = transaction.begin(), [], 0
    while transaction.stage != "body":
        sizes.append(len(octets))
        count = octets.count(b"\r\n")
        commands += count
        last = "354 go" if octets.endswith(b"DATA\r\n") else "250 ok"
        octets = answer(transaction, *["250 ok"] * (count - 1), last)
    assert commands == 2002
    assert max(sizes) <= MAX_GROUP
    assert len(sizes) == -(-sum(sizes) // (MAX_GROUP - 130)), "no write smaller than it must be"


# Accepted


def test_a_message_taken_by_all_is_accepted() -> None:
    transaction = at_the_end(BOB, CARL)
    answer(transaction, "250 2.0.0 ok, queued as 4F1A2B")
    assert transaction.outcome == Receipt(
        message_id=MESSAGE_ID,
        envelope=Envelope(ADA, (BOB, CARL)),
        reply=Reply(250, "2.0.0", "ok, queued as 4F1A2B"),
        accepted=(BOB, CARL),
        refused={},
        relay="mx.example.org:25",
        queue_id="4F1A2B",
    )
    assert transaction.in_step
    assert not transaction.left_open


@pytest.mark.parametrize("code", [251, 252])
def test_f55_a_recipient_that_is_forwarded_or_not_verified_is_accepted(code: int) -> None:
    transaction = begun()
    answer(transaction, "250 ok", f"{code} will do", "354 go")
    transaction.content_written()
    answer(transaction, "250 ok")
    assert isinstance(transaction.outcome, Receipt)
    assert transaction.outcome.accepted == (BOB,)


@pytest.mark.parametrize("refusal", ["550 5.1.1 no such user", "450 4.2.1 greylisted"])
def test_f52_f53_a_partial_refusal_is_accepted_and_says_who_was_refused(refusal: str) -> None:
    transaction = begun(BOB, CARL, extensions=ALL)
    answer(transaction, "250 ok", refusal, "250 ok", "354 go")
    assert transaction.stage == "body"
    transaction.content_written()
    answer(transaction, "250 ok")
    receipt = transaction.outcome
    assert isinstance(receipt, Receipt)
    assert receipt.accepted == (CARL,)
    assert [*receipt.refused] == [BOB]
    assert receipt.refused[BOB].code == int(refusal[:3])
    assert receipt.refused[BOB].transient == refusal.startswith("4")


# Refused before the content


@pytest.mark.parametrize(
    ("reply", "retryable"),
    [("450 4.3.0 later", True), ("451 later", True), ("550 5.7.1 no", False), ("501 what", False)],
)
@pytest.mark.parametrize("extensions", [NONE, ALL])
def test_f39_f40_a_refused_sender(reply: str, retryable: bool, extensions: Extensions) -> None:
    transaction = begun(extensions=extensions)
    answer(transaction, reply)
    if extensions.pipelining:
        answer(transaction, "503 no MAIL", "503 no MAIL")
    error = failed(transaction)
    assert isinstance(error, SenderRejected)
    assert (error.stage, error.retryable) == ("mail", retryable)
    assert error.reply is not None
    assert error.reply.code == int(reply[:3])
    assert (error.message_id, error.recipients) == (MESSAGE_ID, (BOB,))
    assert error.relay == "mx.example.org:25"
    assert f"<{ADA}>" in str(error)
    assert transaction.in_step
    assert not transaction.left_open


def test_f42_530_to_mail_asks_for_credentials() -> None:
    transaction = begun()
    answer(transaction, "530 5.7.0 authentication required")
    error = failed(transaction)
    assert isinstance(error, AuthenticationError)
    assert error.stage == "mail"
    assert not error.retryable
    assert "username and password" in str(error)
    assert not transaction.in_step


def test_f43_503_to_mail_is_a_session_out_of_step() -> None:
    transaction = begun()
    answer(transaction, "503 5.5.1 nested MAIL")
    error = failed(transaction)
    assert isinstance(error, ProtocolError)
    assert error.retryable
    assert error.reply is not None
    assert not transaction.in_step


@pytest.mark.parametrize(
    ("reply", "is_too_large"),
    [
        ("552 too big", True),
        ("552 5.3.4 too big", True),
        ("550 5.2.3 too long for this mailbox", True),
        ("552 5.2.2 mailbox full", False),
        ("452 4.3.4 too big for now", False),
        ("550 5.3.40 no", False),
    ],
)
def test_f41_too_large_says_mail_with_552_or_the_enhanced_code(
    reply: str, is_too_large: bool
) -> None:
    transaction = begun()
    answer(transaction, reply)
    error = failed(transaction)
    assert type(error) is (MessageTooLarge if is_too_large else SenderRejected)
    assert error.outcome == "rejected"
    assert error.retryable == reply.startswith("4")
    assert transaction.in_step


@pytest.mark.parametrize("extensions", [NONE, ALL])
@pytest.mark.parametrize(
    ("replies", "retryable"),
    [
        (("550 5.1.1 no", "550 5.1.2 no"), False),
        (("450 4.2.1 later", "450 4.2.1 later"), True),
        (("550 5.1.1 no", "451 4.3.0 later"), True),
    ],
)
def test_f50_f51_every_recipient_refused(
    replies: tuple[str, str], retryable: bool, extensions: Extensions
) -> None:
    transaction = begun(BOB, CARL, extensions=extensions)
    octets = answer(transaction, "250 ok", *replies)
    if extensions.pipelining:
        octets = answer(transaction, "554 no valid recipients")
    assert octets == b"", "and no DATA"
    error = failed(transaction)
    assert isinstance(error, RecipientsRejected)
    assert {path: reply.code for path, reply in error.refused.items()} == {
        BOB: int(replies[0][:3]),
        CARL: int(replies[1][:3]),
    }
    assert (error.stage, error.retryable) == ("rcpt", retryable)
    assert error.recipients == (BOB, CARL)
    assert transaction.in_step
    assert transaction.left_open, "the server still holds the MAIL"


def test_354_for_nobody_gets_a_lone_dot_and_no_content() -> None:
    transaction = begun(BOB, extensions=ALL)
    assert answer(transaction, "250 ok", "550 5.1.1 no", "354 go") == b".\r\n"
    assert transaction.stage != "body"
    assert transaction.outcome is None, "the reply to the dot is still to come"
    answer(transaction, "554 5.5.1 no valid recipients")
    error = failed(transaction)
    assert isinstance(error, RecipientsRejected)
    assert error.refused[BOB].enhanced == "5.1.1"
    assert transaction.in_step
    assert not transaction.left_open
    assert not transaction.last_octet_written


def test_354_for_recipients_that_were_taken_without_the_sender_gets_no_octet() -> None:
    """Some servers keep the envelope before: the lone dot would be a message to its recipients."""
    transaction = begun(BOB, extensions=ALL)
    assert answer(transaction, "503 5.5.1 nested MAIL", "250 ok", "354 go") == b""
    error = failed(transaction)
    assert error.outcome == "not_sent"
    assert not transaction.in_step


@pytest.mark.parametrize("extensions", [NONE, ALL])
def test_f52_one_refusal_where_all_are_needed_refuses_the_message_before_data(
    extensions: Extensions,
) -> None:
    transaction = begun(BOB, CARL, extensions=extensions, all_recipients=True)
    assert answer(transaction, "250 ok", "250 ok", "550 5.1.1 no") == b""
    error = failed(transaction)
    assert isinstance(error, RecipientsRejected)
    assert [*error.refused] == [CARL]
    assert "1 of 2" in str(error)
    assert error.recipients == (CARL,)
    assert transaction.in_step
    assert transaction.left_open


@pytest.mark.parametrize(
    ("reply", "retryable"), [("451 4.3.0 later", True), ("554 5.7.1 no", False)]
)
def test_f58_data_refused_leaves_the_envelope_open(reply: str, retryable: bool) -> None:
    transaction = begun()
    answer(transaction, "250 ok", "250 ok", reply)
    error = failed(transaction)
    assert isinstance(error, MessageRejected)
    assert (error.stage, error.retryable) == ("data", retryable)
    assert transaction.in_step
    assert transaction.left_open


@pytest.mark.parametrize(
    ("replies", "stage"),
    [
        (["354 go"], "mail"),
        (["250 ok", "354 go"], "rcpt"),
        (["250 ok", "250 ok", "250 ok"], "data"),
        (["250 ok", "250 ok", "350 go"], "data"),
    ],
)
def test_f49_a_reply_that_does_not_belong_there_is_no_smtp(
    replies: list[str], stage: Stage
) -> None:
    transaction = begun()
    answer(transaction, *replies)
    error = failed(transaction)
    assert isinstance(error, ProtocolError)
    assert error.retryable
    assert error.stage in {stage, "data"}
    assert not transaction.in_step


def test_f71_a_refused_rset_says_nothing_about_the_message() -> None:
    transaction = begun(reset_first=True)
    answer(transaction, "500 what")
    error = failed(transaction)
    assert isinstance(error, ProtocolError)
    assert error.retryable
    assert not transaction.in_step
    assert transaction.left_open


def test_rset_goes_first_where_an_envelope_was_left_open() -> None:
    transaction = Transaction(
        Envelope(ADA, (BOB,)), content(), NONE, pipelined=True, reset_first=True
    )
    assert transaction.begin() == b"RSET\r\n"
    assert transaction.left_open
    assert answer(transaction, "250 ok").startswith(b"MAIL FROM:")
    assert not transaction.left_open


@pytest.mark.parametrize(
    ("replies", "stage"),
    [
        ([], "mail"),
        (["250 ok"], "rcpt"),
        (["250 ok", "250 ok"], "data"),
        (["250 ok", "250 ok", "354 go"], "body"),
    ],
)
def test_f38_f56_421_before_the_end_is_a_busy_server_and_nothing_was_sent(
    replies: list[str], stage: Stage
) -> None:
    transaction = begun()
    answer(transaction, *replies, "421 4.3.2 closing")
    error = failed(transaction)
    assert isinstance(error, ServerBusy)
    assert (error.stage, error.retryable, error.outcome) == (stage, True, "not_sent")
    assert error.reply == Reply(421, "4.3.2", "closing")
    assert not transaction.in_step


# In the content and behind it


@pytest.mark.parametrize(
    ("reply", "retryable"), [("554 5.7.1 spam", False), ("451 4.3.0 later", True)]
)
def test_f60_a_refusal_within_the_content_is_final(reply: str, retryable: bool) -> None:
    transaction = begun()
    answer(transaction, "250 ok", "250 ok", "354 go", reply)
    error = failed(transaction)
    assert isinstance(error, MessageRejected)
    assert (error.stage, error.retryable) == ("body", retryable)
    assert not transaction.in_step
    assert not transaction.last_octet_written


def test_f46_an_acceptance_within_the_content_is_not_believed() -> None:
    transaction = begun()
    answer(transaction, "250 ok", "250 ok", "354 go", "250 ok")
    assert isinstance(failed(transaction), ProtocolError)
    assert failed(transaction).outcome == "not_sent"
    assert not transaction.in_step


@pytest.mark.parametrize(
    ("reply", "kind", "retryable"),
    [
        ("451 4.3.0 later", MessageRejected, True),
        ("554 5.7.1 spam", MessageRejected, False),
        ("552 mailbox full, perhaps", MessageRejected, False),
        ("552 5.3.4 too big", MessageTooLarge, False),
        ("552 5.2.2 mailbox full", MessageRejected, False),
        ("421 4.3.2 closing", MessageRejected, True),
    ],
)
def test_f66_f67_a_refusal_of_the_content_is_a_rejection(
    reply: str, kind: type[Rejected], retryable: bool
) -> None:
    transaction = at_the_end()
    answer(transaction, reply)
    error = failed(transaction)
    assert type(error) is kind
    assert (error.stage, error.retryable, error.outcome) == ("final", retryable, "rejected")
    assert transaction.in_step == (not reply.startswith("421"))
    assert not transaction.left_open


def test_f47_a_3yz_to_the_content_leaves_it_unknown() -> None:
    transaction = at_the_end()
    answer(transaction, "354 go on")
    assert isinstance(failed(transaction), DeliveryUnknown)
    assert "354" in str(failed(transaction))
    assert not transaction.in_step


def test_f64_f65_without_a_reply_to_the_content_delivery_is_unknown() -> None:
    for how in _ENDS:
        transaction = at_the_end()
        end(transaction, how)
        error = failed(transaction)
        assert type(error) is DeliveryUnknown
        assert not isinstance(error, TimeoutError)
        assert (error.stage, error.retryable) == ("final", False)
        assert (error.message_id, error.recipients) == (MESSAGE_ID, (BOB,))
        assert "second copy" in str(error)
        assert not transaction.in_step


@pytest.mark.parametrize(
    ("pending", "is_probable"), [(b"250-ok\r\n", True), (b"250", False), (b"550-no\r\n", False)]
)
def test_f65_the_beginning_of_an_acceptance_is_a_hint(pending: bytes, is_probable: bool) -> None:
    transaction = at_the_end()
    transaction.lost(pending)
    assert isinstance(failed(transaction), DeliveryUnknown)
    assert ("probably it was accepted" in str(failed(transaction))) == is_probable


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("lost", ConnectionLost),
        ("lost within a reply", ConnectionLost),
        ("timed out", SendTimeout),
        ("malformed", ProtocolError),
    ],
)
@pytest.mark.parametrize(
    ("replies", "stage"),
    [
        ([], "mail"),
        (["250 ok"], "rcpt"),
        (["250 ok", "250 ok"], "data"),
        (["250 ok", "250 ok", "354 go"], "body"),
    ],
)
def test_f44_f59_f61_an_end_before_the_last_octet_is_not_sent_and_names_its_stage(
    how: str, kind: type[NotSent], replies: list[str], stage: Stage
) -> None:
    transaction = begun()
    answer(transaction, *replies)
    end(transaction, how)
    error = failed(transaction)
    assert type(error) is kind
    assert (error.stage, error.retryable, error.outcome) == (stage, True, "not_sent")
    assert not transaction.in_step


def test_f62b_content_that_cannot_be_read_ends_with_the_reason() -> None:
    transaction = begun()
    answer(transaction, "250 ok", "250 ok", "354 go")
    reason = InvalidAttachment("it has changed")
    transaction.content_failed(reason)
    assert transaction.outcome is reason
    assert not transaction.in_step
    assert not transaction.last_octet_written


# What the server says it can do


def sized(size: int | None) -> Extensions:
    return Extensions(size_offered=True, size=size)


def test_f41_what_is_larger_than_the_server_takes_is_refused_before_mail() -> None:
    with pytest.raises(MessageTooLarge, match="18 octets; the server takes 17") as caught:
        Transaction(Envelope(ADA, (BOB,)), content(), sized(17), pipelined=True)
    assert caught.value.outcome == "rejected"
    assert isinstance(caught.value, MessageError)
    assert (caught.value.stage, caught.value.message_id) == ("mail", MESSAGE_ID)
    assert not caught.value.retryable


@pytest.mark.parametrize("size", [18, None])
def test_size_is_declared_where_it_is_offered(size: int | None) -> None:
    transaction = Transaction(Envelope(ADA, (BOB,)), content(), sized(size), pipelined=True)
    assert transaction.begin() == b"MAIL FROM:<ada@example.com> SIZE=18\r\n"


def mail_of(written: Content, extensions: Extensions, *options: str) -> bytes:
    envelope = Envelope("", (BOB,), mail_options=options)
    return Transaction(envelope, written, extensions, pipelined=False).begin()


def test_mail_has_the_parameters_that_the_content_needs_and_no_other() -> None:
    assert mail_of(content(), NONE) == b"MAIL FROM:<>\r\n"
    utf8 = Extensions(smtputf8=True, eightbitmime=True)
    assert mail_of(content(), utf8) == b"MAIL FROM:<>\r\n"
    assert mail_of(content(needs_8bit=True), utf8) == b"MAIL FROM:<> BODY=8BITMIME\r\n"
    both = content(needs_8bit=True, needs_utf8=True)
    assert mail_of(both, utf8) == b"MAIL FROM:<> BODY=8BITMIME SMTPUTF8\r\n"
    assert mail_of(both, Extensions(smtputf8=True)) == b"MAIL FROM:<> SMTPUTF8\r\n"


def test_options_of_the_envelope_come_last() -> None:
    offered = Extensions(size_offered=True, dsn=True)
    assert mail_of(content(), offered, "RET=HDRS", "ENVID=x") == (
        b"MAIL FROM:<> SIZE=18 RET=HDRS ENVID=x\r\n"
    )
    assert mail_of(content(), NONE, "X-A=1") == b"MAIL FROM:<> X-A=1\r\n"
    envelope = Envelope(ADA, (BOB,), rcpt_options=("NOTIFY=NEVER", "X=1"))
    transaction = Transaction(envelope, content(), Extensions(dsn=True), pipelined=False)
    transaction.begin()
    assert answer(transaction, "250 ok") == b"RCPT TO:<bob@example.org> NOTIFY=NEVER X=1\r\n"


def test_an_address_beyond_ascii_is_written_in_utf8_where_that_is_offered() -> None:
    envelope = Envelope("jörg@münchen.de", ("用户@例子.广告",))
    written = content(needs_utf8=True)
    transaction = Transaction(envelope, written, Extensions(smtputf8=True), pipelined=False)
    assert transaction.begin() == "MAIL FROM:<jörg@münchen.de> SMTPUTF8\r\n".encode()
    assert answer(transaction, "250 ok") == "RCPT TO:<用户@例子.广告>\r\n".encode()
    with pytest.raises(UTF8Required, match="SMTPUTF8") as caught:
        Transaction(envelope, written, Extensions(eightbitmime=True), pipelined=False)
    assert (caught.value.outcome, caught.value.stage) == ("not_sent", "mail")
    assert isinstance(caught.value, MessageError)


def test_8_bit_content_is_refused_where_8bitmime_is_not_offered() -> None:
    written = content("Hé\r\n".encode(), needs_8bit=True)
    with pytest.raises(NotSent, match="8BITMIME") as caught:
        Transaction(Envelope(ADA, (BOB,)), written, sized(None), pipelined=True)
    assert caught.value.message_id == MESSAGE_ID
    assert not caught.value.retryable


# What a reply says is shown and nothing more


@settings(max_examples=50)
@given(st.text(max_size=600))
def test_a_reply_of_any_text_makes_an_error_of_one_printable_line(text: str) -> None:
    transaction = begun()
    octets = text.replace("\n", " ").encode("utf-8", "replace")
    transaction.receive(550, b"550 " + octets + b"\r\n")
    shown = str(failed(transaction))
    assert shown.isprintable()
    assert len(shown) < 6000


def outcomes(transactions: Iterable[Transaction]) -> set[str]:
    return {str(getattr(each.outcome, "outcome", None)) for each in transactions}


def test_the_four_outcomes_have_their_words() -> None:
    accepted, rejected, not_sent, unknown = at_the_end(), begun(), begun(), at_the_end()
    answer(accepted, "250 ok")
    answer(rejected, "550 no")
    not_sent.lost()
    unknown.lost()
    assert outcomes([accepted]) == {"accepted"}
    assert outcomes([rejected]) == {"rejected"}
    assert outcomes([not_sent]) == {"not_sent"}
    assert outcomes([unknown]) == {"unknown"}
