"""Exim with a folder, spool and port of its own. It takes messages and never sends any on.

What it took lies in its spool, envelope and content side by side, and is read there. Its package
cannot be installed beside Postfix's, so AMAIL_EXIM may name an unpacked program, as in ``.ci/run``.
Needs root, and the user that it was compiled for.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.postfix import REFUSED
from tests.servers.programs import free_port, give_up, require, speaks_smtp, wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_USER = "Debian-exim"

_CONF = """\
primary_hostname = mail.test
exim_path = {program}
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
pid_file_path = {folder}/spool/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
queue_only
host_lookup =
rfc1413_hosts =
pipelining_advertise_hosts = *
chunking_advertise_hosts = *
tls_advertise_hosts =
smtp_accept_max = 100
smtp_accept_queue_per_connection = 0
keep_environment =
acl_smtp_rcpt = rcpt
{settings}
begin acl
rcpt:
  deny message = 5.1.1 no such user here
       local_parts = {refused}
  accept
"""

# Of a spooled header file: the reverse-path, and the forward-paths between their number and a
# blank line.
_SENDER = re.compile(r"^[^\n]*\n[^\n]*\n<(.*)>\n")
_PATHS = re.compile(r"^\d+\n((?:[^\s<>]+@\S+\n)+)\n", re.MULTILINE)
_MESSAGE_ID = re.compile(r"^\d{3}I Message-ID: (<.*>)$", re.MULTILINE)


@dataclass(frozen=True)
class Spooled:
    """A message that Exim took: its envelope, its Message-ID, and the body behind its header."""

    reverse_path: str
    forward_paths: tuple[str, ...]
    message_id: str
    body: bytes


@dataclass(frozen=True)
class EximServer:
    """A running Exim, which takes everything from anybody but what is for REFUSED."""

    folder: Path
    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"smtp://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """What Exim has to say about it all."""
        files = sorted((self.folder / "log").glob("*log"))
        return "".join(file.read_text("utf-8", "replace") for file in files)

    def messages(self) -> list[Spooled]:
        """Return what was taken, which is there before the reply is."""
        return [_read(file) for file in self._spool.glob("*-H")]

    def clear(self) -> None:
        """Throw away what was taken."""
        for file in self._spool.glob("*-[HD]"):
            file.unlink()

    @property
    def _spool(self) -> Path:
        return self.folder / "spool" / "input"


def _read(header: Path) -> Spooled:
    text = header.read_text("utf-8", "surrogateescape")
    sender, paths, message_id = (pattern.search(text) for pattern in (_SENDER, _PATHS, _MESSAGE_ID))
    assert sender, text
    assert paths, text
    assert message_id, text
    # Its first line is the name of the file.
    _, _, body = header.with_name(header.name[:-1] + "D").read_bytes().partition(b"\n")
    return Spooled(sender[1], tuple(paths[1].split()), message_id[1], body)


@contextlib.contextmanager
def exim_server(settings: Mapping[str, str] | None = None) -> Iterator[EximServer]:
    """Run Exim with these further main settings.

    Skips where Exim or its user is not there or we are not root; in CI that is an error.
    """
    named = os.environ.get("AMAIL_EXIM")
    program = named or require("exim4", install="see .ci/run")[0]
    if os.geteuid() != 0:
        give_up("Exim needs root")
    try:
        user = pwd.getpwnam(_USER)
    except KeyError:
        give_up(f"Exim needs the user {_USER}")
    # Not pytest's tmp_path: Exim's unprivileged processes have to get through every folder.
    with tempfile.TemporaryDirectory(prefix="exim-", ignore_cleanup_errors=True) as name:
        server = EximServer(Path(name))
        server.folder.chmod(0o755)
        for each in ("spool", "log"):
            (server.folder / each).mkdir()
            shutil.chown(server.folder / each, user.pw_uid, user.pw_gid)
        conf = server.folder / "exim.conf"
        lines = "\n".join(f"{key} = {value}" for key, value in (settings or {}).items())
        refused = REFUSED.partition("@")[0]
        conf.write_text(
            _CONF.format(
                program=program,
                folder=name,
                port=server.port,
                refused=refused,
                settings=lines,
            )
        )
        process = subprocess.Popen(
            [program, "-C", conf, "-bdf"],
            stdin=subprocess.DEVNULL,
            stdout=(output := (server.folder / "output").open("wb")),
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(
                lambda: process.poll() is not None or speaks_smtp(server.port),
                f"the greeting of Exim in {name}",
            )
            assert process.poll() is None, (server.folder / "output").read_text()
            yield server
        finally:
            output.close()
            process.terminate()
            process.wait()
