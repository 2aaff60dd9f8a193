"""``amail check``: what it prints on the way, what it says where it ends, and never a secret."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import ssl
import subprocess
import sys
import typing as t

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from amail import Mailer, Reply, ServerInfo
from amail.cli.commands import amail
from amail.testing import Bytes, FaultServer, Hang
from amail.transports.server_info import Certificate
from tests.musts import PASSWORD, assert_no_canary
from tests.strategies import EXAMPLES, nasty_text

if t.TYPE_CHECKING:
    from tests.servers.authority import Authority

USER = "user-canary"
USERS = {USER: PASSWORD}


class Said(t.NamedTuple):
    """``lines`` by what they are about, in their order; the last of several."""

    exit_code: int
    lines: dict[str, str]
    complaint: str


def check(*arguments: str, **environment: str) -> Said:
    """Run the command; nothing it says holds the user name or the password."""
    result = CliRunner().invoke(amail, ["check", *arguments], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert_no_canary(result.output, "the output")
    assert USER not in result.output
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if " " in line)
    return Said(result.exit_code, lines, result.stderr)


def url_of(server: FaultServer, **options: t.Any) -> str:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    scheme, _, place = server.url.partition("://")
    return f"{scheme}://{USER}:{PASSWORD}@{place}?{query}"


def normal(lines: dict[str, str], server: FaultServer) -> dict[str, str]:
    """Leave out what differs from run to run."""
    return {
        what: re.sub(r"in [0-9]+ ms", "in N ms", text.replace(str(server.port), "PORT"))
        for what, text in lines.items()
    }


def context_for(authority: Authority, **dates: t.Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("127.0.0.1", **dates).configure_cert(context)
    return context


def in_days(days: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=days)


def test_each_stage_is_told_in_its_order(authority: Authority) -> None:
    tls = context_for(authority, not_after=in_days(62.5))
    offered = ("PIPELINING", "SIZE 10240")
    with FaultServer.serve_in_thread(tls=tls, users=USERS, extensions=offered) as server:
        said = check(url_of(server, tls="starttls"), "--ca-file", str(authority.file))
        assert (said.exit_code, said.complaint) == (0, "")
        assert not server.messages
        assert [command.line.split()[0] for command in server.commands][-1] == "QUIT"
        lines = normal(said.lines, server)
    assert lines.pop("TLS").startswith("TLSv1.3, TLS_")
    certificate = lines.pop("certificate")
    assert certificate.startswith("for 127.0.0.1, signed by trustme")
    assert certificate.endswith(", in 62 days")
    assert list(said.lines) == [
        *("relay", "asked", "addresses", "connected", "greeting", "extensions", "AUTH", "SIZE"),
        *("TLS", "certificate", "credentials", "ok"),
    ]
    assert lines == {
        "relay": "127.0.0.1:PORT",
        "asked": "for    STARTTLS, credentials",
        "addresses": "127.0.0.1",
        "connected": "to 127.0.0.1 in N ms",
        "greeting": "220 fault.test ESMTP ready",
        "extensions": "PIPELINING, SIZE 10240, AUTH PLAIN LOGIN",
        "AUTH": "PLAIN, LOGIN",
        "SIZE": "messages of up to 10,240 octets",
        "credentials": "accepted by AUTH PLAIN",
        "ok": "ready for messages; none was sent",
    }


def test_without_an_argument_the_url_is_that_of_the_environment() -> None:
    with FaultServer.serve_in_thread(users=USERS) as server:
        said = check(MAIL_URL=url_of(server))
        assert (said.exit_code, said.lines["AUTH"]) == (0, "PLAIN, LOGIN (in the clear)")
    missing = check(MAIL_URL="")
    assert missing.exit_code == 1
    assert "MAIL_URL: is not set" in missing.complaint


def test_a_certificate_that_ends_soon_is_to_be_renewed(authority: Authority) -> None:
    tls = context_for(authority, not_after=in_days(13.5))
    with FaultServer.serve_in_thread(tls=tls, implicit=True) as server:
        said = check(server.url, "--ca-file", str(authority.file))
    assert said.exit_code == 0
    assert said.lines["certificate"].endswith("in 13 days: renew it (fewer than 14 days)")


def test_a_certificate_that_nobody_verified_is_not_described(authority: Authority) -> None:
    with FaultServer.serve_in_thread(tls=context_for(authority), implicit=True) as server:
        said = check(f"{server.url}?tls_verify=false")
    assert said.exit_code == 0
    assert said.lines["certificate"].startswith("not verified")


# What fails


def test_an_expired_certificate_ends_it_behind_what_was_found_before(authority: Authority) -> None:
    tls = context_for(authority, not_after=in_days(-1))
    with FaultServer.serve_in_thread(tls=tls, users=USERS) as server:
        said = check(url_of(server, tls="starttls"), "--ca-file", str(authority.file))
    assert said.exit_code == 1
    assert list(said.lines)[-1] == "SIZE"
    assert "STARTTLS (in the clear)" in said.lines["extensions"]
    assert "expired: renew it" in said.complaint
    assert said.complaint.count("\n") == 1


FAILURES: dict[str, tuple[dict[str, t.Any], dict[str, t.Any], str, str]] = {
    "no_password_like_that": ({"users": {USER: "x"}}, {}, "SIZE", "check username and password"),
    "no_auth": ({}, {}, "SIZE", "set tls"),
    "no_starttls": ({"users": USERS}, {"tls": "starttls"}, "SIZE", 'tls="none"'),
    "busy": ({"greeting": "421 4.7.0 too many connections"}, {}, "connected", "max_connections"),
    "closed": ({"greeting": "554 5.3.2 no"}, {}, "connected", "554 5.3.2 no"),
    "another_protocol": ({"greeting": Bytes(b"SSH-2.0\r\n")}, {}, "connected", "Check host and"),
    "silent": ({"greeting": Hang()}, {"command_timeout": 0.2}, "connected", "speaks first"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_said_with_what_to_change_and_the_exit_code_is_1(failure: str) -> None:
    does, options, last, text = FAILURES[failure]
    with FaultServer.serve_in_thread(**does) as server:
        said = check(url_of(server, **options))
    assert said.exit_code == 1
    assert list(said.lines)[-1] == last
    assert said.complaint.startswith("failed ")
    assert text in said.complaint


def test_a_port_that_is_closed_ends_it_behind_the_addresses() -> None:
    with FaultServer.serve_in_thread() as server:
        pass
    said = check(url_of(server))
    assert (said.exit_code, list(said.lines)[-1]) == (1, "addresses")
    assert "check host and port" in said.complaint


def test_it_takes_no_longer_than_it_may() -> None:
    with FaultServer.serve_in_thread(greeting=Hang()) as server:
        said = check(server.url, "--timeout", "0.3")
    assert said.exit_code == 1
    assert "no answer at the stage 'greeting'" in said.complaint


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (f"smtp://{USER}:{PASSWORD}/@mail.example.com", "percent-encode"),
        (f"smtp://{USER}:{PASSWORD}@mail.example.com\r", "carriage return"),
        (f"smtp://{USER}:{PASSWORD}@mail.example.com?tsl=none", "did you mean tls?"),
        (f"pigeon://{USER}:{PASSWORD}@mail.example.com", "pigeon"),
    ],
)
def test_a_url_that_cannot_work_is_not_quoted(url: str, text: str) -> None:
    said = check(url)
    assert (said.exit_code, said.lines) == (1, {})
    assert text in said.complaint


def test_where_there_is_no_server_there_is_nothing_to_find_out() -> None:
    said = check("memory://")
    assert (said.exit_code, said.lines["relay"]) == (0, "MemoryTransport")
    assert "SMTP options" in check("memory://", "--ca-file", "x.pem").complaint


def test_as_a_program_it_ends_without_a_traceback() -> None:
    with FaultServer.serve_in_thread(users={USER: "another"}) as server:
        program = [sys.executable, "-X", "dev", "-c", "from amail.cli import main; main()"]
        done = subprocess.run(
            [*program, "check", url_of(server)],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("failed ")
    assert len(done.stderr.splitlines()) == 1
    assert "connected    to 127.0.0.1" in done.stdout
    assert_no_canary(done.stdout + done.stderr, "the output")


# In code


async def test_verify_reads_as_lines_of_plain_language() -> None:
    async with FaultServer(extensions=("SIZE 5",)) as server, Mailer(server.url) as mailer:
        info = await mailer.verify()
        text = re.sub(r"in [0-9]+ ms", "in N ms", str(info))
    assert text.splitlines() == [
        f"relay        {info.relay}",
        "addresses    127.0.0.1",
        "connected    to 127.0.0.1 in N ms",
        "greeting     220 fault.test ESMTP ready",
        "extensions   SIZE 5 (in the clear)",
        "AUTH         not offered (in the clear)",
        "SIZE         messages of up to 5 octets",
    ]


PEER = {
    "subject": ((("organizationName", "Example"),), (("commonName", "mail.example.com"),)),
    "issuer": ((("organizationName", "Trust"),), (("commonName", "R3"),)),
    "notAfter": "Jan  5 09:34:43 2030 GMT",
    "subjectAltName": (("DNS", "mail.example.com"), ("IP Address", "192.0.2.1")),
}


def test_a_certificate_says_for_whom_by_whom_and_until_when() -> None:
    certificate = Certificate.from_peer(PEER)
    ends = dt.datetime(2030, 1, 5, 9, 34, 43, tzinfo=dt.UTC)
    assert certificate == Certificate(
        "mail.example.com", "Trust R3", ("mail.example.com", "192.0.2.1"), ends
    )
    assert certificate.as_of(ends - dt.timedelta(days=20)) == (
        "for mail.example.com, signed by Trust R3, expires 2030-01-05, in 20 days"
    )
    assert ", in 1 day: renew it" in certificate.as_of(ends - dt.timedelta(days=1, hours=1))
    assert "renew" not in certificate.as_of(ends - dt.timedelta(days=14))


def test_a_certificate_without_a_common_name_is_for_the_first_of_its_names() -> None:
    certificate = Certificate.from_peer({**PEER, "subject": ()})
    assert certificate is not None
    assert certificate.subject == "mail.example.com"
    assert Certificate.from_peer({}) is None


@given(nasty_text, st.lists(nasty_text))
@EXAMPLES
def test_whatever_a_server_says_each_line_is_one_line(greeting: str, names: list[str]) -> None:
    info = ServerInfo(
        "mail.example.com:25",
        extensions=dict.fromkeys(names, greeting),
        auth=tuple(names),
        greeting=Reply(220, None, greeting),
        certificate=Certificate(greeting, greeting, (), in_days(30)),
        tls="TLSv1.3",
    )
    lines = [text for _, text in info.lines()]
    assert all(line.isprintable() for line in lines)
    assert len(str(info).split("\n")) == len(lines)


def test_a_server_info_is_the_same_however_long_it_took() -> None:
    info = ServerInfo("mail.example.com:25", seconds=1.0)
    assert dataclasses.replace(info, seconds=2.0) == info
