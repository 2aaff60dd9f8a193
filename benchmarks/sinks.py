"""Servers that take everything and count it, and a network of so many milliseconds before them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass, replace
from pathlib import Path

import trustme

from benchmarks.delayed import serve
from benchmarks.install import compiled
from benchmarks.measure import off_the_core
from tests.servers.sink import smtp_sink

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Sink:
    """A server on 127.0.0.1; ``ca_file`` signs its certificate where it speaks TLS.

    ``counter`` says how many messages it has taken. ``round_trip`` is in seconds.
    """

    port: int
    counter: Callable[[], int]
    ca_file: str = ""
    round_trip: float = 0.0


@contextlib.contextmanager
def postfix_sink() -> Iterator[Sink]:
    """Run smtp-sink: PIPELINING, no CHUNKING, no TLS. Ends the command where there is none."""
    if shutil.which("smtp-sink", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        raise SystemExit("needs smtp-sink (Debian: apt-get install postfix)")
    with tempfile.TemporaryDirectory() as folder, smtp_sink(Path(folder)) as sink:
        yield Sink(sink.port, lambda: sink.messages)


@contextlib.contextmanager
def fast_sink(*, tls: bool = False) -> Iterator[Sink]:
    """Run our own: PIPELINING, CHUNKING, and with ``tls`` TLS from the start; AUTH is optional."""
    program = compiled("fast_sink.c", *(["-DWITH_TLS", "-lssl", "-lcrypto"] if tls else []))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counters, authority = folder / "counters", folder / "ca.pem"
        command = [program, str(counters)]
        if tls:
            command.append(_certificate(folder, authority))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield Sink(
                port,
                lambda: int(struct.unpack_from("q", counters.read_bytes())[0]),
                str(authority) if tls else "",
            )
        finally:
            process.terminate()
            process.communicate()


def _certificate(folder: Path, authority: Path) -> str:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(authority))
    file = folder / "server.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    return str(file)


@contextlib.contextmanager
def far_away(sink: Sink, round_trip: float) -> Iterator[Sink]:
    """Put a network before a sink. Its round trip is measured, for timers are not exact."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    proxy = context.Process(target=serve, args=(sink.port, round_trip, its), daemon=True)
    with off_the_core():  # a network takes no processor time
        proxy.start()
    its.close()  # so that its end is seen here, should it end before it has told its port
    try:
        port = ours.recv()
        yield replace(sink, port=port, round_trip=_round_trip(port, sink.ca_file))
    finally:
        proxy.terminate()
        proxy.join()


def _round_trip(port: int, ca_file: str) -> float:
    """What a NOOP takes."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if ca_file:
            trusting = ssl.create_default_context(cafile=ca_file)
            connection = stack.enter_context(
                trusting.wrap_socket(connection, server_hostname="127.0.0.1")
            )
        connection.recv(1000)
        took = []
        for command in (b"EHLO benchmark\r\n", *[b"NOOP\r\n"] * 9):
            began = time.perf_counter()
            connection.sendall(command)
            connection.recv(1000)
            took.append(time.perf_counter() - began)
    return statistics.median(took)
