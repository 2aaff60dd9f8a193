"""An SMTP server that does as it is told, and notes everything a client does wrong.

    async with FaultServer(mail=["421 4.3.2 closing", OK]) as server:
        ...                                  # server.url, server.messages, server.violations

It listens on a loopback port that the system chooses. Its invariant: whatever a client does, it
never raises into the loop, and after ``aclose()`` no task and no socket is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import typing as t
from collections import Counter
from concurrent import futures

from amail.testing.script import STAGES, Moment, Script, Stage, due
from amail.testing.session import Session
from amail.testing.wire import Wire

if t.TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    from amail.testing.record import Command, Received
    from amail.testing.script import Action

EXTENSIONS: t.Final = (
    "PIPELINING",
    "SIZE 52428800",
    "8BITMIME",
    "SMTPUTF8",
    "ENHANCEDSTATUSCODES",
)
"""What the server offers if nothing else is said. STARTTLS and AUTH are added where they apply."""


class Stages(t.TypedDict, total=False):
    """The stages that have a keyword. "tls" has none: write ``FaultServer({"tls": Hang()})``."""

    connect: Script
    greeting: Script
    ehlo: Script
    helo: Script
    starttls: Script
    auth: Script
    mail: Script
    rcpt: Script
    data: Script
    body: Script
    chunk: Script
    final: Script
    rset: Script
    noop: Script
    quit: Script


class FaultServer:
    """A scripted SMTP server on 127.0.0.1, for tests of what a client does when things go wrong.

    ``script`` and the keywords named after stages say what happens where: see
    ``amail.testing.script``. At a stage without a script the server is in good health.

    ``extensions``: the EHLO keywords offered. ``tls``: a server's SSLContext; STARTTLS is offered,
    or with ``implicit`` TLS spoken from the first octet. ``users``: user names and passwords, AUTH
    PLAIN and LOGIN are offered (only inside TLS if there is ``tls``). ``tokens``: user names and
    access tokens, XOAUTH2 and OAUTHBEARER are offered. For other mechanisms, write "AUTH ..." into
    ``extensions``. With ``auth_required`` MAIL is refused before. ``receive_buffer``: octets the
    kernel buffers for a connection, small where a window shall close soon. ``keep_credentials``: do
    not cut them out of ``commands``.

    What a test looks at: ``messages`` (held), ``commands``, ``violations`` (sentences, each naming
    its connection), ``connections`` (opened so far), ``open_connections``. All may be read from
    any thread. After ``aclose()`` they stay, and ``start()`` listens on the same port again.
    """

    def __init__(
        self,
        script: Mapping[Stage, Script] | None = None,
        *,
        extensions: tuple[str, ...] = EXTENSIONS,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        users: Mapping[str, str] | None = None,
        tokens: Mapping[str, str] | None = None,
        auth_required: bool = False,
        receive_buffer: int | None = None,
        keep_credentials: bool = False,
        **stages: t.Unpack[Stages],
    ) -> None:
        if implicit and tls is None:
            raise ValueError("implicit=True needs tls=an SSLContext with a certificate")
        self.host = "127.0.0.1"
        self.port = 0
        self.extensions = extensions
        self.tls = tls
        self.implicit = implicit
        self.users = dict(users or {})
        self.tokens = dict(tokens or {})
        self.auth_required = auth_required
        self.receive_buffer = receive_buffer
        self.keep_credentials = keep_credentials
        self.messages: list[Received] = []
        self.commands: list[Command] = []
        self.violations: list[str] = []
        self.connections = 0
        self._script: dict[Stage, Script] = {}
        self._times: Counter[Stage] = Counter()
        self._reached: Counter[Stage] = Counter()
        self._mails = 0
        self._sessions: set[Session] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._failure: Exception | None = None
        self._listener: asyncio.Server | None = None
        self.change(script, **stages)

    def __repr__(self) -> str:
        return f"<FaultServer {self.url} with {self.open_connections} open connections>"

    @property
    def url(self) -> str:
        """Where it listens: "smtp://127.0.0.1:port", or smtps with implicit TLS."""
        return f"{'smtps' if self.implicit else 'smtp'}://{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """Connections that the server has not closed and whose client is still there."""
        return len(self._sessions)

    def change(
        self, script: Mapping[Stage, Script] | None = None, **stages: t.Unpack[Stages]
    ) -> None:
        """Replace what is scripted for these stages. Times go on counting.

        Raises ValueError for a stage that does not exist.
        """
        changes: dict[Stage, Script] = {
            **(script or {}),
            **t.cast("Mapping[Stage, Script]", stages),
        }
        if unknown := sorted(set(changes) - set(STAGES)):
            raise ValueError(f"no such stage: {unknown[0]!r}. Stages are {', '.join(STAGES)}")
        self._script.update(changes)

    async def start(self) -> None:
        """Listen. The first time on a free port, later on the same one.

        Raises RuntimeError if it listens already.
        """
        if self._listener:
            raise RuntimeError(f"{self!r} listens already")
        loop = asyncio.get_running_loop()
        self._released: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._listener = await loop.create_server(
            lambda: Wire(self._opened, self.receive_buffer),
            self.host,
            self.port,
            backlog=1000,
            start_serving=False,
        )
        # Only now: it gives way once more, and who is cancelled there shall know what to close.
        await self._listener.start_serving()
        self.port = self._listener.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Stop listening and let go of every connection at once. Idempotent.

        Raises the exception of a script that failed.
        """
        if self._listener:
            self._listener.close()
            for session in list(self._sessions):
                session.wire.abort()
            await asyncio.gather(*self._serving)
            await self._listener.wait_closed()
            self._listener = None
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure

    async def __aenter__(self) -> t.Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    @classmethod
    @contextlib.contextmanager
    def serve_in_thread(
        cls, script: Mapping[Stage, Script] | None = None, **options: t.Any
    ) -> Iterator[t.Self]:
        """Run a server in a loop and thread of its own, for tests that have no loop to spare.

        Takes what the constructor takes. Read its lists and call ``change`` and ``release`` from
        any thread; what is awaited belongs to the server's own loop.
        """
        server = cls(script, **options)
        started: futures.Future[Callable[[], object]] = futures.Future()

        async def serve() -> None:
            loop, stopped = asyncio.get_running_loop(), asyncio.Event()
            async with server:
                started.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
                await stopped.wait()

        with futures.ThreadPoolExecutor(1, thread_name_prefix="fault-server") as thread:
            serving = thread.submit(lambda: asyncio.run(serve()))
            either: set[futures.Future[t.Any]] = {started, serving}
            futures.wait(either, return_when=futures.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            stop = started.result()
            try:
                yield server
            finally:
                stop()
            serving.result()

    async def reached(self, stage: Stage, times: int = 1) -> None:
        """Wait until clients have stood at a stage that often since the server was made.

        Returns at once where that was before. With ``Hang()`` there the client then waits for us.
        """
        await self.until(lambda: self._reached[stage] >= times)

    async def all_closed(self) -> None:
        """Wait until no connection is open.

        Where octets are not being read (a ``Hang`` in the body), they are read and thrown away
        from now on, for the end of a connection is seen by reading only.
        """
        for session in self._sessions:
            session.wire.forsake()
        await self.until(lambda: not self._sessions)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true; asked again whenever anything happens at the server."""
        while not condition():
            happening = asyncio.get_running_loop().create_future()
            self._waiting.add(happening)
            try:
                await happening
            finally:
                self._waiting.discard(happening)

    def release(self) -> None:
        """Let those go on that a ``Hang`` holds now."""
        self._loop.call_soon_threadsafe(self._release)

    # What follows is for the server's own sessions.

    @property
    def released(self) -> asyncio.Future[None]:
        """Done when those who hang may go on."""
        return self._released

    def due(self, stage: Stage, session: Session, line: str) -> Action:
        """Count a client's coming to a stage, and say what is due."""
        if stage == "mail":
            self._mails += 1
            session.message = self._mails
            session.times_in_message.clear()
        self._times[stage] += 1
        session.times[stage] += 1
        session.times_in_message[stage] += 1
        moment = Moment(
            stage=stage,
            connection=session.number,
            message=session.message,
            nth=self._times[stage],
            nth_in_connection=session.times[stage],
            nth_in_message=session.times_in_message[stage],
            line=line,
            encrypted=session.wire.encrypted,
        )
        return due(self._script.get(stage), moment)

    def announce(self, stage: Stage) -> None:
        """Let those know who wait for a client to stand at a stage."""
        self._reached[stage] += 1
        self.notify()

    def notify(self) -> None:
        """Something happened that somebody may be waiting for."""
        for happening in self._waiting:
            if not happening.done():
                happening.set_result(None)

    def _opened(self, wire: Wire) -> None:
        self.connections += 1
        session = Session(self, wire, self.connections)
        self._sessions.add(session)  # before it is served, which an eager task is at once
        task = asyncio.get_running_loop().create_task(self._serve(session))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, session: Session) -> None:
        try:
            await session.run()
        except Exception as error:  # noqa: BLE001 - raised by aclose(), never into the loop
            self._failure = self._failure or error
        finally:
            try:
                await session.wire.wait_closed()
            finally:
                self._sessions.discard(session)
                self.notify()

    def _release(self) -> None:
        released, self._released = self._released, self._loop.create_future()
        if not released.done():
            released.set_result(None)
