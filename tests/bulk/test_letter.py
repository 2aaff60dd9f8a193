"""A letter: what each gets of it, what is wrong with one is said of its part, what changes it."""

from __future__ import annotations

import typing as t

import pytest

from amail import Address, Attachment, ConfigError, MessageError
from amail.bulk import Letter, Recipient
from tests.messages import ADA

if t.TYPE_CHECKING:
    from pathlib import Path


def recipient(**fields: t.Any) -> Recipient:
    return Recipient(2, Address("bob@example.org"), {"email": "bob@example.org", **fields})


def test_columns_are_variables_and_row_has_those_that_cannot_be() -> None:
    letter = Letter("{{ a }}", text="{{ row['First name'] }} {{ row.strict }}", sender=ADA)
    row = {"a": "A", "First name": "Bob", "strict": "s", "inline_css": "i", "self": "x", 5: "y"}
    message = letter.message_for(Recipient(2, Address("bob@example.org"), row))  # type: ignore[arg-type]
    assert (message.subject, message.body) == ("A", "Bob s")


def test_html_is_escaped_and_text_is_made_of_it() -> None:
    message = Letter("x", html="<p>Hi {{ name }}</p>").message_for(recipient(name="Tom & <Ada>"))
    assert message.html == "<p>Hi Tom &amp; &lt;Ada&gt;</p>"
    assert message.body == "Hi Tom & <Ada>\n"


def test_css_is_moved_where_asked_for() -> None:
    letter = Letter("x", html="<style>p{color:red}</style><p>x</p>", inline_css=True)
    assert '<p style="color: red;' in (letter.message_for(recipient()).html or "")


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"subject": "{{ no }}", "text": ""}, "subject: UndefinedError: 'no' is undefined"),
        ({"subject": "", "text": "{{ no }}"}, "text: UndefinedError"),
        ({"subject": "", "html": "{{ no }}"}, "html: UndefinedError"),
        ({"subject": "{{ n }}", "text": ""}, "subject: U+000A at position 1 cannot stand in"),
        ({"subject": "", "text": "", "unsubscribe": "https://x.org/{{ no }}"}, "unsubscribe: Und"),
        ({"subject": "", "text": "", "unsubscribe": "{{ n }}"}, "unsubscribe: U+000A"),
        ({"subject": "", "text": "", "unsubscribe": "javascript:x"}, "List-Unsubscribe: url"),
    ],
)
def test_what_is_wrong_is_said_of_its_part(parts: dict[str, t.Any], complaint: str) -> None:
    with pytest.raises(MessageError) as caught:
        Letter(**parts).message_for(recipient(n="a\nb"))
    assert str(caught.value).startswith(complaint)


def test_a_template_that_cannot_be_read_is_found_out_at_once() -> None:
    with pytest.raises(MessageError, match=r"^text: TemplateSyntaxError"):
        Letter("x", text="{% if %}")


def test_a_letter_says_something() -> None:
    with pytest.raises(ConfigError, match="text: is missing"):
        Letter("x")


def test_everybody_can_leave_with_one_click() -> None:
    letter = Letter("x", text="y", sender=ADA, unsubscribe="https://x.org/{{ row.id }}")
    content = letter.message_for(recipient(id=7)).as_bytes()
    assert b"\r\nList-Unsubscribe: <https://x.org/7>\r\n" in content
    assert b"\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in content
    by_mail = Letter("x", text="y", sender=ADA, unsubscribe="mailto:off@x.org")
    assert b"List-Unsubscribe: <mailto:off@x.org>" in by_mail.message_for(recipient()).as_bytes()


def test_an_attachment_is_read_once_and_encoded_once(tmp_path: Path) -> None:
    path = tmp_path / "terms.pdf"
    path.write_bytes(b"%PDF-1.4 " + b"x" * 1000)
    letter = Letter("x", text="y", sender=ADA, attachments=[path])
    first = letter.message_for(recipient()).as_bytes()
    path.unlink()
    message = letter.message_for(recipient())
    (attachment,) = message.attachments
    prepared = attachment.prepared
    assert prepared is not None
    assert first.count(b"terms.pdf") == message.as_bytes().count(b"terms.pdf") == 1
    assert attachment.prepared is prepared


def test_an_attachment_that_is_not_there_is_found_out_at_once(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"^attachments: .* is no file"):
            Letter("x", text="y", attachments=[path])
    with pytest.raises(ConfigError, match="give paths, or Attachments with bytes or str"):
        Letter("x", text="y", attachments=[Attachment("x", data=tmp_path)])


ONE: dict[str, t.Any] = {"subject": "Hello {{ name }}", "text": "text", "html": "html"}


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "Hello, {{ name }}"},
        {"text": "text."},
        {"html": None},
        {"sender": ADA},
        {"reply_to": ADA},
        {"unsubscribe": "mailto:off@x.org"},
        {"headers": {"X-Campaign": "1"}},
        {"inline_css": True},
        {"attachments": [Attachment("a.txt", data="x")]},
        {"attachments": [Attachment("a.txt", data="y")]},
    ],
    ids=str,
)
def test_a_letter_is_another_one_as_soon_as_somebody_would_get_something_else(
    change: dict[str, t.Any],
) -> None:
    assert Letter(**ONE).digest == Letter(**ONE).digest
    assert Letter(**{**ONE, **change}).digest != Letter(**ONE).digest


def test_attachments_are_told_apart_by_their_octets() -> None:
    digests = {Letter(**ONE, attachments=[Attachment("a", data=each)]).digest for each in "xy"}
    assert len(digests) == 2


def test_what_it_includes_is_part_of_it(tmp_path: Path) -> None:
    footer = tmp_path / "footer.txt"
    (tmp_path / "outer.txt").write_text("{% include 'footer.txt' %}")
    digests = set()
    for text in ("one", "two"):
        footer.write_text(text)
        letter = Letter("x", text="{% include 'outer.txt' %}", folders=[tmp_path])
        digests.add(letter.digest)
        assert letter.message_for(recipient()).body == text
    assert len(digests) == 2


def test_what_it_includes_where_it_is_there_may_be_missing() -> None:
    text = "{% include 'none.txt' ignore missing %}{% include row.other ignore missing %}there"
    assert Letter("x", text=text).message_for(recipient(other="no.txt")).body == "there"
