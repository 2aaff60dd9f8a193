"""ASGI: doing something when an ASGI server shuts down. Knows no mail and no framework.

Uvicorn ends its process by the signal that it was sent, and then Python runs nothing at exit. The
last that an application hears of is the lifespan protocol of ASGI.
"""

from __future__ import annotations

import logging
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Event = MutableMapping[str, t.Any]
    Receive = Callable[[], Awaitable[Event]]
    Send = Callable[[Event], Awaitable[None]]
    # Every framework has types of its own for scope, receive and send.
    ASGIApp = Callable[[t.Any, t.Any, t.Any], Awaitable[None]]
    End = Callable[[], Awaitable[None]]

_logger = logging.getLogger("amail")


def ending(app: ASGIApp, end: End) -> ASGIApp:
    """Wrap an ASGI app so that ``end`` is awaited at shutdown, after the app's own.

    The app may know the lifespan protocol or not.
    """

    async def wrapped(scope: Event, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _Lifespan(end, receive, send).run(app, scope)
        else:
            await app(scope, receive, send)

    return wrapped


class _Lifespan:
    """One lifespan, from the server's startup to its shutdown."""

    def __init__(self, end: End, receive: Receive, send: Send) -> None:
        self._end = end
        self._receive_from_server = receive
        self._send_to_server = send
        self._came: set[str] = set()
        self._went: set[str] = set()

    async def run(self, app: ASGIApp, scope: Event) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            if "lifespan.shutdown" in self._came:
                await self._end()
            if self._went:
                raise
            _logger.info("the ASGI app does not know the lifespan protocol", exc_info=True)
        await self._finish()

    async def _finish(self) -> None:
        """Say what an app that does not know the protocol, or only half of it, did not say."""
        if not self._went:
            await self._receive_once("lifespan.startup")
            await self._send({"type": "lifespan.startup.complete"})
        if self._went == {"lifespan.startup.complete"}:
            await self._receive_once("lifespan.shutdown")
            await self._send({"type": "lifespan.shutdown.complete"})

    async def _receive_once(self, name: str) -> None:
        if name not in self._came:
            await self._receive()

    async def _receive(self) -> Event:
        event = await self._receive_from_server()
        self._came.add(event["type"])
        return event

    async def _send(self, event: Event) -> None:
        self._went.add(event["type"])
        if event["type"].startswith("lifespan.shutdown."):
            await self._end()
        await self._send_to_server(event)
