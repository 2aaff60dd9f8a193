"""Postfix with a folder, queue and port of its own. It never sends anything anywhere.

Every domain is its own; what it takes goes into one Maildir, where the stored copy can be compared
with what was sent. Needs root, as Postfix does; nothing of the system's configuration is read or
changed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from tests.musts import PASSWORD
from tests.servers.programs import free_port, give_up, require, speaks_smtp, wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REFUSED = "refused@example.org"
"""The one recipient that the server does not know, and a sender that "junk" and "strict" refuse."""

_REFUSED_SENDER = f"inline:{{ {{ {REFUSED} = 550 5.7.1 not from there }} }}"

PUNISHING: t.Final[Mapping[str, Mapping[str, str]]] = {
    name: {"smtpd_relay_restrictions": "reject_unauth_destination", **settings}
    for name, settings in {
        "idle": {"smtpd_timeout": "2s"},
        "two": {
            "smtpd_client_connection_count_limit": "2",
            "smtpd_client_event_limit_exceptions": "",
        },
        "rate": {
            "smtpd_client_message_rate_limit": "5",  # in each anvil_rate_time_unit
            "smtpd_client_event_limit_exceptions": "",
        },
        "five": {"smtpd_recipient_limit": "5"},
        "junk": {
            "smtpd_junk_command_limit": "3",
            "smtpd_hard_error_limit": "6",
            "smtpd_sender_restrictions": f"check_sender_access {_REFUSED_SENDER}",
            "smtpd_delay_reject": "no",
        },
        "small": {"message_size_limit": "10240"},
        "silent": {"message_size_limit": "10240", "smtpd_discard_ehlo_keywords": "size"},
        "strict": {
            "smtpd_hard_error_limit": "1",
            "smtpd_sender_restrictions": f"check_sender_access {_REFUSED_SENDER}",
            "smtpd_delay_reject": "no",
        },
    }.items()
}
"""Listeners that punish a client, each in its way. None of them asks for TLS or a password."""

_HOST_NAME = "mail.test"
_TRACE_FIELD = re.compile(
    rb"(?:Return-Path|X-Original-To|Delivered-To|Received):[^\n]*\n(?:[ \t][^\n]*\n)*"
)

_MAIN = """\
compatibility_level = 3.6
command_directory = {commands}
daemon_directory = {daemons}
data_directory = {folder}/data
queue_directory = {folder}/queue
meta_directory = /etc/postfix
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/log
maillog_file_prefixes = {folder}

inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = {host_name}
mydestination =
mynetworks = 127.255.255.254/32
alias_maps =
alias_database =
local_recipient_maps =
local_header_rewrite_clients =
disable_dns_lookups = yes
default_transport = error:nothing leaves this server
relay_transport = error:nothing leaves this server

virtual_mailbox_domains = static:all
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_transport = virtual

smtpd_peername_lookup = no
smtpd_error_sleep_time = 0
smtpd_client_connection_count_limit = 0
anvil_rate_time_unit = 1s
smtpd_sender_restrictions =
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions =
    check_recipient_access inline:{{ {{ {refused} = 550 5.1.1 no such user here }} }}
smtpd_tls_cert_file = {folder}/tls/server.pem
smtpd_tls_key_file = {folder}/tls/server.pem
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_path = smtpd
cyrus_sasl_config_path = {folder}/etc/sasl
smtpd_sasl_local_domain = {host_name}
message_size_limit = 52428800
virtual_mailbox_limit = 0
"""

_MASTER = """\
{listeners}
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n -  0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n -  - trivial-rewrite
bounce    unix  - - n -  0 bounce
defer     unix  - - n -  0 bounce
trace     unix  - - n -  0 bounce
verify    unix  - - n -  1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n -  - proxymap
showq     unix  n - n -  - showq
error     unix  - - n -  - error
retry     unix  - - n -  - error
virtual   unix  - n n -  - virtual
anvil     unix  - - n -  1 anvil
postlog   unix-dgram n - n - 1 postlogd
"""

_SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
mech_list: PLAIN LOGIN
sasldb_path: {folder}/sasldb2
"""


@dataclass(frozen=True)
class PostfixServer:
    """A running Postfix: STARTTLS offered, AUTH PLAIN and LOGIN inside TLS, relaying only after.

    ``ports`` holds the further listeners asked for, by name.
    """

    folder: Path
    port: int
    ca: trustme.CA
    ports: Mapping[str, int] = field(default_factory=dict)
    host: str = "127.0.0.1"
    username: str = f"ada@{_HOST_NAME}"
    password: str = PASSWORD

    @property
    def ca_file(self) -> Path:
        """The authority to be trusted, as PEM."""
        return self.folder / "tls" / "ca.pem"

    @property
    def log(self) -> str:
        """What Postfix has to say about it all."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def log_of(self, listener: str) -> list[str]:
        """What one of the further listeners has to say, in lines."""
        return [line for line in self.log.splitlines() if f" postfix/{listener}/smtpd[" in line]

    def maildir_messages(self) -> list[bytes]:
        """What is stored now, line ends as on the wire, with the server's trace fields."""
        files = sorted(self._maildir.glob("*"), key=lambda file: file.stat().st_mtime_ns)
        return [file.read_bytes().replace(b"\n", b"\r\n") for file in files]

    def wait_for_messages(self, count: int) -> list[bytes]:
        """What is stored once that many messages are: delivery comes after acceptance."""
        wait_until(
            lambda: len(list(self._maildir.glob("*"))) >= count,
            f"{count} messages; Postfix says:\n{self.log[-2000:]}",
        )
        return self.maildir_messages()

    def clear(self) -> None:
        """Throw away what is stored."""
        for file in self._maildir.glob("*"):
            file.unlink()

    @staticmethod
    def strip_trace(message: bytes) -> bytes:
        """The content as it was sent: without the trace fields that the server put on top."""
        lines = message.replace(b"\r\n", b"\n")
        while match := _TRACE_FIELD.match(lines):
            lines = lines[match.end() :]
        return lines.replace(b"\n", b"\r\n")

    @property
    def _maildir(self) -> Path:
        return self.folder / "mail" / "all" / "new"


@contextlib.contextmanager
def postfix_server(
    listeners: Mapping[str, Mapping[str, str]] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[PostfixServer]:
    """Run Postfix. ``listeners``: a name and main.cf settings for each further port.

    ``settings`` are main.cf settings for the whole server, in place of those above.

    Skips where Postfix is not installed or we are not root; in CI that is an error.
    """
    postfix, postconf, saslpasswd = require("postfix", "postconf", "saslpasswd2")
    if os.geteuid() != 0:
        give_up("Postfix needs root")
    # Not pytest's tmp_path: Postfix's unprivileged processes have to get through every folder.
    with tempfile.TemporaryDirectory(prefix="postfix-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        ports = {each: free_port() for each in listeners or {}}
        server = PostfixServer(folder=folder, port=free_port(), ca=trustme.CA(), ports=ports)
        _write_folder(server, postconf, saslpasswd, listeners or {}, settings or {})
        process = subprocess.Popen(
            [postfix, "-c", folder / "etc", "start-fg"],
            stdin=subprocess.DEVNULL,
            stdout=(output := (folder / "output").open("wb")),
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(
                lambda: process.poll() is not None or speaks_smtp(server.port),
                f"the greeting of Postfix in {folder}",
            )
            assert process.poll() is None, (folder / "output").read_text() + server.log
            yield server
        finally:
            output.close()
            _stop(folder, process)


def _write_folder(
    server: PostfixServer,
    postconf: str,
    saslpasswd: str,
    listeners: Mapping[str, Mapping[str, str]],
    settings: Mapping[str, str],
) -> None:
    folder = server.folder
    for name in ("etc", "etc/sasl", "data", "queue", "mail", "tls"):
        (folder / name).mkdir()
    postfix, nobody = pwd.getpwnam("postfix"), pwd.getpwnam("nobody")
    os.chown(folder / "data", postfix.pw_uid, postfix.pw_gid)
    os.chown(folder / "mail", nobody.pw_uid, nobody.pw_gid)
    (folder / "log").touch()

    commands, daemons = (
        subprocess.check_output([postconf, "-dh", name], text=True).strip()
        for name in ("command_directory", "daemon_directory")
    )
    main = _MAIN.format(
        folder=folder,
        commands=commands,
        daemons=daemons,
        host_name=_HOST_NAME,
        uid=nobody.pw_uid,
        gid=nobody.pw_gid,
        refused=REFUSED,
    )
    # Of two entries with one name Postfix takes the later one, and warns of it.
    entries = re.findall(r"^\S.*(?:\n[ \t].*)*", main, re.MULTILINE)
    kept = [entry for entry in entries if entry.split("=")[0].strip() not in settings]
    added = [f"{name} = {value}" for name, value in settings.items()]
    (folder / "etc" / "main.cf").write_text("\n".join([*kept, *added, ""]))
    lines = [_listener(server.port, {})]
    lines += [
        _listener(server.ports[name], {"syslog_name": f"postfix/{name}", **settings})
        for name, settings in listeners.items()
    ]
    (folder / "etc" / "master.cf").write_text(_MASTER.format(listeners="\n".join(lines)))

    certificate = server.ca.issue_cert("127.0.0.1", "localhost", _HOST_NAME)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "tls" / "server.pem"))
    server.ca.cert_pem.write_to_path(str(server.ca_file))

    # Debian's Postfix looks below its configuration folder, whatever the setting says.
    (folder / "etc" / "sasl" / "smtpd.conf").write_text(_SASL.format(folder=folder))
    user, _, realm = server.username.partition("@")
    subprocess.run(
        [saslpasswd, "-c", "-p", "-f", folder / "sasldb2", "-u", realm, user],
        input=server.password.encode(),
        check=True,
    )
    shutil.chown(folder / "sasldb2", "postfix")


def _listener(port: int, settings: Mapping[str, str]) -> str:
    options = [f"  -o {{ {name} = {value} }}" for name, value in settings.items()]
    return "\n".join([f"127.0.0.1:{port} inet n - n - 100 smtpd", *options])


def _stop(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """End the master whose pid is in our own queue folder; it ends its own processes."""
    with contextlib.suppress(OSError, ValueError):
        master = int((folder / "queue" / "pid" / "master.pid").read_text())
        os.kill(master, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
