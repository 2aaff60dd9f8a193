"""AUTH to servers that are not ours: Postfix, Dovecot, and smtp-server (Node)."""

from __future__ import annotations

import asyncio
import re
import typing as t

import pytest

from amail import AuthenticationError, Mailer, Receipt
from amail.oauth2 import RefreshToken, static_token
from amail.testing import FaultServer
from tests.musts import PASSWORD
from tests.servers.dovecot import dovecot, token
from tests.servers.node_smtp import node_smtp
from tests.servers.postfix import postfix_server
from tests.servers.token_endpoint import Answer, token_endpoint
from tests.smtp.outcomes import accepted, not_sent, send

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.musts import Musts
    from tests.servers.dovecot import Dovecot
    from tests.servers.node_smtp import NodeSMTP
    from tests.servers.postfix import PostfixServer

pytestmark = pytest.mark.servers

TOKEN = f"{PASSWORD}-token"
LONG_TOKEN = f"{TOKEN}-{'t' * 4000}"


@pytest.fixture(scope="module")
def postfix_ports() -> Iterator[PostfixServer]:
    """A Postfix with a port for each mechanism alone."""
    mechanisms = {name: {"smtpd_sasl_mechanism_filter": name} for name in ("plain", "login")}
    with postfix_server(mechanisms) as server:
        yield server


@pytest.mark.parametrize("mechanism", ["plain", "login"])
async def test_postfix_takes_a_password_by_the_one_mechanism_it_offers(
    musts: Musts, postfix_ports: PostfixServer, mechanism: str
) -> None:
    async with Mailer(
        f"smtp://{postfix_ports.host}:{postfix_ports.ports[mechanism]}",
        tls="starttls",
        ca_file=postfix_ports.ca_file,
        username=postfix_ports.username,
        password=postfix_ports.password,
    ) as mailer:
        assert isinstance(await send(musts, mailer), Receipt)
    assert f"sasl_method={mechanism.upper()}, sasl_username={postfix_ports.username}" in (
        postfix_ports.log
    )


@pytest.mark.parametrize("mechanism", ["plain", "login"])
async def test_postfix_refuses_a_wrong_password_once(
    musts: Musts, postfix_ports: PostfixServer, mechanism: str
) -> None:
    before = len(postfix_ports.log)
    async with Mailer(
        f"smtp://{postfix_ports.host}:{postfix_ports.ports[mechanism]}",
        tls="starttls",
        ca_file=postfix_ports.ca_file,
        username=postfix_ports.username,
        password="wrong",
    ) as mailer:
        result = await send(musts, mailer)
        not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
    log = postfix_ports.log[before:]
    assert log.count(f"SASL {mechanism.upper()} authentication failed") == 1


@pytest.fixture(scope="module")
def running_node() -> Iterator[NodeSMTP]:
    """One smtp-server for all tests."""
    tokens = {"ada": TOKEN, "bob": LONG_TOKEN}
    with node_smtp(passwords={"ada": PASSWORD}, tokens=tokens) as server:
        yield server


@pytest.fixture
def node(running_node: NodeSMTP) -> NodeSMTP:
    """smtp-server, with nothing reported yet."""
    running_node.clear()
    return running_node


@pytest.mark.parametrize(("user", "token"), [("ada", TOKEN), ("bob", LONG_TOKEN)])
async def test_smtp_server_takes_a_token_that_a_token_endpoint_gave(
    musts: Musts, node: NodeSMTP, user: str, token: str
) -> None:
    with token_endpoint(Answer({"access_token": token, "expires_in": 3600})) as endpoint:
        source = RefreshToken(endpoint.url, "client", None, "refresh")
        async with Mailer(
            node.url,
            tls="starttls",
            ca_file=node.ca_file,
            username=user,
            oauth_token=source,
            max_messages=1,
        ) as mailer:
            for _ in range(2):
                accepted(await send(musts, mailer))
        assert len(endpoint.forms) == 1
    await asyncio.to_thread(node.wait_for, tries=2, messages=2)
    asked = {"auth": "XOAUTH2", "username": user, "right": True, "secure": True}
    assert node.tries == [asked, asked]
    assert [by for by, _ in node.messages] == [user] * 2


async def test_f36_what_smtp_server_says_of_a_wrong_token_is_in_the_error(
    musts: Musts, node: NodeSMTP
) -> None:
    async with Mailer(
        node.url,
        tls="starttls",
        ca_file=node.ca_file,
        username="ada",
        oauth_token=static_token(f"{TOKEN}-wrong"),
    ) as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
    assert "status 401, scope https://mail.google.com/, schemes bearer" in str(error)
    await asyncio.to_thread(node.wait_for, tries=1, messages=0)
    assert [each["right"] for each in node.tries] == [False]


async def test_smtp_server_takes_a_password(musts: Musts, node: NodeSMTP) -> None:
    async with Mailer(
        node.url, tls="starttls", ca_file=node.ca_file, username="ada", password=PASSWORD
    ) as mailer:
        accepted(await send(musts, mailer))
    await asyncio.to_thread(node.wait_for, tries=1, messages=1)
    assert [(each["auth"], each["right"]) for each in node.tries] == [("PLAIN", True)]


# Dovecot, which has one mechanism at a time, and hands on what it takes


@pytest.fixture(scope="module")
def relay() -> Iterator[FaultServer]:
    """The server behind Dovecot."""
    with FaultServer.serve_in_thread() as server:
        yield server


@pytest.fixture(scope="module", params=["XOAUTH2", "OAUTHBEARER"])
def with_tokens(relay: FaultServer, request: pytest.FixtureRequest) -> Iterator[Dovecot]:
    """A Dovecot with one mechanism for tokens."""
    with dovecot(relay, request.param.lower()) as server:
        yield server


@pytest.mark.parametrize("padding", [0, 4000], ids=["short", "long"])
async def test_dovecot_takes_a_token_by_the_one_mechanism_it_offers(
    musts: Musts, relay: FaultServer, with_tokens: Dovecot, padding: int
) -> None:
    before, said = len(relay.messages), len(with_tokens.log)
    async with Mailer(
        with_tokens.url,
        tls="starttls",
        ca_file=with_tokens.ca_file,
        username=with_tokens.username,
        oauth_token=static_token(token(padding=padding)),
    ) as mailer:
        info = await mailer.verify()
        for _ in range(3):
            accepted(await send(musts, mailer))
    assert (info.authenticated, info.auth) == (True, (info.mechanism,))
    assert len(relay.messages) == before + 3
    login = f"Login: user=<{with_tokens.username}>, method={info.mechanism}, "
    await asyncio.to_thread(with_tokens.wait_for_log, login, said)
    assert with_tokens.log[said:].count("Login: ") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"key": b"of somebody else"}, "Incorrect JWT signature"),
        ({"seconds": -60}, "Token has expired"),
    ],
    ids=["forged", "expired"],
)
async def test_f36_what_dovecot_says_of_a_token_it_refuses_is_in_the_error(
    musts: Musts, with_tokens: Dovecot, options: dict[str, t.Any], why: str
) -> None:
    said = len(with_tokens.log)
    async with Mailer(
        with_tokens.url,
        tls="starttls",
        ca_file=with_tokens.ca_file,
        username=with_tokens.username,
        oauth_token=static_token(token(**options)),
    ) as mailer:
        result = await send(musts, mailer)
        error = not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
    # XOAUTH2 has numbers there, OAUTHBEARER the names of RFC 7628, section 3.2.2.
    assert re.search(r"\(status (401|invalid_token)\b", str(error))
    await asyncio.to_thread(with_tokens.wait_for_log, why, said)
    assert with_tokens.log[said:].count(why) == 1


async def test_f32_a_token_that_dovecot_refused_is_replaced_by_the_next_one_at_once(
    musts: Musts, with_tokens: Dovecot
) -> None:
    expired = Answer({"access_token": token(seconds=-60), "expires_in": 3600})
    fresh = Answer({"access_token": token(), "expires_in": 3600})
    with token_endpoint(expired, fresh) as endpoint:
        async with Mailer(
            with_tokens.url,
            tls="starttls",
            ca_file=with_tokens.ca_file,
            username=with_tokens.username,
            oauth_token=RefreshToken(endpoint.url, "client", None, "refresh-token-of-ours"),
        ) as mailer:
            assert isinstance(await send(musts, mailer), AuthenticationError)
            accepted(await send(musts, mailer))


@pytest.fixture(scope="module", params=["PLAIN", "LOGIN"])
def with_passwords(relay: FaultServer, request: pytest.FixtureRequest) -> Iterator[Dovecot]:
    """A Dovecot with one mechanism for passwords."""
    with dovecot(relay, request.param.lower()) as server:
        yield server


async def test_dovecot_takes_a_password_by_the_one_mechanism_it_offers(
    musts: Musts, with_passwords: Dovecot
) -> None:
    async with Mailer(
        with_passwords.url,
        tls="starttls",
        ca_file=with_passwords.ca_file,
        username=with_passwords.username,
        password=with_passwords.password,
    ) as mailer:
        accepted(await send(musts, mailer))
        info = await mailer.verify()
    assert info.auth == (info.mechanism,)
    login = f"Login: user=<{with_passwords.username}>, method={info.mechanism}, "
    await asyncio.to_thread(with_passwords.wait_for_log, login)


async def test_dovecot_refuses_a_wrong_password_once(musts: Musts, with_passwords: Dovecot) -> None:
    said = len(with_passwords.log)
    async with Mailer(
        with_passwords.url,
        tls="starttls",
        ca_file=with_passwords.ca_file,
        username=with_passwords.username,
        password="wrong",
    ) as mailer:
        result = await send(musts, mailer)
        not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
    await asyncio.to_thread(with_passwords.wait_for_log, "Password mismatch", said)
    assert with_passwords.log[said:].count("Password mismatch") == 1
