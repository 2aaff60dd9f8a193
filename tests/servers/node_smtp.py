"""Nodemailer's smtp-server, which knows XOAUTH2: see smtp-server.mjs among the judges."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import tempfile
import threading
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from tests.judges.node import FOLDER
from tests.servers.programs import give_up, require, wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHALLENGE = {"status": "401", "schemes": "bearer", "scope": "https://mail.google.com/"}


@dataclass
class NodeSMTP:
    """A running server: STARTTLS, AUTH PLAIN and XOAUTH2 inside TLS, messages only after that.

    ``tries`` is what it reports of each AUTH, ``messages`` holds user and content of each message.
    """

    ca_file: Path
    port: int = 0
    host: str = "127.0.0.1"
    tries: list[dict[str, t.Any]] = field(default_factory=list)
    messages: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"smtp://{self.host}:{self.port}"

    def wait_for(self, *, tries: int, messages: int) -> None:
        """Wait until that much is reported: our reading of it comes after the server's reply."""
        wait_until(
            lambda: len(self.tries) >= tries and len(self.messages) >= messages,
            f"{tries} tries and {messages} messages; there are {self.tries}",
        )

    def clear(self) -> None:
        """Forget what was reported."""
        self.tries.clear()
        self.messages.clear()


@contextlib.contextmanager
def node_smtp(*, passwords: Mapping[str, str], tokens: Mapping[str, str]) -> Iterator[NodeSMTP]:
    """Run the server with these users.

    Skips where Node or smtp-server is not installed; in CI that is an error.
    """
    (node,) = require("node", install="apt-get install nodejs npm")
    if not (FOLDER / "node_modules" / "smtp-server").is_dir():
        give_up(f"smtp-server not installed (npm ci --prefix tests/{FOLDER.name})")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    told = {
        "key": certificate.private_key_pem.bytes().decode(),
        "certificate": certificate.cert_chain_pems[0].bytes().decode(),
        "methods": ["PLAIN", "XOAUTH2"],
        "passwords": dict(passwords),
        "tokens": dict(tokens),
        "challenge": CHALLENGE,
    }
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        server = NodeSMTP(Path(folder) / "ca.pem")
        authority.cert_pem.write_to_path(str(server.ca_file))
        with subprocess.Popen(
            [node, FOLDER / "smtp-server.mjs", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                errors.seek(0)
                raise AssertionError(f"smtp-server ended: {errors.read()[-2000:].decode()}")
            server.port = json.loads(line)["port"]
            reader = threading.Thread(target=_read, args=(process.stdout, server))
            reader.start()
            try:
                yield server
            finally:
                process.stdin.close()  # the end of its input ends the process
                reader.join()


def _read(output: t.IO[bytes], server: NodeSMTP) -> None:
    for line in output:
        said = json.loads(line)
        if "message" in said:
            server.messages.append((said["user"], base64.b64decode(said["message"])))
        else:
            server.tries.append(said)
