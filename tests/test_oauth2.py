"""Token sources: one request for all who wait, tokens kept while they are good, no secret shown.

The endpoint is a real HTTP server.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import copy
import gc
import json
import logging
import pickle
import socket
import ssl
import threading
import time
import traceback
import typing as t
import urllib.parse
import weakref

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from amail import AuthenticationError, ConfigError, Mailer, Receipt, SyncMailer
from amail.https import _object_in
from amail.oauth2 import RefreshToken, static_token
from amail.testing import FaultServer
from tests.messages import tokened
from tests.musts import PASSWORD, assert_keeps_secrets, assert_no_canary
from tests.servers.token_endpoint import Answer, TokenEndpoint, token_endpoint
from tests.smtp.outcomes import accepted, not_sent, send
from tests.strategies import EXAMPLES, nasty_text

if t.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.musts import Musts

# Canaries all three: a secret that shows anywhere shows.
CLIENT_SECRET = f"{PASSWORD}-client"
REFRESH = f"{PASSWORD}-refresh"
ACCESS = f"{PASSWORD}-access"


def good(number: int = 1, **fields: t.Any) -> Answer:
    given = {"access_token": f"{ACCESS}-{number}", "token_type": "Bearer", "expires_in": 3600}
    return Answer({**given, **fields})


def source_at(endpoint: TokenEndpoint | str, **options: t.Any) -> RefreshToken:
    url = endpoint if isinstance(endpoint, str) else endpoint.url
    return RefreshToken(url, "our-client", CLIENT_SECRET, REFRESH, **options)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let seconds pass."""
    passed = 0.0
    original = time.monotonic

    def let_pass(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr("amail.oauth2.time.monotonic", lambda: original() + passed)
    return let_pass


async def fails(source: RefreshToken, text: str, *, retryable: bool) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        await source()
    error = caught.value
    assert text in str(error)
    assert (error.retryable, error.stage) == (retryable, "auth")
    assert_keeps_secrets(error)
    assert_no_canary(repr(pickle.dumps(error)), "its pickle")
    assert str(error).isprintable()
    return error


# A request


async def test_the_request_is_the_one_of_the_specification() -> None:
    """RFC 6749, section 6."""
    with token_endpoint(good()) as endpoint:
        assert await source_at(endpoint, scope="mail send")() == f"{ACCESS}-1"
    assert endpoint.forms == [
        {
            "grant_type": "refresh_token",
            "refresh_token": REFRESH,
            "client_id": "our-client",
            "client_secret": CLIENT_SECRET,
            "scope": "mail send",
        }
    ]
    headers = {name.lower(): value for name, value in endpoint.headers[0].items()}
    assert headers["content-type"] == "application/x-www-form-urlencoded"
    assert headers["accept"] == "application/json"


async def test_a_public_client_has_no_secret_and_a_scope_is_not_needed() -> None:
    with token_endpoint(good()) as endpoint:
        await RefreshToken(endpoint.url, "our-client", None, REFRESH)()
    assert endpoint.forms[0].keys() == {"grant_type", "refresh_token", "client_id"}


async def test_the_request_goes_over_tls_to_who_can_prove_to_be_the_endpoint() -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with token_endpoint(good(), context=server) as endpoint:
        error = await fails(source_at(endpoint), "CERTIFICATE_VERIFY_FAILED", retryable=False)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        assert endpoint.forms == []
        assert await source_at(endpoint, ssl_context=trusting)() == f"{ACCESS}-1"


async def test_clear_text_on_this_machine_goes_past_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with token_endpoint(good()) as endpoint, token_endpoint(good(2)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert await source_at(endpoint)() == f"{ACCESS}-1"
        assert proxy.forms == []


# Keeping


async def test_a_token_is_kept_until_a_minute_before_it_expires(
    clock: Callable[[float], None],
) -> None:
    with token_endpoint(good(1), good(2)) as endpoint:
        source = source_at(endpoint)
        assert await source() == f"{ACCESS}-1"
        clock(3600 - 60 - 5)
        assert await source() == f"{ACCESS}-1"
        assert len(endpoint.forms) == 1
        clock(5)
        assert await source() == f"{ACCESS}-2"


async def test_how_early_is_a_setting(clock: Callable[[float], None]) -> None:
    with token_endpoint(good(1), good(2)) as endpoint:
        source = source_at(endpoint, early=600)
        await source()
        clock(3001)
        assert await source() == f"{ACCESS}-2"
        clock(2990)
        late = source_at(endpoint, early=0)
        await late()
        clock(3595)
        await late()
    assert len(endpoint.forms) == 3


@pytest.mark.parametrize("expires_in", [None, 0, -5, "soon", 59, float("nan"), [3600], "1e999x"])
async def test_a_token_of_no_known_length_is_used_once(expires_in: t.Any) -> None:
    with token_endpoint(good(1, expires_in=expires_in), good(2)) as endpoint:
        source = source_at(endpoint)
        assert [await source(), await source()] == [f"{ACCESS}-1", f"{ACCESS}-2"]


@pytest.mark.parametrize("expires_in", ["3600", 3600.5, 10**400, float("inf"), 10**12])
async def test_a_token_is_kept_for_a_day_at_most(
    expires_in: t.Any, clock: Callable[[float], None]
) -> None:
    with token_endpoint(good(1, expires_in=expires_in), good(2)) as endpoint:
        source = source_at(endpoint)
        await source()
        if expires_in != 10**400:  # no float
            await source()
            assert len(endpoint.forms) == 1
        clock(86_400)
        assert await source() == f"{ACCESS}-2"


async def test_a_token_that_was_refused_is_forgotten() -> None:
    with token_endpoint(good(1), good(2)) as endpoint:
        source = source_at(endpoint)
        await source()
        source.forget()
        assert await source() == f"{ACCESS}-2"


# One request for all


async def test_a_hundred_callers_make_one_request() -> None:
    with token_endpoint(Answer(good(1).body, waits=True), good(2)) as endpoint:
        source = source_at(endpoint)
        callers = [asyncio.create_task(source()) for _ in range(100)]
        await asyncio.to_thread(endpoint.asked.acquire)
        endpoint.go_on.set()
        assert set(await asyncio.gather(*callers)) == {f"{ACCESS}-1"}
        assert len(endpoint.forms) == 1


async def test_a_caller_that_is_cancelled_leaves_the_request_to_the_others(musts: Musts) -> None:
    with token_endpoint(Answer(good(1).body, waits=True), good(2)) as endpoint:
        source = source_at(endpoint)
        callers = [asyncio.create_task(source()) for _ in range(3)]
        await asyncio.to_thread(endpoint.asked.acquire)
        callers[0].cancel()
        endpoint.go_on.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [f"{ACCESS}-1"] * 2
        assert len(endpoint.forms) == 1


async def test_a_request_goes_on_without_its_callers_for_it_may_have_changed_the_refresh_token(
    musts: Musts,
) -> None:
    changed = Answer({**good(1).body, "refresh_token": "changed"}, waits=True)
    with token_endpoint(changed, good(2)) as endpoint:
        source = source_at(endpoint)
        caller = asyncio.create_task(source())
        await asyncio.to_thread(endpoint.asked.acquire)
        caller.cancel()
        await asyncio.wait({caller})
        endpoint.go_on.set()
        assert await source() == f"{ACCESS}-1"
        source.forget()
        await source()
        assert [form["refresh_token"] for form in endpoint.forms] == [REFRESH, "changed"]


async def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    failure = Answer({"error": "invalid_client"}, 401, waits=True)
    with token_endpoint(failure, good()) as endpoint:
        source = source_at(endpoint)
        callers = [asyncio.create_task(source()) for _ in range(10)]
        await asyncio.to_thread(endpoint.asked.acquire)
        endpoint.go_on.set()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert {type(result) for result in results} == {AuthenticationError}
        assert len(endpoint.forms) == 1
        assert await source() == f"{ACCESS}-1"


async def test_a_failure_that_nobody_waits_for_any_more_is_no_noise(musts: Musts) -> None:
    failure = Answer({"error": "invalid_client"}, 401, waits=True)
    with token_endpoint(failure) as endpoint:
        source = source_at(endpoint)
        caller = asyncio.create_task(source())
        await asyncio.to_thread(endpoint.asked.acquire)
        caller.cancel()
        await asyncio.wait({caller})
        endpoint.go_on.set()


def test_c27_one_source_serves_one_loop_after_another() -> None:
    with token_endpoint(*(good(number, expires_in=0) for number in range(1, 4))) as endpoint:
        source = source_at(endpoint)
        tokens = [asyncio.run(twice_at_once(source)) for _ in range(3)]
    assert tokens == [[f"{ACCESS}-{number}"] * 2 for number in (1, 2, 3)]


async def twice_at_once(source: RefreshToken) -> list[str]:
    return list(await asyncio.gather(source(), source()))


def test_c28_a_loop_that_ends_amid_a_request_leaves_the_source_usable_and_is_let_go() -> None:
    loops = []

    async def leave(source: RefreshToken, endpoint: TokenEndpoint) -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        waiting = asyncio.create_task(source())
        await asyncio.to_thread(endpoint.asked.acquire)
        assert not waiting.done()

    with token_endpoint(Answer(good(1).body, waits=True), good(2)) as endpoint:
        source = source_at(endpoint)
        asyncio.run(leave(source, endpoint))
        assert asyncio.run(twice_at_once(source)) == [f"{ACCESS}-2"] * 2
    gc.collect()
    assert [loop() for loop in loops] == [None]


def test_two_loops_at_once_do_not_wait_for_each_other() -> None:
    answers = [Answer(good(1).body, waits=True), good(2)]
    with token_endpoint(*answers) as endpoint:
        source, tokens = source_at(endpoint), []
        first = threading.Thread(target=lambda: tokens.append(asyncio.run(twice_at_once(source))))
        first.start()
        endpoint.asked.acquire()
        assert asyncio.run(twice_at_once(source)) == [f"{ACCESS}-2"] * 2
        endpoint.go_on.set()
        first.join()
        assert tokens == [[f"{ACCESS}-1"] * 2]


# A new refresh token


async def test_a_new_refresh_token_is_used_from_then_on_and_handed_over_once() -> None:
    stored = []

    async def store(refresh_token: str) -> None:
        stored.append(refresh_token)

    answers = [good(1, refresh_token="second", expires_in=0)] * 2
    with token_endpoint(*answers) as endpoint:
        source = source_at(endpoint, rotated=store)
        await source()
        await source()
    assert [form["refresh_token"] for form in endpoint.forms] == [REFRESH, "second"]
    assert stored == ["second"]


async def test_a_new_refresh_token_that_cannot_be_stored_is_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(refresh_token: str) -> None:
        raise OSError(refresh_token)

    with token_endpoint(good(1, refresh_token=f"{REFRESH}-2")) as endpoint:
        assert await source_at(endpoint, rotated=fail)() == f"{ACCESS}-1"
    (record,) = [each for each in caplog.records if each.name == "amail"]
    assert record.levelno == logging.ERROR
    assert "could not be stored: rotated raised OSError" in record.getMessage()
    assert_no_canary(caplog.text, "the log")


async def test_handing_over_a_refresh_token_does_not_hold_up_mail_for_ever() -> None:
    async def hang(refresh_token: str) -> None:
        await asyncio.Event().wait()

    with token_endpoint(good(1, refresh_token="second")) as endpoint:
        source = source_at(endpoint, rotated=hang, timeout=0.2)
        assert await source() == f"{ACCESS}-1"


# What goes wrong


@pytest.mark.parametrize(
    ("answer", "text", "retryable"),
    [
        (
            Answer({"error": "invalid_grant", "error_description": "Token was revoked."}, 400),
            "127.0.0.1:{port} gave no access token: invalid_grant: Token was revoked.",
            False,
        ),
        (Answer({"error": "invalid_client"}, 401), "invalid_client", False),
        (Answer({"error": "temporarily_unavailable"}, 400), "temporarily_unavailable", True),
        (Answer({"error": "x", "error_description": "\x1b[31m\r\n"}, 400), "x: \\x1b[31m", False),
        (Answer({"error": "x", "error_description": f"no {REFRESH}"}, 400), "no <redacted>", False),
        (Answer({"error": f"no {CLIENT_SECRET}"}, 400), "no <redacted>", False),
        (Answer({"error": {"code": 5}}, 400), "'code': 5", False),
        (Answer({"error": ["e"] * 5000}, 400), "...", False),
        (Answer({"error": "overloaded"}, 503), "OSError: HTTP status 503", True),
        (Answer(b"<html>", 502), "OSError: HTTP status 502", True),
        (Answer({}, 429), "OSError: HTTP status 429", True),
        (Answer(b"<html>", 404), "HTTP status 404 and no JSON object", False),
        (Answer(b"<html>"), "HTTP status 200 and no JSON object", False),
        (Answer([1]), "HTTP status 200 and no JSON object", False),
        (Answer(b"[" * 50_000), "HTTP status 200 and no JSON object", False),
        (Answer(b" " * 70_000), "larger than 65536 octets", False),
        (Answer({}), "has no access_token", False),
        (good(access_token=5), "has no access_token", False),
        (good(access_token=""), "has no access_token", False),
        (good(token_type="mac"), "no bearer token", False),
        (good(token_type=None), "no bearer token", False),
        (Answer(b"", 204), "no JSON object", False),
        (Answer(b"{", headers={"Content-Length": "100"}), "IncompleteRead", True),
    ],
)
async def test_f36_an_answer_without_a_token_says_why(
    answer: Answer, text: str, retryable: bool
) -> None:
    with token_endpoint(answer) as endpoint:
        port = endpoint.url.split(":")[2].split("/")[0]
        await fails(source_at(endpoint), text.replace("{port}", port), retryable=retryable)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    with token_endpoint(good()) as elsewhere:
        answer = Answer({}, status, {"Location": elsewhere.url})
        with token_endpoint(answer) as endpoint:
            text = f"HTTP status {status}; redirects are not followed"
            await fails(source_at(endpoint), text, retryable=False)
        assert elsewhere.headers == []


async def test_an_endpoint_that_cannot_be_reached_may_be_later() -> None:
    with token_endpoint(good()) as endpoint:
        pass
    error = await fails(source_at(endpoint), "ConnectionRefusedError", retryable=True)
    assert isinstance(error.__cause__, ConnectionRefusedError)


async def test_what_does_not_speak_http_is_named() -> None:
    def greet(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"220 mail.test ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        await fails(source_at(url), "the answer is no HTTP: BadStatusLine", retryable=True)
        thread.join()


async def test_an_endpoint_that_hangs_is_left_after_the_timeout(musts: Musts) -> None:
    with token_endpoint(Answer(waits=True)) as endpoint:
        source = source_at(endpoint, timeout=0.2)
        async with musts.within(0.2):
            await fails(source, "no answer within 0.2 s", retryable=True)


@given(status=st.integers(100, 599), body=st.one_of(st.binary(), nasty_text.map(repr)))
@example(200, "9" * 5000)
@example(200, "[" * 50_000)
@EXAMPLES
def test_any_answer_is_an_object_an_os_error_or_a_value_error(
    status: int, body: bytes | str
) -> None:
    octets = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    with contextlib.suppress(OSError, ValueError):
        assert isinstance(_object_in(status, octets), dict)


# A fetch of one's own


async def test_a_fetch_of_ones_own_replaces_urllib() -> None:
    asked = []

    async def fetch(url: str, form: Mapping[str, str]) -> Mapping[str, t.Any]:
        asked.append((url, form["grant_type"]))
        return {"access_token": ACCESS, "expires_in": 60}

    source = source_at("https://id.example.org/token", fetch=fetch)
    assert await source() == ACCESS
    assert asked == [("https://id.example.org/token", "refresh_token")]


class BrokenError(Exception):
    """What an HTTP library raises."""


@pytest.mark.parametrize(
    ("error", "text", "retryable"),
    [
        (BrokenError("no route"), "BrokenError: no route", False),
        (OSError("no route"), "OSError: no route", True),
    ],
)
async def test_f36_what_a_fetch_of_ones_own_raises_is_told_and_is_the_cause(
    error: Exception, text: str, retryable: bool
) -> None:
    async def fetch(url: str, form: Mapping[str, str]) -> t.NoReturn:
        raise error

    with pytest.raises(AuthenticationError) as caught:
        await source_at("https://id.example.org/token", fetch=fetch)()
    assert str(caught.value) == f"id.example.org gave no access token: {text}"
    assert caught.value.retryable is retryable
    assert caught.value.__cause__ is error
    assert error.__traceback__ is None


ODD: dict[str, t.Any] = {
    "refresh_token": "refresh/token+of=ours~1",
    "client_secret": "client secret&more/2",
}
"""Secrets that look different wherever they are quoted."""


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "quoted",
    [
        lambda secret: f"body was {secret}",
        lambda secret: f"body was {urllib.parse.urlencode({'it': secret})}",
        lambda secret: f"body was {urllib.parse.quote(secret)}",
        lambda secret: f"body was {urllib.parse.quote_plus(secret).lower()}",
        lambda secret: f"body was {json.dumps({'it': secret})}",
        lambda secret: f"Basic {base64.b64encode(secret.encode()).decode()}",
        lambda secret: f"it began with {secret[:10]}",
        lambda secret: f"it ended with {urllib.parse.quote_plus(secret)[-10:]}",
    ],
    ids=["plain", "form", "path", "lower", "json", "base64", "beginning", "end"],
)
async def test_f36_an_endpoint_that_quotes_a_secret_does_not_get_it_into_an_error(
    name: str, quoted: t.Callable[[str], str]
) -> None:
    text = quoted(ODD[name])

    async def fetch(url: str, form: Mapping[str, str]) -> Mapping[str, t.Any]:
        return {"error": "invalid_request", "error_description": text}

    source = RefreshToken("https://id.test/token", "our-client", **ODD, fetch=fetch)
    with pytest.raises(AuthenticationError) as caught:
        await source()
    shown = urllib.parse.unquote_plus(str(caught.value))
    assert "<redacted>" in shown or "<not shown" in shown
    assert not any(ODD[name][i : i + 8] in shown for i in range(len(ODD[name]) - 7))
    assert text[6:] not in str(caught.value)


async def test_f36_credentials_of_http_basic_are_not_shown() -> None:
    basic = base64.b64encode(f"our-client:{ODD['client_secret']}".encode()).decode()

    async def fetch(url: str, form: Mapping[str, str]) -> Mapping[str, t.Any]:
        return {"error": f"Authorization: Basic {basic}"}

    source = RefreshToken("https://id.test/token", "our-client", **ODD, fetch=fetch)
    with pytest.raises(AuthenticationError, match="Authorization: Basic <redacted>"):
        await source()


def chained(error: BaseException) -> BaseException:
    try:
        try:
            raise error
        except BaseException as cause:
            raise BrokenError("could not post") from cause
    except BrokenError as outer:
        return outer


def in_context(error: BaseException) -> BaseException:
    try:
        try:
            raise error
        except BaseException:
            raise BrokenError("could not post") from None
    except BrokenError as outer:
        return outer


def noted(error: BaseException) -> BaseException:
    outer = BrokenError("could not post")
    outer.add_note(str(error))
    return outer


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda error: error,
        chained,
        in_context,
        noted,
        lambda error: ExceptionGroup("could not post", [error]),
        lambda error: BrokenError("could not post", {"form": str(error)}),
        lambda error: BrokenError("x" * 100_000 + str(error)),
    ],
    ids=["itself", "cause", "context", "note", "group", "arguments", "far_behind"],
)
@pytest.mark.parametrize("written", [str, urllib.parse.quote_plus])
async def test_f36_an_exception_that_quotes_a_secret_is_no_cause_and_no_context(
    wrapped: t.Callable[[BaseException], BaseException], written: t.Callable[[str], str]
) -> None:
    async def fetch(url: str, form: Mapping[str, str]) -> t.NoReturn:
        raise wrapped(ValueError(f"body was {written(form['refresh_token'])}"))

    source = RefreshToken("https://id.test/token", "our-client", **ODD, fetch=fetch)
    with pytest.raises(AuthenticationError) as caught:
        await source()
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    told = "".join(traceback.format_exception(caught.value))
    assert written(ODD["refresh_token"]) not in told
    assert "id.test gave no access token: " in told


async def test_f36_a_refresh_token_that_was_replaced_meanwhile_is_not_shown_either() -> None:
    answers: list[Mapping[str, t.Any]] = [
        {"access_token": ACCESS, "refresh_token": "another-refresh-token"},
        {"error": "invalid_grant", "error_description": f"{ODD['refresh_token']} is over"},
    ]

    async def fetch(url: str, form: Mapping[str, str]) -> Mapping[str, t.Any]:
        return answers.pop(0)

    source = RefreshToken("https://id.test/token", "our-client", **ODD, fetch=fetch)
    assert await source() == ACCESS
    with pytest.raises(AuthenticationError, match="invalid_grant: <redacted> is over"):
        await source()


async def test_f36_a_fetch_of_ones_own_that_hangs_is_left_after_the_timeout(musts: Musts) -> None:
    async def fetch(url: str, form: Mapping[str, str]) -> t.Any:
        await asyncio.Event().wait()

    source = source_at("https://id.example.org/token", fetch=fetch, timeout=0.2)
    async with musts.within(0.2):
        await fails(source, "no answer within 0.2 s", retryable=True)


async def test_c40_a_request_knows_nothing_of_the_context_of_its_first_caller() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    request.set("of the first caller")
    seen = []

    async def fetch(url: str, form: Mapping[str, str]) -> Mapping[str, t.Any]:
        seen.append(request.get(None))
        return {"access_token": ACCESS}

    await source_at("https://id.example.org/token", fetch=fetch)()
    assert seen == [None]


@pytest.mark.parametrize("answer", [None, "text", [("access_token", "x")]])
async def test_a_fetch_of_ones_own_returns_an_object(answer: t.Any) -> None:
    async def fetch(url: str, form: Mapping[str, str]) -> t.Any:
        return answer

    source = source_at("https://id.example.org/token", fetch=fetch)
    await fails(source, "the answer is no JSON object", retryable=False)


# Settings


@pytest.mark.parametrize(
    "url",
    [
        *("", "id.example.org", "ftp://id.example.org/", "http://id.example.org/token", "https://"),
        *("https://a:b@id.example.org/", "https://id.example.org/#x", "https://id.example.org/a b"),
        *("https://id.example.org/\r\n", "https://[::1", "https://x:99999/", "file:///etc/passwd"),
        *(None, 5, b"https://id.example.org/"),
    ],
)
def test_the_endpoint_is_a_url_that_secrets_may_be_sent_to(url: t.Any) -> None:
    with pytest.raises(ConfigError) as caught:
        RefreshToken(url, "client", None, "refresh")
    assert str(caught.value).startswith("token_url: ")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "127.9.9.9"])
def test_on_this_machine_clear_text_will_do(host: str) -> None:
    assert host.strip("[]") in repr(RefreshToken(f"http://{host}:8080/t", "client", None, "r"))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"client_id": ""}, "client_id"),
        ({"client_secret": f"{PASSWORD}\n"}, "client_secret"),
        ({"refresh_token": PASSWORD.encode()}, "refresh_token"),
        ({"refresh_token": f"{PASSWORD}é"}, "refresh_token"),
        ({"scope": ["a", "b"]}, "scope"),
        ({"early": -1}, "early"),
        ({"early": float("inf")}, "early"),
        ({"timeout": 0}, "timeout"),
        ({"fetch": static_token, "ssl_context": ssl.create_default_context()}, "ssl_context"),
    ],
)
def test_settings_that_cannot_work_are_named(options: dict[str, t.Any], name: str) -> None:
    given = {"client_id": "c", "client_secret": None, "refresh_token": "r", **options}
    with pytest.raises(ConfigError) as caught:
        RefreshToken("https://id.example.org/token", **given)
    assert str(caught.value).startswith(f"{name}: ")
    assert_no_canary(str(caught.value), "the error")


def test_a_source_shows_its_host_and_no_secret_and_is_not_pickled_or_copied() -> None:
    source = source_at("https://id.example.org/token")
    assert repr(source) == str(source) == "<RefreshToken at id.example.org>"
    for write in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds secrets"):
            write(source)


async def test_a_static_token_is_the_same_each_time() -> None:
    source = static_token(ACCESS)
    assert [await source(), await source()] == [ACCESS, ACCESS]
    assert_no_canary(f"{source!r}", "its repr")
    for wrong in ("", "a\n", b"a", None):
        with pytest.raises(ConfigError) as caught:
            static_token(t.cast("t.Any", wrong))
        assert str(caught.value).startswith("token: ")


# The whole way


async def test_n_sessions_that_are_opened_at_once_make_one_request(musts: Musts) -> None:
    with token_endpoint(good()) as endpoint:
        async with (
            FaultServer(tokens={"ada": f"{ACCESS}-1"}, auth_required=True) as server,
            Mailer(server.url, username="ada", oauth_token=source_at(endpoint)) as mailer,
        ):
            musts.watch(server)
            results = await asyncio.gather(*(send(musts, mailer) for _ in range(50)))
            assert all(isinstance(result, Receipt) for result in results)
            assert server.connections == 5
        assert len(endpoint.forms) == 1


async def test_f36_a_revoked_grant_is_an_authentication_error_that_says_so(musts: Musts) -> None:
    revoked = {"error": "invalid_grant", "error_description": "Token has been revoked."}
    with token_endpoint(Answer(revoked, 400)) as endpoint:
        async with (
            FaultServer(tokens={"ada": "x"}) as server,
            Mailer(server.url, username="ada", oauth_token=source_at(endpoint)) as mailer,
        ):
            musts.watch(server)
            results = await asyncio.gather(*(send(musts, mailer) for _ in range(20)))
            error = not_sent(results[0], AuthenticationError, stage="auth", retryable=False)
            assert "token source (oauth_token) failed: 127.0.0.1:" in str(error)
            assert "invalid_grant: Token has been revoked." in str(error)
            assert_no_canary("".join(traceback.format_exception(error)), "the traceback")
        # The circuit is open: twenty senders are not twenty requests.
        assert len(endpoint.forms) <= 5


async def test_a_token_that_was_revoked_early_is_replaced_the_next_time_it_is_asked_for(
    musts: Musts,
) -> None:
    with token_endpoint(good(1), good(2)) as endpoint:
        source = source_at(endpoint)
        async with FaultServer(tokens={"ada": f"{ACCESS}-2"}) as server:
            musts.watch(server)
            async with Mailer(server.url, username="ada", oauth_token=source) as mailer:
                result = await send(musts, mailer)
                not_sent(result, AuthenticationError, stage="auth", retryable=False, code=535)
                await server.all_closed()
            async with Mailer(server.url, username="ada", oauth_token=source) as mailer:
                accepted(await send(musts, mailer))


def test_c27_a_mailer_and_its_source_serve_one_loop_after_another() -> None:
    with (
        token_endpoint(good(expires_in=0)) as endpoint,
        FaultServer.serve_in_thread(tokens={"ada": f"{ACCESS}-1"}) as server,
    ):
        mailer = Mailer(server.url, username="ada", oauth_token=source_at(endpoint))

        async def one() -> Receipt:
            return await mailer.send(tokened("t"))

        assert [asyncio.run(one()).outcome for _ in range(3)] == ["accepted"] * 3
        assert len(endpoint.forms) == server.connections == 3


def test_a_source_serves_a_portal() -> None:
    with (
        token_endpoint(good()) as endpoint,
        FaultServer.serve_in_thread(tokens={"ada": f"{ACCESS}-1"}) as server,
        SyncMailer(server.url, username="ada", oauth_token=source_at(endpoint)) as mailer,
    ):
        assert mailer.send(tokened("t")).outcome == "accepted"
