"""Twenty ways in which a newcomer gets it wrong: what is raised names the cause and what to change.

Each row makes the mistake for real and pins the whole text. docs/error-messages.md shows the same
texts and no others, so that neither can drift.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import re
import socket
import ssl
import threading
import typing as t
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from flask import Flask

from amail import Mailer, MailError, Message
from amail.testing import Bytes, FaultServer
from amail_flask import Mail
from amail_flask.config import KEYS
from tests.musts import PASSWORD, assert_keeps_secrets, assert_no_canary

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.servers.authority import Authority

PAGE = Path(__file__).parent.parent / "docs" / "error-messages.md"
PLACE = re.compile(r"\b(?:127\.0\.0\.1|localhost):[0-9]+")
CREDENTIALS: dict[str, t.Any] = {"username": "ada@example.com", "password": PASSWORD}


class Stranger(t.NamedTuple):
    """What a mistake needs."""

    authority: Authority
    monkeypatch: pytest.MonkeyPatch
    folder: Path

    def trusted(self, **options: t.Any) -> dict[str, t.Any]:
        return {"ca_file": self.authority.file, **options}


class Row(t.NamedTuple):
    """``mistake`` is the number of one of the twenty; some show in several texts."""

    mistake: int
    make: Callable[[Stranger], Awaitable[str]]
    text: str


ROWS: list[Row] = []


def shows(mistake: int, text: str) -> Callable[[t.Any], t.Any]:
    """Add a row: the function makes the mistake and returns what its maker gets to read."""

    def add(make: Callable[[Stranger], Awaitable[str]]) -> Callable[[Stranger], Awaitable[str]]:
        ROWS.append(Row(mistake, make, text))
        return make

    return add


def message(**fields: t.Any) -> Message:
    """A message of the same octets each time."""
    known = {
        "recipients": ["bob@example.org"],
        "body": "Hi Bob",
        "sender": "ada@example.com",
        "message_id": "<1@example.com>",
        "date": dt.datetime(2025, 1, 1, tzinfo=dt.UTC),
    }
    return Message("Hello", **{**known, **fields})


def said(error: BaseException) -> str:
    """Return the last line of a traceback."""
    assert_keeps_secrets(error)
    return f"{type(error).__name__}: {error}"


async def sending(url: str, mail: Message | None = None, **options: t.Any) -> str:
    async with Mailer(url, **options) as mailer:
        with pytest.raises(MailError) as caught:
            await mailer.send(mail or message())
    return said(caught.value)


async def sending_to(server: FaultServer, mail: Message | None = None, **options: t.Any) -> str:
    async with server:
        return await sending(f"smtp://127.0.0.1:{server.port}", mail, **options)


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(MailError) as caught:
        make()
    return said(caught.value)


def app_with(**keys: t.Any) -> Flask:
    app = Flask(__name__)
    app.config.update(TESTING=True, MAIL_SUPPRESS_SEND=False)
    app.config.update({f"MAIL_{name}": value for name, value in keys.items()})
    return app


# Connecting


@shows(
    1,
    "SendTimeout: HOST:PORT: no answer at the stage 'greeting', where a mail server speaks "
    "first: check host and port; if that port speaks TLS first (465 does), use smtps:// "
    '(tls="implicit")',
)
async def starttls_on_the_port_that_speaks_tls_from_the_start(its: Stranger) -> str:
    server = FaultServer(tls=its.authority.server_context(), implicit=True)
    return await sending_to(server, tls="starttls", command_timeout=0.2)


@shows(
    2,
    "TLSError: HOST:PORT does not speak TLS from the start on this port: use smtp:// and "
    'STARTTLS (tls="starttls")',
)
async def implicit_tls_on_the_port_of_starttls(its: Stranger) -> str:
    server = FaultServer(tls=its.authority.server_context())
    return await sending_to(server, **its.trusted(tls="implicit"))


@shows(
    9,
    "SendTimeout: HOST:PORT: no answer at the stage 'greeting', where a mail server speaks "
    "first: check host and port; if that port speaks TLS first (465 does), use smtps:// "
    '(tls="implicit")',
)
async def a_port_of_a_web_server_that_waits_for_a_request(its: Stranger) -> str:
    with web_server() as port:
        return await sending(f"smtp://127.0.0.1:{port}", command_timeout=0.2)


@shows(
    9,
    "SendTimeout: HOST:PORT: no answer at the stage 'greeting', where a mail server speaks "
    "first: check host and port",
)
async def an_https_port(its: Stranger) -> str:
    with web_server(its.authority.server_context()) as port:
        url = f"smtps://127.0.0.1:{port}"
        return await sending(url, **its.trusted(command_timeout=0.2))


@shows(
    9,
    "ProtocolError: HOST:PORT does not speak SMTP on this port; is it the right one? Check "
    "host and port (587 or 465 for submission)",
)
async def a_port_of_a_server_that_speaks_something_else(its: Stranger) -> str:
    return await sending_to(FaultServer(greeting=Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")))


@shows(
    10,
    "ConnectError: HOST:PORT: connection refused: nothing listens there; check host and port, "
    "and whether it runs",
)
async def a_closed_port(its: Stranger) -> str:
    async with FaultServer() as server:
        pass
    return await sending(server.url)


@shows(
    11,
    "ConnectError: smtp.gmial.com:587: the name cannot be resolved: Name or service not "
    "known; check the host name (host)",
)
async def a_host_that_does_not_exist(its: Stranger) -> str:
    def unknown(*_: object, **__: object) -> t.NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    its.monkeypatch.setattr(socket, "getaddrinfo", unknown)
    return await sending("smtp://smtp.gmial.com:587")


@shows(
    16,
    "ServerBusy: HOST:PORT has no time for us now: 421 4.7.0 mx.example.com Error: too many "
    "connections from 192.0.2.1; lower max_connections, which each process has for itself",
)
async def more_sessions_than_the_server_allows(its: Stranger) -> str:
    reply = "421 4.7.0 mx.example.com Error: too many connections from 192.0.2.1"
    return await sending_to(FaultServer(greeting=reply))


@contextlib.contextmanager
def web_server(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A web server, and its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(10)


# TLS


def with_certificate(its: Stranger, *names: str, **dates: t.Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    its.authority.ca.issue_cert(*names, **dates).configure_cert(context)
    return context


@shows(
    6,
    "TLSError: HOST:PORT: the certificate is not trusted: unable to get local issuer "
    "certificate. If it is your own, name its authority in ca_file; nothing was sent",
)
async def an_authority_that_nobody_knows(its: Stranger) -> str:
    server = FaultServer(tls=its.authority.server_context())
    return await sending_to(server, tls="starttls")


@shows(
    6,
    "TLSError: HOST:PORT: the certificate is not trusted: unable to get local issuer "
    "certificate. The file of ca_file does not hold the authority that signed it; nothing was "
    "sent",
)
async def another_authority_than_the_servers(its: Stranger) -> str:
    another = its.folder / "another.pem"
    trustme.CA().cert_pem.write_to_path(str(another))
    server = FaultServer(tls=its.authority.server_context())
    return await sending_to(server, tls="starttls", ca_file=another)


@shows(
    7,
    "TLSError: HOST:PORT: the server's certificate has expired: renew it at the server, or "
    "check the clock of this machine; nothing was sent",
)
async def an_expired_certificate(its: Stranger) -> str:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    server = FaultServer(tls=with_certificate(its, "127.0.0.1", not_after=yesterday))
    return await sending_to(server, **its.trusted(tls="starttls"))


@shows(
    8,
    "TLSError: HOST:PORT: the server's certificate has another name: Hostname mismatch, "
    "certificate is not valid for 'localhost'. Write the one it has as host, or into "
    "tls_server_name; nothing was sent",
)
async def a_host_by_another_name_than_its_certificate_has(its: Stranger) -> str:
    async with FaultServer(tls=with_certificate(its, "mail.example.com")) as server:
        url = f"smtp://localhost:{server.port}"
        return await sending(url, **its.trusted(tls="starttls"))


@shows(
    13,
    "TLSError: HOST:PORT does not offer STARTTLS, which tls asks for; nothing was sent in the "
    'clear. Use the port that speaks TLS from the start (smtps://, 465), or tls="none" where '
    "nobody else can listen",
)
async def starttls_where_it_is_not_offered(its: Stranger) -> str:
    return await sending_to(FaultServer(), tls="starttls")


# AUTH


@shows(
    3,
    "ConfigError: MAIL_PASSWORD: ends with a carriage return (a trailing newline?), as lines "
    "of a file do; strip it",
)
async def a_carriage_return_behind_a_password_from_the_environment(its: Stranger) -> str:
    its.monkeypatch.setenv("FLASK_MAIL_PASSWORD", f"{PASSWORD}\r")
    app = app_with(USERNAME="ada")
    app.config.from_prefixed_env()
    return refused(lambda: Mail(app))


@shows(
    3,
    "ConfigError: MAIL_URL: ends with a carriage return (a trailing newline?), as lines of a "
    "file do; strip it",
)
async def a_carriage_return_behind_a_url_from_the_environment(its: Stranger) -> str:
    its.monkeypatch.setenv("MAIL_URL", f"smtp://ada:{PASSWORD}@mail.example.com\r")
    return refused(Mailer.from_env)


def refuses_password(reply: str) -> Callable[[Stranger], Awaitable[str]]:
    async def make(its: Stranger) -> str:
        return await sending_to(FaultServer(users={"ada": ""}, auth=reply), **CREDENTIALS)

    return make


for _reply, _text in {
    # Gmail
    "535-5.7.8 Username and Password not accepted. For more information, go to\n"
    "535 5.7.8  https://support.google.com/mail/?p=BadCredentials 5b1f17 - gsmtp": (
        "AuthenticationError: HOST:PORT does not accept username and password: 535 5.7.8 Username "
        "and Password not accepted. For more information, go to / "
        "https://support.google.com/mail/?p=BadCredentials 5b1f17 - gsmtp; password must be an "
        "app password, made for one application at the provider's own page, or use oauth_token"
    ),
    "534-5.7.9 Application-specific password required. For more information, go to\n"
    "534 5.7.9  https://support.google.com/mail/?p=InvalidSecondFactor 5b1f17 - gsmtp": (
        "AuthenticationError: HOST:PORT does not accept username and password: 534 5.7.9 "
        "Application-specific password required. For more information, go to / "
        "https://support.google.com/mail/?p=InvalidSecondFactor 5b1f17 - gsmtp; password must be "
        "an app password, made for one application at the provider's own page, or use oauth_token"
    ),
    # QQ
    "535 Login Fail. Please enter your authorization code to login. More information in "
    "https://service.mail.qq.com/detail/0/53": (
        "AuthenticationError: HOST:PORT does not accept username and password: 535 Login Fail. "
        "Please enter your authorization code to login. More information in "
        "https://service.mail.qq.com/detail/0/53; password must be the authorization code (授权码) "
        "that the mailbox's own settings page makes when its SMTP service is switched on"
    ),
    # NetEase: 163, 126
    "535 Error: authentication failed": (
        "AuthenticationError: HOST:PORT does not accept username and password: 535 Error: "
        "authentication failed; check username and password; many providers want an app password "
        "(an authorization code), made at their own page, in place of the account's"
    ),
    "550 User has no permission": (
        "AuthenticationError: HOST:PORT does not accept username and password: 550 User has no "
        "permission; password must be the authorization code (授权码) that the mailbox's own "
        "settings page makes when its SMTP service is switched on"
    ),
    # Microsoft 365
    "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the "
    "Tenant. Visit https://aka.ms/smtp_auth_disabled for more information.": (
        "AuthenticationError: HOST:PORT does not accept username and password: 535 5.7.139 "
        "Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit "
        "https://aka.ms/smtp_auth_disabled for more information; an administrator has to allow "
        "SMTP AUTH for this mailbox, or use oauth_token"
    ),
    "535 5.7.139 Authentication unsuccessful, basic authentication is disabled.": (
        "AuthenticationError: HOST:PORT does not accept username and password: 535 5.7.139 "
        "Authentication unsuccessful, basic authentication is disabled; it takes no passwords any "
        "more, no app password either: use oauth_token"
    ),
}.items():
    shows(4, _text)(refuses_password(_reply))


@shows(
    12,
    "AuthenticationError: HOST:PORT offers no AUTH without TLS; username and password need "
    'PLAIN or LOGIN: set tls ("starttls" or "implicit"), or leave them out',
)
async def credentials_for_a_server_without_auth(its: Stranger) -> str:
    return await sending_to(FaultServer(), **CREDENTIALS)


@shows(
    12,
    "AuthenticationError: HOST:PORT offers no AUTH; username and password need PLAIN or "
    "LOGIN: use the port for submission (587 or 465), or leave them out",
)
async def credentials_for_the_port_on_which_servers_talk_to_each_other(its: Stranger) -> str:
    server = FaultServer(tls=its.authority.server_context())
    return await sending_to(server, **its.trusted(tls="starttls", **CREDENTIALS))


# Sender, recipients, content

NOT_ITS_OWN = (
    "username may not send as this address: change sender (default_sender), and envelope_from if "
    "that is set, to one of its own"
)


@shows(
    5,
    "RecipientsRejected: the server refused every recipient: bob@example.org: 553 5.7.1 "
    "<ada@example.com>: Sender address rejected: not owned by user bob@example.com; "
    f"{NOT_ITS_OWN}",
)
async def a_sender_that_belongs_to_somebody_else(its: Stranger) -> str:
    """As Postfix says it, which waits for RCPT."""
    reply = (
        "553 5.7.1 <ada@example.com>: Sender address rejected: not owned by user bob@example.com"
    )
    return await sending_to(FaultServer(rcpt=reply))


@shows(
    5,
    "SenderRejected: the server refused the sender <ada@example.com>: 501 mail from address "
    "must be same as authorization user; "
    f"{NOT_ITS_OWN}",
)
async def a_sender_that_is_not_the_user_of_qq(its: Stranger) -> str:
    return await sending_to(
        FaultServer(mail="501 mail from address must be same as authorization user")
    )


@shows(
    5,
    "MessageRejected: the server rejected the message: 550 5.7.60 SMTP; Client does not have "
    "permissions to send as this sender; "
    f"{NOT_ITS_OWN}",
)
async def a_sender_that_exchange_does_not_let_this_user_have(its: Stranger) -> str:
    reply = "550 5.7.60 SMTP; Client does not have permissions to send as this sender"
    return await sending_to(FaultServer(final=reply))


@shows(
    15,
    "RecipientsRejected: the server refused every recipient: bob@example.org: 450 4.7.1 "
    "<bob@example.org>: Recipient address rejected: Greylisted; that is for now, as by "
    "greylisting: send the same message again in five minutes or more (Retrying does, or a "
    "queue)",
)
async def a_server_that_greylists(its: Stranger) -> str:
    reply = "450 4.7.1 <bob@example.org>: Recipient address rejected: Greylisted"
    return await sending_to(FaultServer(rcpt=reply))


@shows(
    14,
    "MessageTooLarge: the message has 8225 octets; the server takes 1000 (SIZE); leave "
    "attachments out, or send links to them",
)
async def a_message_larger_than_the_server_says_it_takes(its: Stranger) -> str:
    server = FaultServer(extensions=("SIZE 1000",))
    return await sending_to(server, message(body="Hi Bob\n" * 1000))


@shows(
    14,
    "MessageTooLarge: the message has 8225 octets, more than the server takes: 552 5.3.4 "
    "Message size exceeds fixed maximum message size; leave attachments out, or send links to "
    "them",
)
async def a_message_larger_than_the_server_takes(its: Stranger) -> str:
    server = FaultServer(final="552 5.3.4 Message size exceeds fixed maximum message size")
    return await sending_to(server, message(body="Hi Bob\n" * 1000))


@shows(17, 'InvalidAddress: sender: an address has an "@" between its two parts')
async def a_sender_of_a_name_alone(its: Stranger) -> str:
    return await sending("memory://", message(sender="Ada Lovelace"))


@shows(17, 'ConfigError: MAIL_DEFAULT_SENDER: an address has an "@" between its two parts')
async def a_default_sender_of_a_name_alone(its: Stranger) -> str:
    return refused(lambda: Mail(app_with(DEFAULT_SENDER="Ada Lovelace")))


@shows(17, "MessageError: sender: the message has none; give it one, or set default_sender")
async def no_sender_at_all(its: Stranger) -> str:
    return await sending("memory://", message(sender=None))


# Calls and settings


@shows(18, "RuntimeWarning: coroutine 'Mailer.send' was never awaited")
async def no_await(its: Stranger) -> str:
    async with Mailer("memory://") as mailer:
        return forgotten(lambda: mailer.send(message()))


@shows(18, "RuntimeWarning: coroutine 'Mail.send' was never awaited")
async def no_await_in_an_async_view(its: Stranger) -> str:
    app = app_with()
    mail = Mail(app)
    with app.test_request_context():
        return forgotten(lambda: mail.send(message()))


@shows(
    18,
    "UsageError: this view is not async: write mail.send_sync(message), or make it async def "
    "and write await mail.send(message)",
)
async def no_await_in_a_view_that_is_not_async(its: Stranger) -> str:
    app = app_with()
    mail = Mail(app)

    @app.get("/")
    def view() -> str:
        mail.send(message())  # type: ignore[unused-coroutine]  # that is the mistake
        return "sent"

    return await asyncio.to_thread(refused, lambda: app.test_client().get("/"))


def forgotten(call: Callable[[], object]) -> str:
    """Return the first warning about what is dropped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
        gc.collect()
        text = warned(caught)
        caught.clear()  # they hold the coroutine, and that one another
        gc.collect()
    return text


def warned(caught: t.Iterable[warnings.WarningMessage]) -> str:
    first = next(iter(caught))
    return f"{first.category.__name__}: {first.message}"


@shows(
    19,
    "ConfigError: MAIL_USE_TLS and MAIL_USE_SSL: set one of them; TLS is STARTTLS (port 587), "
    "SSL is TLS from the start (port 465)",
)
async def both_tls_modes(its: Stranger) -> str:
    return refused(lambda: Mail(app_with(USE_TLS=True, USE_SSL=True)))


@shows(19, "ConfigError: url: smtps:// is implicit TLS; for another mode write smtp://")
async def both_tls_modes_in_a_url(its: Stranger) -> str:
    return refused(lambda: Mailer("smtps://mail.example.com?tls=starttls"))


@shows(20, "UserWarning: MAIL_SEVER is no key of amail_flask; did you mean MAIL_SERVER?")
async def a_key_that_does_not_exist(its: Stranger) -> str:
    with pytest.warns(UserWarning, match="is no key") as caught:
        Mail(app_with(SEVER="mail.example.com"))
    return warned(caught)


@shows(20, "ConfigError: user: there is no such option; did you mean username?")
async def an_option_that_does_not_exist(its: Stranger) -> str:
    return refused(lambda: Mailer("smtp://mail.example.com", user="ada"))  # type: ignore[call-arg]


@shows(20, "ConfigError: url: there is no option 'max_connection'; did you mean max_connections?")
async def an_option_that_does_not_exist_in_a_url(its: Stranger) -> str:
    return refused(lambda: Mailer("smtp://mail.example.com?max_connection=2"))


# What is read


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.mistake:02}_{row.make.__name__}" for row in ROWS])
async def test_the_text_alone_names_the_cause_and_what_to_change(
    row: Row, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = await row.make(Stranger(authority, monkeypatch, tmp_path))
    assert_no_canary(text, "the text")
    assert PLACE.sub("HOST:PORT", text) == row.text


def test_there_are_twenty_mistakes() -> None:
    assert {row.mistake for row in ROWS} == set(range(1, 21))


def test_the_page_shows_these_texts_and_no_others() -> None:
    shown = re.findall(r"^```text\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in shown for line in block.splitlines()]
    assert sorted(lines) == sorted({row.text for row in ROWS})


def test_the_keys_that_the_page_has_for_the_settings_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`[a-z_]+`.*) \| (`MAIL_[A-Z_]+`.*) \|$", PAGE.read_text("utf-8"), re.M)
    pairs = [
        pair
        for settings, keys in rows
        for pair in zip(
            re.findall(r"`([a-z_]+)`", settings),
            re.findall(r"`(MAIL_[A-Z_]+)`", keys),
            strict=True,
        )
    ]
    assert len(pairs) > 6
    assert [KEYS[key].setting for _, key in pairs] == [setting for setting, _ in pairs]


def test_no_text_is_longer_than_a_few_lines() -> None:
    assert max(len(row.text) for row in ROWS) < 420
