"""MAIL_* keys become settings, or an error that names the key."""

from __future__ import annotations

import sys
import typing as t
import warnings
from pathlib import Path

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from amail import ConfigError, SMTPSettings, values
from amail.keys import as_markdown
from amail_flask import Mail, Message, foreign
from amail_flask.config import KEYS, SECTIONS, MailConfig
from amail_flask.mailers import relays_of

ROOT = Path(__file__).parent.parent.parent
CANARY = "canary-pa55word"
SEED = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
"""A private key of Ed25519 (RFC 8032, section 7.1, test 1)."""


def settings(**keys: t.Any) -> SMTPSettings:
    (relay,) = relays_of(MailConfig.read({f"MAIL_{name}": each for name, each in keys.items()}))
    assert isinstance(relay, SMTPSettings)
    return relay


def refused(**keys: t.Any) -> str:
    """What an app with these keys is refused with."""
    app = Flask(__name__)
    app.config.update({f"MAIL_{name}": value for name, value in keys.items()})
    with pytest.raises(ConfigError) as caught:
        Mail(app)
    assert CANARY not in repr(caught.value)
    return str(caught.value)


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
        PIPELINE_DEPTH="8",
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
        pipeline_depth=8,
        tls_verify=False,
        tls_server_name="mail.example.com",
        ca_file="/ca.pem",
        client_cert="/cert.pem",
        client_key="/key.pem",
        allow_insecure_auth=True,
        local_hostname="web.example.com",
    )


def test_a_token_source_may_stand_in_place_of_the_password() -> None:
    async def source() -> str:
        return CANARY

    made = settings(SERVER="smtp.example.com", USERNAME="ada", PASSWORD=source)
    assert (made.oauth_token, made.password) == (source, None)
    assert (made.effective_tls, made.effective_port) == ("starttls", 587)
    assert values.masked(source) == "function"


@pytest.mark.parametrize("setting", ["trace", "log_addresses"])
@pytest.mark.parametrize("url", [None, "smtp://smtp.example.com"])
def test_what_the_log_holds_is_set_by_two_keys(setting: str, url: str | None) -> None:
    key = {"trace": "PROTOCOL_TRACE"}.get(setting, setting.upper())
    assert getattr(settings(**{key: "on"}, URL=url), setting) is True
    assert getattr(settings(URL=url), setting) is False


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
        assert len(relays_of(MailConfig.read(keys))) == 1


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
        ("MAIL_QUEUE", "rabbitmq"),
        ("MAIL_QUEUE", "folder://var/spool/mail"),
        ("MAIL_PASSWORD", CANARY.encode()),
        ("MAIL_PASSWORD", f"{CANARY}\0"),
        ("MAIL_USERNAME", 1.5),
        ("MAIL_SERVER", "smtp://smtp.example.com"),
        ("MAIL_SERVER", "a b"),
        ("MAIL_PORT", -1),
        ("MAIL_PORT", 587.0),
        ("MAIL_TIMEOUT", True),
        ("MAIL_TIMEOUT", float("inf")),
        ("MAIL_DRAIN_TIMEOUT", -1),
        ("MAIL_MAX_CONNECTIONS", 10**6),
        ("MAIL_PIPELINE_DEPTH", 0),
        ("MAIL_PROTOCOL_TRACE", "maybe"),
        ("MAIL_LOG_ADDRESSES", 2),
        ("MAIL_MAX_CONNECTIONS", -1),
        ("MAIL_MAX_EMAILS", -1),
        ("MAIL_LOCAL_HOSTNAME", "ä.example.com"),
        ("MAIL_LOCAL_HOSTNAME", "a\r\nb"),
        ("MAIL_RATE_LIMIT", "14"),
        ("MAIL_RATE_LIMIT", []),
        ("MAIL_RATE_LIMIT", 14),
        ("MAIL_REDIRECT_TO", "nobody"),
        ("MAIL_ALLOWED_RECIPIENTS", "ex ample.com"),
        ("MAIL_ALLOWED_RECIPIENTS", 5),
        ("MAIL_DEFAULT_SENDER", 5),
        ("MAIL_DEFAULT_SENDER", ["Ada"]),
        ("MAIL_SUBJECT_PREFIX", 5),
        ("MAIL_SUBJECT_PREFIX", "[staging]\r\nBcc: eve@example.net"),
        ("MAIL_URL", []),
        ("MAIL_URL", ["memory://", 5]),
        ("MAIL_URL", f"carrier-pigeon://{CANARY}"),
        ("MAIL_URL", ["memory://", f"smtp://ada:{CANARY}@"]),
        ("MAIL_URL", "smtp://smtp.example.com?max_connections=0"),
        ("MAIL_MAILERS", ["bulk"]),
        ("MAIL_MAILERS", {"bulk": "smtp://bulk.example.com"}),
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


@pytest.mark.parametrize("key", ["MAIL_CHUNKING", "MAIL_PIPELINING"])
def test_b109_what_is_a_setting_but_no_key_is_warned_of(key: str) -> None:
    with pytest.warns(UserWarning, match=f"{key} is no key of amail_flask"):
        MailConfig.read({key: False})


def test_b109_an_unknown_key_gets_a_warning_that_says_which_is_meant() -> None:
    with pytest.warns(UserWarning, match="MAIL_USE_STARTTLS is no key .* MAIL_USE_TLS"):
        MailConfig.read({"MAIL_USE_STARTTLS": True})


def test_keys_without_a_value_are_as_if_they_were_not_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing: dict[str, object] = dict.fromkeys(KEYS.keys() - {"MAIL_SERVER"})
        config = MailConfig.read({**nothing, "MAIL_PORT": "", "OTHER": 1})
    assert relays_of(config) == [settings()]


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


# The rows of one key


def test_b100_an_ip_address_may_stand_in_brackets() -> None:
    assert settings(SERVER="[2001:db8::1]").host == "2001:db8::1"
    assert settings(SERVER="bücher.example").host == "xn--bcher-kva.example"


@pytest.mark.parametrize("server", [None, ""])
def test_b100_without_a_server_the_app_starts_and_its_first_message_is_told(
    server: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask(__name__)
    app.config.update(MAIL_SERVER=server, MAIL_DEFAULT_SENDER="me@example.com")
    mail = Mail(app)
    assert "MAIL_SERVER: is empty" in caplog.text
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^MAIL_SERVER: is empty; name a server"):
            mail.send_sync(Message("Hello", ["bob@example.org"], "Hi"))


def test_b100_an_empty_server_beside_a_url_does_not_matter() -> None:
    assert settings(SERVER="", URL="smtp://smtp.example.com").host == "smtp.example.com"


@pytest.mark.parametrize("password", ["pässwörd", "x" * 1024])
def test_b105_a_password_may_be_long_and_in_any_language(password: str) -> None:
    made = settings(USERNAME="ada", PASSWORD=password)
    assert made.password == password


def test_b105_a_trailing_newline_of_an_env_file_is_named() -> None:
    assert "a trailing newline?" in refused(USERNAME="ada", PASSWORD=f"{CANARY}\n")


def test_b108_no_limit_of_messages_a_session_is_0() -> None:
    assert settings(MAX_EMAILS=0).max_messages == 0


@pytest.mark.parametrize("key", ["CA_FILE", "SSL_CERTFILE", "SSL_KEYFILE"])
def test_b111_a_file_that_is_not_there_is_a_config_error_at_init_app(
    key: str, tmp_path: Path
) -> None:
    there = tmp_path / "cert.pem"
    there.touch()
    keys = {"SSL_CERTFILE": there, key: tmp_path / "missing.pem"}
    assert refused(**keys).startswith(f"MAIL_{key}: there is no file that can be read at ")


def test_b113_init_app_again_reads_the_config_again() -> None:
    app = Flask(__name__)
    mail = Mail(app)
    app.config["MAIL_DEFAULT_SENDER"] = "ada@example.com"
    state = mail.init_app(app)
    assert app.extensions["mail"] is state
    assert mail.default_sender == "ada@example.com"


def test_b114_no_variable_of_the_environment_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAIL_SERVER", "FLASK_MAIL_SERVER", "MAIL_URL", "SMTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "smtp://elsewhere.example.com")
    assert settings() == SMTPSettings()


# From the environment


def test_what_from_prefixed_env_reads_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "PORT": "2525",
        "USE_TLS": "off",
        "USERNAME": "ada",
        "PASSWORD": "12345",
        "DEFAULT_SENDER": '["Ada", "ada@example.com"]',
        "ALLOWED_RECIPIENTS": "bob@example.org, *@example.com",
        "RATE_LIMIT": '["14/s", "500/h"]',
        "MAX_CONNECTIONS": '"7"',
        "MAILERS__bulk__MAIL_SERVER": "bulk.example.com",
    }.items():
        monkeypatch.setenv(f"FLASK_MAIL_{name}", text)
    app = Flask(__name__)
    app.config.from_prefixed_env()
    config = MailConfig.read(app.config)
    (relay,) = relays_of(config)
    assert relay == SMTPSettings(
        port=2525, username="ada", password="12345", tls=None, max_connections=7
    )
    assert config["MAIL_DEFAULT_SENDER"] == ("Ada", "ada@example.com")
    assert config["MAIL_ALLOWED_RECIPIENTS"] == ("bob@example.org", "*@example.com")
    assert config["MAIL_RATE_LIMIT"] == ("14/s", "500/h")
    assert config.mailers["bulk"]["MAIL_SERVER"] == "bulk.example.com"
    assert Mail(app).state is not None


def test_a_number_that_would_not_be_the_same_text_is_refused_as_a_password() -> None:
    assert "put it in double quotes" in refused(USERNAME="ada", PASSWORD=1e5)


# Several relays


def test_a_list_of_urls_is_failover_in_that_order() -> None:
    config = MailConfig.read(
        {
            "MAIL_URL": ["smtp://one.example.com", "memory://", "smtps://two.example.com"],
            "MAIL_MAX_EMAILS": 7,
        }
    )
    one, memory, two = relays_of(config)
    assert isinstance(one, SMTPSettings)
    assert isinstance(two, SMTPSettings)
    assert [one.relay, memory, two.relay] == [
        "one.example.com:25",
        "memory://",
        "two.example.com:465",
    ]
    assert one.max_messages == two.max_messages == 7


def test_an_error_says_which_of_several_urls_it_is() -> None:
    assert refused(URL=["memory://", "smtp://"]).startswith("MAIL_URL: relay 2: names no host")


@pytest.mark.parametrize("name", ["MAX_CONNECTIONS", "MAX_EMAILS", "LOCAL_HOSTNAME"])
def test_beside_a_url_an_error_still_names_the_key_it_is_in(name: str) -> None:
    said = refused(URL=f"smtp://ada:{CANARY}@smtp.example.com", **{name: "-1", "SERVER": "x"})
    assert said.startswith(f"MAIL_{name}: must be")


# DKIM


def test_dkim_needs_all_three_keys() -> None:
    said = refused(DKIM_KEY=CANARY, DKIM_DOMAIN="example.com")
    assert said.startswith("MAIL_DKIM_SELECTOR: is missing; signing needs MAIL_DKIM_KEY, ")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"DKIM_KEY": f"/{CANARY}"}, "KEY"),
        ({"DKIM_SELECTOR": "a b"}, "SELECTOR"),
        ({"DKIM_DOMAIN": "a b"}, "DOMAIN"),
    ],
)
def test_what_cannot_sign_is_refused_and_named(keys: dict[str, str], named: str) -> None:
    usual = {"DKIM_KEY": SEED, "DKIM_SELECTOR": "s1", "DKIM_DOMAIN": "example.com"}
    assert refused(**{**usual, **keys}).startswith(f"MAIL_DKIM_{named}: ")


def test_without_the_extra_signing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amail.transports.dkim", None)
    said = refused(DKIM_KEY=SEED, DKIM_SELECTOR="s1", DKIM_DOMAIN="example.com")
    assert said.startswith("MAIL_DKIM_KEY: ")


# The warnings


def test_a_warning_shows_the_line_that_made_the_extension() -> None:
    app = Flask(__name__)
    app.config["MAIL_USE_STARTTLS"] = True
    with pytest.warns(UserWarning, match="MAIL_USE_TLS") as caught:
        Mail(app)
    assert caught[0].filename == __file__


# Keys of others


@pytest.mark.parametrize(
    ("theirs", "ours", "value"),
    [
        ({"MAIL_FROM": "ada@example.com"}, "MAIL_DEFAULT_SENDER", "ada@example.com"),
        (
            {"MAIL_FROM": "ada@example.com", "MAIL_FROM_NAME": "Ada"},
            "MAIL_DEFAULT_SENDER",
            ("Ada", "ada@example.com"),
        ),
        ({"SUPPRESS_SEND": 1}, "MAIL_SUPPRESS_SEND", True),
        ({"VALIDATE_CERTS": False}, "MAIL_TLS_VERIFY", False),
        ({"MAIL_BACKEND": "console"}, "MAIL_URL", "console://"),
        ({"MAIL_BACKEND": "dummy"}, "MAIL_URL", "null://"),
        ({"MAIL_BACKEND": "flask_mailman.backends.locmem"}, "MAIL_URL", "memory://"),
        (
            {"MAIL_BACKEND": "flask_mailman.backends.file.EmailBackend", "MAIL_FILE_PATH": "/o k"},
            "MAIL_URL",
            "file:///o%20k",
        ),
    ],
)
def test_a_key_of_flask_mailman_or_flask_mailing_is_read_as_ours_with_a_hint(
    theirs: dict[str, object], ours: str, value: object
) -> None:
    with pytest.warns(UserWarning, match=f"is read as {ours}; write that") as caught:
        config = MailConfig.read(theirs)
    assert config[ours] == value
    assert config.sources[ours] in theirs
    assert len(caught) == 1


@pytest.mark.parametrize(
    "key",
    sorted(foreign.KEYS - {"MAIL_FROM", "MAIL_BACKEND", "SUPPRESS_SEND", "VALIDATE_CERTS"}),
)
def test_a_key_of_theirs_that_has_no_like_says_what_to_write(key: str) -> None:
    with pytest.warns(UserWarning, match=f"{key} is no key of amail_flask; write "):
        assert not MailConfig.read({key: "x"}).sources


def test_flask_mailmans_usual_backend_is_ours() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settings(BACKEND="smtp", TIMEOUT=10) == settings()


def test_our_key_wins_over_theirs() -> None:
    keys = {"MAIL_FROM": "eve@example.com", "MAIL_DEFAULT_SENDER": "ada@example.com"}
    with pytest.warns(UserWarning, match="MAIL_FROM is not looked at"):
        assert MailConfig.read(keys)["MAIL_DEFAULT_SENDER"] == "ada@example.com"


@pytest.mark.parametrize("backend", ["project.mail.Backend", "file"])
def test_a_backend_that_has_no_like_is_refused(backend: str) -> None:
    assert refused(BACKEND=backend).startswith("MAIL_BACKEND: is no backend that has a like here")


# What is shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (values.credential(CANARY), "********"),
        (values.key(CANARY), "********"),
        (
            values.url(f"smtp://ada:{CANARY}@smtp.example.com"),
            "smtp://********@smtp.example.com:587",
        ),
        (values.url("smtps://smtp.example.com"), "smtps://smtp.example.com:465"),
        (values.url(f"smtp://ada:{CANARY}/x@smtp.example.com"), "********"),
        (values.url(f"pigeon://{CANARY}"), "********"),
        (
            values.url(["memory://", f"smtp://a:{CANARY}@x.org"]),
            "memory://, smtp://********@x.org:587",
        ),
        (values.mailers({"bulk": {"MAIL_PASSWORD": CANARY}}), "bulk"),
        (None, ""),
        (25.0, "25.0"),
    ],
)
def test_a_value_is_shown_without_its_secrets(value: object, shown: str) -> None:
    assert values.masked(value) == shown


@given(st.text())
def test_no_text_breaks_what_is_shown(text: str) -> None:
    for convert in (values.url, values.credential, values.key):
        values.masked(convert(text))


def test_the_page_has_the_table_of_the_code() -> None:
    """Where it does not, the page is to be given what ``as_markdown(SECTIONS)`` says."""
    page = (ROOT / "docs" / "flask.md").read_text("utf-8")
    assert f"\n{as_markdown(SECTIONS)}" in page


def test_every_key_of_the_table_says_what_it_means() -> None:
    assert all(key.meaning for key in KEYS.values())
    assert len({key.setting for key in KEYS.values()} - {""}) == len(
        [key for key in KEYS.values() if key.setting]
    )
