"""What a refusal asks the sender to change, by the words of common servers and by codes."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import SMTPSettings
from amail.receipt import Reply
from amail.smtp import auth, hints
from tests.strategies import EXAMPLES, nasty_text

ASKED: dict[str, t.Callable[[Reply], str]] = {
    "password": hints.about_password,
    "credentials": hints.about_credentials,
    "sender": hints.about_sender,
    "recipient": hints.about_recipient,
    "sessions": hints.about_sessions,
}


def reply(text: str) -> Reply:
    return Reply.from_lines(int(text[:3]), [line[4:] for line in text.split("\n")])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("535 Login Fail. Please enter your authorization code to login.", "authorization code"),
        ("535 Error: see http://service.mail.qq.com/cgi-bin/help?id=28", "authorization code"),
        ("550 5.7.30 Basic authentication is not supported for Client Submission.", "oauth_token"),
        ("535 5.7.8 Error: authentication failed: (reason unavailable)", "check username"),
        ("454 4.7.0 Temporary authentication failure", ""),
        ("550 5.1.1 no such user", ""),
        ("421 4.7.0 Username and Password not accepted", ""),
    ],
)
def test_a_refused_password(text: str, hint: str) -> None:
    said = hints.about_password(reply(text))
    assert said.startswith(hint) if hint == "check username" else hint in said
    assert bool(said) is bool(hint)


def test_a_refused_token_is_no_reason_for_an_app_password() -> None:
    async def token() -> str:
        return "t"

    settings = SMTPSettings("mail.example.com", username="ada", oauth_token=token)
    refused = reply("535 5.7.8 Username and Password not accepted")
    assert "app password" not in str(auth.refusal(settings, refused, ""))


@pytest.mark.parametrize(
    "text",
    [
        "553 5.7.1 <ada@example.com>: Sender address rejected: not owned by user bob",
        "553 5.7.1 Sender address rejected: not owned by auth user.",
        "501 mail from address must be same as authorization user",
        "553 Mail from must equal authorized user",
        "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
        "554 5.2.252 SendAsDenied; ada@example.com not allowed to send as bob@example.com",
        "550 The from address does not match a verified Sender Identity.",
        "554 Message rejected: Email address is not verified.",
    ],
)
def test_a_sender_that_belongs_to_another_user(text: str) -> None:
    for asked in (hints.about_sender, hints.about_recipient):
        assert "default_sender" in asked(reply(text))
        assert "envelope_from" in asked(reply(text))


@pytest.mark.parametrize(
    "text", ["550 5.1.8 unknown sender domain", "550 5.7.1 spam", "450 4.7.1 not owned by user"]
)
def test_a_sender_that_is_refused_for_another_reason(text: str) -> None:
    assert hints.about_sender(reply(text)) == ""


@pytest.mark.parametrize(
    ("text", "is_known"),
    [
        ("421 4.7.0 mx Error: too many connections from 192.0.2.1", True),
        ("421 4.3.2 The maximum number of concurrent server connections has exceeded a", True),
        ("432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", True),
        ("421 4.3.2 closing", False),
        ("550 5.7.1 too many connections", False),
    ],
)
def test_too_many_sessions(text: str, is_known: bool) -> None:
    assert ("max_connections" in hints.about_sessions(reply(text))) is is_known


def test_a_recipient_refused_for_now_is_tried_again_and_another_one_is_not() -> None:
    assert "send the same message again" in hints.about_recipient(reply("450 4.7.1 greylisted"))
    assert hints.about_recipient(reply("550 5.1.1 no such user")) == ""


def test_a_hint_stands_behind_one_mark() -> None:
    assert hints.with_hint("no.", "wait") == "no; wait"
    assert hints.with_hint("no.", "") == "no."


@given(
    st.builds(
        Reply,
        st.integers(200, 599),
        st.none() | st.from_regex(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", fullmatch=True),
        st.lists(nasty_text | st.sampled_from(["NOT owned by", "BadCredentials"])).map("\n".join),
    )
)
@EXAMPLES
def test_whatever_a_server_says_a_hint_is_ours_and_quotes_nothing(said: Reply) -> None:
    for of_what, asked in ASKED.items():
        hint = asked(said)
        assert hint.isprintable(), of_what
        ours = {asked(Reply(said.code, said.enhanced, each)) for each in WORDS}
        assert hint in ours, of_what


WORDS = (
    "",
    *(
        word
        for group in (hints._OF_PASSWORDS, hints._FROM, hints._SESSIONS)
        for each in group
        for word in each.words
    ),
)
