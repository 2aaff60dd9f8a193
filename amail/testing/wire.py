"""One accepted connection as octets: reads, writes, TLS and all the ways it can end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import typing as t

if t.TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

_BUFFER_LIMIT = 1 << 18
_LINE_LIMIT = 1 << 17
_PIECE = 1 << 16


class GoneError(Exception):
    """The connection has ended, on either side. Nothing more can be read."""


class Wire(asyncio.Protocol):
    """The server's end of one connection.

    What arrived before the client went away can still be read; waiting for more raises GoneError.
    ``opened`` is called with the wire when it has its transport. Starts without reading.
    """

    def __init__(self, opened: Callable[[Wire], None], receive_buffer: int | None = None) -> None:
        self._opened = opened
        self._receive_buffer = receive_buffer
        self._buffer = bytearray()
        self._held = True
        self._upgrading = False
        self._forsaken = False
        self._arrival: asyncio.Future[None] | None = None
        self.encrypted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and stop it from reading (a ClientHello must not be read here)."""
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._tcp = self._transport = t.cast("asyncio.Transport", transport)
        self._socket: socket.socket = transport.get_extra_info("socket")
        if self._receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        self._tcp.pause_reading()
        self._opened(self)

    def data_received(self, data: bytes) -> None:
        """Keep octets until they are asked for, up to a limit."""
        if self._forsaken:
            return
        self._buffer += data
        self._regulate()
        self._wake()

    def eof_received(self) -> bool:
        """Note that the client has closed its side; what it wrote before can still be read."""
        self._leave()
        return not self.encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is over."""
        self._leave()
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def closed(self) -> bool:
        """True once the socket itself is closed."""
        return self._socket.fileno() == -1

    @property
    def pending(self) -> int:
        """Octets that arrived and were not read."""
        return len(self._buffer)

    def hold(self, held: bool) -> None:
        """Stop taking octets from the socket, or go on."""
        self._held = held
        self._regulate()

    def forsake(self) -> None:
        """If octets are not being taken, throw them away from now on, to see the client leave."""
        if self._held:
            self._forsaken = True
            self._buffer.clear()
            self.hold(False)

    async def read_line(self) -> bytes:
        """Read a line with its line feed. Raises GoneError at the end or for an endless line."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_LIMIT:
                raise GoneError
            await self._more()
        return self._take(end + 1)

    async def read_some(self, most: int = _PIECE) -> bytes:
        """At least one octet, at most ``most``."""
        while not self._buffer:
            await self._more()
        return self._take(most)

    async def skip_all(self) -> None:
        """Throw away what comes until the client has gone."""
        self.hold(False)
        with contextlib.suppress(GoneError):
            while True:
                await self.read_some()

    def put_back(self, octets: bytes) -> None:
        """Octets to be read next."""
        self._buffer[:0] = octets

    def throw_away(self) -> None:
        """Forget what arrived and was not read."""
        self._buffer.clear()

    def write(self, octets: bytes) -> None:
        """Write octets in one piece, if the connection is still there."""
        if not self._transport.is_closing():
            self._transport.write(octets)

    async def rest(self, seconds: float | None, until: asyncio.Future[None] | None = None) -> None:
        """Wait for a time, or for ``until``. Raises GoneError as soon as the client has gone."""
        await asyncio.wait(
            {self.gone, until} if until else {self.gone},
            timeout=seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if self.gone.done():
            raise GoneError

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the TLS handshake as a server. Raises GoneError if it fails."""
        loop = asyncio.get_running_loop()
        # Octets can come with the end of the handshake, before its transport is known here.
        self._upgrading = True
        try:
            transport = await loop.start_tls(
                self._tcp, self, context, server_side=True, ssl_shutdown_timeout=1
            )
        except OSError as error:
            raise GoneError from error
        finally:
            self._upgrading = False
        if transport is None:  # Python 3.11 says so where the client went away in the handshake
            raise GoneError
        self._transport = transport
        self.encrypted = True
        self.hold(False)

    def close(self, *, notify: bool = True) -> None:
        """FIN, over TLS with a close_notify before it unless ``notify`` is False."""
        self._leave()
        (self._transport if notify else self._tcp).close()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed; ends a connection that nobody closed."""
        self.close()
        try:
            while not self.closed:
                await asyncio.wait({self.lost}, timeout=0.01)
        finally:
            self.abort()

    def write_eof(self) -> bool:
        """FIN for our side only, where that is possible."""
        if self.encrypted or self._tcp.is_closing():
            return False
        self._tcp.write_eof()
        return True

    def reset(self) -> None:
        """RST."""
        if not self.closed:
            linger_0 = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_0)
        self.abort()

    def abort(self) -> None:
        """Let go of the connection at once, whatever it is doing."""
        self._leave()
        self._tcp.abort()

    def _leave(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
        self._wake()

    async def _more(self) -> None:
        if self.gone.done():
            raise GoneError
        self._arrival = asyncio.get_running_loop().create_future()
        await self._arrival

    def _wake(self) -> None:
        if self._arrival and not self._arrival.done():
            self._arrival.set_result(None)

    def _take(self, octets: int) -> bytes:
        taken = bytes(self._buffer[:octets])
        del self._buffer[:octets]
        self._regulate()
        return taken

    def _regulate(self) -> None:
        if self._upgrading or self._transport.is_closing():
            return
        if self._held or len(self._buffer) > _BUFFER_LIMIT:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
