"""Mail reaches nobody but those it is meant for, and the receipt says who got nothing."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import Address, ConfigError, Envelope, MemoryTransport, RecipientsRejected, Reply
from amail.transports.redirected import Redirected
from tests.strategies import EXAMPLES
from tests.transports.ends import End, letter

QA = "qa@staging.example"


def delivered(memory: MemoryTransport) -> list[tuple[str, ...]]:
    return [envelope.forward_paths for envelope, _ in memory.messages]


async def test_everything_goes_to_one_address_and_the_content_stays_as_it_is() -> None:
    memory = MemoryTransport()
    envelope, content = letter("bob@example.org", cc=["cy@example.org"], bcc=["eve@example.net"])
    receipt = await Redirected(memory, redirect_to=QA).send(envelope, content)
    assert delivered(memory) == [(QA,)]
    assert memory.messages[0].content is content
    assert memory.messages[0].envelope.reverse_path == envelope.reverse_path
    assert receipt.envelope == envelope
    assert (receipt.accepted, receipt.refused) == ((QA,), {})
    assert receipt.suppressed == envelope.forward_paths


async def test_those_allowed_get_theirs_and_the_others_are_named_in_the_receipt() -> None:
    memory = MemoryTransport()
    envelope, content = letter("bob@example.org", "dev@our.example", "Cy@Ours.example")
    redirected = Redirected(memory, allowed=["DEV@our.example", "ours.EXAMPLE"])
    receipt = await redirected.send(envelope, content)
    assert delivered(memory) == [("dev@our.example", "Cy@Ours.example")]
    assert receipt.accepted == ("dev@our.example", "Cy@Ours.example")
    assert receipt.suppressed == ("bob@example.org",)
    assert receipt.relay == "memory"


async def test_where_nobody_is_left_nothing_is_sent_and_the_relay_is_suppressed() -> None:
    end = End("end")
    envelope, content = letter("bob@example.org", "cy@example.org")
    receipt = await Redirected(end, allowed="our.example").send(envelope, content)
    assert end.tried == []
    assert (receipt.relay, receipt.outcome) == ("suppressed", "accepted")
    assert (receipt.accepted, receipt.suppressed) == ((), envelope.forward_paths)
    assert receipt.message_id == content.message_id


async def test_with_both_the_others_go_to_the_redirection() -> None:
    memory = MemoryTransport()
    redirected = Redirected(
        memory, redirect_to=[QA, Address("q2@b.example")], allowed="our.example"
    )
    receipt = await redirected.send(*letter("bob@example.org", "dev@our.example", QA))
    assert delivered(memory) == [("dev@our.example", QA, "q2@b.example")]
    assert receipt.suppressed == ("bob@example.org",)


async def test_a_message_that_may_go_to_all_is_handed_on_untouched() -> None:
    end = End("end")
    envelope, content = letter("dev@our.example")
    receipt = await Redirected(end, redirect_to=QA, allowed="our.example").send(
        envelope, content, deadline=5.0
    )
    assert end.tried == [(envelope, content, 5.0)]
    assert receipt.suppressed == ()


async def test_what_the_server_refuses_is_still_refused() -> None:
    reply = Reply(550, "5.1.1", "no such user")
    end = End(
        "end", lambda receipt: replace(receipt, accepted=(QA,), refused={"x@our.example": reply})
    )
    redirected = Redirected(end, redirect_to=QA, allowed="our.example")
    receipt = await redirected.send(*letter("x@our.example", "bob@example.org"))
    assert receipt.refused == {"x@our.example": reply}
    assert receipt.suppressed == ("bob@example.org",)
    end.from_now_on(RecipientsRejected("no", stage="rcpt", refused={QA: reply}))
    with pytest.raises(RecipientsRejected):
        await redirected.send(*letter())


@pytest.mark.parametrize(
    ("pattern", "path", "is_allowed"),
    [
        ("ada@example.com", "ADA@example.COM", True),
        ("ada@example.com", "ada2@example.com", False),
        ("example.com", "ada@example.com", True),
        ("@example.com", "ada@example.com", True),
        ("*@example.com", "ada@example.com", True),
        ("*@example.com", "ada@sub.example.com", False),
        ("example.com", "ada@evil-example.com", False),
        ("example.com", "ada@example.com.evil.example", False),
        ("example.com", "example.com@evil.example", False),
        ("münchen.de", "ada@xn--mnchen-3ya.de", True),
        ("xn--mnchen-3ya.de", "jörg@münchen.de", True),
        ("example.com", '"a@example.com"@evil.example', False),
        ("example.com", "no-address", False),
    ],
)
async def test_an_allowed_address_is_one_and_an_allowed_domain_is_that_one(
    pattern: str, path: str, is_allowed: bool
) -> None:
    end = End("end")
    _, content = letter()
    await Redirected(end, allowed=[pattern]).send(Envelope("", (path,)), content)
    assert len(end.tried) == is_allowed


@given(
    paths=st.lists(
        st.from_regex(r"[a-c]@(a|b|c)\.(a\.)?example", fullmatch=True),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    allowed=st.lists(st.sampled_from(["a@a.example", "b.example", "*@a.a.example"]), max_size=3),
    redirect_to=st.sampled_from([None, QA]),
)
@EXAMPLES
def test_every_path_is_sent_to_or_suppressed_and_none_that_is_not_meant_is_sent_to(
    paths: list[str], allowed: list[str], redirect_to: str | None
) -> None:
    if not allowed and redirect_to is None:
        return
    memory = MemoryTransport()
    redirected = Redirected(memory, redirect_to=redirect_to, allowed=allowed)
    sending = redirected.send(Envelope("", tuple(paths)), letter()[1])
    with pytest.raises(StopIteration) as caught:  # nothing in it waits
        sending.send(None)
    receipt = caught.value.value
    meant = {path for path in paths if path in allowed or f"*@{path.partition('@')[2]}" in allowed}
    meant |= {path for path in paths if path.endswith("@b.example") and "b.example" in allowed}
    assert set(receipt.suppressed) == set(paths) - meant
    assert {path for each in delivered(memory) for path in each} <= meant | {QA}
    assert set(receipt.accepted) - {QA} == meant


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "redirect_to: is missing"),
        ({"redirect_to": [], "allowed": []}, "redirect_to: is missing"),
        ({"redirect_to": "nobody"}, "redirect_to: "),
        ({"redirect_to": 5}, "redirect_to: "),
        ({"allowed": ["our.example", "a b"]}, "allowed: 'a b' is none"),
        ({"allowed": [""]}, "allowed: '' is none"),
        ({"allowed": "*"}, r"allowed: '\*' is none"),
        ({"allowed": [None]}, "allowed: None is none"),
        ({"allowed": 5}, "allowed: must be a list"),
        ({"allowed": "ada@"}, "allowed: 'ada@' is none"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(
    settings: dict[str, t.Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{text}"):
        Redirected(MemoryTransport(), **settings)
