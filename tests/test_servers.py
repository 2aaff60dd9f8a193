"""The real servers that other tests rely on, proven with the standard library's client."""

from __future__ import annotations

import smtplib
import ssl
import typing as t

import pytest

from tests.servers.aiosmtpd_server import aiosmtpd_server
from tests.servers.postfix import REFUSED, postfix_server
from tests.servers.programs import speaks_smtp
from tests.servers.sink import smtp_sink

if t.TYPE_CHECKING:
    from pathlib import Path

    from tests.servers.authority import Authority
    from tests.servers.postfix import PostfixServer

ADA, BOB = "ada@example.com", "bob@example.org"
CONTENT = (
    b"Received: by nobody\r\nFrom: ada@example.com\r\nTo: bob@example.org\r\nSubject: stored\r\n"
    b"Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <1@example.com>\r\n\r\n"
    b".a dot\r\nFrom here\r\n\r\n" + b"x" * 998 + b"\r\n \r\n\r\n"
)


@pytest.mark.servers
def test_postfix_stores_what_was_sent_byte_for_byte(postfix: PostfixServer) -> None:
    trust = ssl.create_default_context(cafile=postfix.ca_file)
    content = CONTENT.removeprefix(b"Received: by nobody\r\n")
    with smtplib.SMTP(postfix.host, postfix.port, timeout=10) as client:
        client.ehlo()
        assert not client.has_extn("auth")
        client.starttls(context=trust)
        client.login(postfix.username, postfix.password)
        assert client.sendmail(ADA, [BOB, REFUSED], content).keys() == {REFUSED}
    (stored,) = postfix.wait_for_messages(1)
    assert stored.startswith(b"Return-Path: <ada@example.com>\r\n")
    assert postfix.strip_trace(stored) == content


@pytest.mark.servers
def test_postfix_takes_nothing_without_a_password(postfix: PostfixServer) -> None:
    trust = ssl.create_default_context(cafile=postfix.ca_file)
    with smtplib.SMTP(postfix.host, postfix.port, timeout=10) as client:
        client.starttls(context=trust)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(postfix.username, "wrong")
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail(ADA, [BOB], CONTENT)
    assert postfix.maildir_messages() == []


@pytest.mark.servers
def test_postfix_has_ports_with_other_settings_and_is_gone_afterwards() -> None:
    anybody = {"smtpd_relay_restrictions": "reject_unauth_destination"}
    with postfix_server({"small": {"smtpd_recipient_limit": "1", **anybody}}) as server:
        client = smtplib.SMTP(server.host, server.ports["small"], timeout=10)
        client.ehlo()
        assert client.mail(ADA)[0] == 250
        assert client.rcpt(BOB)[0] == 250
        assert client.rcpt(ADA)[0] == 452
        client.close()
    assert not speaks_smtp(server.port)
    assert not server.folder.exists()


@pytest.mark.servers
def test_smtp_sink_counts_messages(tmp_path: Path) -> None:
    with smtp_sink(tmp_path) as sink:
        with smtplib.SMTP(sink.host, sink.port, timeout=10) as client:
            for _ in range(3):
                client.sendmail(ADA, [BOB], CONTENT)
        assert sink.messages == 3
    assert not speaks_smtp(sink.port)


def test_aiosmtpd_stores_refuses_and_counts_sessions() -> None:
    with aiosmtpd_server(refused={REFUSED}) as server:
        for _ in range(2):
            with smtplib.SMTP(server.host, server.port, timeout=10) as client:
                assert client.sendmail(ADA, [BOB, REFUSED], CONTENT).keys() == {REFUSED}
    assert server.sessions == 2
    assert [(m.forward_paths, m.content) for m in server.messages] == [((BOB,), CONTENT)] * 2
    assert [message.session for message in server.messages] == [1, 2]
    assert not speaks_smtp(server.port)


@pytest.mark.parametrize("implicit", [False, True])
def test_aiosmtpd_speaks_tls_and_checks_passwords(authority: Authority, implicit: bool) -> None:
    context, trust = authority.server_context(), authority.client_context()
    with aiosmtpd_server(tls=context, implicit=implicit, users={"ada": "secret"}) as server:
        client: smtplib.SMTP
        if implicit:
            client = smtplib.SMTP_SSL(server.host, server.port, timeout=10, context=trust)
        else:
            client = smtplib.SMTP(server.host, server.port, timeout=10)
        with client:
            if not implicit:
                client.starttls(context=trust)
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("ada", "wrong")
            client.login("ada", "secret")
            client.sendmail(ADA, [BOB], CONTENT)
    assert server.messages[0].content == CONTENT
