"""A message as a job: what goes into JSON comes out octet for octet, and nothing else is taken."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import time
import typing as t

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from amail import (
    ConnectionLost,
    Content,
    DeliveryUnknown,
    Envelope,
    Mailer,
    MemoryTransport,
    Message,
    MessageError,
    MessageRejected,
    MessageTooLarge,
    NotSent,
    Receipt,
    RecipientsRejected,
    Reply,
    UsageError,
)
from amail.mime import compose
from amail.mime.raw import compose_raw
from amail.queues import handle, key_of, pack, rest_of, unpack
from tests.messages import ADA
from tests.musts import PASSWORD
from tests.strategies import EXAMPLES, mailbox, nasty_text, utf8_mailbox
from tests.transports.ends import End, letter

if t.TYPE_CHECKING:
    from amail.queues import Job

BUSY = Reply(450, "4.2.0", "greylisted")
GONE = Reply(550, "5.1.1", "no such user")


def through_json(job: Job) -> Job:
    """As it comes out of a broker."""
    read: Job = json.loads(json.dumps(job))
    return read


def a_job(**fields: t.Any) -> Job:
    return through_json(pack(Message("Hello", ["bob@example.org"], "Hi", sender=ADA, **fields)))


def comes_back(envelope: Envelope, content: Content) -> None:
    job = pack(envelope=envelope, content=content)
    read_envelope, read = unpack(through_json(job))
    assert read_envelope == envelope
    assert bytes(read) == bytes(content)
    assert len(read) == len(content)
    for name in ("message_id", "needs_utf8", "needs_8bit"):
        assert getattr(read, name) == getattr(content, name)


# What goes in comes out


def test_a_job_is_json_with_an_envelope_and_7_bit_text() -> None:
    message = Message("Hello", ["bob@example.org"], "Grüße", sender=ADA, bcc=["eve@example.net"])
    job = pack(message, mailer="bulk", expires=2_000_000_000)
    _, content = compose(message)
    assert job == {
        "v": 1,
        "id": message.message_id,
        "env": {"from": ADA, "to": ["bob@example.org", "eve@example.net"]},
        "mime": bytes(content).decode("ascii"),
        "mailer": "bulk",
        "exp": 2_000_000_000,
    }


@EXAMPLES
@given(
    subject=nasty_text,
    body=nasty_text,
    html=st.none() | nasty_text,
    sender=st.one_of(mailbox, utf8_mailbox),
    to=st.lists(st.one_of(mailbox, utf8_mailbox), min_size=1, max_size=3),
    attached=st.none() | st.binary(max_size=200),
    all_recipients=st.booleans(),
)
def test_whatever_can_be_composed_comes_out_of_a_job_octet_for_octet(
    *,
    subject: str,
    body: str,
    html: str | None,
    sender: str,
    to: list[str],
    attached: bytes | None,
    all_recipients: bool,
) -> None:
    message = Message(subject, to, body, html, sender=sender, mail_options=["RET=HDRS"])
    if attached is not None:
        message.attach("a.bin", "application/octet-stream", attached)
    try:
        composed = compose(message, all_recipients=all_recipients)
    except MessageError as error:
        event(type(error).__name__)
        return
    comes_back(*composed)


@EXAMPLES
@given(body=st.binary(max_size=300))
def test_octets_beyond_ascii_come_out_octet_for_octet_whatever_they_are(body: bytes) -> None:
    octets = (
        b"From: a@x.org\r\nDate: Tue, 24 Nov 2026 09:05:00 +0000\r\nMessage-ID: <a@x.org>\r\n\r\n"
        + re.sub(rb"[\0\r\n]", b" ", body)
    )
    envelope, content = compose_raw(octets, sender="", recipients="b@x.org")
    event(pack(envelope=envelope, content=content).get("encoding", "7-bit"))
    comes_back(envelope, content)


def test_files_are_read_when_the_job_is_made() -> None:
    message = Message("Hello", ["bob@example.org"], "Hi", sender=ADA)
    file = io.BytesIO(bytes(range(256)) * 1000)
    message.attach("a.bin", "application/octet-stream", file)
    job = pack(message)
    file.close()
    assert base64.b64encode(bytes(range(256)))[:60].decode() in job["mime"]


def test_a_job_names_its_mailer_and_holds_neither_credentials_nor_a_host() -> None:
    mailer = Mailer(f"smtp://user:{PASSWORD}@smtp.example.com:587", default_sender=ADA)
    envelope, content = mailer.compose(Message("Hello", ["bob@example.org"], "Hi"))
    text = json.dumps(pack(envelope=envelope, content=content, mailer="default"))
    assert PASSWORD not in text
    assert "smtp.example.com" not in text


def test_content_beyond_the_limit_is_refused_with_what_to_do_instead() -> None:
    message = Message("Hello", ["bob@example.org"], "x" * 2000, sender=ADA)
    size = len(compose(message)[1])
    pack(message, limit=size)
    with pytest.raises(
        MessageTooLarge, match=rf"has {size} octets.*takes {size - 1}.*link.*folder"
    ):
        pack(message, limit=size - 1)


def test_pack_wants_a_message_or_an_envelope_with_content() -> None:
    envelope, content = letter()
    message = Message("Hello", ["bob@example.org"], sender=ADA)
    for given_ in (
        {},
        {"envelope": envelope},
        {"content": content},
        {"message": message, "content": content},
    ):
        with pytest.raises(UsageError, match="a message, or an envelope and content"):
            pack(**given_)


def test_a_message_goes_to_the_envelope_it_is_packed_with() -> None:
    message = Message("Hello", ["bob@example.org"], "Hi")
    job = pack(message, envelope=Envelope("", ("eve@example.net",)), default_sender=ADA)
    assert job["env"] == {"from": "", "to": ["eve@example.net"]}
    assert f"From: {ADA}" in job["mime"]


# Nothing else is taken


def broken(path: str, value: object) -> Job:
    job = copy.deepcopy(a_job())
    inner = job
    *parents, name = path.split(".")
    for parent in parents:
        inner = inner[parent]
    if value is ...:
        del inner[name]
    else:
        inner[name] = value
    return job


MIME = a_job()["mime"]
NO_ENVELOPES: list[t.Any] = [None, [], "a@x.org"]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        *((name, ..., name) for name in ("v", "id", "env", "mime", "mailer")),
        *(("v", value, "v: is not 1") for value in (0, 2, True, "1", None, 1.0)),
        *(("id", value, "id: ") for value in (None, "", "<other@x.org>", 5)),
        *(("env", value, "env: ") for value in NO_ENVELOPES),
        *((f"env.{name}", ..., name) for name in ("from", "to")),
        *(("env.from", value, "env.from: ") for value in (None, 5, ["a@x.org"])),
        ("env.from", "a@x.org> SIZE=5", "env: envelope"),
        *(("env.to", value, "env.to: ") for value in (None, "a@x.org", [5], {"a@x.org": 1})),
        *(("env.to", value, "env: envelope") for value in ([], [""], ["a@x\r\n"], ["a@x"] * 2)),
        *(("env.mail", value, "env.mail: ") for value in ("RET=FULL", [5])),
        *(("env.mail", value, "env: ") for value in (["SIZE=5"], ["a b"], ["NOTIFY=NEVER"])),
        ("env.rcpt", ["RET=FULL"], "env: "),
        *(("env.all", value, "env.all: ") for value in (False, 1, None, "yes")),
        ("env.bcc", [], "env: has a key"),
        ("host", "smtp.example.com", "job: has a key"),
        *(("mailer", value, "mailer: ") for value in (None, 5, "a\nb", "x" * 101)),
        *(("exp", value, "exp: ") for value in ("soon", None, True, -1, float("nan"))),
        *(("mime", value, "mime: ") for value in (None, 5, "", "Hi", MIME + "ü\r\n", MIME + "\0")),
        *(("mime", value, "mime: ") for value in (MIME[:-2], MIME[:-1], MIME + "\n", MIME + "\ra")),
        ("mime", MIME.replace("Message-ID", "X-Message-ID"), "mime: Message-ID"),
        ("mime", MIME.replace("Date", "X-Date"), "mime: Date"),
        ("mime", MIME.replace("From", "X-From"), "mime: From"),
        ("mime", f"From: b@x.org\r\n{MIME}", "mime: From"),
        ("mime", f"Bcc: eve@example.net\r\n{MIME}", "mime: Bcc"),
        ("mime", MIME + "x" * 999 + "\r\n", "mime: content: line"),
        *(("encoding", value, "encoding: ") for value in ("ascii", "latin-1", None, 5, ["utf-8"])),
        ("encoding", "base64", "mime: is no base64"),
        *(("needs", value, "needs: ") for value in ("8BITMIME", None, ["DSN"], ["SMTPUTF8"] * 2)),
    ],
)  # fmt: skip
async def test_a_job_that_is_wrong_anywhere_is_refused_and_the_field_named(
    path: str, value: object, named: str
) -> None:
    job = broken(path, value)
    with pytest.raises(MessageError, match=named) as caught:
        unpack(job)
    assert "Hi" not in str(caught.value)
    end = End("end")
    with pytest.raises(MessageError):
        await handle(job, Mailer(end))
    assert end.tried == []


@pytest.mark.parametrize("job", [None, [], "job", 5, b"{}"])
def test_what_is_no_object_is_no_job(job: object) -> None:
    with pytest.raises(MessageError, match="job: must be an object"):
        unpack(job)


def test_what_takes_an_extension_is_refused_without_naming_it() -> None:
    message = Message("Grüße", ["bob@example.org"], "Hi", sender="jörg@münchen.de")
    job = pack(message)
    assert job["needs"] == ["8BITMIME", "SMTPUTF8"]
    with pytest.raises(MessageError, match="needs: 8BITMIME is missing"):
        unpack({**job, "needs": ["SMTPUTF8"]})
    with pytest.raises(MessageError, match="needs: SMTPUTF8 is missing"):
        unpack({**job, "needs": ["8BITMIME"]})
    only_there = a_job()
    only_there["env"]["to"] = ["jörg@münchen.de"]
    with pytest.raises(MessageError, match="needs: SMTPUTF8 is missing"):
        unpack(only_there)


@EXAMPLES
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), nasty_text),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["v", "id", "env", "mime", "mailer", "exp", "from", "to", "all"]),
                inner,
                max_size=6,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_at_all_is_a_job_or_a_message_error(value: object) -> None:
    with pytest.raises(MessageError):
        unpack(value)


@EXAMPLES
@given(
    st.sampled_from(["v", "id", "env", "mime", "mailer", "exp", "encoding", "needs"]),
    st.one_of(st.none(), st.booleans(), st.integers(), nasty_text, st.lists(nasty_text)),
)
def test_a_job_with_any_value_in_one_field_is_a_job_or_a_message_error(
    name: str, value: object
) -> None:
    job = {**a_job(), name: value}
    try:
        envelope, content = unpack(job)
    except MessageError:
        return
    assert envelope.forward_paths == ("bob@example.org",)
    assert bytes(content) == job["mime"].encode()


# What is done with it


async def test_a_job_is_sent_as_it_was_packed() -> None:
    message = Message("Hello", ["bob@example.org"], "Hi", sender=ADA)
    memory = MemoryTransport()
    handled = await handle(through_json(pack(message)), Mailer(memory))
    assert handled.outcome == "sent"
    assert isinstance(handled.receipt, Receipt)
    assert handled.rest is None
    [delivered] = memory.messages
    assert delivered.envelope.forward_paths == ("bob@example.org",)
    assert bytes(delivered.content) == bytes(compose(message)[1])
    assert delivered.content.message_id == handled.message_id == message.message_id


async def test_every_try_of_a_job_sends_the_same_octets() -> None:
    end = End("end", ConnectionLost("lost", retryable=True), lambda receipt: receipt)
    job = a_job()
    with pytest.raises(ConnectionLost):
        await handle(job, Mailer(end))
    await handle(job, Mailer(end))
    first, second = [bytes(content) for _, content, _ in end.tried]
    assert first == second == job["mime"].encode()


async def test_a_job_past_its_expiry_is_not_sent() -> None:
    end = End("end")
    job = {**a_job(), "exp": time.time() - 1}
    handled = await handle(job, Mailer(end))
    assert (handled.outcome, handled.receipt, end.tried) == ("expired", None, [])
    assert (await handle({**job, "exp": time.time() + 60}, Mailer(end))).outcome == "sent"


async def test_a_try_has_a_deadline() -> None:
    end = End("end")
    before = time.monotonic()
    await handle(a_job(), Mailer(end), time_limit=50)
    [(_, _, deadline)] = end.tried
    assert deadline is not None
    assert before + 50 <= deadline <= time.monotonic() + 50


async def test_nothing_is_sent_of_a_job_whose_last_octet_is_held_back() -> None:
    def refuse() -> None:
        raise NotSent("not now", retryable=True)

    memory = MemoryTransport()
    await handle(a_job(), Mailer(memory), before_last_octet=refuse)
    [delivered] = memory.messages
    chunks = delivered.content.chunks()
    assert next(chunks)
    with pytest.raises(NotSent, match="not now"):
        next(chunks)


# What is left of it


def receipt_for(job: Job, refused: dict[str, Reply]) -> Receipt:
    envelope, _ = unpack(job)
    accepted = tuple(path for path in envelope.forward_paths if path not in refused)
    return Receipt(job["id"], envelope, Reply(250, None, "ok"), accepted, refused)


def three(**env: t.Any) -> Job:
    job = a_job()
    return {**job, "env": {"from": ADA, "to": ["a@x.org", "b@x.org", "c@x.org"], **env}}


def left_of(job: Job, ended: t.Any) -> list[str] | None:
    rest = rest_of(job, ended)
    if rest is None:
        return None
    unpack(rest)
    assert {**rest, "env": None} == {**job, "env": None}
    to: list[str] = rest["env"]["to"]
    return to


def test_who_was_refused_for_the_time_being_is_left() -> None:
    job = three()
    refused = {"b@x.org": BUSY, "c@x.org": GONE}
    assert left_of(job, receipt_for(job, {})) is None
    assert left_of(job, receipt_for(job, {"c@x.org": GONE})) is None
    assert left_of(job, receipt_for(job, refused)) == ["b@x.org"]
    none_taken = RecipientsRejected("no", refused={**refused, "a@x.org": BUSY}, retryable=True)
    assert left_of(job, none_taken) == ["a@x.org", "b@x.org"]
    assert left_of(job, RecipientsRejected("no", refused={"a@x.org": GONE})) is None


def test_with_all_recipients_all_are_left_or_nobody() -> None:
    job = three(all=True)
    rejected = RecipientsRejected("no", refused={"b@x.org": BUSY}, retryable=True)
    assert left_of(job, rejected) == ["a@x.org", "b@x.org", "c@x.org"]
    assert left_of(job, RecipientsRejected("no", refused={"b@x.org": GONE})) is None


def test_all_of_it_is_left_where_nothing_was_taken_and_may_be_later() -> None:
    job = three()
    assert left_of(job, ConnectionLost("lost", retryable=True)) == job["env"]["to"]
    assert left_of(job, MessageRejected("no", retryable=True)) == job["env"]["to"]
    assert left_of(job, MessageRejected("no")) is None
    assert left_of(job, NotSent("no")) is None
    assert left_of(job, MessageError("no")) is None


def test_of_what_is_unknown_nothing_is_left_but_who_was_refused_before() -> None:
    job = three()
    unknown = DeliveryUnknown("?", retryable=True, recipients=("a@x.org", "b@x.org"))
    assert left_of(job, unknown) is None
    unknown.refused = {"c@x.org": BUSY}
    assert left_of(job, unknown) == ["c@x.org"]


async def test_what_is_left_comes_with_what_was_handled() -> None:
    job = three()
    end = End("end", lambda receipt: receipt_for(job, {"b@x.org": BUSY}))
    handled = await handle(job, Mailer(end))
    assert handled.outcome == "sent"
    assert handled.rest is not None
    assert handled.rest["env"]["to"] == ["b@x.org"]


def test_a_job_for_others_has_another_key() -> None:
    job = three()
    assert key_of(job) == key_of(through_json(job))
    assert re.fullmatch("[0-9a-f]{64}", key_of(job))
    keys = {key_of(each) for each in (job, three(to=["a@x.org"]), three(**{"from": ""}), a_job())}
    assert len(keys) == 4
