"""A Postfix with every check of form switched on takes the corpus and keeps it as it was sent."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
import typing as t
from collections import Counter

import pytest

from amail import Envelope, Mailer
from tests.corpus import ADA, SIZE, corpus
from tests.servers.postfix import postfix_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.musts import Musts
    from tests.servers.postfix import PostfixServer

STRICT = {
    "strict_rfc821_envelopes": "yes",
    "strict_7bit_headers": "yes",
    "strict_8bitmime": "yes",
    "strict_mime_encoding_domain": "yes",
    "disable_mime_input_processing": "no",
    "smtpd_forbid_bare_newline": "yes",
    "smtpd_forbid_unauth_pipelining": "yes",
    "smtpd_helo_required": "yes",
    "smtpd_helo_restrictions": "reject_invalid_helo_hostname",
    "smtpd_sender_restrictions": "reject_non_fqdn_sender",
    "smtpd_recipient_restrictions": "reject_non_fqdn_recipient",
    "smtpd_data_restrictions": "reject_unauth_pipelining, reject_multi_recipient_bounce",
    "smtpd_end_of_data_restrictions": "reject_unauth_pipelining",
    "smtpd_hard_error_limit": "1",
}


@pytest.fixture(scope="module")
def strict_postfix() -> Iterator[PostfixServer]:
    with postfix_server(settings=STRICT) as server:
        yield server


def login(server: PostfixServer) -> smtplib.SMTP:
    client = smtplib.SMTP(server.host, server.port, timeout=10)
    client.starttls(context=ssl.create_default_context(cafile=server.ca_file))
    client.login(server.username, server.password)
    return client


@pytest.mark.servers
@pytest.mark.parametrize(
    ("head", "body", "says"),
    [
        (b"Subject: \xc3\xa9", b"x", "8-bit"),
        (b"Subject: s", b"\xc3\xa9", "8-bit"),
        (
            b"Content-Transfer-Encoding: base64\r\nContent-Type: multipart/mixed; boundary=b",
            b"--b\r\n\r\nx\r\n--b--",
            "encoding",
        ),
    ],
    ids=["8 bits in a header", "8 bits in a body", "an encoded multipart"],
)
def test_it_rejects_what_is_not_in_form(
    strict_postfix: PostfixServer, head: bytes, body: bytes, says: str
) -> None:
    strict_postfix.clear()
    with login(strict_postfix) as client, pytest.raises(smtplib.SMTPDataError, match=says):
        client.sendmail(ADA, ["bob@example.org"], head + b"\r\n\r\n" + body + b"\r\n")
    assert strict_postfix.maildir_messages() == []


@pytest.mark.servers
async def test_it_takes_all_200_messages_and_stores_them_byte_for_byte(
    musts: Musts, strict_postfix: PostfixServer
) -> None:
    strict_postfix.clear()
    messages = [each.message for each in corpus()]
    sent = Counter(message.as_bytes() for message in messages)
    envelope = Envelope(ADA, ("bob@example.org",))
    musts.loop_watch.limit = float("inf")  # gather itself composes them all in one turn
    async with Mailer(
        f"smtp://{strict_postfix.host}:{strict_postfix.port}",
        tls="starttls",
        ca_file=strict_postfix.ca_file,
        username=strict_postfix.username,
        password=strict_postfix.password,
        max_messages=0,
    ) as mailer:
        sending = [mailer.send(message, envelope=envelope) for message in messages]
        receipts = await asyncio.gather(*sending)
    assert [receipt.reply.code for receipt in receipts] == [250] * SIZE
    stored = await asyncio.to_thread(strict_postfix.wait_for_messages, SIZE)
    assert Counter(strict_postfix.strip_trace(copy) for copy in stored) == sent
    assert "warning" not in strict_postfix.log
