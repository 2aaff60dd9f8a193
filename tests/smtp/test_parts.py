"""A message in several transactions: each recipient ends in exactly one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import Envelope, Receipt, Reply
from amail.errors import DeliveryUnknown, MessageRejected, RecipientsRejected, SendTimeout
from amail.smtp.parts import Parts, is_due_later

OK = Reply(250, "2.0.0", "queued")
NO = Reply(550, "5.1.1", "no such user")
TOO_MANY = Reply(452, "4.5.3", "too many recipients")

RECIPIENT = st.sampled_from(["taken", "refused", "too many"])
PART = st.tuples(
    st.lists(RECIPIENT, min_size=20, max_size=20),
    st.sampled_from(["accepted"] * 4 + ["rejected", "not sent", "unknown"]),
)


def envelope_of(count: int) -> Envelope:
    return Envelope("ada@example.com", tuple(f"r{number}@example.org" for number in range(count)))


def receipt_for(envelope: Envelope, fates: list[str]) -> Receipt:
    """A server takes the first, and of the others whom it will."""
    replies = {"refused": NO, "too many": TOO_MANY}
    by_path = dict(zip(envelope.forward_paths, ["taken", *fates], strict=False))
    refused = {path: replies[fate] for path, fate in by_path.items() if fate != "taken"}
    taken = tuple(path for path in envelope.forward_paths if path not in refused)
    return Receipt("<id@x>", envelope, OK, taken, refused)


@given(st.integers(1, 20), st.lists(PART, min_size=1, max_size=20))
def test_f54_each_recipient_ends_in_exactly_one_of_accepted_refused_and_unknown(
    count: int, script: list[tuple[list[str], str]]
) -> None:
    whole = envelope_of(count)
    (fates, _), *later = script
    parts = Parts(whole, receipt_for(whole, fates))
    asked = list(later)
    accepted: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    rounds = 0
    try:
        while (part := parts.next()) is not None:
            rounds += 1
            fates, fate = asked.pop(0) if asked else (["taken"] * 20, "accepted")
            if fate == "accepted":
                parts.took(receipt_for(part, fates))
            elif fate == "rejected":
                parts.failed(part, MessageRejected("no", reply=NO))
            elif fate == "not sent":
                parts.failed(part, SendTimeout("late"))
            else:
                parts.failed(part, DeliveryUnknown("?", recipients=part.forward_paths))
    except DeliveryUnknown as error:
        accepted, refused, unknown = error.accepted, dict(error.refused), error.recipients
    else:
        receipt = parts.receipt()
        accepted, refused = receipt.accepted, dict(receipt.refused)
        assert receipt.transactions == rounds + 1
        assert receipt.envelope == whole
        assert not any(map(is_due_later, refused.values()))
    assert sorted([*accepted, *refused, *unknown]) == sorted(whole.forward_paths)


def test_f54_a_next_transaction_asks_for_as_many_as_the_last_one_took() -> None:
    whole = envelope_of(7)
    parts = Parts(whole, receipt_for(whole, ["taken", "taken", *["too many"] * 4]))
    first = parts.next()
    assert first is not None
    assert first.forward_paths == whole.forward_paths[3:6]
    parts.took(receipt_for(first, ["taken", "taken"]))
    second = parts.next()
    assert second is not None
    assert second.forward_paths == whole.forward_paths[6:]


def test_f54_a_later_part_rejected_keeps_the_servers_replies_for_its_recipients() -> None:
    whole = envelope_of(3)
    parts = Parts(whole, receipt_for(whole, ["too many", "too many"]))
    for path, reply in zip(whole.forward_paths[1:], (NO, TOO_MANY), strict=True):
        part = parts.next()
        assert part is not None
        assert part.forward_paths == (path,)
        parts.failed(part, RecipientsRejected("no", refused={path: reply}, reply=reply))
    assert parts.receipt().refused == dict(
        zip(whole.forward_paths[1:], (NO, TOO_MANY), strict=True)
    )


def test_f54_a_later_part_that_was_not_sent_counts_as_refused_for_now() -> None:
    whole = envelope_of(2)
    parts = Parts(whole, receipt_for(whole, ["too many"]))
    part = parts.next()
    assert part is not None
    parts.failed(part, SendTimeout("no answer in time"))
    (reply,) = parts.receipt().refused.values()
    assert (reply.code, reply.transient, reply.text) == (451, True, "not sent: no answer in time")


@pytest.mark.parametrize(
    ("reply", "due"),
    [
        (Reply(452, "4.5.3", ""), True),
        (Reply(552, "5.5.3", ""), True),
        (Reply(452, None, "too many recipients"), False),
        (Reply(452, "4.3.1", "insufficient storage"), False),
        (Reply(452, "4.15.3", ""), False),
    ],
)
def test_f54_only_the_enhanced_code_tells_one_too_many_from_a_full_disk(
    reply: Reply, due: bool
) -> None:
    assert is_due_later(reply) is due
