"""Redis with a folder and port of its own, keeping what it has in an append-only file."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import typing as t
from dataclasses import dataclass

from tests.servers.programs import free_port, require, wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CONF = """\
bind 127.0.0.1
port {port}
dir "{folder}"
logfile "{folder}/log"
daemonize no
appendonly yes
save ""
"""


@dataclass(frozen=True)
class RedisServer:
    """A running Redis."""

    folder: Path
    port: int
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Its first database."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def log(self) -> str:
        """What Redis has to say about it all."""
        return (self.folder / "log").read_text("utf-8", "replace")


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Run Redis on a free port. Skips where it is not installed; in CI that is an error."""
    (program,) = require("redis-server", install="apt-get install redis-server")
    server = RedisServer(folder, free_port())
    conf = folder / "redis.conf"
    conf.write_text(_CONF.format(folder=folder, port=server.port))
    process = subprocess.Popen(
        [program, conf],
        stdin=subprocess.DEVNULL,
        stdout=(output := (folder / "output").open("wb")),
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(
            lambda: process.poll() is not None or _answers(server), f"Redis in {server.folder}"
        )
        assert process.poll() is None, (folder / "output").read_text()
        yield server
    finally:
        output.close()
        process.kill()  # what it holds was a test's
        process.wait()


def _answers(server: RedisServer) -> bool:
    try:
        with socket.create_connection((server.host, server.port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100) == b"+PONG\r\n"
    except OSError:
        return False
