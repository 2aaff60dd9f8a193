"""What the keys switch on: staging nets, prefix, DKIM, rate, failover, several mailers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import typing as t

import dkim
import pytest
from flask import Flask

from amail import ConfigError, DeliveryUnknown, SendTimeout, SMTPTransport, UsageError
from amail.testing import OK, Delay, FaultServer, Hang, Reset
from amail_flask import Mail, Message, email_resolved, lifespan
from tests.servers.aiosmtpd_server import aiosmtpd_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail import Receipt
    from tests.servers.aiosmtpd_server import AiosmtpdServer

SEED = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
PUBLIC = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
"""A pair of keys of Ed25519 (RFC 8032, section 7.1, test 1)."""


def hello(*recipients: str, **fields: t.Any) -> Message:
    usual = {"subject": "Hello", "recipients": recipients or ["bob@example.org"], "body": "Hi"}
    return Message(**{**usual, **fields})


def make(server: t.Any, **keys: t.Any) -> Mail:
    app = Flask(__name__)
    usual = {"MAIL_DEFAULT_SENDER": "me@example.com", "MAIL_URL": server and server.url}
    app.config.update({**usual, **{f"MAIL_{name}": value for name, value in keys.items()}})
    return Mail(app)


@pytest.fixture
def server() -> Iterator[AiosmtpdServer]:
    with aiosmtpd_server() as running:
        yield running


# Staging


def test_redirect_to_sends_to_those_in_place_of_everybody(server: AiosmtpdServer) -> None:
    mail = make(server, REDIRECT_TO="tests@example.com")
    receipt = mail.send_sync(hello("bob@example.org", cc="eve@example.net"))
    mail.close()
    (stored,) = server.messages
    assert stored.forward_paths == receipt.accepted == ("tests@example.com",)
    assert receipt.suppressed == ("bob@example.org", "eve@example.net")
    assert b"To: bob@example.org" in stored.content


def test_allowed_recipients_are_addresses_and_domains(server: AiosmtpdServer) -> None:
    mail = make(server, ALLOWED_RECIPIENTS="bob@example.org, *@example.com, example.net")
    receipt = mail.send_sync(
        hello(
            "bob@example.org",
            "eve@example.org",
            "a@example.com",
            "b@example.net",
            "c@x.example.net",
        )
    )
    mail.close()
    allowed = ("bob@example.org", "a@example.com", "b@example.net")
    assert server.messages[0].forward_paths == receipt.accepted == allowed
    assert receipt.suppressed == ("eve@example.org", "c@x.example.net")


def test_who_is_allowed_is_not_redirected(server: AiosmtpdServer) -> None:
    mail = make(server, ALLOWED_RECIPIENTS=["bob@example.org"], REDIRECT_TO=["t@example.com"])
    mail.send_sync(hello("bob@example.org"))
    mail.send_sync(hello("eve@example.org"))
    mail.close()
    assert [each.forward_paths for each in server.messages] == [
        ("bob@example.org",),
        ("t@example.com",),
    ]


def test_where_nobody_is_allowed_nothing_is_sent_and_nothing_opened(server: AiosmtpdServer) -> None:
    mail = make(server, ALLOWED_RECIPIENTS=["example.com"])
    receipt = mail.send_sync(hello("eve@example.org"))
    assert (receipt.relay, receipt.accepted) == ("suppressed", ())
    assert receipt.suppressed == ("eve@example.org",)
    assert server.sessions == 0


def test_what_is_sent_in_the_background_is_kept_from_them_too(server: AiosmtpdServer) -> None:
    mail = make(server, REDIRECT_TO="tests@example.com")
    mail.send_later(hello("eve@example.org"))
    assert mail.drain(10) == 0
    mail.close()
    assert [each.forward_paths for each in server.messages] == [("tests@example.com",)]


def test_an_empty_list_of_the_allowed_is_refused_and_lets_nobody_through() -> None:
    with pytest.raises(ConfigError, match=r"^MAIL_ALLOWED_RECIPIENTS: is empty"):
        make(None, ALLOWED_RECIPIENTS=[])


# The prefix of subjects


def test_the_prefix_is_on_the_copy_that_is_sent(server: AiosmtpdServer) -> None:
    mail = make(server, SUBJECT_PREFIX="[staging] ")
    message, own = hello(), hello(subject="[staging] Hello")
    receipts = [mail.send_sync(message), mail.send_sync(message), mail.send_sync(own)]
    mail.close()
    assert (message.subject, own.subject) == ("Hello", "[staging] Hello")
    assert [each.content.count(b"Subject: [staging] Hello\r\n") for each in server.messages] == [
        1
    ] * 3
    assert receipts[0].message_id == receipts[1].message_id == message.message_id
    assert server.messages[0].content == server.messages[1].content


def test_the_prefix_is_the_subject_of_a_message_without_one(server: AiosmtpdServer) -> None:
    mail = make(server, SUBJECT_PREFIX="[staging]")
    mail.send_sync(hello(subject=""))
    mail.close()
    assert b"Subject: [staging]\r\n" in server.messages[0].content


def test_what_is_no_message_is_told_so_with_a_prefix_too(server: AiosmtpdServer) -> None:
    mail = make(server, SUBJECT_PREFIX="[staging]")
    with pytest.raises(UsageError, match="send: must be a Message, not str"):
        mail.send_sync(t.cast("t.Any", "Hello"))


# Wrappers of the transport


def test_what_is_signed_verifies(server: AiosmtpdServer) -> None:
    mail = make(server, DKIM_KEY=SEED, DKIM_SELECTOR="s1", DKIM_DOMAIN="example.com")
    mail.send_sync(hello())
    mail.close()

    def dns(name: bytes, timeout: int = 5) -> bytes:
        assert name == b"s1._domainkey.example.com."
        return f"v=DKIM1; k=ed25519; p={PUBLIC}".encode()

    assert dkim.verify(server.messages[0].content, dnsfunc=dns)


def test_the_rate_holds_back_what_is_over_it(server: AiosmtpdServer) -> None:
    mail = make(server, RATE_LIMIT="2/s")
    began = time.monotonic()
    for _ in range(3):
        mail.send_sync(hello())
    mail.close()
    assert time.monotonic() - began >= 1
    assert len(server.messages) == 3


def test_the_second_url_takes_over_where_the_first_cannot_be_had(server: AiosmtpdServer) -> None:
    with FaultServer.serve_in_thread(greeting="554 5.3.2 no") as down:
        mail = make(None, URL=[down.url, server.url])
        receipt = mail.send_sync(hello())
        mail.close()
    assert receipt.relay == f"{server.host}:{server.port}"
    assert len(server.messages) == 1


def test_the_timeout_is_for_all_relays_together() -> None:
    with contextlib.ExitStack() as stack:
        down = [stack.enter_context(FaultServer.serve_in_thread(greeting=Hang())) for _ in range(4)]
        mail = make(None, URL=[each.url for each in down], TIMEOUT=1.0)
        began = time.monotonic()
        with pytest.raises(SendTimeout):
            mail.send_sync(hello())
        assert 1.0 <= time.monotonic() - began < 2.0  # and not four times as long
        assert [each.connections for each in down] == [1] * 4  # each had its share
        mail.close()


async def test_waiting_for_a_session_of_the_first_relay_is_no_part_of_the_timeout() -> None:
    with (
        FaultServer.serve_in_thread(final=Delay(0.6, "250 2.0.0 ok")) as first,
        FaultServer.serve_in_thread() as second,
    ):
        mail = make(None, URL=[first.url, second.url], TIMEOUT=1.0, MAX_CONNECTIONS=1)
        receipts = await asyncio.gather(*(mail.send(hello()) for _ in range(3)))
        assert {receipt.relay for receipt in receipts} == {f"{first.host}:{first.port}"}
        assert second.connections == 0
        await asyncio.to_thread(mail.close)


async def test_nobody_waits_for_the_first_url_to_come_back(server: AiosmtpdServer) -> None:
    with FaultServer.serve_in_thread(greeting=Reset()) as down:
        mail = make(None, URL=[down.url, server.url], MAX_CONNECTIONS=2)
        async with asyncio.timeout(10):  # alone, it would be asked again for that long
            await asyncio.gather(*(mail.send(hello()) for _ in range(50)))
        await asyncio.to_thread(mail.close)
    assert len(server.messages) == 50


def test_email_resolved_is_told_from_below_the_wrappers() -> None:
    with FaultServer.serve_in_thread(final=[Hang("250 2.0.0 ok"), OK]) as server:
        mail = make(server, TIMEOUT=0.3, RATE_LIMIT="100/s", REDIRECT_TO="tests@example.com")
        told = threading.Event()

        def receiver(app: Flask, receipt: Receipt, error: None) -> None:
            told.set()

        with email_resolved.connected_to(receiver, mail.app):
            with pytest.raises(DeliveryUnknown):
                mail.send_sync(hello())
            server.release()
            assert told.wait(10)
        mail.close()


# Several mailers in one app


def test_using_sends_over_the_mailer_of_that_name(server: AiosmtpdServer) -> None:
    with aiosmtpd_server() as bulk_server:
        mail = make(server, MAILERS={"bulk": {"MAIL_URL": bulk_server.url}})
        bulk = mail.using("bulk")
        mail.send_sync(hello(body="one"))
        bulk.send_sync(hello(body="two"))
        bulk.send_later(hello(body="three"))
        assert mail.drain(10) == 0
        mail.close()
        assert [b"one" in each.content for each in server.messages] == [True]
        assert len(bulk_server.messages) == 2


async def test_using_works_with_every_way_of_sending(server: AiosmtpdServer) -> None:
    with aiosmtpd_server() as bulk_server:
        mail = make(
            server,
            MAILERS={"bulk": {"MAIL_SERVER": bulk_server.host, "MAIL_PORT": bulk_server.port}},
        )
        bulk = mail.using("bulk")
        await bulk.send(hello())
        await bulk.send_message("Hello", ["bob@example.org"], "Hi")
        async with bulk.connect() as connection:
            await connection.send(hello())
        await bulk.send_raw(b"From: a@x.org\r\n\r\nHi\r\n", sender="a@x.org", recipients="b@x.org")
        assert [each.outcome async for each in bulk.send_many([hello(), hello()])] == [
            "accepted"
        ] * 2
        assert len(bulk_server.messages) == 6
        assert server.messages == []
        await asyncio.to_thread(mail.close)


def test_using_may_be_called_before_there_is_an_app(server: AiosmtpdServer) -> None:
    mail = Mail()
    bulk = mail.using("bulk")
    app = Flask(__name__)
    app.config.update(
        MAIL_URL="smtp://127.0.0.1:1",
        MAIL_DEFAULT_SENDER="me@example.com",
        MAIL_MAILERS={"bulk": {"MAIL_URL": server.url}},
    )
    mail.init_app(app)
    with app.app_context():
        bulk.send_sync(hello())
        mail.close()
    assert len(server.messages) == 1


async def test_the_lifespan_drains_every_mailer(server: AiosmtpdServer) -> None:
    mail = make(None, URL="smtp://127.0.0.1:1", MAILERS={"bulk": {"MAIL_URL": server.url}})
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    said: list[str] = []

    async def app(scope: object, receive: object, send: object) -> None:
        raise NotImplementedError

    async def receive() -> dict[str, t.Any]:
        event = next(events)
        if event["type"] == "lifespan.shutdown":
            mail.using("bulk").send_later(hello())
        return event

    async def send(event: t.MutableMapping[str, t.Any]) -> None:
        if event["type"] == "lifespan.shutdown.complete":
            said.append(f"{len(server.messages)} sent")

    await lifespan(app, mail)({"type": "lifespan"}, receive, send)
    assert said == ["1 sent"]


def test_a_mailer_that_there_is_not_is_a_usage_error(server: AiosmtpdServer) -> None:
    mail = make(server, MAILERS={"bulk": {}, "alerts": {}})
    with pytest.raises(UsageError, match="no mailer 'buld': MAIL_MAILERS has bulk, alerts"):
        mail.using("buld").send_sync(hello())
    with pytest.raises(UsageError, match="MAIL_MAILERS has nothing"):
        make(server).using("bulk").send_sync(hello())


def test_a_mailer_inherits_what_is_not_about_the_server_it_has_itself(
    server: AiosmtpdServer,
) -> None:
    mail = make(
        server,
        SUBJECT_PREFIX="[staging] ",
        REDIRECT_TO="tests@example.com",
        MAX_CONNECTIONS=1,
        RATE_LIMIT="1/h",
        MAILERS={
            "bulk": {"MAIL_URL": "smtp://bulk.example.com", "MAIL_DEFAULT_SENDER": "b@x.org"},
            "same": {"MAIL_TIMEOUT": 5},
        },
    )
    assert mail.state is not None
    own, bulk, same = (state.config for state in mail.state.every)
    assert own["MAIL_MAILERS"]
    assert bulk["MAIL_REDIRECT_TO"] == ("tests@example.com",)
    assert bulk["MAIL_SUBJECT_PREFIX"] == "[staging] "
    assert (bulk["MAIL_MAX_CONNECTIONS"], bulk["MAIL_RATE_LIMIT"]) == (5, None)
    assert bulk["MAIL_DEFAULT_SENDER"] == "b@x.org"
    assert (same["MAIL_URL"], same["MAIL_RATE_LIMIT"]) == (server.url, ("1/h",))
    assert (own["MAIL_TIMEOUT"], same["MAIL_TIMEOUT"]) == (25, 5)


def test_what_would_have_no_effect_in_a_mailer_is_refused(server: AiosmtpdServer) -> None:
    with pytest.raises(ConfigError, match=r"^MAIL_MAILERS\['bulk'\]: MAIL_PORT has no effect"):
        make(server, MAILERS={"bulk": {"MAIL_PORT": 26}})


@pytest.mark.parametrize("keys", [{"MAIL_PORT": "x"}, {"MAIL_PORT": 0}])
def test_an_error_in_a_mailer_names_it(keys: dict[str, t.Any]) -> None:
    with pytest.raises(ConfigError, match=r"^MAIL_MAILERS\['bulk'\]: MAIL_PORT: must be"):
        make(None, MAILERS={"bulk": {"MAIL_SERVER": "bulk.example.com", **keys}})


@pytest.mark.parametrize("key", ["MAIL_SEVER", "SERVER", "MAIL_MAILERS"])
def test_an_unknown_key_in_a_mailer_is_warned_of(server: AiosmtpdServer, key: str) -> None:
    with pytest.warns(UserWarning, match=rf"MAIL_MAILERS\['bulk'\]: {key} is no key"):
        make(server, MAILERS={"bulk": {key: {}}})


def test_testing_suppresses_every_mailer(server: AiosmtpdServer) -> None:
    mail = make(server, MAILERS={"bulk": {}})
    assert mail.app is not None
    mail.app.testing = True
    with mail.app.app_context(), mail.record_messages() as outbox:
        assert mail.using("bulk").send_sync(hello()).relay == "suppressed"
    assert len(outbox) == 1
    assert server.sessions == 0


def test_names_of_the_state_are_those_of_the_mailer_in_use(server: AiosmtpdServer) -> None:
    mail = make(server, MAILERS={"bulk": {"MAIL_DEFAULT_SENDER": "bulk@example.com"}})
    assert (mail.default_sender, mail.using("bulk").default_sender) == (
        "me@example.com",
        "bulk@example.com",
    )
    assert isinstance(mail.using("bulk").mailer.transport, SMTPTransport)
