"""RabbitMQ with a folder, ports and an Erlang port mapper of its own.

Nothing of the system's configuration is read or changed, and no other node is ever met: its name
is known to its own port mapper only, which ends with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tests.servers.programs import free_port, require, wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DEBIANS = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

# The alarms are about the machine: one with a full disk shall not make a publisher wait for ever.
_CONF = """\
listeners.tcp.1 = 127.0.0.1:{port}
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.relative = 0.9
"""


@dataclass(frozen=True)
class RabbitMQ:
    """A running RabbitMQ, whose user is guest."""

    folder: Path
    port: int
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Its one virtual host."""
        return f"amqp://guest:guest@{self.host}:{self.port}//"

    @property
    def log(self) -> str:
        """What RabbitMQ has to say about it all."""
        files = sorted(self.folder.glob("log/*.log"))
        return "".join(file.read_text("utf-8", "replace") for file in files)


@contextlib.contextmanager
def rabbitmq(folder: Path) -> Iterator[RabbitMQ]:
    """Run RabbitMQ on a free port. Skips where it is not installed; in CI that is an error."""
    # The one on the path becomes another user, and asks for the system's own folders.
    program, mapper = require(
        str(_DEBIANS) if _DEBIANS.exists() else "rabbitmq-server",
        "epmd",
        install="apt-get install rabbitmq-server",
    )
    server = RabbitMQ(folder, free_port())
    mapper_port = free_port()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RABBITMQ_", "ERL_"))
    }
    environment |= _environment(server, mapper_port)
    with contextlib.ExitStack() as ending:
        output = ending.enter_context((folder / "output").open("wb"))
        # In the foreground, so that it is a child of ours; RabbitMQ would start one that stays.
        arguments = ["-port", str(mapper_port), "-address", server.host]
        _run([mapper, *arguments], environment, output, ending)
        wait_until(lambda: _listens(server.host, mapper_port), "the Erlang port mapper")
        node = _run([program], environment, output, ending)
        wait_until(
            lambda: node.poll() is not None or _speaks_amqp(server),
            f"RabbitMQ in {server.folder}",
            seconds=60,
            every=0.1,
        )
        assert node.poll() is None, (folder / "output").read_text() + server.log[-4000:]
        yield server


def _environment(server: RabbitMQ, mapper_port: int) -> Mapping[str, str]:
    folder = server.folder
    (folder / "log").mkdir()
    (folder / "rabbitmq.conf").write_text(_CONF.format(port=server.port))
    (folder / "plugins").write_text("[].\n")
    cookie = folder / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(20))
    cookie.chmod(0o400)
    return {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(mapper_port),
        "ERL_EPMD_ADDRESS": server.host,
        "RABBITMQ_NODENAME": f"test{server.port}@localhost",
        "RABBITMQ_NODE_PORT": str(server.port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "no-environment"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        # Then the script becomes the node and stays no shell in front of it.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def _run(
    command: list[str],
    environment: Mapping[str, str],
    output: t.IO[bytes],
    ending: contextlib.ExitStack,
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, which is ended as a whole."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    ending.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def _speaks_amqp(server: RabbitMQ) -> bool:
    """Whether it answers the protocol header with a method frame (AMQP 0-9-1, section 2.2.4)."""
    try:
        with socket.create_connection((server.host, server.port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False
