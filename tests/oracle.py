"""The independent judge of composed octets: it shares no code with what it judges.

``read`` checks the wire invariants of the content of one message, W1 to W5 and W7, and gives back
what two parsers of the standard library agree to have read. What must not happen is an
AssertionError whose text says which invariant broke and where.
"""

from __future__ import annotations

import email
import email.errors
import email.header
import email.headerregistry
import email.policy
import email.utils
import functools
import re
import typing as t
from dataclasses import dataclass, field

if t.TYPE_CHECKING:
    from email.message import EmailMessage, Message

ENCODED_WORD = re.compile(r"=\?[^? ]*\?[bBqQ]\?[^? ]*\?=")
LONGEST_LINE = 998
_FIELD = re.compile(r"([!-9;-~]+):(.*)", re.DOTALL)
# The strict judge parses a field whenever it is asked for it, which is often for each of its parts.
# What it reads follows from name and value alone, and nothing can change what it has read.
_STRICT = email.policy.default.clone(
    header_factory=functools.lru_cache(maxsize=1000)(email.headerregistry.HeaderRegistry())
)


@dataclass
class Leaf:
    """One part that is no multipart, as read."""

    content_type: str
    disposition: str | None
    filename: str | None
    content_id: str | None
    octets: bytes
    text: str | None
    path: tuple[str, ...]


@dataclass
class Reading:
    """What the judges agree that a message says."""

    headers: dict[str, str]
    subject: str | None
    mailboxes: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    leaves: list[Leaf] = field(default_factory=list)

    @property
    def attachments(self) -> list[Leaf]:
        return [leaf for leaf in self.leaves if leaf.disposition is not None]

    @property
    def texts(self) -> list[Leaf]:
        return [leaf for leaf in self.leaves if leaf.disposition is None]

    def text_of(self, content_type: str) -> str | None:
        for leaf in self.texts:
            if leaf.content_type == content_type:
                return leaf.text
        return None

    @property
    def tree(self) -> list[tuple[str, ...]]:
        return [(*leaf.path, leaf.content_type) for leaf in self.leaves]


def read(content: bytes, *, utf8: bool = False) -> Reading:
    """Judge the content of a message and return what it says."""
    _check_lines(content)
    headers = _check_entity(content, utf8=utf8, top=True)
    names = [name for name, _ in headers]
    for name in ("From", "Date", "Message-ID", "MIME-Version", "Content-Type"):
        assert names.count(name) == 1, f"W4: {name} stands {names.count(name)} times"
    assert "bcc" not in map(str.lower, names), "W7: Bcc stands in the content"
    # Both judges get text: in an internationalised message their octet parsers see only noise.
    text = content.decode("utf-8" if utf8 else "ascii") if utf8 or content.isascii() else None
    lenient, strict = (
        email.message_from_bytes(content, policy=policy)
        if text is None
        else email.message_from_string(text, policy=policy)
        for policy in (email.policy.compat32, _STRICT)
    )
    reading = Reading(dict(headers), _subject(lenient, t.cast("EmailMessage", strict)))
    for name in ("From", "Sender", "Reply-To", "To", "Cc"):
        if name in names:
            reading.mailboxes[name] = _mailboxes(name, lenient, t.cast("EmailMessage", strict))
    _check_defects(t.cast("EmailMessage", strict), utf8=utf8)
    reading.leaves = list(_leaves(lenient, t.cast("EmailMessage", strict), ()))
    return reading


def unstuffed(wire: bytes) -> bytes:
    """Take dot-stuffing out of what stood between 354 and the final reply (W8)."""
    assert wire.endswith(b"\r\n.\r\n"), "W8: the content does not end with a lone dot"
    assert (b"\r\n" + wire).count(b"\r\n.\r\n") == 1, "W8: a lone dot stands inside the content"
    return (b"\r\n" + wire[:-3]).replace(b"\r\n.", b"\r\n")[2:]


def _check_lines(content: bytes) -> None:
    assert content.endswith(b"\r\n"), "W1: no line end at the end"
    lines = content.split(b"\r\n")
    for number, line in enumerate(lines):
        assert b"\r" not in line, f"W1: bare CR in line {number}"
        assert b"\n" not in line, f"W1: bare LF in line {number}"
        assert b"\0" not in line, f"W1: NUL in line {number}"
        assert len(line) <= LONGEST_LINE, f"W3: {len(line)} octets in line {number}"


def _check_entity(entity: bytes, *, utf8: bool, top: bool = False) -> list[tuple[str, str]]:
    """Check one header block and, by boundaries found here, those of the parts inside."""
    block, _, body = entity.partition(b"\r\n\r\n")
    if not top and entity.startswith(b"\r\n"):
        block, body = b"", entity[2:]
    headers = _check_headers(block, utf8=utf8)
    fields = {name.lower(): value for name, value in headers}
    assert len(fields) == len(headers), f"W4: a field stands twice among {sorted(fields)}"
    content_type = fields["content-type"].lower()
    encoding = fields.get("content-transfer-encoding", "7bit")
    if content_type.startswith(("multipart/", "message/")):
        assert encoding in {"7bit", "8bit"}, f"W3: {encoding} on {content_type}"
    if content_type.startswith("multipart/"):
        found = re.search(r'boundary="([^"]+)"', fields["content-type"])
        assert found, "W5: a multipart without a boundary"
        delimiter = b"--" + found[1].encode()
        pieces = (b"\r\n" + body).split(b"\r\n" + delimiter)
        assert len(pieces) >= 3, "W5: a multipart without parts"
        assert pieces[0] == b"", "W5: text in front of the first part"
        assert pieces[-1].strip(b"\r\n") == b"--", "W5: no closing boundary"
        for piece in pieces[1:-1]:
            assert piece.startswith(b"\r\n"), "W5: a boundary goes on behind its end"
            _check_entity(piece[2:], utf8=utf8)
    else:
        _check_body(body, encoding)
    return headers


def _check_headers(block: bytes, *, utf8: bool) -> list[tuple[str, str]]:
    text = block.decode("utf-8" if utf8 else "ascii")
    headers: list[list[str]] = []
    for line in text.split("\r\n"):
        assert line.strip(" \t"), "W2: a line of nothing but white space in a header"
        visible = line.replace("\t", " ") if headers and line[0] in " \t" else line
        for character in visible:
            fine = " " <= character <= "~" or (utf8 and character >= "\xa0")
            assert fine, f"W2: U+{ord(character):04X} in a header"
        # A line that is too long has no place left where it could have been folded.
        inner = line.lstrip(" ")
        inner = inner if line.startswith(" ") else inner.partition(": ")[2]
        assert len(line) <= 78 or " " not in inner or '"' in inner, f"W3: could fold: {len(line)}"
        if ENCODED_WORD.search(line):
            assert len(line) <= 76, f"W3: {len(line)} octets in a line with an encoded-word"
        if line[0] in " \t":
            headers[-1][1] += line
            continue
        match = _FIELD.fullmatch(line)
        assert match, "W2: a header line without a name"
        headers.append([match[1], match[2]])
    for name, value in headers:
        parameters = name.lower() in {"content-type", "content-disposition"}
        assert not (parameters and "=?" in value), f"W5: an encoded-word in {name}"
        for word in ENCODED_WORD.findall(value):
            assert len(word) <= 75, "W3: an encoded-word over 75 octets"
    return [(name, value.strip(" ")) for name, value in headers]


def _check_body(body: bytes, encoding: str) -> None:
    if encoding in {"base64", "quoted-printable"}:
        assert body.isascii()
        assert max(map(len, body.split(b"\r\n"))) <= 76, f"W3: a line over 76 in {encoding}"
    elif encoding == "7bit":
        assert body.isascii(), "W2: an octet over 127 in 7bit"
    else:
        assert encoding == "8bit", f"W3: unknown encoding {encoding}"


def decoded(raw: str) -> str:
    """Decode encoded-words as compat32 readers do."""
    return str(email.header.make_header(email.header.decode_header(raw)))


def _subject(lenient: Message, strict: EmailMessage) -> str | None:
    raw = lenient["Subject"]
    if raw is None:
        assert strict["Subject"] is None
        return None
    unfolded = str(raw).replace("\r\n", "").replace("\n", "")
    subject = decoded(unfolded) if ENCODED_WORD.search(unfolded) else unfolded
    assert str(strict["Subject"]) == subject, "W5: the judges read different subjects"
    return subject


def _mailboxes(name: str, lenient: Message, strict: EmailMessage) -> list[tuple[str, str]]:
    raw = str(lenient[name]).replace("\r\n", "").replace("\n", "")
    if raw == "undisclosed-recipients:;":
        assert not strict[name].addresses
        return []
    pairs = email.utils.getaddresses([raw])
    mailboxes = [
        (decoded(display) if ENCODED_WORD.search(display) else display, spec)
        for display, spec in pairs
    ]
    specs = [_without_quotes(address.addr_spec) for address in strict[name].addresses]
    assert [_without_quotes(spec) for _, spec in mailboxes] == specs, (
        f"W5: the judges read different mailboxes in {name}"
    )
    return mailboxes


def _without_quotes(spec: str) -> str:
    local_part, _, domain = spec.rpartition("@")
    return f"{local_part.strip(chr(34))}@{domain}"


def _check_defects(strict: EmailMessage, *, utf8: bool) -> None:
    for part in strict.walk():
        assert not part.defects, f"W5: {part.defects}"
        for name, value in part.items():
            defects = [
                defect
                for defect in getattr(value, "defects", ())
                if not (utf8 and isinstance(defect, email.errors.NonASCIILocalPartDefect))
            ]
            assert not defects, f"W5: {name}: {[type(defect).__name__ for defect in defects]}"


def _leaves(lenient: Message, strict: EmailMessage, path: tuple[str, ...]) -> t.Iterator[Leaf]:
    assert lenient.get_content_type() == strict.get_content_type()
    content_type = strict.get_content_type()
    if strict.get_content_maintype() == "multipart":
        children = list(zip(lenient.get_payload(), strict.iter_parts(), strict=True))
        for one, other in children:
            yield from _leaves(
                t.cast("Message", one),
                t.cast("EmailMessage", other),
                (*path, strict.get_content_subtype()),
            )
        return
    filename = _agreed_filename(lenient, strict)
    text = None
    if strict.get_content_maintype() == "message":
        octets = t.cast("list[Message]", lenient.get_payload())[0].as_bytes()
    else:
        octets = t.cast("bytes", lenient.get_payload(decode=True))
        assert octets == strict.get_payload(decode=True), "W5: the judges read different octets"
    if content_type.startswith("text/"):
        charset = lenient.get_content_charset()
        text = octets.decode(charset) if charset else None
    disposition = lenient.get_content_disposition()
    assert disposition == strict.get_content_disposition()
    yield Leaf(content_type, disposition, filename, lenient["Content-ID"], octets, text, path)


def _agreed_filename(lenient: Message, strict: EmailMessage) -> str | None:
    filename = strict.get_filename()
    assert lenient.get_filename() == filename, "W5: the judges read different file names"
    parameters = re.findall(
        r";\s*filename(\*?)(?:\*?[0-9]*)?\*?=", str(lenient["Content-Disposition"])
    )
    assert len(set(parameters)) <= 1, "W5: file names of two kinds"
    return filename
