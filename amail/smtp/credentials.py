"""Credentials that a server refused: whether they have changed since, and may be tried at once.

Invariant: nothing here keeps a secret. What was refused is kept as a number, by which it is known
again in this process.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import typing as t

from amail.errors import AuthenticationError, ConfigError, SendTimeout
from amail.smtp.auth import check_token, no_token

if t.TYPE_CHECKING:
    from amail.smtp.settings import SMTPSettings, TokenSource

_TOKENS_IN_ROW = 2


class Refusals:
    """The last credentials that were refused, of those that were since some were accepted.

    A password that has changed is news. So is a token; but where the server refuses that one too it
    is not the token that is wrong, and a source that makes a new one each time would have the
    account locked.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._tokens = 0

    def note(self, settings: SMTPSettings, secret: str) -> None:
        """Note that the server refuses a password or a token."""
        refused = _number_of(settings, secret)
        if refused != self._last:
            self._last = refused
            self._tokens += settings.oauth_token is not None

    def forget(self) -> None:
        """Note that the server accepts what it is given."""
        self._last, self._tokens = None, 0

    async def credentials(self, settings: SMTPSettings, seconds: float) -> int | None:
        """Return what ``are_news`` knows the present ones by, None where they cannot be."""
        if settings.oauth_token is None:
            return None if settings.password is None else _number_of(settings, settings.password)
        if self._tokens >= _TOKENS_IN_ROW:
            return None
        asking = ask_token(settings.oauth_token, seconds, settings.relay)
        # In an empty context: what the source begins shall not keep the caller's alive.
        task = asyncio.get_running_loop().create_task(asking, context=contextvars.Context())
        try:
            return _number_of(settings, await task)
        except (AuthenticationError, SendTimeout):
            return None  # the refusal stands

    def are_news(self, credentials: int | None) -> bool:
        """Tell whether they are others than those that were refused, and may be tried."""
        is_known = credentials is None or self._last is None or credentials == self._last
        return not is_known and self._tokens < _TOKENS_IN_ROW


def _number_of(settings: SMTPSettings, secret: str) -> int:
    return hash((settings.username, secret))


async def ask_token(source: TokenSource, seconds: float, relay: str) -> str:
    """Ask a token source. Raises AuthenticationError, and SendTimeout if it does not answer."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            asked: object = source()
            if not inspect.isawaitable(asked):
                what = type(asked).__name__
                raise ConfigError(f"it is no async function, for its call returns {what}")
            return check_token(await asked)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise no_token(error, relay) from error  # it was the source that was cancelled
    except Exception as error:
        if not limit.expired():
            raise no_token(error, relay) from error
        text = f"{relay}: the token source (oauth_token) did not answer within {seconds:g} s"
        raise SendTimeout(text, stage="auth", retryable=True, relay=relay) from error
