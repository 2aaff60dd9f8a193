"""AUTH to servers that are not ours: smtp-server (Node) for XOAUTH2, Postfix for the others."""

from __future__ import annotations

import asyncio
import typing as t

import pytest

from amail import AuthenticationError, Mailer, Receipt
from amail.oauth2 import RefreshToken, static_token
from tests.musts import PASSWORD
from tests.servers.node_smtp import node_smtp
from tests.servers.postfix import postfix_server
from tests.servers.token_endpoint import Answer, token_endpoint
from tests.smtp.outcomes import accepted, not_sent, send

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.musts import Musts
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
