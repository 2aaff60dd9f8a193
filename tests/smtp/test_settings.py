"""Settings that exist can work, and no text of them shows a secret."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import ssl
import typing as t
from urllib.parse import quote

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from amail import ConfigError, MailError, SMTPSettings
from amail.smtp.settings import SMTPOptions
from amail.smtp.tls import client_context
from tests.musts import PASSWORD, assert_no_canary
from tests.strategies import EXAMPLES, nasty_text

if t.TYPE_CHECKING:
    from pathlib import Path

from_url = SMTPSettings.from_url


def refused(setting: str, /, **options: t.Any) -> str:
    """Why settings are refused; the error names the setting."""
    with pytest.raises(ConfigError) as caught:
        SMTPSettings(**options)
    assert str(caught.value).startswith(f"{setting}: ")
    return str(caught.value)


def refused_url(url: str, **options: t.Any) -> str:
    with pytest.raises(ConfigError) as caught:
        from_url(url, **options)
    return str(caught.value)


# The fields


def test_nothing_given_is_this_machine_without_tls() -> None:
    settings = SMTPSettings()
    assert (settings.host, settings.effective_port, settings.effective_tls) == (
        "127.0.0.1",
        25,
        "none",
    )


def test_every_field_is_a_keyword_of_the_same_type() -> None:
    fields = {each.name: each.type for each in dataclasses.fields(SMTPSettings)}
    options = {name: ref.__forward_arg__ for name, ref in SMTPOptions.__annotations__.items()}
    assert options == fields
    assert SMTPOptions.__required_keys__ == frozenset()


def test_settings_are_frozen_values_that_can_be_pickled_unless_they_hold_a_password() -> None:
    settings = SMTPSettings("mx.example.org", port=2525)
    assert pickle.loads(pickle.dumps(settings)) == settings
    settings = SMTPSettings("mx.example.org", username="u", password=PASSWORD)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(settings)
    assert dataclasses.replace(settings, port=2525).password == PASSWORD
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.host = "evil.example"  # type: ignore[misc]


# Rows of the bad inputs


@pytest.mark.parametrize(
    "host",
    [
        *("", " ", "mx.example.org:25", "smtp://mx.example.org", "mx example.org", " mx", "mx "),
        *("mx.example.org\r\n", "mx\0", "a@b", "-mx", "mx-", "[::1", "::1]", "[::1]:25", "1::2::3"),
        *("☃.net", "a..\u00fc", "ü" * 300, "a" * 254, "mx/25", "mx\\", "user:pw@mx", "[mx]"),
        *(None, b"mx", 5),
    ],
)
def test_b100_a_host_that_is_no_host_alone_is_refused(host: t.Any) -> None:
    assert "host" in refused("host", host=host)


@pytest.mark.parametrize(
    ("host", "read"),
    [
        ("[::1]", "::1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("192.0.2.1", "192.0.2.1"),
        ("MX.example.org", "MX.example.org"),
        ("mx.example.org.", "mx.example.org."),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("mail_server", "mail_server"),
        ("localhost", "localhost"),
    ],
)
def test_b100_a_name_an_address_and_a_unicode_name_are_hosts(host: str, read: str) -> None:
    assert SMTPSettings(host=host).host == read


@pytest.mark.parametrize("port", [0, -1, 65536, "587", "", True, 25.0])
def test_b101_a_port_is_a_whole_number_from_1_to_65535(port: t.Any) -> None:
    assert str(port) not in {"", "587"} or "not str" in refused("port", port=port)
    refused("port", port=port)


def test_b101_the_port_of_a_url_is_read_and_none_is_inferred() -> None:
    assert from_url("smtp://mx.example.org:587").port == 587
    assert SMTPSettings(port=None).effective_port == 25
    assert SMTPSettings(port=1).port == 1
    assert SMTPSettings(port=65535).port == 65535
    for url in ("smtp://h:0", "smtp://h:65536", "smtp://h:-1", "smtp://h:x"):
        assert refused_url(url)


def test_b102_two_tls_modes_at_once_are_refused() -> None:
    assert "smtps" in refused_url("smtps://mx.example.org?tls=starttls")
    assert "smtps" in refused_url("smtps://mx.example.org?tls=none")
    assert from_url("smtps://mx.example.org?tls=implicit").effective_tls == "implicit"
    for mode in ("ssl", "", "STARTTLS", True, None, ["none"]):
        if mode is not None:
            assert "starttls" in refused("tls", tls=mode)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "True", "1", "yes", "on", "ON")),
        *((text, False) for text in ("false", "False", "0", "no", "off", "OFF")),
    ],
)
def test_b102_words_for_true_and_false_are_read_in_a_url(text: str, value: bool) -> None:
    assert from_url(f"smtp://h?pipelining={text}").pipelining is value


@pytest.mark.parametrize("name", ["tls_verify", "allow_insecure_auth", "pipelining"])
def test_b102_words_are_not_true_or_false_elsewhere(name: str) -> None:
    for value in ("false", "no", "", 0, 1, None):
        options: dict[str, t.Any] = {name: value}
        assert "True or False" in refused(name, **options)
    for text in ("", "maybe", "2", "truefalse"):
        assert name in refused_url(f"smtp://h?{name}={text}")


def test_b103_an_unusual_port_for_a_mode_works_as_told() -> None:
    settings = SMTPSettings("mx.example.org", port=465, tls="starttls")
    assert (settings.effective_port, settings.effective_tls) == (465, "starttls")
    settings = SMTPSettings("mx.example.org", port=587, tls="implicit")
    assert (settings.effective_port, settings.effective_tls) == (587, "implicit")


def test_b104_a_username_and_a_password_come_together() -> None:
    assert "username is set" in refused("password", username="u")
    assert "password is set" in refused("username", password="p")
    assert "password is set" in refused("username", username="", password="p")
    assert SMTPSettings(username="u", password="").password == ""
    assert "username is set" in refused_url("smtp://u@mx.example.org")
    assert from_url("smtp://u:@mx.example.org").password == ""
    assert from_url("smtp://u@mx.example.org", password="p").password == "p"


@pytest.mark.parametrize("field", ["username", "password"])
def test_b105_credentials_are_text_without_control_characters(field: str) -> None:
    other = {"username": "u", "password": "p"}
    assert "trailing newline?" in refused(field, **{**other, field: f"{PASSWORD}\n"})
    for odd in ("\r", "\0", "a\r\nb", "\x7f", "\t"):
        assert_no_canary(refused(field, **{**other, field: PASSWORD + odd}), "the error")
    assert "UTF-8" in refused(field, **{**other, field: "\ud800"})
    assert "bytes" in refused(field, **{**other, field: PASSWORD.encode()})
    for value in ("x" * 1024, "pässwörd ☃", " ", "%0a"):
        options: dict[str, t.Any] = {**other, field: value}
        assert getattr(SMTPSettings(**options), field) == value


_SECONDS = [
    *("max_age", "idle_timeout", "connect_timeout", "command_timeout", "data_timeout"),
    *("final_timeout", "pool_timeout"),
]


@pytest.mark.parametrize("name", _SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, -1, None, "30", float("inf"), float("nan"), True])
def test_b107_seconds_are_more_than_none_and_finite(name: str, value: t.Any) -> None:
    assert "seconds" in refused(name, **{name: value})


@pytest.mark.parametrize("name", _SECONDS)
def test_b107_seconds_may_be_whole_or_not_and_stand_in_a_url(name: str) -> None:
    options: dict[str, t.Any] = {name: 0.5}
    assert getattr(SMTPSettings(**options), name) == 0.5
    assert getattr(from_url(f"smtp://h?{name}=2.5"), name) == 2.5
    for text in ("", "nan", "inf", "0", "-1", "1e999", "5s"):
        assert refused_url(f"smtp://h?{name}={text}")


def test_b107_these_are_all_the_seconds_there_are() -> None:
    seconds = [each.name for each in dataclasses.fields(SMTPSettings) if each.type == "float"]
    assert sorted(seconds) == sorted(_SECONDS)


@pytest.mark.parametrize("value", [0, -1, 10_001, 10**6, "5", None, 5.0, True])
def test_b108_a_pool_has_from_1_to_10000_sessions(value: t.Any) -> None:
    refused("max_connections", max_connections=value)


@pytest.mark.parametrize("value", [-1, 1_000_001, "5", None, 5.0, True])
def test_b108_messages_a_session_are_a_whole_number(value: t.Any) -> None:
    refused("max_messages", max_messages=value)


def test_b108_0_messages_a_session_means_any_number_and_says_so() -> None:
    assert SMTPSettings(max_messages=0).max_messages == 0
    assert "``max_messages`` (0: any number)" in " ".join((SMTPSettings.__doc__ or "").split())


@pytest.mark.parametrize(
    "name",
    [
        *("my host", "my\r\nhost", "host\n", "my_host", "münchen", "", "-a", "a-", ".a", "[::1"),
        *("[a b]", "a\0", b"host", 5, "a/b", "host>"),
    ],
)
def test_b110_a_local_hostname_that_cannot_stand_in_ehlo_is_refused(name: t.Any) -> None:
    assert "ASCII" in refused("local_hostname", local_hostname=name)


@pytest.mark.parametrize("name", ["web1", "web1.example.com", "[192.0.2.1]", "[IPv6:2001:db8::1]"])
def test_b110_a_host_name_and_an_address_literal_can_stand_in_ehlo(name: str) -> None:
    assert SMTPSettings(local_hostname=name).local_hostname == name


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def unusable(setting: str, **options: t.Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        client_context(SMTPSettings("mx.example.org", **options))
    assert str(caught.value).startswith(f"{setting}: cannot be used")
    return caught.value


def test_b111_a_ca_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = unusable("ca_file", ca_file=tmp_path / "missing.pem")
    assert "No such file" in str(missing)
    assert isinstance(missing.__cause__, OSError)
    assert unusable("ca_file", ca_file=str(tmp_path))
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    assert "PEM" in str(unusable("ca_file", ca_file=empty))


def test_b111_a_ca_file_is_trusted_besides_the_system(
    tmp_path: Path, authority: trustme.CA
) -> None:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    context = client_context(SMTPSettings("mx.example.org", ca_file=path))
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    own = ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode())
    assert own in context.get_ca_certs(binary_form=True)


def test_b111_a_client_key_fits_its_certificate(tmp_path: Path, authority: trustme.CA) -> None:
    mine, other = authority.issue_cert("a.example.org"), authority.issue_cert("b.example.org")
    certificate, key, wrong_key = (tmp_path / name for name in ("cert.pem", "key.pem", "other.pem"))
    mine.cert_chain_pems[0].write_to_path(str(certificate))
    mine.private_key_pem.write_to_path(str(key))
    other.private_key_pem.write_to_path(str(wrong_key))
    assert client_context(
        SMTPSettings("mx.example.org", client_cert=certificate, client_key=key)
    ).check_hostname
    assert unusable("client_cert", client_cert=certificate, client_key=wrong_key)
    assert unusable("client_cert", client_cert=certificate)
    assert unusable("client_cert", client_cert=tmp_path / "missing.pem", client_key=key)
    assert "client_cert" in refused("client_key", client_key=key)


def test_b111_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    tmp_path: Path, authority: trustme.CA
) -> None:
    from cryptography.hazmat.primitives import serialization

    pem = authority.issue_cert("a.example.org")
    loaded = serialization.load_pem_private_key(pem.private_key_pem.bytes(), None)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    pem.cert_chain_pems[0].write_to_path(str(certificate))
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(PASSWORD.encode()),
        )
    )
    error = unusable("client_cert", client_cert=certificate, client_key=key)
    assert "without a password" in str(error)
    assert str(error.__cause__) == "the key is protected by a password"


def test_b111_trusting_anybody_is_said_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="amail.smtp")
    context = client_context(SMTPSettings("mx.example.org", tls_verify=False))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    assert [record.getMessage() for record in caplog.records] == [
        "tls_verify is off: anybody can pose as mx.example.org:25"
    ]
    caplog.clear()
    settings = SMTPSettings("mx.example.org", ssl_context=context)
    assert client_context(settings) is context
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "anybody can pose as mx.example.org:25" in caplog.text


def test_b111_a_context_of_ones_own_is_used_as_it_is_and_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = ssl.create_default_context()
    assert client_context(SMTPSettings(ssl_context=context)) is context
    assert not caplog.records
    for name in ("ca_file", "client_cert"):
        assert "ssl_context" in refused(name, ssl_context=context, **{name: "x.pem"})
    assert "SSLContext" in refused("ssl_context", ssl_context="x.pem")


@pytest.mark.parametrize("name", ["ca_file", "client_cert", "socket_path"])
@pytest.mark.parametrize("value", ["", "a\0b", 5, True])
def test_b111_a_path_is_a_path(name: str, value: t.Any) -> None:
    assert "path" in refused(name, **{name: value})


@pytest.mark.parametrize("value", ["", "a b", "mx\r\n", "mx:25", 5, b"mx"])
def test_the_name_in_the_certificate_is_a_host_name(value: t.Any) -> None:
    assert "host name" in refused("tls_server_name", tls_server_name=value)
    assert SMTPSettings(tls_server_name="mx.example.org").tls_server_name == "mx.example.org"


@pytest.mark.parametrize("value", ["", "mx.example.org", 1, "127.0.0.1:25", "999.1.1.1"])
def test_the_source_address_is_an_address(value: t.Any) -> None:
    assert "IP address" in refused("source_address", source_address=value)
    assert SMTPSettings(source_address="127.0.0.2").source_address == "127.0.0.2"


# Port and TLS, one rule

_REMOTE = "mx.example.org"


@pytest.mark.parametrize(
    ("options", "port", "tls"),
    [
        # port: given, else by scheme or mode, else by credentials
        ({}, 25, "none"),
        ({"tls": "implicit"}, 465, "implicit"),
        ({"tls": "starttls"}, 587, "starttls"),
        ({"tls": "none"}, 25, "none"),
        ({"username": "u", "password": "p"}, 587, "starttls"),
        ({"username": "u", "password": "p", "tls": "none"}, 25, "none"),
        ({"username": "u", "password": "p", "tls": "implicit"}, 465, "implicit"),
        # mode: explicit, else by port
        ({"port": 465}, 465, "implicit"),
        ({"port": 587}, 587, "starttls"),
        ({"port": 25}, 25, "none"),
        ({"port": 2525}, 2525, "none"),
        ({"port": 2525, "username": "u", "password": "p"}, 2525, "starttls"),
        ({"port": 25, "username": "u", "password": "p"}, 25, "starttls"),
        ({"port": 465, "tls": "none"}, 465, "none"),
        ({"port": 587, "tls": "none"}, 587, "none"),
        ({"port": 2525, "tls": "implicit"}, 2525, "implicit"),
    ],
)
def test_port_and_mode_are_inferred_by_one_rule(
    options: dict[str, t.Any], port: int, tls: str
) -> None:
    settings = SMTPSettings(_REMOTE, **options)
    assert (settings.effective_port, settings.effective_tls) == (port, tls)
    assert settings.relay == f"{_REMOTE}:{port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST."])
@pytest.mark.parametrize(
    ("options", "port", "tls"),
    [
        ({}, 25, "none"),
        ({"port": 1025}, 1025, "none"),
        ({"port": 1025, "username": "u", "password": "p"}, 1025, "none"),
        ({"port": 465}, 465, "implicit"),
        ({"port": 587}, 587, "starttls"),
        ({"username": "u", "password": "p"}, 587, "starttls"),
        ({"port": 1025, "tls": "starttls"}, 1025, "starttls"),
    ],
)
def test_a_loopback_host_needs_no_tls_but_where_its_port_or_mode_says_so(
    host: str, options: dict[str, t.Any], port: int, tls: str
) -> None:
    settings = SMTPSettings(host, **options)
    assert settings.is_loopback
    assert (settings.effective_port, settings.effective_tls) == (port, tls)


@pytest.mark.parametrize("host", ["localhost.example.org", "10.0.0.1", "::2", "mx.example.org"])
def test_other_hosts_are_not_loopback(host: str) -> None:
    assert not SMTPSettings(host).is_loopback


def test_a_unix_socket_is_on_this_machine_and_needs_no_tls() -> None:
    settings = SMTPSettings(socket_path="/run/smtp.sock", username="u", password="p")
    assert settings.is_loopback
    assert settings.effective_tls == "none"
    assert settings.relay == "unix:/run/smtp.sock"
    assert SMTPSettings(socket_path="/run/smtp.sock", tls="starttls").effective_tls == "starttls"


def test_an_ipv6_relay_has_its_brackets() -> None:
    assert SMTPSettings("::1", port=2525).relay == "[::1]:2525"


# URLs


def test_a_url_holds_host_port_credentials_and_options() -> None:
    assert from_url(
        "smtp://ada:secret@mx.example.org:2525/?tls=starttls&max_connections=3&idle_timeout=5"
        "&pipelining=no&ca_file=%2Fetc%2Fca.pem&local_hostname=web1"
    ) == SMTPSettings(
        "mx.example.org",
        2525,
        "ada",
        "secret",
        tls="starttls",
        max_connections=3,
        idle_timeout=5.0,
        pipelining=False,
        ca_file="/etc/ca.pem",
        local_hostname="web1",
    )


def test_smtps_is_implicit_tls_on_465() -> None:
    for url in ("smtps://mx.example.org", "SMTPS://mx.example.org", "smtps://mx.example.org/"):
        settings = from_url(url)
        assert (settings.effective_port, settings.effective_tls) == (465, "implicit")
    settings = from_url("smtps://mx.example.org:2465")
    assert (settings.effective_port, settings.effective_tls) == (2465, "implicit")


def test_an_ipv6_host_stands_in_brackets() -> None:
    assert from_url("smtp://[2001:db8::1]:2525").relay == "[2001:db8::1]:2525"
    assert from_url("smtp://u:p@[::1]").host == "::1"
    for url in ("smtp://[::1", "smtp://::1", "smtp://[::1]25", "smtp://[zz]", "smtp://[mx.org]"):
        assert refused_url(url)


def test_a_unix_socket_stands_in_the_url_of_no_host() -> None:
    assert from_url("smtp://?socket_path=/run/smtp.sock").relay == "unix:/run/smtp.sock"


def test_a_unicode_host_may_stand_in_a_url() -> None:
    assert from_url("smtp://münchen.example").host == "xn--mnchen-3ya.example"


_any_secret = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[*map(chr, range(32)), "\x7f"]),
    min_size=1,
    max_size=20,
)


@EXAMPLES
@given(_any_secret, _any_secret)
@example(user="a:b/c@d#e?f g", password="%41+&=;%")
def test_percent_encoded_credentials_arrive_as_they_are(user: str, password: str) -> None:
    url = f"smtp://{quote(user, safe='')}:{quote(password, safe='')}@mx.example.org:2525"
    settings = from_url(url)
    assert (settings.username, settings.password) == (user, password)
    assert (settings.host, settings.port) == ("mx.example.org", 2525)


def test_a_plus_in_credentials_is_a_plus() -> None:
    settings = from_url("smtp://a+b:c+d@mx.example.org")
    assert (settings.username, settings.password) == ("a+b", "c+d")


def test_keywords_win_over_the_url() -> None:
    settings = from_url("smtp://u:p@h:25?tls=none&max_age=5", port=2525, tls="starttls", host="g")
    assert (settings.relay, settings.effective_tls, settings.max_age) == ("g:2525", "starttls", 5.0)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("max_conections", "max_connections"),
        ("conect_timeout", "connect_timeout"),
        ("tls-verify", "tls_verify"),
        ("cafile", "ca_file"),
        ("TLS", None),
        ("host", None),
        ("port", None),
        ("zzz", None),
    ],
)
def test_an_unknown_option_is_refused_with_what_may_have_been_meant(
    option: str, meant: str | None
) -> None:
    error = refused_url(f"smtp://h?{option}={PASSWORD}")
    assert repr(option) in error
    assert_no_canary(error, "the error")
    assert (f"did you mean {meant}?" if meant else "Options are tls, tls_verify") in error


@pytest.mark.parametrize("option", ["username", "password", "ssl_context"])
def test_credentials_are_no_options_of_a_url(option: str) -> None:
    error = refused_url(f"smtp://h?{option}={PASSWORD}")
    assert f"there is no option {option!r}" in error
    assert_no_canary(error, "the error")


def test_every_scalar_that_is_no_secret_is_an_option_of_a_url() -> None:
    offered = refused_url("smtp://h?zzz=1").partition("Options are ")[2].split(", ")
    fields = {each.name for each in dataclasses.fields(SMTPSettings)}
    left_out = {"host", "port", "username", "password", "oauth_token", "ssl_context"}
    assert fields - set(offered) == left_out
    assert set(offered) <= fields


@pytest.mark.parametrize(
    "url",
    [
        *("", "mx.example.org", "mx.example.org:25", "//mx.example.org", "smtp:", "smtp://"),
        *("smtp://:25", "smtp:mx.example.org", "http://mx.example.org", "smtp+tls://h"),
        *("smtp://h/path", "smtp://h#x", "smtp://h?", "smtp://h?x", "smtp://h?=1"),
        *("smtp://h?max_age=1&max_age=2", "smtp://h?tls=", "smtp://h?tls=ssl", "smtp://h?&"),
        *("smtp://h?max_connections=five", "smtp://h?max_connections=5.0"),
        *("smtp://u:p/w@h", "smtp://u:p#w@h", "smtp://u:p?w@h", "smtp://u:1?w=2@h"),
        *("smtp://u:%ff@h", "smtp://%ff:p@h", "smtp://u:%0a@h", "smtp://u:%00@h"),
        *("smtp://h\n", "smtp://h\r\n", " smtp://h", "smtp://h ", "smtp://a b:p@h", "smtp://h\0"),
        *("smtp://h\t", "smtp://ex\u2100mple.com", "smtp://h:25:25"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(url: str) -> None:
    if url == "smtp://h?":
        assert from_url(url).host == "h"
        return
    assert refused_url(url)


@pytest.mark.parametrize("url", [None, b"smtp://h", 5])
def test_a_url_is_a_str(url: t.Any) -> None:
    assert "not " in refused_url(url)


def test_an_option_given_twice_is_refused_even_where_both_agree() -> None:
    assert "tls is given twice" in refused_url("smtp://h?tls=none&tls=none")


# Secrets


def assert_no_secret(error: BaseException) -> None:
    """Nothing of an error or of what it came from, shown or not, holds the canary."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None:
            assert_no_canary(f"{each} {each!r} {each.args!r}", type(each).__name__)
            waiting += [each.__cause__, each.__context__]


@pytest.mark.parametrize(
    "url",
    [
        *("smtp://u:{}", "smtp://u:{}@ex\u2100mple.com", "smtp://u:{}@h:x", "smtp://u:{}@[::1"),
        *("smtp://u:%ff{}@h", "smtp://%ff{}:p@h", "smtp://u:{}%0a@h", "smtp://u:{} @h"),
        *("smtp://u:{}@h/x", "smtp://u:1/{}@h", "smtp://u:1#{}@h", "smtp://u:1?{}=x@h"),
        *("smtp://u:{}@h?zzz=1", "smtp://u:{}@h?tls=zzz", "smtp://u:{}@h?password={}"),
        *("smtp://u:{}@-h", "smtp://:{}@h", "{}://u:{}@h", "smtp://u:{}@", "smtp://u:1?a&{}@h"),
        *("smtp://u:{}@h?max_age=nan", "smtp://u:{}@h?tls=none&tls=none", "smtp://u:{}@h:99999"),
        *("smtp://u:{}@h?client_key=x", "smtp://u:{}\ud800@h"),
    ],
)
def test_no_error_of_a_url_holds_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_url(url.replace("{}", PASSWORD))
    assert_no_secret(caught.value)


@EXAMPLES
@given(nasty_text, nasty_text)
def test_any_url_is_read_or_refused_without_its_secret(before: str, behind: str) -> None:
    try:
        settings = from_url(f"smtp://user:{before}{PASSWORD}{behind}@mx.example.org")
    except MailError as error:
        assert_no_secret(error)
    else:
        assert_no_canary(repr(settings), "the settings")


def test_no_text_of_settings_holds_credentials() -> None:
    settings = SMTPSettings("mx.example.org", username=f"user-{PASSWORD}", password=PASSWORD)
    for text in (repr(settings), str(settings), f"{settings}", settings.relay):
        assert_no_canary(text, "a text")
        assert "mx.example.org" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 0},
        {"tls": "ssl"},
        {"host": "a b"},
        {"max_age": -1},
        {"ssl_context": 1},
        {"username": None},
        {"username": b"u"},
        {"password": PASSWORD + "\n"},
        {"password": PASSWORD.encode()},
    ],
)
def test_no_error_of_settings_holds_the_password(wrong: dict[str, t.Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        SMTPSettings(**{"username": "u", "password": PASSWORD, **wrong})
    assert_no_secret(caught.value)


_anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=5),
    nasty_text,
    st.sampled_from(["starttls", "127.0.0.1", "::1", "x.pem", os.devnull, 5, 0.5]),
)


_NAMES = [each.name for each in dataclasses.fields(SMTPSettings)]


def made(options: dict[str, t.Any]) -> SMTPSettings | ConfigError:
    try:
        return SMTPSettings(**options)
    except ConfigError as error:
        return error


@EXAMPLES
@given(st.dictionaries(st.sampled_from(_NAMES), _anything, max_size=4))
def test_any_value_of_any_setting_is_taken_or_a_config_error(options: dict[str, t.Any]) -> None:
    found = made(options)
    if isinstance(found, ConfigError):
        assert str(found).partition(":")[0] in _NAMES
    else:
        assert 1 <= found.effective_port <= 65535
        assert found.effective_tls in {"none", "starttls", "implicit"}
        assert found.relay
