"""N5: a password or a token shows in no repr, str, pickle, log or traceback, whatever goes wrong.

Each way to fail is a row, each kind of credentials is another; what is raised is searched with all
its causes and the locals of every frame. Logs are searched in every test of the suite: conftest.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import pickle
import typing as t

import pytest
from flask import Flask

from amail import Mailer, SMTPSettings, SMTPTransport, SyncMailer
from amail.errors import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    ProtocolError,
    SendError,
    SendTimeout,
    ServerBusy,
    TLSError,
)
from amail.oauth2 import RefreshToken, static_token
from amail.secret import Secret
from amail.testing import Bytes, Close, FaultServer, Hang, Reset
from amail.testing.fault_server import EXTENSIONS
from amail_flask import Mail
from tests.messages import tokened
from tests.musts import PASSWORD, assert_keeps_secrets, assert_no_canary

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from tests.musts import Musts
    from tests.servers.authority import Authority

HARD = f"{PASSWORD}/:@?#% é主"
"""A password that looks different in a URL, in bytes and in a repr; the canary shows in each."""


async def token() -> str:
    return PASSWORD


CREDENTIALS: dict[str, dict[str, t.Any]] = {
    "PLAIN": {"username": "ada", "password": HARD},
    "LOGIN": {"username": "ada", "password": HARD},
    "XOAUTH2": {"username": "ada", "oauth_token": token},
    "OAUTHBEARER": {"username": "ada", "oauth_token": token},
}
"""What a mailer is given, by the mechanism that the server offers."""


def assert_pickle_keeps_secrets(value: object) -> None:
    """It is not pickled, or the pickle has no canary."""
    with contextlib.suppress(TypeError, AttributeError, pickle.PicklingError):
        assert_no_canary(repr(pickle.dumps(value)), f"the pickle of {type(value).__name__}")


def assert_error_keeps_secrets(error: BaseException) -> None:
    assert_keeps_secrets(error)
    assert_pickle_keeps_secrets(error)
    try:
        raise RuntimeError("what the caller makes of it") from error
    except RuntimeError as chained:
        assert_keeps_secrets(chained)


# While sending


class Way(t.NamedTuple):
    """A way to fail: what is raised, what the server does, what the mailer is told."""

    error: type[SendError]
    server: dict[str, t.Any]
    options: dict[str, t.Any] = {}  # noqa: RUF012 - never changed
    says_auth: bool = True


def refused(reply: str) -> Way:
    return Way(AuthenticationError, {"auth": reply})


WAYS = {
    "535": refused("535 5.7.8 no"),
    "454": refused("454 4.7.0 later"),
    "421": refused("421 4.3.2 closing"),
    "530": refused("530 5.7.0 encryption first"),
    "501": refused("501 5.5.2 cannot decode that"),
    "another_yes": Way(ProtocolError, {"auth": "250 2.0.0 fine"}),
    "garbage": Way(ProtocolError, {"auth": Bytes(b"\x80\xff\x00 what?\r\n")}),
    "closed": Way(ConnectionLost, {"auth": Close()}),
    "reset": Way(ConnectionLost, {"auth": Reset()}),
    "hang": Way(SendTimeout, {"auth": Hang()}, {"command_timeout": 0.1}),
    "not_offered": Way(AuthenticationError, {"extensions": EXTENSIONS}, says_auth=False),
    "no_starttls": Way(TLSError, {}, {"tls": "starttls"}, says_auth=False),
    "not_trusted": Way(TLSError, {"tls": True}, {"tls": "starttls"}, says_auth=False),
    "no_greeting": Way(ConnectError, {"greeting": "554 5.3.2 no"}, says_auth=False),
    "busy": Way(ServerBusy, {"greeting": "421 4.3.2 busy"}, says_auth=False),
    "auth_lost": Way(AuthenticationError, {"auth": "235 ok", "mail": "530 5.7.0 log in first"}),
    "mail_closed": Way(ConnectionLost, {"auth": "235 ok", "mail": Close()}),
}


@pytest.mark.parametrize("mechanism", CREDENTIALS)
@pytest.mark.parametrize("way", WAYS)
async def test_n5_no_way_to_fail_shows_the_credentials(
    musts: Musts, authority: Authority, way: str, mechanism: str
) -> None:
    expected, does, options, says_auth = WAYS[way]
    script = {"extensions": (*EXTENSIONS, f"AUTH {mechanism}"), **does}
    if "tls" in script:
        script["tls"] = authority.server_context()
    async with FaultServer(**script) as server:
        mailer = Mailer(server.url, **CREDENTIALS[mechanism], **options)
        async with mailer:
            with pytest.raises(expected) as caught:
                await mailer.send(tokened(musts.token()))
            assert_error_keeps_secrets(caught.value)
            assert_no_canary(f"{mailer!r} {mailer.stats()!r}", "the mailer")
    assert any(each.line.startswith("AUTH") for each in server.commands) is says_auth


@pytest.mark.parametrize("mechanism", CREDENTIALS)
async def test_n5_a_send_that_is_cancelled_or_timed_out_in_auth_shows_nothing(
    musts: Musts, mechanism: str
) -> None:
    extensions = (*EXTENSIONS, f"AUTH {mechanism}")
    async with (
        FaultServer(auth=Hang(), extensions=extensions) as server,
        Mailer(server.url, **CREDENTIALS[mechanism]) as mailer,
    ):
        sending = asyncio.create_task(mailer.send(tokened(musts.token())))
        await server.reached("auth")
        sending.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await sending
        assert_error_keeps_secrets(cancelled.value)
        with pytest.raises(TimeoutError) as late:
            await asyncio.wait_for(mailer.send(tokened(musts.token())), 0.1)
        assert_error_keeps_secrets(late.value)
        with pytest.raises(SendTimeout) as late:
            await mailer.send(tokened(musts.token()), timeout=0.1)
        assert_error_keeps_secrets(late.value)


@pytest.mark.parametrize("mechanism", CREDENTIALS)
async def test_n5_nobody_there_shows_nothing(musts: Musts, mechanism: str) -> None:
    async with FaultServer() as server:
        pass
    async with Mailer(server.url, **CREDENTIALS[mechanism]) as mailer:
        with pytest.raises(ConnectError) as caught:
            await mailer.send(tokened(musts.token()))
        assert_error_keeps_secrets(caught.value)


@pytest.mark.parametrize("mechanism", CREDENTIALS)
def test_n5_a_sync_mailer_that_is_refused_shows_nothing(mechanism: str) -> None:
    extensions = (*EXTENSIONS, f"AUTH {mechanism}")
    with (
        FaultServer.serve_in_thread(auth="535 5.7.8 no", extensions=extensions) as server,
        SyncMailer(server.url, **CREDENTIALS[mechanism]) as mailer,
    ):
        with pytest.raises(AuthenticationError) as caught:
            mailer.send(tokened("token"))
        assert_error_keeps_secrets(caught.value)
        assert_no_canary(repr(mailer), "the mailer")


def test_n5_a_flask_app_whose_password_is_refused_shows_nothing() -> None:
    app = Flask(__name__)
    with FaultServer.serve_in_thread(auth="535 5.7.8 no", users={"ada": "another"}) as server:
        app.config.update(MAIL_PORT=server.port, MAIL_USERNAME="ada", MAIL_PASSWORD=HARD)
        mail = Mail(app)

        @app.get("/")
        async def view() -> str:
            with pytest.raises(AuthenticationError) as caught:
                await mail.send(tokened("token"))
            assert_error_keeps_secrets(caught.value)
            return "refused"

        assert app.test_client().get("/").text == "refused"
        with app.app_context():
            mail.close()


# While being made

REFUSED_OPTIONS: list[dict[str, t.Any]] = [
    {"port": 0},
    {"port": "587"},
    {"tls": "ssl"},
    {"tls_verify": "no"},
    {"host": "a b"},
    {"host": f"ada:{PASSWORD}@mail.test"},
    {"local_hostname": "a\r\nb"},
    {"source_address": "x"},
    {"max_connections": 0},
    {"max_age": -1},
    {"final_timeout": float("nan")},
    {"ssl_context": 1},
    {"client_key": "key.pem"},
    {"username": None},
    {"username": b"ada"},
    {"password": f"{PASSWORD}\r\n"},
    {"password": f"{PASSWORD}\0"},
    {"password": f"{PASSWORD}\ud800"},
    {"password": PASSWORD.encode()},
    {"password": [PASSWORD]},
    {"oauth_token": token},
    {"oauth_token": PASSWORD},
    {"no_such_option": PASSWORD},
]
REFUSED_URLS = [
    *("smtp://ada:{}", "smtp://ada:{}@mail.test:x", "smtp://ada:{}@mail.test:99999"),
    *("smtp://ada:{}@[::1", "smtp://ada:{}@mail.test/x", "smtp://ada:{}@mail.test#x"),
    *("smtp://ada:{}%0d%0a@mail.test", "smtp://ada:{}%ff@mail.test", "smtp://ada:{} @mail.test"),
    *("smtp://ada:{}\r\n@mail.test", "smtp://:{}@mail.test", "smtp://ada:{}@", "{}://mail.test"),
    *("smtp://ada:{}@mail.test?no_such=1", "smtp://ada:{}@mail.test?password={}"),
    *("smtp://ada:{}@mail.test?tls=zzz", "smtp://ada:{}@mail.test?max_age=x"),
    *("smtps://ada:{}@mail.test?tls=none", "smtp://ada:{}@mail.test?tls=none&tls=none"),
    *("memory://ada:{}@mail.test", "http://ada:{}@mail.test", "ada:{}@mail.test"),
]


FROM_OPTIONS: dict[str, Callable[..., object]] = {
    "SMTPSettings": SMTPSettings,
    "from_url": lambda **options: SMTPSettings.from_url("smtp://mail.test", **options),
    "Mailer": Mailer,
    "SyncMailer": SyncMailer,
}
FROM_URL: dict[str, Callable[[str], object]] = {
    "from_url": SMTPSettings.from_url,
    "Mailer": Mailer,
    "SyncMailer": SyncMailer,
}


@pytest.mark.parametrize("wrong", REFUSED_OPTIONS, ids=lambda wrong: next(iter(wrong)))
@pytest.mark.parametrize("maker", FROM_OPTIONS)
def test_n5_no_refused_option_shows_the_password(wrong: dict[str, t.Any], maker: str) -> None:
    options = {"host": "mail.test", "username": "ada", "password": HARD, **wrong}
    with pytest.raises((ConfigError, TypeError)) as caught:
        FROM_OPTIONS[maker](**options)
    assert_error_keeps_secrets(caught.value)


@pytest.mark.parametrize("url", REFUSED_URLS)
@pytest.mark.parametrize("maker", FROM_URL)
def test_n5_no_refused_url_shows_the_password(url: str, maker: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FROM_URL[maker](url.replace("{}", PASSWORD))
    assert_error_keeps_secrets(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [each for each in REFUSED_OPTIONS if "canary" not in repr(each)],
    ids=" ".join,
)
def test_n5_settings_replaced_by_refused_ones_show_no_password(wrong: dict[str, t.Any]) -> None:
    settings = SMTPSettings("mail.test", username="ada", password=HARD)
    with pytest.raises((ConfigError, TypeError)) as caught:
        dataclasses.replace(settings, **wrong)  # whose frame holds all fields
    assert_error_keeps_secrets(caught.value)


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_n5_a_refused_url_of_the_environment_shows_no_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_URL", url.replace("{}", PASSWORD))
    with pytest.raises(ConfigError) as caught:
        Mailer.from_env()
    assert_error_keeps_secrets(caught.value)


REFUSED_KEYS: list[dict[str, t.Any]] = [
    {"MAIL_PORT": "x"},
    {"MAIL_PORT": 0},
    {"MAIL_SERVER": "a b"},
    {"MAIL_SERVER": f"ada:{PASSWORD}@mail.test"},
    {"MAIL_USE_TLS": True, "MAIL_USE_SSL": True},
    {"MAIL_TIMEOUT": 0},
    {"MAIL_MAX_CONNECTIONS": 0},
    {"MAIL_USERNAME": None},
    {"MAIL_USERNAME": 1.5},
    {"MAIL_PASSWORD": f"{PASSWORD}\n"},
    {"MAIL_PASSWORD": PASSWORD.encode()},
    {"MAIL_QUEUE": PASSWORD},
    {"MAIL_DEFAULT_SENDER": "no address"},
    *({"MAIL_URL": url.replace("{}", PASSWORD)} for url in REFUSED_URLS),
]


@pytest.mark.parametrize("wrong", REFUSED_KEYS, ids=repr)
def test_n5_no_refused_key_of_flask_shows_the_password(wrong: dict[str, t.Any]) -> None:
    app = Flask(__name__)
    app.config.update({"MAIL_USERNAME": "ada", "MAIL_PASSWORD": HARD, **wrong})
    with pytest.raises(ConfigError) as caught:
        Mail(app)
    assert_error_keeps_secrets(caught.value)


# What exists


def flask_state() -> object:
    app = Flask(__name__)
    app.config.update(MAIL_USERNAME="ada", MAIL_PASSWORD=HARD)
    Mail(app)
    return app.extensions["mail"]


def settings() -> SMTPSettings:
    return SMTPSettings("mail.test", username="ada", password=HARD)


HOLDERS: dict[str, Callable[[], object]] = {
    "settings": settings,
    "settings with a token": lambda: SMTPSettings(
        username="ada", oauth_token=static_token(PASSWORD)
    ),
    "token source": lambda: static_token(PASSWORD),
    "refresh token": lambda: RefreshToken("https://a.test", "id", PASSWORD, PASSWORD),
    "transport": lambda: SMTPTransport(settings()),
    "mailer": lambda: Mailer(settings()),
    "mailer of a URL": lambda: Mailer(f"smtp://ada:{PASSWORD}@mail.test"),
    "sync mailer": lambda: SyncMailer(settings()),
    "state of a flask app": flask_state,
}
"""What holds a password or a token while all is well."""


@pytest.mark.parametrize("holder", HOLDERS)
def test_n5_what_holds_a_secret_shows_it_in_no_text_and_no_pickle(holder: str) -> None:
    value = HOLDERS[holder]()
    for text in (repr(value), str(value), f"{value}", repr([value])):
        assert_no_canary(text, f"the text of a {holder}")
    assert_pickle_keeps_secrets(value)


def test_n5_settings_in_parts_show_no_password_and_copies_still_have_it() -> None:
    original = settings()
    for parts in (vars(original), dataclasses.asdict(original), dataclasses.astuple(original)):
        assert_no_canary(repr(parts), "the fields of settings")
    for copied in (copy.copy(original), copy.deepcopy(original), dataclasses.replace(original)):
        assert copied == original
        assert copied.password == HARD
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(original)


def test_a_secret_is_a_str_in_all_but_its_repr() -> None:
    secret = Secret(PASSWORD)
    assert (secret, str(secret), f"{secret}", secret.encode()) == (
        PASSWORD,
        PASSWORD,
        PASSWORD,
        PASSWORD.encode(),
    )
    assert hash(secret) == hash(PASSWORD)
    assert repr([secret]) == "[<secret>]"
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret]) == [PASSWORD]
