"""AUTH: one mechanism, one attempt, and no secret in anything that can be read afterwards."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import pickle
import re
import ssl
import threading
import traceback
import typing as t

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from amail import ConfigError, Mailer, Receipt, SMTPSettings, SMTPTransport, SyncMailer
from amail.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLost,
    ProtocolError,
    SendTimeout,
)
from amail.receipt import Reply
from amail.smtp import auth
from amail.smtp.auth import Exchange, choose_mechanism, complaint_in
from amail.testing import OK, Bytes, Close, Delay, FaultServer, Hang
from amail.testing.fault_server import EXTENSIONS
from tests.messages import tokened
from tests.musts import PASSWORD, assert_no_canary
from tests.smtp.outcomes import accepted, not_sent, said, send
from tests.strategies import EXAMPLES, nasty_text
from tests.test_mailer import reached_at

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from amail.testing import Moment
    from tests.musts import Musts

TOKEN = PASSWORD  # a canary, whatever it opens
ADA = {"ada": TOKEN}
TOKEN_MECHANISMS: list[auth.Mechanism] = ["XOAUTH2", "OAUTHBEARER"]


async def source() -> str:
    return TOKEN


def settings(**options: t.Any) -> SMTPSettings:
    return SMTPSettings(**{"host": "mx.example.org", "username": "ada", **options})


def offering(*mechanisms: str, **options: t.Any) -> FaultServer:
    """A server that knows a user and offers these mechanisms."""
    extensions = (*EXTENSIONS, " ".join(["AUTH", *mechanisms]))
    known: dict[str, t.Any] = {"users": ADA, "tokens": ADA, **options}
    return FaultServer(extensions=extensions, auth_required=True, **known)


def with_token(server: FaultServer, **options: t.Any) -> Mailer:
    return Mailer(server.url, **{"username": "ada", "oauth_token": source, **options})


def with_password(server: FaultServer, **options: t.Any) -> Mailer:
    return Mailer(server.url, username="ada", password=PASSWORD, **options)


class Contexts(t.NamedTuple):
    """TLS for both sides."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def tls_contexts() -> Contexts:
    authority = trustme.CA()
    contexts = Contexts(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context())
    authority.issue_cert("127.0.0.1").configure_cert(contexts.server)
    authority.configure_trust(contexts.client)
    return contexts


def auth_lines(server: FaultServer) -> list[str]:
    return [command.line for command in server.commands if command.line.startswith("AUTH")]


# Settings


def test_a_token_source_is_in_the_place_of_the_password() -> None:
    given_one = settings(oauth_token=source)
    assert (given_one.oauth_token, given_one.password) == (source, None)
    assert (given_one.effective_port, given_one.effective_tls) == (587, "starttls")
    from_url = SMTPSettings.from_url("smtps://ada%40example.org@mx.test", oauth_token=source)
    assert from_url.username == "ada@example.org"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"password": PASSWORD}, "password: leave it out, oauth_token is in its place"),
        ({"username": None}, "username: is missing, while oauth_token is set"),
        ({"username": ""}, "username: is missing, while oauth_token is set"),
        ({"username": b"ada"}, "username: must be a str, not bytes"),
    ],
)
def test_half_of_the_credentials_and_two_of_them_are_refused(
    options: dict[str, t.Any], error: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(oauth_token=source, **options)
    assert str(caught.value) == error


@pytest.mark.parametrize("value", [TOKEN, TOKEN.encode(), 5, ["x"]])
def test_a_token_is_no_token_source(value: t.Any) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(oauth_token=value)
    assert str(caught.value).startswith("oauth_token: must be an async function")
    assert "static_token" in str(caught.value)
    assert_no_canary(str(caught.value), "the error")


def test_a_token_source_is_a_keyword_only_and_never_in_a_url_or_a_repr() -> None:
    (field,) = [each for each in dataclasses.fields(SMTPSettings) if each.name == "oauth_token"]
    assert field.kw_only
    assert "oauth_token" not in repr(settings(oauth_token=source))
    with pytest.raises(ConfigError) as caught:
        SMTPSettings.from_url(f"smtp://ada@mx.example.org?oauth_token={TOKEN}")
    assert "there is no option 'oauth_token'" in str(caught.value)
    assert_no_canary(str(caught.value), "the error")


# The mechanism


@pytest.mark.parametrize(
    ("by_token", "offered", "chosen"),
    [
        (False, ["login", "plain", "xoauth2"], "PLAIN"),
        (False, ["LOGIN", "CRAM-MD5"], "LOGIN"),
        (True, ["plain", "login", "oauthbearer", "xoauth2"], "XOAUTH2"),
        (True, ["plain", "OAuthBearer"], "OAUTHBEARER"),
    ],
)
def test_the_mechanism_is_one_that_is_offered(
    by_token: bool, offered: list[str], chosen: str
) -> None:
    secret = {"oauth_token": source} if by_token else {"password": PASSWORD}
    assert choose_mechanism(settings(**secret), offered) == chosen


@pytest.mark.parametrize(
    ("secret", "offered", "texts"),
    [
        ({"password": "p"}, [], ["offers no AUTH", "leave them out"]),
        ({"password": "p"}, ["cram-md5", "xoauth2"], ["AUTH CRAM-MD5, XOAUTH2;", "PLAIN or LOGIN"]),
        ({"oauth_token": source}, ["plain"], ["AUTH PLAIN;", "XOAUTH2 or OAUTHBEARER"]),
        ({"password": "p", "tls": "none"}, [], ["without TLS", "set tls"]),
        ({"password": "p"}, ["\x1b[31m" * 100], ["\\x1b[31M", "..."]),
    ],
)
def test_f31_what_is_offered_is_said_where_it_does_not_do(
    secret: dict[str, t.Any], offered: list[str], texts: list[str]
) -> None:
    with pytest.raises(AuthenticationError) as caught:
        choose_mechanism(settings(**secret), offered)
    error = caught.value
    assert (error.stage, error.retryable) == ("auth", False)
    assert str(error).startswith(f"{error.relay} offers ")
    assert all(text in str(error) for text in texts), str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 500


# What is said


def decoded(octets: bytes) -> bytes:
    return base64.b64decode(octets, validate=True)


def exchange(mechanism: auth.Mechanism, secret: str, **options: t.Any) -> Exchange:
    options.setdefault("password", secret)
    return Exchange(mechanism, settings(**options), secret)


def test_each_mechanism_says_what_its_specification_has() -> None:
    """RFC 4616, section 4; RFC 7628, section 4.1; developers.google.com/gmail/imap/xoauth2."""
    name, plain = exchange("PLAIN", "tanstaaftanstaaf", username="tim").command[1:]
    assert (name, plain) == (b"PLAIN", b"AHRpbQB0YW5zdGFhZnRhbnN0YWFm")
    google = Exchange(
        "XOAUTH2",
        settings(username="someuser@example.com", oauth_token=source),
        "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg",
    )
    assert google.command == (
        b"AUTH",
        b"XOAUTH2",
        (
            b"dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNr"
            b"QmhkSFJoZG1semRHRXVZMjl0Q2cBAQ=="
        ),
    )
    rfc = Exchange(
        "OAUTHBEARER",
        SMTPSettings("server.example.com", 587, username="user@example.com", oauth_token=source),
        "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==",
    )
    assert decoded(rfc.command[2]) == (
        b"n,a=user@example.com,\x01host=server.example.com\x01port=587\x01"
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
    )


def test_login_waits_for_its_prompts() -> None:
    login = exchange("LOGIN", "secret")
    assert login.command == (b"AUTH", b"LOGIN")
    assert decoded(login.answer("VXNlcm5hbWU6")) == b"ada"
    assert decoded(login.answer("UGFzc3dvcmQ6")) == b"secret"
    assert not login.has_answer


def test_a_comma_and_an_equals_sign_in_a_user_name_are_escaped() -> None:
    """RFC 5801, section 4."""
    said_of_it = exchange("OAUTHBEARER", "t", username="a,b=c").command[2]
    assert decoded(said_of_it).startswith(b"n,a=a=2Cb=3Dc,\x01")


@pytest.mark.parametrize("mechanism", ["PLAIN", "XOAUTH2", "OAUTHBEARER"])
@given(
    name=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1),
    secret=st.text("abc.-_~+/=", min_size=1, max_size=3000),
)
@EXAMPLES
def test_no_command_is_longer_than_512_octets_and_what_is_said_is_the_same(
    mechanism: auth.Mechanism, name: str, secret: str
) -> None:
    """RFC 4954, section 4: an initial response that would be too long waits for a challenge."""
    one = exchange(mechanism, secret, username=name)
    first = one.command[2] if len(one.command) == 3 else one.answer("")
    assert len(b" ".join(one.command)) + 2 <= 512
    assert len(one.command) == 3 or len(b" ".join([*one.command, first])) + 2 > 512
    assert secret.encode() in decoded(first)
    if mechanism != "OAUTHBEARER":
        assert name.encode() in decoded(first)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"])
def test_an_exchange_shows_no_secret_and_ends_within_three_challenges(
    mechanism: auth.Mechanism,
) -> None:
    one = exchange(mechanism, PASSWORD)
    assert_no_canary(f"{one!r} {one}", "its repr")
    challenges = 0
    while one.has_answer:
        one.answer("!!")
        challenges += 1
    assert challenges < 3


# What a server says of a token


def challenge(said_of_it: object) -> str:
    return base64.b64encode(json.dumps(said_of_it).encode()).decode()


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (
            {"status": "401", "schemes": "bearer mac", "scope": "https://mail.google.com/"},
            "status 401, scope https://mail.google.com/, schemes bearer mac",
        ),
        ({"status": 400}, "status 400"),
        ({"status": "invalid_token", "scope": ""}, "status invalid_token"),
        ({"status": "\x1b[31m\r\n250 ok"}, "status \\x1b[31m\\r\\n250 ok"),
        ({"status": None, "scope": ["a"]}, ""),
        (["status"], ""),
        ("status", ""),
        ({}, ""),
    ],
)
def test_f36_a_complaint_is_decoded_and_escaped(told: object, shown: str) -> None:
    assert complaint_in(challenge(told)) == shown


@given(
    st.one_of(
        nasty_text,
        st.binary().map(lambda octets: base64.b64encode(octets).decode()),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), nasty_text),
            lambda inner: st.dictionaries(st.sampled_from(["status", "scope", "x"]), inner),
        ).map(challenge),
    )
)
@example(base64.b64encode(b"[" * 6000).decode())
@example(base64.b64encode(b'{"status": ' + b"9" * 5000 + b"}").decode())
@example(challenge(dict.fromkeys(["status", "scope", "schemes"], "é" * 5000)))
@EXAMPLES
def test_whatever_a_challenge_holds_the_complaint_is_short_and_printable(text: str) -> None:
    shown = complaint_in(text)
    assert shown.isprintable()
    assert len(shown) <= 700


@pytest.mark.parametrize(
    ("reply", "options", "hint"),
    [
        ("530 5.7.0 Must issue a STARTTLS command first", {"tls": "none"}, "set tls"),
        ("538 5.7.11 Encryption required", {"tls": "none"}, "set tls"),
        ("535 5.7.11 Encryption required", {"tls": "none"}, "set tls"),
        ("534 5.7.9 Application-specific password required", {}, "one application"),
        ("534 too weak", {}, "one application"),
        ("535 5.7.13 User account disabled", {}, "is disabled"),
        ("535 5.7.14 Please log in", {}, "confirm it"),
        ("432 4.7.12 A password transition is needed", {}, "entered once"),
    ],
)
def test_f35_a_hint_says_what_the_server_wants(
    reply: str, options: dict[str, t.Any], hint: str
) -> None:
    parsed = Reply.from_lines(int(reply[:3]), [reply[4:]])
    error = auth.refusal(settings(password="p", **options), parsed, "")
    assert reply in str(error)
    assert hint in str(error).partition("; ")[2]
    assert error.retryable is parsed.transient
    encrypted = auth.refusal(settings(password="p", tls="implicit"), parsed, "")
    assert "set tls" not in str(encrypted)


# On the wire


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
async def test_a_password_opens_a_session_by_the_mechanism_that_is_offered(
    musts: Musts, mechanism: str
) -> None:
    async with offering("CRAM-MD5", mechanism) as server, with_password(server) as mailer:
        musts.watch(server)
        accepted(await send(musts, mailer))
        assert [line.split(" ")[1] for line in auth_lines(server)] == [mechanism]
        assert server.messages[0].authenticated_as == "ada"


@pytest.mark.parametrize("mechanism", TOKEN_MECHANISMS)
@pytest.mark.parametrize("length", [20, 1200, 8000])
async def test_a_token_opens_a_session_by_the_mechanism_that_is_offered(
    musts: Musts, mechanism: str, length: int
) -> None:
    token = "t" * length

    async def long_source() -> str:
        return token

    async with (
        offering("PLAIN", mechanism, tokens={"ada": token}) as server,
        with_token(server, oauth_token=long_source) as mailer,
    ):
        musts.watch(server)
        accepted(await send(musts, mailer))
        assert [line.split(" ")[1] for line in auth_lines(server)] == [mechanism]
        assert server.messages[0].authenticated_as == "ada"


async def test_xoauth2_is_preferred_and_asked_for_once_a_session(musts: Musts) -> None:
    calls = 0

    async def counted() -> str:
        nonlocal calls
        calls += 1
        return TOKEN

    async with (
        FaultServer(tokens=ADA) as server,
        with_token(server, oauth_token=counted, max_messages=2) as mailer,
    ):
        musts.watch(server)
        for _ in range(4):
            accepted(await send(musts, mailer))
        assert [line.split(" ")[1] for line in auth_lines(server)] == ["XOAUTH2", "XOAUTH2"]
        assert calls == server.connections == 2


async def test_f31_a_token_source_is_not_asked_where_no_mechanism_does(musts: Musts) -> None:
    async def never() -> str:
        raise AssertionError

    async with offering("PLAIN") as server, with_token(server, oauth_token=never) as mailer:
        musts.watch(server)
        result = await send(musts, mailer)
        error = not_sent(result, AuthenticationError, stage="auth", retryable=False)
        assert "offers AUTH PLAIN without TLS;" in str(error)
        await server.all_closed()
        assert said(server) == ["EHLO", "QUIT"]


@pytest.mark.parametrize("mechanism", TOKEN_MECHANISMS)
async def test_f36_a_refused_token_is_tried_once_and_the_error_has_what_the_server_says(
    musts: Musts, mechanism: str
) -> None:
    async with (
        offering(mechanism, "PLAIN", tokens={"ada": "another"}) as server,
        with_token(server) as mailer,
    ):
        musts.watch(server)
        result = await send(musts, mailer)
        error = not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
        assert "status 401, scope https://mail.test/, schemes bearer" in str(error)
        assert "oauth_token" in str(error)
        assert_no_canary(repr(pickle.dumps(error)), "its pickle")
        await server.all_closed()
        assert server.connections == 1
        assert [line.split(" ")[1] for line in auth_lines(server)] == [mechanism]
        assert said(server)[-1] == "QUIT"


async def test_f36_a_refusal_without_a_complaint_is_a_refusal_too(musts: Musts) -> None:
    said_by_microsoft = "535 5.7.3 Authentication unsuccessful"
    async with FaultServer(tokens=ADA, auth=said_by_microsoft) as server:
        musts.watch(server)
        async with with_token(server) as mailer:
            result = await send(musts, mailer)
        error = not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
        assert str(error).endswith(said_by_microsoft)


@pytest.mark.parametrize("reply", ["454 4.7.0 temporary failure", "421 4.3.2 closing"])
@pytest.mark.parametrize("by_token", [True, False])
async def test_f33_a_temporary_refusal_may_do_later(
    musts: Musts, reply: str, by_token: bool
) -> None:
    async with FaultServer(users=ADA, tokens=ADA, auth=[reply, OK]) as server:
        musts.watch(server)
        async with (with_token if by_token else with_password)(server) as mailer:
            result = await send(musts, mailer)
            code = int(reply[:3])
            not_sent(result, AuthenticationError, stage="auth", retryable=True, code=code)
            await server.all_closed()
            assert said(server) == ["EHLO", "AUTH"]
            accepted(await send(musts, mailer))


@pytest.mark.parametrize("challenge", ["334 !!", "334", "334 VXNlcm5hbWU6", "334 e30="])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"])
async def test_f34_challenges_without_an_end_are_answered_three_times_at_most(
    musts: Musts, challenge: str, mechanism: str
) -> None:
    async with offering(mechanism, auth=challenge, keep_credentials=True) as server:
        musts.watch(server)
        by_token = mechanism in TOKEN_MECHANISMS
        async with (with_token if by_token else with_password)(server) as mailer:
            result = await send(musts, mailer)
            not_sent(result, ProtocolError, stage="auth", retryable=False, code=334)
            await server.all_closed()
            assert server.connections == 1
            assert len(server.commands) <= 2 + 3
            forms = [base64.b64encode(TOKEN.encode()).decode()[:-4], " " + mechanism + " "]
            told = [each for each in server.commands if any(form in each.line for form in forms)]
            assert len(told) == 1, "the secret is said once"


@pytest.mark.parametrize("reply", ["250 ok", "354 go", "199 what", "600 what", "235"])
async def test_f34_f47_another_reply_to_auth_does_not_belong_there(
    musts: Musts, reply: str
) -> None:
    async with FaultServer(users=ADA, auth=reply) as server:
        musts.watch(server)
        async with with_password(server) as mailer:
            result = await send(musts, mailer)
        if reply == "235":
            accepted(result)
        else:
            code = int(reply[:3])
            not_sent(result, ProtocolError, stage="auth", retryable=False, code=code)


@pytest.mark.parametrize("by_token", [True, False])
async def test_f47_a_reply_to_auth_that_is_no_reply_is_a_protocol_error(
    musts: Musts, by_token: bool
) -> None:
    async with FaultServer(users=ADA, tokens=ADA, auth=Bytes(b"oh no\r\n")) as server:
        musts.watch(server)
        async with (with_token if by_token else with_password)(server) as mailer:
            result = await send(musts, mailer)
            not_sent(result, ProtocolError, stage="auth", retryable=True)
            await server.all_closed()
            assert said(server) == ["EHLO", "AUTH"]


@pytest.mark.parametrize("code", [530, 538])
async def test_f35_a_server_that_wants_encryption_first_gets_a_hint_out_of_us(
    musts: Musts, code: int
) -> None:
    async with FaultServer(users=ADA, auth=f"{code} 5.7.0 encryption required") as server:
        musts.watch(server)
        async with with_password(server) as mailer:
            result = await send(musts, mailer)
        error = not_sent(result, AuthenticationError, stage="auth", retryable=False, code=code)
        assert "set tls" in str(error)
        await server.all_closed()
        assert said(server) == ["EHLO", "AUTH", "QUIT"]


@pytest.mark.parametrize("by_token", [True, False])
async def test_f37_no_answer_to_auth_is_a_timeout_and_tried_once_more(
    musts: Musts, by_token: bool
) -> None:
    async with FaultServer(users=ADA, tokens=ADA, auth=Hang()) as server:
        musts.watch(server)
        make = with_token if by_token else with_password
        async with make(server, command_timeout=0.2) as mailer, musts.within(0.6):
            result = await send(musts, mailer)
            not_sent(result, SendTimeout, stage="auth", retryable=True)
            assert server.connections == 2
            await server.all_closed()


@pytest.mark.parametrize("mechanism", TOKEN_MECHANISMS)
async def test_f37_a_connection_that_ends_behind_the_complaint_is_lost(
    musts: Musts, mechanism: str
) -> None:
    complaint = "334 " + challenge({"status": "401"})
    async with offering(mechanism, auth=[complaint, Close(), OK]) as server:
        musts.watch(server)
        async with with_token(server) as mailer:
            accepted(await send(musts, mailer), attempts=2)
    async with offering(mechanism, auth=[complaint, Close()]) as server:
        musts.watch(server)
        async with with_token(server) as mailer:
            not_sent(await send(musts, mailer), ConnectionLost, stage="auth", retryable=True)


# Token sources that fail


async def raises_key_error() -> str:
    secrets: dict[str, str] = {}
    return secrets[TOKEN]


async def raises_os_error() -> str:
    raise OSError(TOKEN)


async def raises_timeout_error() -> str:
    raise TimeoutError


async def raises_an_error_of_ours() -> str:
    raise ConnectError("the vault is closed", retryable=True)


async def is_cancelled_itself() -> str:
    raise asyncio.CancelledError


async def raises_its_own_cause() -> str:
    error = ValueError(TOKEN)
    raise error from error


async def raises_a_group() -> str:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(raises_key_error())
    return ""


async def returns_bytes() -> t.Any:
    return TOKEN.encode()


async def returns_nothing() -> t.Any:
    return None


async def returns_a_newline() -> str:
    return TOKEN + "\n"


async def returns_a_header() -> str:
    return "Bearer " + TOKEN


async def returns_no_ascii() -> str:
    return TOKEN + "é"


async def returns_the_empty_text() -> str:
    return ""


def is_not_async() -> t.Any:
    return TOKEN


@pytest.mark.parametrize(
    ("failing", "retryable", "text", "cause"),
    [
        (raises_key_error, False, f"KeyError in {__file__}, line ", KeyError),
        (raises_os_error, True, f"OSError in {__file__}, line ", OSError),
        (raises_timeout_error, True, "TimeoutError in ", TimeoutError),
        (raises_an_error_of_ours, True, "the vault is closed", ConnectError),
        (is_cancelled_itself, False, "CancelledError in ", asyncio.CancelledError),
        (raises_its_own_cause, False, "ValueError in ", ValueError),
        (raises_a_group, False, "ExceptionGroup in ", ExceptionGroup),
        (returns_bytes, False, "is bytes, not a str", ConfigError),
        (returns_nothing, False, "is NoneType, not a str", ConfigError),
        (returns_a_newline, False, "strip it", ConfigError),
        (returns_a_header, False, "holds a space", ConfigError),
        (returns_no_ascii, False, "no ASCII", ConfigError),
        (returns_the_empty_text, False, "is empty", ConfigError),
        (is_not_async, False, "it is no async function", ConfigError),
        (lambda argument: source(), False, "TypeError", TypeError),
    ],
)
async def test_f36_c17_a_token_source_that_fails_is_an_authentication_error(
    failing: Callable[[], Awaitable[str]],
    retryable: bool,
    text: str,
    cause: type[BaseException],
) -> None:
    # Without the must-nevers: these sources put the token into errors of their own.
    async with FaultServer(tokens=ADA) as server, with_token(server, oauth_token=failing) as mailer:
        with pytest.raises(AuthenticationError) as caught:
            await mailer.send(tokened("t"))
        error = caught.value
        assert (error.stage, error.retryable, error.reply) == ("auth", retryable, None)
        assert "the token source (oauth_token) failed: " in str(error)
        assert text in str(error)
        assert type(error.__cause__) is cause
        inner = getattr(error.__cause__, "exceptions", ())
        assert [each.__traceback__ for each in (error.__cause__, *inner)] == [None] * (
            1 + len(inner)
        )
        assert_no_canary(str(error), "the error")
        await server.all_closed()
        assert not auth_lines(server)
        assert (mailer.stats().open, mailer.stats().leased, server.violations) == (0, 0, [])


async def test_f36_a_token_source_that_fails_later_may_do_and_is_not_asked_twice_for_a_message(
    musts: Musts,
) -> None:
    calls = 0

    async def unreachable_once() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionRefusedError
        return TOKEN

    async with (
        FaultServer(tokens=ADA) as server,
        with_token(server, oauth_token=unreachable_once) as mailer,
    ):
        musts.watch(server)
        result = await send(musts, mailer)
        not_sent(result, AuthenticationError, stage="auth", retryable=True)
        assert calls == 1
        accepted(await send(musts, mailer))


class Waiting:
    """A token source that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.cancelled = 0

    async def __call__(self) -> str:
        self.asked.set()
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return TOKEN


async def test_f36_a_token_source_that_hangs_is_timed_out_at_auth_and_asked_once_more(
    musts: Musts,
) -> None:
    hanging = Waiting()
    async with (
        FaultServer(tokens=ADA) as server,
        with_token(server, oauth_token=hanging, command_timeout=0.2) as mailer,
        musts.within(0.6),
    ):
        musts.watch(server)
        result = await send(musts, mailer)
        error = not_sent(result, SendTimeout, stage="auth", retryable=True)
        assert "token source (oauth_token) did not answer within 0.2 s" in str(error)
        assert hanging.cancelled == server.connections == 2
        await server.all_closed()
        assert said(server) == ["EHLO", "EHLO"]


async def test_f36_the_deadline_of_a_send_holds_for_its_token_source(musts: Musts) -> None:
    hanging = Waiting()
    async with (
        FaultServer(tokens=ADA) as server,
        with_token(server, oauth_token=hanging) as mailer,
        musts.within(0.2),
    ):
        musts.watch(server)
        token = musts.token()
        sending = mailer.send(tokened(token), timeout=0.2)
        result = await musts.outcome_of(sending, token=token)
        not_sent(result, SendTimeout, stage="auth", retryable=True)
        await server.all_closed()


@pytest.mark.parametrize("tls", [False, True])
async def test_c6_a_send_cancelled_while_its_token_is_awaited_ends_at_once(
    musts: Musts, tls: bool
) -> None:
    with musts.not_counting():
        contexts = tls_contexts() if tls else None
    hanging = Waiting()
    options: dict[str, t.Any] = {"max_connections": 1, "oauth_token": hanging}
    if contexts:
        options |= {"tls": "starttls", "ssl_context": contexts.client}
    async with FaultServer(tokens=ADA, tls=contexts and contexts.server) as server:
        musts.watch(server, tls_required=tls)
        async with with_token(server, **options) as mailer:
            token = musts.token()
            task = asyncio.create_task(mailer.send(tokened(token)))
            await hanging.asked.wait()
            task.cancel()
            async with musts.within(0.05):
                with pytest.raises(asyncio.CancelledError):
                    await task
            musts.cancelled(token)
            await server.all_closed()
            assert hanging.cancelled == 1
            assert (mailer.stats().leased, mailer.stats().open) == (0, 0)
            hanging.answer.set()
            accepted(await send(musts, mailer))
            assert server.connections == 2


async def test_a_connection_that_ends_while_the_token_is_awaited_is_replaced(
    musts: Musts,
) -> None:
    waiting = Waiting()
    async with (
        FaultServer(tokens=ADA) as server,
        with_token(server, oauth_token=waiting) as mailer,
    ):
        musts.watch(server)
        sending = asyncio.create_task(send(musts, mailer))
        await waiting.asked.wait()
        await server.aclose()
        await server.start()
        waiting.answer.set()
        accepted(await sending, attempts=2)


# A token that the server no longer takes


class Kept:
    """A token source that keeps its token until it is told to forget it."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.error: Exception | None = None

    async def __call__(self) -> str:
        return self.tokens[0]

    def forget(self) -> None:
        del self.tokens[0]
        if self.error:
            raise self.error


@pytest.mark.parametrize("error", [None, ValueError(TOKEN)])
async def test_a_source_forgets_the_token_that_was_refused_and_the_next_one_gets_in(
    musts: Musts, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept("revoked", TOKEN)
    kept.error = error
    async with FaultServer(tokens=ADA) as server:
        musts.watch(server)
        async with with_token(server, oauth_token=kept) as mailer:
            result = await send(musts, mailer)
            not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
            await server.all_closed()
            accepted(await send(musts, mailer))
    assert ("oauth_token.forget() raised ValueError" in caplog.text) is (error is not None)


@pytest.mark.parametrize("reply", ["454 4.7.0 later", "250 what?"])
async def test_a_token_is_not_forgotten_where_it_was_not_refused(musts: Musts, reply: str) -> None:
    kept = Kept(TOKEN)
    async with FaultServer(tokens=ADA, auth=[reply, OK]) as server:
        musts.watch(server)
        async with with_token(server, oauth_token=kept) as mailer:
            result = await send(musts, mailer)
            assert not isinstance(result, Receipt)
            await server.all_closed()
    assert kept.tokens == [TOKEN]


async def test_f32_a_refused_token_is_not_tried_again_for_every_sender(musts: Musts) -> None:
    async with FaultServer(tokens={"ada": "another"}) as server, with_token(server) as mailer:
        musts.watch(server)
        results = await asyncio.gather(*(send(musts, mailer) for _ in range(30)))
        assert {type(result) for result in results} == {AuthenticationError}
        assert re.search(r"not asked again within \d+ s", str(results[-1]))
        await server.all_closed()
        assert len(auth_lines(server)) <= 5


async def test_f32_a_new_token_is_tried_at_once_by_one_and_gets_all_in(musts: Musts) -> None:
    kept = Kept("revoked", TOKEN)
    async with FaultServer(tokens=ADA) as server:
        musts.watch(server)
        async with with_token(server, oauth_token=kept, max_connections=3) as mailer:
            result = await send(musts, mailer)
            not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
            await server.all_closed()
            for result in await asyncio.gather(*(send(musts, mailer) for _ in range(20))):
                accepted(result)
    assert 2 <= len(auth_lines(server)) <= 1 + 3


async def test_f32_the_same_token_is_not_tried_again_and_the_server_not_asked(
    musts: Musts,
) -> None:
    async with FaultServer(tokens={"ada": "another"}) as server, with_token(server) as mailer:
        musts.watch(server)
        for _ in range(3):
            result = await send(musts, mailer)
            not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
        await server.all_closed()
        assert len(auth_lines(server)) == server.connections == 1


async def test_f32_a_token_that_was_refused_in_several_sessions_at_once_was_but_one(
    musts: Musts,
) -> None:
    vault = ["revoked"]

    async def from_vault() -> str:
        return vault[0]

    async with (
        FaultServer(tokens=ADA, greeting=[Delay(0.1, "220 ready")]) as server,
        with_token(server, oauth_token=from_vault, max_connections=3) as mailer,
    ):
        musts.watch(server)
        results = await asyncio.gather(*(send(musts, mailer) for _ in range(3)))
        assert {type(result) for result in results} == {AuthenticationError}
        assert len(auth_lines(server)) == 3
        vault[0] = TOKEN
        accepted(await send(musts, mailer))


async def test_f32_a_second_token_that_is_refused_is_the_last_for_a_while(musts: Musts) -> None:
    kept = Kept("revoked", "revoked-too", TOKEN)
    async with FaultServer(tokens=ADA) as server, with_token(server, oauth_token=kept) as mailer:
        musts.watch(server)
        for _ in range(5):
            result = await send(musts, mailer)
            not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
        assert "not asked again within" in str(result)
        await server.all_closed()
        assert len(auth_lines(server)) == 2
    assert kept.tokens == [TOKEN]


async def test_f32_behind_an_accepted_token_a_new_one_is_tried_at_once_again(musts: Musts) -> None:
    kept = Kept("first", TOKEN, "third", TOKEN + "2")
    async with FaultServer(tokens=ADA) as server:
        musts.watch(server)
        async with with_token(server, oauth_token=kept, max_messages=1) as mailer:
            assert isinstance(await send(musts, mailer), AuthenticationError)
            accepted(await send(musts, mailer))
            server.tokens["ada"] = TOKEN + "2"
            kept.forget()
            assert isinstance(await send(musts, mailer), AuthenticationError)
            accepted(await send(musts, mailer))


async def test_f32_a_source_that_fails_behind_a_refusal_leaves_that_as_the_answer(
    musts: Musts,
) -> None:
    kept = Kept("revoked")
    async with FaultServer(tokens=ADA) as server, with_token(server, oauth_token=kept) as mailer:
        musts.watch(server)
        for _ in range(2):
            result = await send(musts, mailer)
            not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
        await server.all_closed()
        assert server.connections == 1


async def test_f32_a_new_password_is_tried_at_once_and_the_same_one_is_not(musts: Musts) -> None:
    async with FaultServer(users=ADA) as server:
        musts.watch(server)
        wrong = SMTPSettings.from_url(server.url, username="ada", password="wrong")
        transport = SMTPTransport(wrong)
        async with Mailer(transport) as mailer:
            assert isinstance(await send(musts, mailer), AuthenticationError)
            transport.settings = dataclasses.replace(wrong)
            assert isinstance(await send(musts, mailer), AuthenticationError)
            await server.all_closed()
            assert len(auth_lines(server)) == 1
            transport.settings = dataclasses.replace(wrong, password=PASSWORD)
            accepted(await send(musts, mailer))


async def test_f32_a_refused_token_shows_that_the_server_can_be_had(musts: Musts) -> None:
    kept = Kept("revoked")
    broken = [Close()] * 5
    async with (
        FaultServer(tokens=ADA, connect=[*broken, OK]) as server,
        with_token(server, oauth_token=kept, max_connections=1) as mailer,
    ):
        musts.watch(server)
        for _ in range(3):
            result = await send(musts, mailer)
        not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
        async with musts.within(0.5):  # nobody waits for the server to come back
            result = await send(musts, mailer)
        not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)


# Where it goes


async def test_a_token_does_not_go_in_the_clear_to_a_public_peer(
    musts: Musts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> str:
        raise AssertionError

    async with (
        FaultServer(tokens=ADA) as server,
        with_token(server, oauth_token=never, tls="none") as mailer,
    ):
        musts.watch(server)
        reached_at(monkeypatch, "203.0.113.5")
        error = await send(musts, mailer)
        assert isinstance(error, ConfigError)
        assert "allow_insecure_auth=True" in str(error)
        await server.all_closed()
        assert said(server) == ["EHLO"]


async def test_a_token_goes_over_tls(musts: Musts) -> None:
    with musts.not_counting():
        contexts = tls_contexts()
    async with FaultServer(tokens=ADA, tls=contexts.server, auth_required=True) as server:
        musts.watch(server, tls_required=True)
        async with with_token(server, tls="starttls", ssl_context=contexts.client) as mailer:
            accepted(await send(musts, mailer))
        assert server.messages[0].authenticated_as == "ada"


def test_a_token_source_is_asked_in_the_loop_of_the_portal() -> None:
    threads = []

    async def noting() -> str:
        threads.append(threading.current_thread())
        return TOKEN

    with (
        FaultServer.serve_in_thread(tokens=ADA) as server,
        SyncMailer(server.url, username="ada", oauth_token=noting) as mailer,
    ):
        assert mailer.send(tokened("t")).outcome == "accepted"
    assert threads != [threading.current_thread()]
    assert len(threads) == 1


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


QUOTED = {
    "the_line_of_plain": (
        "PLAIN",
        [f'501 5.5.2 cannot decode "{in_base64(f"{chr(0)}ada{chr(0)}{PASSWORD}")}"'],
    ),
    "its_end": ("PLAIN", [f"501 5.5.2 ...{in_base64(f'{chr(0)}ada{chr(0)}{PASSWORD}')[-12:]}"]),
    "the_line_of_login": (
        "LOGIN",
        [
            "334 VXNlcm5hbWU6",
            "334 UGFzc3dvcmQ6",
            f'500 5.5.1 Command unrecognized: "{in_base64(PASSWORD)}"',
        ],
    ),
    "the_password": ("PLAIN", [f"535 5.7.8 {PASSWORD} is wrong"]),
    "it_and_goes": ("PLAIN", [f"421 4.7.0 {PASSWORD} is wrong"]),
}


@pytest.mark.parametrize(("mechanism", "script"), QUOTED.values(), ids=QUOTED)
async def test_n5_a_server_that_quotes_the_credentials_does_not_get_them_into_error_or_log(
    musts: Musts, mechanism: str, script: list[str]
) -> None:
    async with (
        FaultServer(auth=script, extensions=(*EXTENSIONS, f"AUTH {mechanism}")) as server,
        Mailer(server.url, username="ada", password=PASSWORD) as mailer,
    ):
        result = await musts.outcome_of(mailer.send(tokened(musts.token())))
        assert isinstance(result, AuthenticationError), repr(result)
        assert "it quotes the credentials" in str(result)
        assert result.reply is not None
        assert PASSWORD not in result.reply.text


async def test_what_a_server_says_of_the_user_is_shown(musts: Musts) -> None:
    async with (
        FaultServer(users={"ada": "other"}, auth="535 5.7.8 no such password for ada") as server,
        Mailer(server.url, username="ada", password=PASSWORD) as mailer,
    ):
        result = await musts.outcome_of(mailer.send(tokened(musts.token())))
        assert "no such password for ada" in str(result)


async def test_n5_an_echo_of_the_auth_line_that_is_no_reply_is_in_no_chained_exception(
    musts: Musts,
) -> None:
    def echo(moment: Moment) -> Bytes:
        return Bytes(moment.line.encode() + b"\r\n")

    async with (
        FaultServer(
            auth=echo, extensions=(*EXTENSIONS, "AUTH PLAIN"), keep_credentials=True
        ) as server,
        Mailer(server.url, username="ada", password=PASSWORD) as mailer,
    ):
        error = await musts.outcome_of(mailer.send(tokened(musts.token())))
        assert isinstance(error, ProtocolError), repr(error)
        shown = "".join(traceback.format_exception(error))
        assert_no_canary(shown, "a traceback")
