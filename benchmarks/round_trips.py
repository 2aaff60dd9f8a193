"""How many round trips a message takes, over one session through a network of 40 ms.

    python -m benchmarks.round_trips

Needs smtp-sink (Debian: apt-get install postfix). All run in turn, five times each, through a proxy
that delays what goes through it, in a process of its own; what arrived is counted by the sink. A
round trip is worth so many milliseconds, so this is time divided by that: the processor's share is
in it, and small. Prints a Markdown table.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
import typing as t
from email.message import EmailMessage
from pathlib import Path

import aiosmtplib

from amail import Mailer, Message
from benchmarks.delayed import delayed
from tests.servers.sink import smtp_sink

if t.TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from multiprocessing.connection import Connection

RUNS = 5
COUNT = 50
ROUND_TRIP = 0.04

Sender: t.TypeAlias = "Callable[[int, int], Coroutine[t.Any, t.Any, float]]"


def _message(number: int) -> Message:
    return Message(f"News {number}", [f"reader{number}@example.org"], "Hello", sender="a@x.org")


async def amail_send_many(port: int, count: int) -> float:
    """Very many, of which each begins while the last reply to the one before is on its way."""
    async with Mailer(f"smtp://127.0.0.1:{port}", max_connections=1) as mailer:
        await mailer.send(_message(0))
        began = time.perf_counter()
        async for result in mailer.send_many(map(_message, range(count))):
            if result.error is not None:
                raise result.error
        return time.perf_counter() - began


async def amail_send(port: int, count: int) -> float:
    """One after another."""
    async with Mailer(f"smtp://127.0.0.1:{port}", max_connections=1) as mailer:
        await mailer.send(_message(0))
        began = time.perf_counter()
        for number in range(count):
            await mailer.send(_message(number))
        return time.perf_counter() - began


async def aiosmtplib_send_message(port: int, count: int) -> float:
    """One after another over one connection."""

    def message(number: int) -> EmailMessage:
        email = EmailMessage()
        email["From"], email["To"] = "a@x.org", f"reader{number}@example.org"
        email["Subject"] = f"News {number}"
        email.set_content("Hello")
        return email

    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as smtp:
        await smtp.send_message(message(0))
        began = time.perf_counter()
        for number in range(count):
            await smtp.send_message(message(number))
        return time.perf_counter() - began


SENDERS: dict[str, Sender] = {
    "aiosmtplib send_message": aiosmtplib_send_message,
    "amail send": amail_send,
    "amail send_many": amail_send_many,
}


def _serve(host: str, port: int, told: Connection) -> None:
    async def main() -> None:
        async with delayed(host, port, ROUND_TRIP) as listening:
            told.send(listening)
            await asyncio.Event().wait()

    asyncio.run(main())


def round_trips(sender: Sender) -> float:
    """Round trips a message, through a proxy to a sink that has to have counted every one."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, smtp_sink(Path(folder)) as sink:
        ours, its = context.Pipe()
        proxy = context.Process(target=_serve, args=(sink.host, sink.port, its), daemon=True)
        proxy.start()
        seconds = asyncio.run(sender(ours.recv(), COUNT))
        proxy.terminate()
        proxy.join()
        if sink.messages != COUNT + 1:
            raise SystemExit(f"{COUNT + 1} sent, {sink.messages} arrived")
    return seconds / COUNT / ROUND_TRIP


def main() -> None:
    """Measure and print."""
    found: dict[str, list[float]] = {name: [] for name in SENDERS}
    for _ in range(RUNS):
        for name, sender in SENDERS.items():
            found[name].append(round_trips(sender))
    print("| | round trips a message (median) | range |\n|---|---|---|")
    for name, each in found.items():
        print(f"| {name} | {statistics.median(each):.2f} | {min(each):.2f}-{max(each):.2f} |")


if __name__ == "__main__":
    main()
