"""Message and Attachment: Flask-Mail's vocabulary, identity and snapshots."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
import time
import typing as t

import pytest

from amail.address import Address
from amail.errors import (
    ConfigError,
    InvalidAddress,
    InvalidAttachment,
    InvalidHeader,
    MessageError,
)
from amail.limits import Limits
from amail.message import Attachment, Message
from amail.mime import compose
from tests.mime.reading import judged, message

MESSAGE = (
    "subject='' recipients=None body=None html=None alts=None sender=None cc=None bcc=None "
    "attachments=None reply_to=None date=None charset=None extra_headers=None mail_options=None "
    "rcpt_options=None * envelope_from=None message_id=None in_reply_to=None references=None "
    "priority=None"
)
ATTACHMENT = "filename=None content_type=None data=None disposition=None headers=None"


def signature_of(function: t.Callable[..., t.Any]) -> str:
    """The parameters, in order, as name=default, with * in front of the first keyword-only one."""
    words: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        words.append(parameter.name + default)
    return " ".join(words)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Message, MESSAGE),
        (Attachment, ATTACHMENT),
        (Message.attach, ATTACHMENT),
        (Message.attach_file, "path"),
        (Message.embed, "content filename=None content_type=None"),
        (Message.add_recipient, "recipient"),
        (Message.add_invite, "ics method='REQUEST'"),
        (Message.add_unsubscribe, "url=None mailto=None"),
        (Message.mark_auto_submitted, ""),
        (Message.make_id, "key * domain"),
        (Message.validate, ""),
        (Message.renew, ""),
        (Message.as_bytes, ""),
        (Message.as_string, ""),
        (Message.has_bad_headers, ""),
        (Address, "address * name=None"),
    ],
)
def test_names_order_and_defaults_are_the_promised_ones(
    function: t.Callable[..., t.Any], expected: str
) -> None:
    assert signature_of(function) == expected


@pytest.mark.parametrize("name", ["Message", "Attachment"])
def test_the_constructors_begin_as_flask_mails_do(name: str) -> None:
    flask_mail = pytest.importorskip("flask_mail", reason="flask-mail is in the extra ci")
    theirs = signature_of(getattr(flask_mail, name))
    assert signature_of({"Message": Message, "Attachment": Attachment}[name]).startswith(theirs)


def test_attributes_are_flask_mails() -> None:
    attachment = Attachment("a.txt", "text/plain", b"x")
    written = Message(
        "s", ["r@x.org"], "b", "h", {"calendar": "c"}, "s@x.org", ["c@x.org"], ["b@x.org"],
        [attachment], "t@x.org", 7.0, "utf-8", {"X-A": "1"}, ["RET=HDRS"], ["NOTIFY=NEVER"],
    )  # fmt: skip
    assert (written.subject, written.recipients, written.body) == ("s", ["r@x.org"], "b")
    assert (written.html, written.alts) == ("h", {"calendar": "c", "html": "h"})
    assert (written.sender, written.cc, written.bcc) == ("s@x.org", ["c@x.org"], ["b@x.org"])
    assert (written.attachments, written.reply_to) == ([attachment], "t@x.org")
    assert (written.date, written.charset, written.extra_headers) == (7.0, "utf-8", {"X-A": "1"})
    assert (written.mail_options, written.rcpt_options) == (["RET=HDRS"], ["NOTIFY=NEVER"])
    assert written.send_to == {"r@x.org", "c@x.org", "b@x.org"}
    assert (attachment.filename, attachment.content_type, attachment.data) == (
        "a.txt",
        "text/plain",
        b"x",
    )
    assert (attachment.disposition, attachment.headers) == ("attachment", {})


def test_html_is_an_alternative() -> None:
    written = Message(alts={"html": "one"})
    assert written.html == "one"
    written.html = "two"
    assert written.alts == {"html": "two"}
    written.html = None
    written.html = None
    assert written.alts == {}
    assert Message(alts=[("html", "x")]).html == "x"


def test_one_person_or_several_become_a_list() -> None:
    written = Message(recipients="a@x.org", cc=Address("b@x.org"), bcc={"c@x.org"})
    written.add_recipient(("D", "d@x.org"))
    assert written.recipients == ["a@x.org", ("D", "d@x.org")]
    assert written.cc == [Address("b@x.org")]
    assert written.bcc == ["c@x.org"]
    written.recipients = None
    assert not written.recipients
    with pytest.raises(InvalidAddress, match="cc"):
        written.cc = t.cast("t.Any", 7)


def test_the_lists_given_stay_their_owners() -> None:
    people, files = ["a@x.org"], [Attachment("a", data=b"x")]
    written = message(recipients=people, attachments=files)
    written.add_recipient("b@x.org")
    written.attach("b", data=b"y")
    assert (people, len(files)) == (["a@x.org"], 1)


def test_b97_composing_the_same_message_again_gives_the_same_octets() -> None:
    written = message(body="x", html="y", sender="ada@example.com")
    written.attach("a.pdf", data=b"x" * 100_000)
    first = written.as_bytes()
    assert written.as_bytes() == bytes(compose(written)[1]) == bytes(written) == first
    assert str(written) == written.as_string() == first.decode()


def test_f31_the_message_id_is_drawn_at_random_under_the_authors_domain() -> None:
    one, other = message(), message()
    assert one.message_id != other.message_id
    assert one.message_id == one.msgId
    assert one.message_id is not None
    assert one.message_id.endswith("@example.com>")
    assert len(one.message_id.partition("@")[0]) == len("<") + 32
    assert judged(one).headers["Message-ID"] == one.message_id


def test_the_message_id_waits_for_the_author_and_then_stays() -> None:
    written = message(sender=None)
    unknown = written.message_id
    assert unknown is None
    _, content = compose(written, default_sender="ada@early.org")
    assert content.message_id.endswith("@early.org>")
    written.sender = "bob@late.org"
    assert written.message_id == content.message_id
    assert judged(written).headers["Message-ID"] == content.message_id


def test_a_message_id_may_be_given() -> None:
    written = message(message_id="<own@x.org>")
    assert written.msgId == "<own@x.org>"
    written.msgId = "<other@x.org>"
    assert compose(written)[1].message_id == "<other@x.org>"


def test_the_date_is_that_of_the_first_composing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1_000_000_000.5, 2_000_000_000.5])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    written = message()
    not_yet = written.date
    assert not_yet is None
    assert judged(written).headers["Date"] == "Sun, 09 Sep 2001 01:46:40 +0000"
    assert written.date == 1_000_000_000.5
    assert judged(written).headers["Date"] == "Sun, 09 Sep 2001 01:46:40 +0000"


def test_renew_makes_it_another_message() -> None:
    written = message(body="x")
    first, first_id = written.as_bytes(), written.message_id
    written.renew()
    assert written.date is None
    assert written.message_id != first_id
    assert written.as_bytes() != first
    given = message(date=0)
    given.renew()
    assert given.date == 0


def test_validate_checks_everything_and_draws_nothing() -> None:
    written = message(body="x")
    written.validate()
    assert written.date is None
    for wrong in (
        message(subject="a\n"),
        message(recipients=[]),
        message(sender=None),
        message(body="\ud800"),
    ):
        with pytest.raises(MessageError):
            wrong.validate()


def test_composing_takes_a_snapshot() -> None:
    written = message(subject="before", body="before", html="before", bcc=["b@x.org"])
    written.attach("a.bin", data=b"before" * 20_000)
    envelope, content = compose(written)
    before = bytes(content)
    written.subject = written.body = written.html = "after"
    written.recipients.append("late@x.org")
    written.bcc.clear()
    written.attachments[0].data = b"after"
    written.attachments.clear()
    assert bytes(content) == before
    assert envelope.forward_paths == ("bob@x.org", "b@x.org")


def test_b97_a_message_may_be_composed_from_many_threads_at_once() -> None:
    written = message(body="x", html="y")
    written.attach("a.bin", data=b"x" * 500_000)
    written.as_bytes()
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(written.as_bytes())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(results)) == 1


def test_b97_a_copy_is_the_same_message_until_it_is_renewed() -> None:
    written = message(body="x")
    written.attach("a.bin", data=b"x")
    octets = written.as_bytes()
    for other in (copy.deepcopy(written), pickle.loads(pickle.dumps(written))):
        assert other.as_bytes() == octets
        other.renew()
        assert other.as_bytes() != octets
    assert written.as_bytes() == octets


@pytest.mark.parametrize(
    "field",
    [
        {"subject": "a\nb"},
        {"sender": "a\n <a@x.org>"},
        {"recipients": ["a\r\n@x.org"]},
        {"reply_to": ("a\nb", "a@x.org")},
        {"cc": "a@x.org\n"},
        {"extra_headers": {"X-A": "a\nb"}},
    ],
)
def test_f10_f11_a_line_break_in_any_header_is_seen_and_refused(field: dict[str, t.Any]) -> None:
    written = message(**field)
    assert written.has_bad_headers()
    with pytest.raises((InvalidHeader, InvalidAddress)):
        written.as_bytes()


def test_good_headers_are_good_whatever_else_is_missing() -> None:
    assert not message().has_bad_headers()
    assert not message(sender=None).has_bad_headers()
    assert not message(recipients=None).has_bad_headers()
    assert not message(subject="a\r\n folded").has_bad_headers()
    assert message(sender=None, subject="a\n").has_bad_headers()
    assert message(recipients=None, subject="a\n").has_bad_headers()


def test_a_repr_says_how_much_and_never_what() -> None:
    written = message(subject="secret", body="secret", html="secret", recipients="secret@x.org")
    written.attach("secret.txt", data="secret")
    assert repr(written) == "<Message to 1, of body, 'html', 1 attachment(s)>"
    assert repr(Message()) == "<Message to 0, of nothing, 0 attachment(s)>"


def test_an_attachment_needs_data() -> None:
    with pytest.raises(InvalidAttachment, match="data"):
        Attachment("a.txt", "text/plain")
    assert issubclass(InvalidAttachment, ValueError)


def test_a_file_object_is_read_before_it_is_gone() -> None:
    written = message()
    with io.BytesIO(b"x") as file:
        written.attach("a.bin", data=file)
        _, content = compose(written)
    assert b"eA==" in bytes(content)


@pytest.mark.parametrize(
    "setting",
    [
        {"recipients": 0},
        {"subject": -1},
        {"filename": None},
        {"headers": True},
        {"attachments": 1.5},
    ],
)
def test_a_limit_is_a_number_and_there_is_always_one(setting: dict[str, t.Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Limits(**setting)


def test_a_header_field_cannot_be_allowed_more_than_64_kib() -> None:
    assert Limits(header_size=65536).header_size == 65536
    with pytest.raises(ConfigError, match="header_size"):
        Limits(header_size=65537)


def test_an_envelope_given_is_the_one_used() -> None:
    envelope, _ = compose(message())
    assert compose(message(recipients=None, bcc=None), envelope=envelope)[0] is envelope
