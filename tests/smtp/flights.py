"""A server that says nothing before a whole message has come: whoever waits for it waits for ever.

It shows what is written without a reply, and in how many writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator

_BDAT = re.compile(rb"BDAT (\d+) LAST")
_ROUNDS = 50


class Silent:
    """Answers when ``hold`` whole messages have come, or there are no more to come; the oldest.

    ``total`` is how many there will be. ``answer`` says what the reply to a command of a message
    is, numbers counting from 1; None: nothing, for the command is lost.
    """

    def __init__(
        self,
        total: int,
        hold: int = 1,
        answer: t.Callable[[str, int], str | None] = lambda verb, number: "250 2.0.0 ok",
        extensions: str = "PIPELINING\nCHUNKING",
    ) -> None:
        self.total, self.hold, self.answer = total, hold, answer
        self.extensions = extensions.split("\n")
        self.segments: list[bytes] = []
        self.lines: list[str] = []
        self.contents: list[bytes] = []
        self.most_in_flight = 0
        self.connections: list[_Connection] = []
        self.is_answering = asyncio.Event()
        self.is_answering.set()
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[t.Self]:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for each in self.connections:
                each.stop()

    async def has_got(self, messages: int) -> None:
        """Wait until that many messages have come, and a while for one more."""
        while len(self.contents) < messages:
            await asyncio.sleep(0.001)
        await _a_while()


async def _a_while() -> None:
    """Let everything run that can run now."""
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    def __init__(self, server: Silent) -> None:
        self._server = server
        self._buffer = b""
        self._due = 0
        self._replies: list[str | None] = []  # to the message that is coming
        self._owed: list[list[str | None]] = []
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = t.cast("asyncio.Transport", transport)
        self._server.connections.append(self)
        self._say("220 here")

    def stop(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        self._server.segments.append(data)
        self._buffer += data
        while self._take():
            pass
        self._server.most_in_flight = max(self._server.most_in_flight, len(self._owed))
        if self._owed and self._answering is None:
            self._answering = asyncio.get_running_loop().create_task(self._answer())

    def _take(self) -> bool:
        """Take one line, or the content behind it."""
        if self._due:
            if len(self._buffer) < self._due:
                return False
            self._server.contents.append(self._buffer[: self._due])
            self._buffer, self._due = self._buffer[self._due :], 0
            self._owed.append(self._replies)
            self._replies = []
            return True
        line, end, rest = self._buffer.partition(b"\r\n")
        if not end:
            return False
        self._buffer = rest
        self._command(line)
        return True

    def _command(self, line: bytes) -> None:
        server = self._server
        verb = line.split()[0].decode()
        server.lines.append(verb)
        if verb == "EHLO":
            self._say("\n".join(["250 here", *server.extensions]))
        elif verb == "QUIT":
            self._say("221 by")
            self._transport.close()
        else:
            self._replies.append(server.answer(verb, len(server.contents) + 1))
        if (match := _BDAT.fullmatch(line)) is not None:
            self._due = int(match[1])

    async def _answer(self) -> None:
        server = self._server
        while self._owed:
            await server.is_answering.wait()
            is_all = len(server.contents) == server.total
            if len(self._owed) < server.hold and not is_all:
                break
            await _a_while()
            self._transport.write(b"".join(map(_wire, self._owed.pop(0))))
        self._answering = None

    def _say(self, reply: str) -> None:
        lines = reply.split("\n")
        lines[1:] = [f"250 {each}" for each in lines[1:]]
        marked = [each[:3] + "-" + each[4:] for each in lines[:-1]] + lines[-1:]
        self._transport.write("".join(f"{each}\r\n" for each in marked).encode())


def _wire(reply: str | None) -> bytes:
    return b"" if reply is None else f"{reply}\r\n".encode()
