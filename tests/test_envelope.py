"""An envelope that exists can be written into MAIL and RCPT as it is."""

from __future__ import annotations

import dataclasses
import re
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail import Envelope, InvalidAddress, MailError, MessageError
from amail.mime import Content
from amail.smtp import commands
from amail.smtp.extensions import Extensions
from tests.strategies import EXAMPLES, nasty_text

ADA, BOB = "ada@example.com", "bob@example.org"
CONTENT = Content([b"x"], message_id="<1@example.com>")


def lines_of(envelope: Envelope) -> list[bytes]:
    offered = Extensions(dsn=True)
    return [commands.mail(envelope, CONTENT, offered), *commands.rcpts(envelope, offered)]


def test_an_envelope_is_a_value() -> None:
    envelope = Envelope(ADA, (BOB,))
    assert envelope == Envelope(ADA, (BOB,), (), (), all_recipients=False)
    assert hash(envelope) == hash(Envelope(ADA, (BOB,)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        envelope.reverse_path = BOB  # type: ignore[misc]


def test_the_null_reverse_path_is_allowed() -> None:
    assert lines_of(Envelope("", (BOB,))) == [
        b"MAIL FROM:<>\r\n",
        b"RCPT TO:<bob@example.org>\r\n",
    ]


@pytest.mark.parametrize("path", ["postmaster", "o'hara@x.org", "a+b@[192.0.2.1]", "jörg@x.de"])
def test_a_path_that_is_no_more_than_a_path_is_taken(path: str) -> None:
    assert lines_of(Envelope(path, (path,))) == [
        f"MAIL FROM:<{path}>\r\n".encode(),
        f"RCPT TO:<{path}>\r\n".encode(),
    ]


def test_an_envelope_goes_to_somebody() -> None:
    with pytest.raises(MessageError, match="no forward-path"):
        Envelope(ADA, ())
    with pytest.raises(InvalidAddress, match="is empty"):
        Envelope(ADA, (BOB, ""))


def test_nobody_gets_a_message_twice() -> None:
    with pytest.raises(InvalidAddress, match="twice"):
        Envelope(ADA, (BOB, ADA, BOB))


def test_a_str_is_never_taken_for_its_letters() -> None:
    with pytest.raises(MailError):
        Envelope(ADA, "ab@c")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "odd",
    [
        *("\r\n", "\n", "\r", "\0", "\t", " ", "<", ">", "\x7f", "\x85", "\xa0", "\u2028"),
        *("\u2029", "\ud800", "\udc80", "> SIZE=1", "\r\nRCPT TO:<eve@evil.example>"),
    ],
)
def test_a_path_that_could_be_read_as_more_is_refused_wherever_it_stands(odd: str) -> None:
    path = f"bob{odd}@example.org"
    for reverse, forward in ((path, (BOB,)), (ADA, (path,)), (ADA, (BOB, path))):
        with pytest.raises(InvalidAddress) as caught:
            Envelope(reverse, forward)
        assert f"U+{ord(odd[0]):04X} at position 3" in str(caught.value)
        assert "example.org" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "another"),
    [("RET=HDRS", "NOTIFY=SUCCESS,DELAY"), ("X-A", "8B"), ("ENVID=a+2Bb", "ORCPT=rfc822;a+2Bb@c")],
)
def test_b115_an_option_is_a_keyword_or_a_keyword_with_its_value(option: str, another: str) -> None:
    envelope = Envelope(ADA, (BOB,), (option, "A=1"), (another,))
    assert lines_of(envelope) == [
        f"MAIL FROM:<ada@example.com> {option} A=1\r\n".encode(),
        f"RCPT TO:<bob@example.org> {another}\r\n".encode(),
    ]


@pytest.mark.parametrize(
    "option",
    [
        *("", " ", "A B", "A=", "=1", "A=1=2", "A=1 B=2", "A=\r\n", "A=1\r\nRSET", "A=1\n", "-A"),
        *("A=é", "É=1", "A=\0", "A=\x7f", "A_B", "A=\ud800", "A\u0660"),
    ],
)
def test_b115_any_other_option_is_refused(option: str) -> None:
    with pytest.raises(MessageError, match="KEYWORD=value"):
        Envelope(ADA, (BOB,), (option,))
    with pytest.raises(MessageError, match="KEYWORD=value"):
        Envelope(ADA, (BOB,), (), ("A=1", option))


@EXAMPLES
@given(st.one_of(nasty_text, st.text(max_size=20)), st.booleans())
def test_any_path_is_refused_or_makes_one_line_with_one_pair_of_brackets(
    path: str, is_reverse: bool
) -> None:
    try:
        envelope = Envelope(path, (BOB,)) if is_reverse else Envelope(ADA, (path,))
    except MailError:
        return
    for line in lines_of(envelope):
        assert (line.count(b"<"), line.count(b">")) == (1, 1)
        assert line.endswith(b">\r\n")
        assert re.fullmatch(rb"[^\r\n\0]+\r\n", line)
        assert line.count(b" ") == 1
        assert len(line.decode().splitlines()) == 1


@EXAMPLES
@given(st.lists(st.one_of(nasty_text, st.from_regex(r"\A[A-Z]{1,4}=[!-~]{0,5}\Z")), max_size=3))
def test_any_options_are_refused_or_stay_on_the_line_as_they_are(options: t.Any) -> None:
    try:
        envelope = Envelope(ADA, (BOB,), tuple(options), tuple(options))
    except MailError:
        return
    for line in lines_of(envelope):
        assert line.endswith(b"\r\n")
        assert line[:-2].isascii()
        assert line[:-2].decode().isprintable()
        assert line[:-2].decode().split(" ")[2:] == options


@EXAMPLES
@given(
    st.text("a@.\x7f <>\né", max_size=4),
    st.lists(st.text("a@.\x7f <>\né", max_size=4), max_size=3).map(tuple),
)
def test_the_glance_and_the_careful_look_take_the_same_envelopes(
    reverse_path: str, forward_paths: tuple[str, ...]
) -> None:
    def is_taken(*rcpt_options: str) -> bool:
        try:
            Envelope(reverse_path, forward_paths, rcpt_options=rcpt_options)
        except MailError:
            return False
        return True

    # An option makes it look carefully.
    assert is_taken() == is_taken("NOTIFY=NEVER")
