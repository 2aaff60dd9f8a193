"""aiosmtpd, the everyday real server, in a loop and thread of its own on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import typing as t
from dataclasses import dataclass, field

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

if t.TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

    import aiosmtpd.smtp


class StoredMessage(t.NamedTuple):
    """A message that the server accepted."""

    reverse_path: str
    forward_paths: tuple[str, ...]
    content: bytes
    session: int


@dataclass
class AiosmtpdServer:
    """A running aiosmtpd. ``sessions`` counts those that were opened.

    ``on_rcpt`` is awaited in the server's own loop at each RCPT, before its reply.
    """

    refused: Collection[str] = ()
    users: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 0
    sessions: int = 0
    messages: list[StoredMessage] = field(default_factory=list)
    on_rcpt: Callable[[str], Awaitable[None]] | None = None
    _numbers: dict[Session, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"smtp://{self.host}:{self.port}"

    # What follows are aiosmtpd's names for a handler's methods.

    async def handle_RCPT(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        rcpt_options: list[str],
    ) -> str:
        if self.on_rcpt is not None:
            await self.on_rcpt(address)
        if self.users and not session.authenticated:
            return "530 5.7.0 authentication required"
        if address in self.refused:
            return "550 5.1.1 no such user here"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 recipient ok"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        number = self._numbers.setdefault(session, len(self._numbers) + 1)
        content = envelope.original_content or b""
        stored = StoredMessage(envelope.mail_from or "", tuple(envelope.rcpt_tos), content, number)
        self.messages.append(stored)
        return f"250 2.0.0 ok, queued as A{len(self.messages):05}"


@contextlib.contextmanager
def aiosmtpd_server(
    *,
    tls: ssl.SSLContext | None = None,
    implicit: bool = False,
    users: Mapping[str, str] | None = None,
    refused: Collection[str] = (),
) -> Iterator[AiosmtpdServer]:
    """Run aiosmtpd: STARTTLS with ``tls`` (or TLS at once), AUTH with ``users``."""
    handler = AiosmtpdServer(refused=refused, users=users or {})

    def authenticate(
        server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: t.Any
    ) -> AuthResult:
        assert isinstance(given, LoginPassword)
        password = handler.users.get(given.login.decode())
        return AuthResult(success=password == given.password.decode(), handled=False)

    ready = threading.Event()
    loop: asyncio.AbstractEventLoop
    stopped: asyncio.Event

    async def serve() -> None:
        nonlocal loop, stopped
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        protocols: list[SMTP] = []

        def protocol() -> aiosmtpd.smtp.SMTP:
            handler.sessions += 1
            protocols.append(
                SMTP(
                    handler,
                    loop=loop,
                    hostname="aiosmtpd.test",
                    enable_SMTPUTF8=True,
                    tls_context=None if implicit else tls,
                    authenticator=authenticate if users else None,
                    auth_require_tls=tls is not None and not implicit,
                )
            )
            return protocols[-1]

        listener = await loop.create_server(
            protocol, handler.host, 0, ssl=tls if implicit else None, backlog=1000
        )
        handler.port = listener.sockets[0].getsockname()[1]
        ready.set()
        await stopped.wait()
        listener.close()
        for each in protocols:
            if isinstance(each.transport, asyncio.WriteTransport):
                each.transport.abort()
        await asyncio.sleep(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="aiosmtpd")
    thread.start()
    assert ready.wait(10)
    try:
        yield handler
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
