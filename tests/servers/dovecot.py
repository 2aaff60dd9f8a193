"""Dovecot's submission service, which knows XOAUTH2 and OAUTHBEARER, with a folder of its own.

It checks tokens by itself: JSON Web Tokens (RFC 7519) signed with a key that it has. What it takes
it hands to a relay. Needs root, as Dovecot does; nothing of the system's configuration is read or
changed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.musts import PASSWORD
from tests.servers.programs import free_port, give_up, require, speaks_smtp, wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail.testing import FaultServer

_KEY = b"the key that signs tokens"

_CONF = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
auth_verbose = yes
protocols = submission
listen = 127.0.0.1
hostname = mail.test

ssl = required
ssl_cert = <{folder}/server.pem
ssl_key = <{folder}/server.pem
disable_plaintext_auth = yes
auth_mechanisms = {mechanism}
auth_failure_delay = 0
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}

passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {folder}/oauth2.conf
}}
passdb {{
  driver = passwd-file
  mechanisms = plain login
  args = scheme=PLAIN {folder}/users
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={folder}/home/%u
}}
mail_location = maildir:{folder}/home/%u
first_valid_uid = 1
first_valid_gid = 1

service submission-login {{
  inet_listener submission {{
    port = {port}
  }}
  inet_listener submissions {{
    port = 0
  }}
}}
submission_relay_host = {relay.host}
submission_relay_port = {relay.port}
"""

_OAUTH2 = """\
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={folder}/keys/
username_attribute = sub
"""


@dataclass(frozen=True)
class Dovecot:
    """A running server: STARTTLS offered, AUTH inside TLS only, messages only after that."""

    folder: Path
    port: int
    host: str = "127.0.0.1"
    username: str = "ada"
    password: str = PASSWORD

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"smtp://{self.host}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The authority to be trusted, as PEM."""
        return self.folder / "ca.pem"

    @property
    def log(self) -> str:
        """What Dovecot has to say about it all."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def wait_for_log(self, text: str, since: int = 0) -> None:
        """Wait until it says that: it may do so behind its reply."""
        wait_until(lambda: text in self.log[since:], f"{text!r}; it says:\n{self.log[since:]}")


def token(*, key: bytes = _KEY, padding: int = 0, seconds: float = 3600) -> str:
    """A token for ada, signed, good for that long, and longer by so many octets at least."""
    now = int(time.time())
    claims = {"sub": "ada", "iat": now - 10, "exp": now + int(seconds), "padding": "p" * padding}
    signed = _encoded({"typ": "JWT", "alg": "HS256"}) + b"." + _encoded(claims)
    signature = hmac.digest(key, signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def _encoded(claims: dict[str, t.Any]) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")


@contextlib.contextmanager
def dovecot(relay: FaultServer, mechanism: str) -> Iterator[Dovecot]:
    """Run Dovecot in front of a relay, with one mechanism of AUTH.

    Skips where Dovecot is not installed or we are not root; in CI that is an error.
    """
    (program,) = require("dovecot", install="apt-get install dovecot-submissiond")
    if os.geteuid() != 0:
        give_up("Dovecot needs root")
    # Not pytest's tmp_path: Dovecot's unprivileged processes have to get through every folder.
    with tempfile.TemporaryDirectory(prefix="dovecot-", ignore_cleanup_errors=True) as name:
        server = Dovecot(Path(name), free_port())
        _write_folder(server, relay, mechanism)
        process = subprocess.Popen(
            [program, "-F", "-c", server.folder / "dovecot.conf"],
            stdin=subprocess.DEVNULL,
            stdout=(output := (server.folder / "output").open("wb")),
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(
                lambda: process.poll() is not None or speaks_smtp(server.port),
                f"the greeting of Dovecot in {server.folder}",
            )
            assert process.poll() is None, (server.folder / "output").read_text() + server.log
            yield server
        finally:
            output.close()
            process.terminate()  # it ends its own processes
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _write_folder(server: Dovecot, relay: FaultServer, mechanism: str) -> None:
    folder = server.folder
    folder.chmod(0o755)
    (folder / "home").mkdir()
    (folder / "home").chmod(0o777)
    (folder / "log").touch()
    conf = _CONF.format(folder=folder, port=server.port, relay=relay, mechanism=mechanism)
    (folder / "dovecot.conf").write_text(conf)
    (folder / "oauth2.conf").write_text(_OAUTH2.format(folder=folder))
    (folder / "users").write_text(f"{server.username}:{{PLAIN}}{server.password}\n")
    key = folder / "keys" / "default" / "HS256" / "default"
    key.parent.mkdir(parents=True)
    key.write_bytes(base64.b64encode(_KEY))

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(server.ca_file))
    certificate = authority.issue_cert(server.host, "localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
