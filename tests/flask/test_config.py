"""MAIL_* keys become settings, or an error that names the key."""

from __future__ import annotations

import typing as t
import warnings

import pytest
from flask import Flask

from amail import ConfigError, SMTPSettings
from amail_flask import Mail
from amail_flask.config import KEYS, MailConfig

CANARY = "canary-pa55word"


def settings(**keys: t.Any) -> SMTPSettings:
    where = MailConfig.read({f"MAIL_{name}": value for name, value in keys.items()}).where
    assert isinstance(where, SMTPSettings)
    return where


def test_no_key_at_all_means_port_25_of_this_machine_in_the_clear() -> None:
    made = settings()
    assert (made.host, made.effective_port, made.effective_tls) == ("127.0.0.1", 25, "none")
    assert (made.max_connections, made.max_messages) == (5, 100)


def test_flask_mails_keys_reach_the_settings() -> None:
    made = settings(
        SERVER="smtp.example.com",
        PORT="2525",
        USE_TLS="true",
        USERNAME="ada",
        PASSWORD=CANARY,
        MAX_EMAILS=7,
    )
    assert (made.host, made.effective_port, made.effective_tls) == (
        "smtp.example.com",
        2525,
        "starttls",
    )
    assert (made.username, made.password, made.max_messages) == ("ada", CANARY, 7)


def test_further_keys_reach_the_settings() -> None:
    made = settings(
        MAX_CONNECTIONS="3",
        TLS_VERIFY="no",
        TLS_SERVER_NAME="mail.example.com",
        CA_FILE="/ca.pem",
        SSL_CERTFILE="/cert.pem",
        SSL_KEYFILE="/key.pem",
        ALLOW_INSECURE_AUTH=True,
        LOCAL_HOSTNAME="web.example.com",
    )
    assert made == SMTPSettings(
        max_connections=3,
        tls_verify=False,
        tls_server_name="mail.example.com",
        ca_file="/ca.pem",
        client_cert="/cert.pem",
        client_key="/key.pem",
        allow_insecure_auth=True,
        local_hostname="web.example.com",
    )


@pytest.mark.parametrize(
    ("keys", "port", "mode"),
    [
        ({"USE_TLS": True}, 587, "starttls"),
        ({"USE_SSL": True}, 465, "implicit"),
        ({"PORT": 587}, 587, "starttls"),
        ({"PORT": 465}, 465, "implicit"),
        ({"PORT": 587, "USE_TLS": False}, 587, "none"),
        ({"PORT": 587, "USE_SSL": False}, 587, "starttls"),
        ({"PORT": 465, "USE_SSL": False}, 465, "none"),
        ({"PORT": 465, "USE_TLS": False, "USE_SSL": True}, 465, "implicit"),
        ({"PORT": 2525, "USERNAME": "a", "PASSWORD": "b"}, 2525, "starttls"),
        ({"PORT": 2525}, 2525, "none"),
    ],
)
def test_the_tls_mode_is_what_was_said_and_else_inferred(
    keys: dict[str, t.Any], port: int, mode: str
) -> None:
    made = settings(SERVER="smtp.example.com", **keys)
    assert (made.effective_port, made.effective_tls) == (port, mode)


def test_b102_both_tls_modes_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="MAIL_USE_TLS and MAIL_USE_SSL: set one of them"):
        settings(USE_TLS=True, USE_SSL=True)


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "False", "OFF"])
def test_b102_words_for_false_are_false(word: str) -> None:
    assert settings(SERVER="smtp.example.com", USE_TLS=word).effective_tls == "none"


@pytest.mark.parametrize(
    ("keys", "usual"),
    [
        ({"MAIL_PORT": 465, "MAIL_USE_TLS": True}, "MAIL_USE_SSL"),
        ({"MAIL_PORT": 587, "MAIL_USE_SSL": True}, "MAIL_USE_TLS"),
    ],
)
def test_b103_an_unusual_mode_works_with_a_warning(keys: dict[str, t.Any], usual: str) -> None:
    with pytest.warns(UserWarning, match=usual):
        assert isinstance(MailConfig.read(keys).where, SMTPSettings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MAIL_PORT", "abc"),
        ("MAIL_PORT", 0),
        ("MAIL_PORT", 70000),
        ("MAIL_PORT", True),
        ("MAIL_SERVER", 5),
        ("MAIL_SERVER", "smtp.example.com:587"),
        ("MAIL_SERVER", "smtp.example.com\r\n"),
        ("MAIL_USE_TLS", "maybe"),
        ("MAIL_TIMEOUT", 0),
        ("MAIL_TIMEOUT", -1),
        ("MAIL_TIMEOUT", "nan"),
        ("MAIL_TIMEOUT", "soon"),
        ("MAIL_MAX_CONNECTIONS", 0),
        ("MAIL_PASSWORD", f"{CANARY}\n"),
        ("MAIL_URL", f"smtp://ada:{CANARY}@"),
        ("MAIL_QUEUE", "celery"),
        ("MAIL_LOCAL_HOSTNAME", "a b"),
        ("MAIL_CA_FILE", 5),
    ],
)
def test_a_bad_value_is_a_config_error_that_names_the_key_and_no_secret(
    key: str, value: object
) -> None:
    app = Flask(__name__)
    app.config.update({"MAIL_USERNAME": "ada", "MAIL_PASSWORD": CANARY, key: value})
    with pytest.raises(ConfigError, match=f"^{key}: ") as caught:
        Mail(app)
    assert CANARY not in repr(caught.value)


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"MAIL_USERNAME": "ada"}, "MAIL_PASSWORD"), ({"MAIL_PASSWORD": CANARY}, "MAIL_USERNAME")],
)
def test_b104_half_of_the_credentials_is_a_config_error(
    keys: dict[str, str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask(__name__)
    app.config.update(keys)
    with pytest.raises(ConfigError, match=f"^{named}: is missing"):
        Mail(app)
    app.testing = True
    Mail(app)
    assert named in caplog.text


def test_b106_a_bad_default_sender_is_a_config_error_at_init_app() -> None:
    app = Flask(__name__)
    app.config["MAIL_DEFAULT_SENDER"] = "nobody"
    with pytest.raises(ConfigError, match=r"^MAIL_DEFAULT_SENDER: "):
        Mail(app)


def test_b109_an_unknown_key_gets_a_warning_that_says_which_is_meant() -> None:
    with pytest.warns(UserWarning, match="MAIL_USE_STARTTLS is no key .* MAIL_USE_TLS"):
        MailConfig.read({"MAIL_USE_STARTTLS": True})


def test_keys_without_a_value_are_as_if_they_were_not_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = MailConfig.read({**dict.fromkeys(KEYS), "MAIL_PORT": "", "OTHER": 1})
    assert config.where == settings()


def test_a_url_wins_over_server_port_tls_and_credentials() -> None:
    made = settings(
        URL="smtps://ada:secret@mail.example.com",
        SERVER="other.example.com",
        PORT=25,
        USE_TLS=True,
        USERNAME="bob",
        PASSWORD="x",
        MAX_EMAILS=3,
    )
    assert (made.host, made.effective_port, made.effective_tls) == (
        "mail.example.com",
        465,
        "implicit",
    )
    assert (made.username, made.password, made.max_messages) == ("ada", "secret", 3)


def test_options_in_the_url_stay_where_no_key_says_otherwise() -> None:
    made = settings(URL="smtp://mail.example.com?max_connections=9&max_messages=4")
    assert (made.max_connections, made.max_messages) == (9, 4)


def test_nothing_shows_the_password() -> None:
    app = Flask(__name__)
    app.config.update(MAIL_USERNAME="ada", MAIL_PASSWORD=CANARY)
    state = Mail(app).state
    assert CANARY not in f"{state!r} {state and state.mailer!r} {state and state.config!r}"
