"""RedisLedger: a ledger in Redis, for the workers of several machines. See ledger.py.

A key holds JSON, ["begun", token, call] or [state, token, [recipients left for later]], and Redis
forgets it by itself. What depends on what a key holds is one script, which Redis runs as a whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import typing as t

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from amail.errors import ConfigError
from amail.queues.ledger import KEPT, LEASE, Entry
from amail.secret import Secret, hides_arguments
from amail.smtp.settings import check_seconds

if t.TYPE_CHECKING:
    from amail.queues.ledger import State

_KEY = re.compile("[0-9a-f]{64}")
_SECONDS = 5.0
_RETRIES = 3

# Whether the key is, or was until its lease ended, that of the token.
_OWN = """
local found = redis.call('GET', KEYS[1])
local held = found and cjson.decode(found)
local own = held and held[1] == 'begun' and held[2] == ARGV[1]
"""
_SETTLE = f"{_OWN}if own or not found then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end"
_RELEASE = f"{_OWN}if own then redis.call('DEL', KEYS[1]) end"


class RedisLedger:
    """Keeps a key for each job in the Redis at ``url``: ``redis://``, ``rediss://``, ``unix://``.

    ``lease`` and ``kept`` are in seconds, of the clock of that server: how long a key is its
    worker's, and how long it is known what was sent. ``prefix`` stands in front of each key. A
    Redis that throws keys away when its memory is full (``maxmemory-policy``) forgets what was
    sent; one without an append-only file does when it is restarted.

    Made once, it may be used in every process and loop. Raises ConfigError.
    """

    @hides_arguments
    def __init__(
        self,
        url: str,
        *,
        lease: float = LEASE,
        kept: float = KEPT,
        prefix: str = "amail:ledger:",
    ) -> None:
        check_seconds("lease", lease)
        check_seconds("kept", kept)
        if kept < lease:
            raise ConfigError("kept: must not be less than lease")
        self.lease = lease
        self._kept = kept
        self._prefix = prefix
        self._url = Secret(url)
        self._client = _client(url)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._parents: list[redis.asyncio.Redis] = []

    def __repr__(self) -> str:
        return f"<RedisLedger under {self._prefix!r}>"

    async def begin(self, key: str, token: str) -> Entry:
        """Take a key, if nobody has it and it was not done. Raises redis.RedisError."""
        client, name = self._here(), self._name(key)
        # The client asks again where no answer came: its own first asking is not somebody else's.
        ours = _json("begun", token, secrets.token_hex(8))
        if await client.set(name, ours, nx=True, px=_milliseconds(self.lease)):
            return Entry("begun")
        found = await client.get(name)
        if found is None:  # it ended between the two
            return Entry("busy")
        if found == ours:
            return Entry("begun")
        return _entry(found)

    async def sent(self, key: str, token: str, deferred: tuple[int, ...] = ()) -> None:
        """Note that a server has it."""
        await self._settle(key, token, "sent", deferred)

    async def unknown(self, key: str, token: str, deferred: tuple[int, ...] = ()) -> None:
        """Note that nobody knows whether a server has it."""
        await self._settle(key, token, "unknown", deferred)

    async def release(self, key: str, token: str) -> None:
        """Give a key back that certainly was not sent."""
        await self._run(_RELEASE, key, token)

    async def aclose(self) -> None:
        """End the connections of this loop. They are opened again when they are needed."""
        await self._here().aclose()

    async def _settle(self, key: str, token: str, state: State, deferred: tuple[int, ...]) -> None:
        entry = _json(state, token, list(deferred))
        await self._run(_SETTLE, key, token, entry, _milliseconds(self._kept))

    async def _run(self, script: str, key: str, *arguments: str | bytes | int) -> None:
        asked = self._here().eval(script, 1, self._name(key), *arguments)
        await t.cast("t.Awaitable[object]", asked)

    def _name(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise ValueError("a key is 64 hexadecimal digits")
        return f"{self._prefix}{key}"

    def _here(self) -> redis.asyncio.Redis:
        """Return the client of the running loop: connections belong to the loop they are made in.

        Those of another loop are let go of. Those of a parent process are kept for ever: to close
        them would take them out of the parent's selector, which the fork has made ours too.
        """
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._pid, self._loop = os.getpid(), None
            self._parents.append(self._client)
        if self._loop is not loop:
            self._loop, self._client = loop, _client(self._url)
        return self._client


@hides_arguments
def _client(url: str) -> redis.asyncio.Redis:
    try:
        return redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_SECONDS,
            socket_connect_timeout=_SECONDS,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), _RETRIES),
        )
    except (ValueError, TypeError, AttributeError):
        # What they say may quote the password.
        text = "url: must be redis://host:port/database, rediss://..., or unix://path"
        raise ConfigError(text) from None


def _json(*values: object) -> bytes:
    return json.dumps(values).encode()


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _entry(found: bytes | str) -> Entry:
    """Read what somebody else has written. What cannot be read is under way, for nobody knows."""
    try:
        state, _, deferred = json.loads(found)
        if state in {"sent", "unknown"}:
            return Entry(state, tuple(deferred))
    except (ValueError, TypeError):
        pass
    return Entry("busy")
