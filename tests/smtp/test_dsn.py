"""Delivery status notifications (RFC 3461): asked for as its grammar has it, where it is offered.

Row B116 of the inputs.
"""

from __future__ import annotations

import re
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import Envelope, Mailer, MessageError, RecipientsRejected
from amail.mime import Content, compose
from amail.smtp import commands
from amail.smtp.extensions import Extensions
from amail.testing import FaultServer
from tests.messages import tokened
from tests.mime.reading import message
from tests.smtp.outcomes import accepted, send
from tests.strategies import EXAMPLES, nasty_text

if t.TYPE_CHECKING:
    from tests.musts import Musts

ADA, BOB = "ada@example.com", "bob@example.org"
CONTENT = Content([b"x"], message_id="<1@example.com>")
WITH_DSN = ("PIPELINING", "SIZE 52428800", "DSN")


def envelope_of(field: str, option: str) -> Envelope:
    """What composing makes of the option."""
    return compose(message(**{field: [option]}))[0]


@pytest.mark.parametrize(
    "notify",
    [
        *("NEVER,SUCCESS", "SUCCESS,NEVER", "FAILURE,DELAY,NEVER", "NEVER,NEVER", "ALWAYS"),
        *("SUCCESS,", ",SUCCESS", "SUCCESS;DELAY", "SUCCESS,,DELAY", "NEVERSUCCESS"),
    ],
)
def test_b116_never_stands_alone_and_other_events_are_a_list(notify: str) -> None:
    with pytest.raises(MessageError, match="rcpt_options: NOTIFY is NEVER alone, or a list"):
        envelope_of("rcpt_options", f"NOTIFY={notify}")
    with pytest.raises(MessageError, match="rcpt_options: NOTIFY"):
        Envelope(ADA, (BOB,), rcpt_options=(f"notify={notify}",))


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("mail_options", "RET=HEADERS"),
        ("mail_options", "RET"),
        ("mail_options", "RET=FULL,HDRS"),
        ("mail_options", "ENVID=a+2b"),
        ("mail_options", "ENVID=a+"),
        ("mail_options", "ENVID=" + "a" * 101),
        ("rcpt_options", "ORCPT=bob@example.org"),
        ("rcpt_options", "ORCPT=rfc822;"),
        ("rcpt_options", "ORCPT=rfc822;a+b@example.org"),
        ("rcpt_options", "RET=HDRS"),
        ("rcpt_options", "ENVID=a"),
        ("mail_options", "NOTIFY=NEVER"),
        ("mail_options", "ORCPT=rfc822;bob@example.org"),
    ],
)
def test_b116_the_other_parameters_have_their_values_and_their_place(
    field: str, option: str
) -> None:
    with pytest.raises(MessageError, match=f"{field}: {option.partition('=')[0]} .*RFC 3461"):
        envelope_of(field, option)


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("mail_options", "RET=FULL"),
        ("mail_options", "ret=hdrs"),
        ("mail_options", "ENVID=QQ+2B314159"),
        ("rcpt_options", "NOTIFY=NEVER"),
        ("rcpt_options", "NOTIFY=SUCCESS,FAILURE,DELAY"),
        ("rcpt_options", "notify=failure"),
        ("rcpt_options", "ORCPT=rfc822;bob+2Bx@example.org"),
    ],
)
def test_b116_what_rfc_3461_allows_is_written_as_it_is(field: str, option: str) -> None:
    envelope = envelope_of(field, option)
    offered = Extensions(dsn=True)
    command = {
        "mail_options": lambda: commands.mail(envelope, CONTENT, offered),
        "rcpt_options": lambda: commands.rcpts(envelope, offered)[0],
    }[field]()
    assert command.endswith(f"> {option}\r\n".encode())


async def test_b116_where_dsn_is_offered_the_server_gets_the_parameters(
    musts: Musts, caplog: pytest.LogCaptureFixture
) -> None:
    async with FaultServer(extensions=WITH_DSN) as server, Mailer(server.url) as mailer:
        musts.watch(server)
        fields: dict[str, t.Any] = {
            "mail_options": ["RET=HDRS", "ENVID=x"],
            "rcpt_options": ["NOTIFY=FAILURE,DELAY"],
        }
        accepted(await send(musts, mailer, 2, **fields))
        [stored] = server.messages
        assert stored.mail_options[1:] == ("RET=HDRS", "ENVID=x")
        assert stored.rcpt_options == ("NOTIFY=FAILURE,DELAY",) * 2
        assert server.violations == []
    assert "DSN" not in caplog.text


async def test_b116_where_it_is_not_the_message_goes_without_them_and_one_warning_says_so(
    musts: Musts, caplog: pytest.LogCaptureFixture
) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        musts.watch(server)
        fields: dict[str, t.Any] = {"mail_options": ["RET=HDRS"], "rcpt_options": ["NOTIFY=NEVER"]}
        accepted(await send(musts, mailer))
        assert "DSN" not in caplog.text
        for _ in range(3):
            accepted(await send(musts, mailer, **fields))
        assert server.violations == []
        assert [stored.rcpt_options for stored in server.messages] == [("",)] * 4
        assert "RET" not in str([stored.mail_options for stored in server.messages])
        relay = f"127.0.0.1:{server.port}"
        warnings = [record.getMessage() for record in caplog.records if record.levelname != "INFO"]
        assert [each for each in warnings if "DSN" in each] == [
            f"{relay} does not offer DSN (RFC 3461); sent without RET, NOTIFY"
        ]


async def test_other_parameters_are_the_authors_business() -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        with pytest.raises(RecipientsRejected, match=r"555 5\.5\.4"):
            await mailer.send(tokened("x", rcpt_options=["X-ODD=1", "NOTIFY=NEVER"]))
        assert server.violations == [
            "connection 1: RCPT with the parameter X-ODD, which is not offered"
        ]


OTHER = re.compile("X-A|B=1")
OPTIONS = st.lists(
    st.one_of(
        st.sampled_from(["RET=FULL", "NOTIFY=NEVER", "notify=Delay", "ENVID=a+2B", "X-A", "B=1"]),
        st.builds("{}={}".format, st.sampled_from(["RET", "NOTIFY", "ORCPT", "ENVID"]), nasty_text),
    ),
    max_size=3,
)


@EXAMPLES
@given(OPTIONS, OPTIONS, st.booleans())
def test_any_options_are_refused_or_written_in_their_place_where_they_are_offered(
    mail_options: list[str], rcpt_options: list[str], offered: bool
) -> None:
    try:
        envelope = Envelope(ADA, (BOB,), tuple(mail_options), tuple(rcpt_options))
    except MessageError:
        return
    extensions = Extensions(dsn=offered)
    written = (commands.mail(envelope, CONTENT, extensions), *commands.rcpts(envelope, extensions))
    for line, options in zip(written, (mail_options, rcpt_options), strict=True):
        kept = [option for option in options if offered or OTHER.match(option)]
        assert line.decode().partition(">")[2] == " ".join(["", *kept]) + "\r\n"
    missing = [option for option in mail_options + rcpt_options if not OTHER.match(option)]
    assert len(commands.left_out(envelope, extensions)) == (0 if offered else len(missing))
