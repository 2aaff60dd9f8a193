"""Four parsers read the same in 200 messages, and what they read is what was written.

Where a judge is known to be wrong the comparison says so and why, and leaves out that and no more.
"""

from __future__ import annotations

import base64
import email
import email.policy
import json
import typing as t
from dataclasses import dataclass, replace

import idna
import pytest

from amail.mime import compose
from tests import oracle
from tests.corpus import PNG, SIZE, corpus, written
from tests.judges.node import FOLDER

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import EmailMessage

    from tests.corpus import Written
    from tests.judges.node import Answer

Judge: t.TypeAlias = "Callable[[bytes], Answer]"


@dataclass
class Read:
    """What a judge read, line ends as LF and without a last one."""

    subject: str
    people: dict[str, list[tuple[str, str]]]
    text: str | None
    html: str | None
    files: list[tuple[str, bytes]]
    events: int


def octets_of(message: Written) -> bytes:
    return bytes(compose(message.message)[1])


def lines(text: str | None) -> str | None:
    """A text as its lines. The last line end of a text is also that of the message or part."""
    return text and text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def as_written(message: Written) -> Read:
    people = {"from": [message.sender], "to": message.to, "cc": message.cc}
    events = sum("calendar" in name for name in message.message.alts)
    text, html = lines(message.text), lines(message.html)
    return Read(message.subject, people, text, html, message.files, events)


# The stdlib's two ways to read


def by_compat32(octets: bytes) -> Read:
    """Read with compat32. The oracle has it agree with policy.default, of which it has the text."""
    read = oracle.read(octets)
    return Read(
        read.subject or "",
        {name.lower(): people for name, people in read.mailboxes.items()},
        lines(read.text_of("text/plain")),
        lines(read.text_of("text/html")),
        [
            (leaf.filename or "", _as_sent(leaf.content_type, leaf.octets))
            for leaf in read.attachments
        ],
        sum(leaf.content_type == "text/calendar" for leaf in read.texts),
    )


def by_strict_policy(octets: bytes) -> Read:
    """Read with policy.strict, which raises on each defect.

    Display names are left out: it keeps the blank between adjacent encoded-words.
    """
    read = email.message_from_bytes(octets, policy=email.policy.strict)
    people = {}
    for name in ("from", "to", "cc"):
        people[name] = [("", address.addr_spec) for address in read[name].addresses]
    leaves = list(_leaves(read))
    texts = {
        part.get_content_type(): lines(part.get_content())
        for part in leaves
        if part.get_content_disposition() is None
    }
    return Read(
        str(read["subject"] or ""),
        people,
        texts.get("text/plain"),
        texts.get("text/html"),
        [
            (part.get_filename() or "", _octets(part))
            for part in leaves
            if part.get_content_disposition()
        ],
        sum(content_type == "text/calendar" for content_type in texts),
    )


def _leaves(part: EmailMessage) -> Iterator[EmailMessage]:
    if part.get_content_maintype() != "multipart":
        yield part
        return
    for inner in part.iter_parts():
        yield from _leaves(t.cast("EmailMessage", inner))


def _octets(part: EmailMessage) -> bytes:
    if part.get_content_maintype() == "message":
        return _as_sent("message/rfc822", bytes(part.get_content()))
    return t.cast("bytes", part.get_payload(decode=True))


def _as_sent(content_type: str, octets: bytes) -> bytes:
    """Undo that the stdlib turns the line ends of an attached message into LF."""
    return octets.replace(b"\n", b"\r\n") if content_type == "message/rfc822" else octets


# The two in Node


def by_node(answer: dict[str, t.Any]) -> Read:
    people = {
        name: [(display, _ascii_domain(address)) for display, address in answer[name]]
        for name in ("from", "to", "cc")
    }
    attached = answer["attachments"]
    return Read(
        answer["subject"] or "",
        people,
        lines(answer["text"]),
        lines(answer["html"]),
        [
            (part["filename"], base64.b64decode(part["octets"]))
            for part in attached
            if part["content_type"] != "text/calendar"
        ],
        sum(part["content_type"] == "text/calendar" for part in attached),
    )


def _ascii_domain(address: str) -> str:
    """Undo that mailparser shows internationalised domains as Unicode."""
    local_part, at, domain = address.rpartition("@")
    return f"{local_part}@{idna.encode(domain).decode()}" if at else address


def without_postal_mimes_faults(read: Read) -> Read:
    """Leave out of what was read, and of what was written, what postal-mime 4.0.0 has wrong.

    - It reads by lines whatever is not base64: it adds a line end to the last line, and those of
      an attached message become LF.
    - It decodes encoded-words in file names that RFC 2231 wrote, where none can be.
    - Node 20 reads windows-1252 as if it were iso-8859-1.
    """
    texts = [text and text.rstrip("\n").replace("\x80", "€") for text in (read.text, read.html)]
    files = [
        (
            name.replace("=?utf-8?q?x?=", "x"),
            octets.replace(b"\r\n", b"\n").rstrip(b"\n") if not octets.startswith(PNG) else octets,
        )
        for name, octets in read.files
    ]
    return replace(read, text=texts[0], html=texts[1], files=files)


# What they say


def misread(by: Callable[[Written], tuple[Read, Read]]) -> list[str]:
    """List the messages of the corpus whose two readings differ, and where."""
    found = []
    for number, message in enumerate(corpus()):
        read, meant = by(message)
        for name, value in vars(meant).items():
            if getattr(read, name) != value:
                found.append(f"{number} {name}: {getattr(read, name)!a:.200} is no {value!a:.200}")
    return found


def test_compat32_reads_in_every_message_what_was_written() -> None:
    assert misread(lambda each: (by_compat32(octets_of(each)), as_written(each))) == []


def test_the_strict_policy_raises_nothing_and_reads_what_was_written() -> None:
    def compare(message: Written) -> tuple[Read, Read]:
        meant = as_written(message)
        people = {name: [("", spec) for _, spec in each] for name, each in meant.people.items()}
        return by_strict_policy(octets_of(message)), replace(meant, people=people)

    assert misread(compare) == []


def test_mailparser_reads_in_every_message_what_was_written(node_judges: Judge) -> None:
    def compare(message: Written) -> tuple[Read, Read]:
        return by_node(node_judges(octets_of(message))["mailparser"]), as_written(message)

    assert misread(compare) == []


def test_postal_mime_reads_in_every_message_what_was_written(node_judges: Judge) -> None:
    def compare(message: Written) -> tuple[Read, Read]:
        read = by_node(node_judges(octets_of(message))["postal-mime"])
        return without_postal_mimes_faults(read), without_postal_mimes_faults(as_written(message))

    assert misread(compare) == []


def test_the_corpus_is_the_same_each_time_and_has_no_message_twice() -> None:
    first, second = [[octets_of(each) for each in corpus()] for _ in range(2)]
    assert first == second
    assert len(set(first)) == SIZE == 200


FAULTS = {
    "a file name with an encoded-word": (b'filename="report.pdf"', b'filename="=?utf-8?q?x?="'),
    "another file name": (b'filename="report.pdf"', b'filename="x.pdf"'),
    "a comma in a name": (b"From: Ada <", b"From: Ada, Eve <"),
    "another subject": (b"Subject: Hello", b"Subject: Hallo"),
    "a missing boundary": (b"\r\n--=_", b"\r\n--=x"),
    "another text": (b"Hello\r\n\r\n--=_", b"Hallo\r\n\r\n--=_"),
    "a changed file": (b"iVBORw0KGgo", b"iVBORw0KGgp"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("judge", ["mailparser", "postal-mime"])
def test_each_judge_notices_a_planted_fault(node_judges: Judge, judge: str, fault: str) -> None:
    def read(octets: bytes) -> Read:
        return without_postal_mimes_faults(by_node(node_judges(octets)[judge]))

    message = written(0)
    message.message.sender, message.sender = ("Ada", "ada@example.com"), ("Ada", "ada@example.com")
    message.attach("report.pdf", PNG)
    octets = octets_of(message)
    changed = octets.replace(*FAULTS[fault])
    assert changed != octets
    assert read(octets) == without_postal_mimes_faults(as_written(message)) != read(changed)


def test_the_lock_file_names_every_package_and_no_registry() -> None:
    lock = json.loads((FOLDER / "package-lock.json").read_text("utf-8"))
    packages = {path: each for path, each in lock["packages"].items() if path}
    assert {"node_modules/mailparser", "node_modules/postal-mime"} <= set(packages)
    for path, package in packages.items():
        assert "resolved" not in package, path
        assert package["integrity"].startswith("sha512-"), path
