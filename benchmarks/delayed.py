"""A TCP proxy that delays every octet: a network with a round trip, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from multiprocessing.connection import Connection


@contextlib.asynccontextmanager
async def delayed(host: str, port: int, round_trip: float) -> AsyncIterator[int]:
    """Listen on a free port, which is yielded; ``round_trip`` in seconds, half of it each way."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ahead_reader, ahead_writer = await asyncio.open_connection(host, port)
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(reader, ahead_writer, round_trip / 2))
            both.create_task(_pump(ahead_reader, writer, round_trip / 2))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Hand octets on when their time has come, in their order, however many are under way."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):  # who is measured may leave as it likes
        while octets := await reader.read(65536):
            loop.call_later(delay, writer.write, octets)
    loop.call_later(delay, writer.close)


def serve(port: int, round_trip: float, told: Connection) -> None:
    """Be the process of a proxy to that port of 127.0.0.1: tell the port, and never return."""

    async def main() -> None:
        async with delayed("127.0.0.1", port, round_trip) as listening:
            told.send(listening)
            await asyncio.Event().wait()

    asyncio.run(main())
