"""Token sources for ``oauth_token``: an access token that never changes, or one kept fresh.

A token source is any async callable without arguments that returns an access token (OAuth 2.0,
RFC 6749). It is called each time a session is opened, in the loop that sends.

Invariant: no repr, log record or text of an error here holds a token or a client's secret.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import functools
import ipaddress
import json
import logging
import re
import ssl
import time
import typing as t
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote, quote_plus, urlsplit

from amail.errors import AuthenticationError, ConfigError
from amail.frames import drop_frames, with_origins
from amail.https import post_form
from amail.secret import quotes
from amail.smtp.settings import check_seconds
from amail.text import printable

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail.smtp.settings import TokenSource

Fetch: t.TypeAlias = Callable[[str, Mapping[str, str]], Awaitable[Mapping[str, t.Any]]]
"""Posts a form to a URL and returns the JSON object that is the answer, an error's too."""

_logger = logging.getLogger("amail")

_MOST_SECONDS = 86_400.0
_LONGEST_TEXT = 4000
_VISIBLE = re.compile(r"[ -~]+")
_LATER = frozenset({"temporarily_unavailable", "server_error"})


def static_token(token: str) -> TokenSource:
    """Return a token source of one access token: for scripts that end before the token does."""
    _check_text("token", token)

    async def source() -> str:
        return token

    return source


class RefreshToken:
    """A token source: gets access tokens for a refresh token (RFC 6749, section 6) and keeps them.

    ``token_url`` is the token endpoint: https, or http on this machine. ``client_secret`` is None
    for a public client. ``scope``: scopes, separated by spaces, where the endpoint wants them.

    An access token is used until ``early`` seconds before it expires. However many sessions are
    opened at once in a loop, one request is made. It goes on when those who wait for it are
    cancelled, because it may have made the refresh token invalid. What failed is not kept: the next
    call asks again. ``timeout`` is in seconds, for one request.

    Where the endpoint gives a new refresh token, that is used from then on, and ``rotated`` is
    called with it, to store it for the next start of the program.

    Requests are made by urllib in a thread, through the proxy that the environment names for https.
    Certificates are verified (``ssl_context`` replaces the default), redirects are not followed.
    ``fetch`` replaces all that: an async callable that posts a form to a URL and returns the JSON.

    Raises ConfigError. Calling it raises AuthenticationError, whose ``retryable`` says whether the
    endpoint may answer another time.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str | None,
        refresh_token: str,
        *,
        scope: str | None = None,
        early: float = 60.0,
        timeout: float = 20.0,
        rotated: Callable[[str], Awaitable[object]] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        self._host = _check_url("token_url", token_url)
        _check_text("client_id", client_id)
        _check_text("refresh_token", refresh_token)
        for name, value in (("client_secret", client_secret), ("scope", scope)):
            if value is not None:
                _check_text(name, value)
        if early != 0:
            check_seconds("early", early)
        check_seconds("timeout", timeout)
        if fetch is not None and ssl_context is not None:
            raise ConfigError("ssl_context: has no effect where fetch is given")
        self._url = token_url
        self._client_id, self._client_secret = client_id, client_secret
        self._refresh_token = refresh_token
        self._former: str | None = None  # which another loop may be asking with
        self._scope = scope
        self._early, self._timeout = early, timeout
        self._rotated = rotated
        self._fetch = fetch or functools.partial(post_form, seconds=timeout, context=ssl_context)
        self._kept: tuple[str, float] | None = None
        # The last one of each loop: a task cannot be awaited in another one.
        self._refreshing: dict[asyncio.AbstractEventLoop, asyncio.Task[str]] = {}

    def __repr__(self) -> str:
        return f"<RefreshToken at {self._host}>"

    def __reduce__(self) -> t.NoReturn:
        raise TypeError("a RefreshToken holds secrets and is not pickled; make one in each process")

    async def __call__(self) -> str:
        """Return the access token that is kept, or a new one."""
        kept = self._kept
        if kept is not None and time.monotonic() < kept[1]:
            return kept[0]
        loop = asyncio.get_running_loop()
        task = self._refreshing.get(loop)
        if task is None or task.done():
            for other in list(self._refreshing):
                if other.is_closed():
                    self._refreshing.pop(other, None)
            # In an empty context: what the first caller's holds shall not live as long as this.
            task = loop.create_task(self._refresh(), context=contextvars.Context())
            self._refreshing[loop] = task
        try:
            return await asyncio.shield(task)
        except AuthenticationError as error:
            drop_frames(error)  # which hold the form and the answer
            raise

    def forget(self) -> None:
        """Keep the access token no longer: the server did not accept it."""
        self._kept = None

    async def _refresh(self) -> str:
        asked_at = time.monotonic()
        answer = await self._ask()
        token = self._token_in(answer)
        self._kept = token, asked_at + _seconds_in(answer) - self._early
        renewed = answer.get("refresh_token")
        if isinstance(renewed, str) and renewed not in {"", self._refresh_token}:
            self._former, self._refresh_token = self._refresh_token, renewed
            await self._hand_over(renewed)
        return token

    async def _ask(self) -> Mapping[str, t.Any]:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._fetch(self._url, self._form())
        except Exception as error:
            failed = self._failure_of(error)
            if not any(map(self._quotes_secrets, _texts(error))):
                raise failed from error
        else:
            return self._checked(answer)
        raise failed  # out here, where what quotes our secrets is no context of it

    def _failure_of(self, error: Exception) -> AuthenticationError:
        if isinstance(error, TimeoutError):
            return self._failed(f"no answer within {self._timeout:g} s", retryable=True)
        later = isinstance(error, OSError) and not isinstance(error, ssl.CertificateError)
        return self._failed(f"{type(error).__name__}: {error}", retryable=later)

    def _checked(self, answer: object) -> Mapping[str, t.Any]:
        if not isinstance(answer, Mapping):
            raise self._failed("the answer is no JSON object")
        return answer

    def _form(self) -> dict[str, str]:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self._refresh_token,
            "client_id": self._client_id,
            "client_secret": self._client_secret,
            "scope": self._scope,
        }
        return {name: value for name, value in form.items() if value is not None}

    def _token_in(self, answer: Mapping[str, t.Any]) -> str:
        """Return the access token of an answer (RFC 6749, section 5)."""
        if answer.get("error"):
            said = [str(answer[name]) for name in ("error", "error_description") if name in answer]
            raise self._failed(": ".join(said), retryable=said[0] in _LATER)
        kind = answer.get("token_type", "bearer")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise self._failed("the answer is no bearer token")
        token = answer.get("access_token")
        if not isinstance(token, str) or not token:
            raise self._failed("the answer has no access_token")
        return token

    async def _hand_over(self, renewed: str) -> None:
        """Have a new refresh token stored. Mail goes out without that, as long as we run."""
        if self._rotated is None:
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._rotated(renewed)
        except Exception as error:  # noqa: BLE001 - rotated may raise anything
            text = "%s gave a new refresh token, which could not be stored: rotated raised %s"
            _logger.error(text, self._host, type(error).__name__)  # noqa: TRY400 - frames hold it

    def _failed(self, text: str, *, retryable: bool = False) -> AuthenticationError:
        text = f"{self._host} gave no access token: {printable(self._redacted(text))}"
        return AuthenticationError(text, stage="auth", retryable=retryable)

    def _redacted(self, text: str) -> str:
        text = text[:_LONGEST_TEXT]
        for form in self._forms_of_secrets():
            text = text.replace(form, "<redacted>")
        return "<not shown: it quotes our secrets>" if self._quotes_secrets(text) else text

    def _quotes_secrets(self, text: str) -> bool:
        if len(text) > _LONGEST_TEXT:  # it would take too long to look through
            return True
        text = text.lower()
        return any(quotes(text, form.lower()) for form in self._forms_of_secrets())

    def _forms_of_secrets(self) -> list[str]:
        """Return how the secrets of the form may be quoted, the longest first."""
        forms = set()
        for secret in (self._refresh_token, self._former, self._client_secret):
            if secret:
                forms |= {secret, quote(secret, ""), quote_plus(secret), quote(secret)}
                forms |= {json.dumps(secret)[1:-1], repr(secret)[1:-1], _in_base64(secret)}
        if self._client_secret:  # as in HTTP Basic
            forms.add(_in_base64(f"{self._client_id}:{self._client_secret}"))
        return sorted(forms, key=len, reverse=True)


def _texts(error: BaseException) -> Iterator[str]:
    """Yield what can be read of an exception and of all it came from."""
    for each in with_origins(error):
        yield str(each)
        yield from map(str, getattr(each, "__notes__", ()))


def _in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode().rstrip("=")


def _seconds_in(answer: Mapping[str, t.Any]) -> float:
    """Return for how long a token is good; 0 where the answer does not say, at most a day."""
    try:
        seconds = float(answer.get("expires_in", 0))
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(seconds, _MOST_SECONDS) if seconds > 0 else 0.0


def _check_url(name: str, url: object) -> str:
    """Return the host of a URL that secrets may be sent to, as "host" or "host:port"."""
    _check_text(name, url)
    parts, host, port = urlsplit(""), None, None
    with contextlib.suppress(ValueError):
        parts = urlsplit(str(url))
        port, host = parts.port, parts.hostname
    if not host or " " in str(url) or "@" in parts.netloc or parts.fragment:
        raise ConfigError(f"{name}: must be a URL such as https://oauth2.example.com/token")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ConfigError(f"{name}: must begin with https://, for secrets are sent to it")
    return host if port is None else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{name}: must be a str, not {type(value).__name__}")
    if not _VISIBLE.fullmatch(value):
        raise ConfigError(
            f"{name}: is empty, or holds a control character (a trailing newline?) or no ASCII"
        )
