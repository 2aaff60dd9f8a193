"""From an Attachment to a MIME part: its name made safe, its type settled, its octets encoded.

Invariant: an attachment's octets are fixed once it is composed for the first time (a path's when
it is composed: it is looked at again each time), and are encoded once for any number of messages.
"""

from __future__ import annotations

import logging
import mimetypes
import os
import re
import stat
import typing as t
import unicodedata

from amail.errors import InvalidAttachment, InvalidHeader, MessageTooLarge
from amail.mime import bodies
from amail.mime.entities import without_bcc
from amail.mime.headers import HeaderWriter, MediaType, check_name, media_type
from amail.text import as_text, header_text

if t.TYPE_CHECKING:
    from collections.abc import Mapping

    from amail.limits import Limits
    from amail.message import Attachment
    from amail.mime.content import Stream

_logger = logging.getLogger("amail")

_SMALL = 57 * 1024
_LARGEST_TEXT = 1024 * 1024
_OWN_HEADERS = {
    "content-type": "content_type",
    "content-transfer-encoding": "data; the encoding is chosen by it",
    "content-disposition": "disposition and filename",
    "mime-version": "nothing; the message has it",
}
_CONTENT_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9._:\[\]-]+")
CID = re.compile(r"""\bcid:([^\s"'<>)]+)""")
"""Where html shows a part by its Content-ID (RFC 2392, section 2)."""
# Controls, surrogates, line separators, bidirectional overrides (they make gpj.exe read exe.jpg).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# A name that is safe as it is; what it is cut by, blanks at its ends and pairs of quotes, it lacks.
_PLAIN_FILENAME = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9 ._-]*[A-Za-z0-9_-])?")
_LONGEST_EXTENSION = 20


class Prepared(t.NamedTuple):
    """What does not change from message to message: type, transfer encoding and encoded octets."""

    media_type: MediaType
    encoding: bodies.TransferEncoding
    body: bytes | Stream


class Part(t.NamedTuple):
    """An attachment as a MIME entity."""

    header: str
    body: bytes | Stream
    is_8bit: bool
    content_id: str | None
    disposition: str


def attachment_part(
    attachment: Attachment, writer: HeaderWriter, limits: Limits, *, ascii_names: bool, field: str
) -> Part:
    """Make the part of one attachment.

    Raises InvalidAttachment for what cannot be read or described, MessageTooLarge for more octets
    than a message may have.
    """
    if not hasattr(attachment, "disposition"):
        raise InvalidAttachment(f"{field}: is a {type(attachment).__name__} and no Attachment")
    disposition = check_disposition(attachment.disposition, field)
    headers = part_headers(attachment.headers, field)
    filename = safe_filename(attachment.filename, limits.filename, field, ascii_only=ascii_names)
    prepared = _prepare(attachment, limits, field)
    lines = [
        writer.with_parameters(
            "Content-Type", prepared.media_type.full, prepared.media_type.parameters
        ),
        f"Content-Transfer-Encoding: {prepared.encoding}\r\n",
        writer.with_parameters(
            "Content-Disposition", disposition, [("filename", filename)] if filename else []
        ),
    ]
    content_id = None
    for name, text in headers.items():
        if name.lower() == "content-id":
            content_id = check_content_id(text, field)
            lines.append(writer.structured("Content-ID", f"<{content_id}>"))
        else:
            lines.append(writer.unstructured(name, text))
    return Part("".join(lines), prepared.body, prepared.encoding == "8bit", content_id, disposition)


def check_disposition(disposition: object, field: str) -> str:
    """Return "attachment" or "inline" (RFC 2183), or raise InvalidAttachment."""
    text = as_text(disposition, f"{field}.disposition", InvalidAttachment).lower()
    if text not in {"attachment", "inline"}:
        raise InvalidAttachment(f'{field}.disposition: must be "attachment" or "inline"')
    return text


def check_content_type(content_type: object, field: str) -> MediaType:
    """Return the media type, or raise InvalidAttachment. A multipart is not ours to send."""
    field = f"{field}.content_type"
    found = media_type(as_text(content_type, field, InvalidAttachment), field, InvalidAttachment)
    if found.type == "multipart":
        raise InvalidAttachment(f"{field}: an attachment cannot be a multipart")
    return found


def check_content_id(content_id: str, field: str) -> str:
    """Return a Content-ID without its brackets (RFC 2392), or raise InvalidAttachment."""
    inner = content_id.strip(" ")
    if inner.startswith("<") and inner.endswith(">"):
        inner = inner[1:-1]
    if "=?" in inner or not _CONTENT_ID.fullmatch(inner):
        raise InvalidAttachment(f"{field}: a Content-ID is written <name@domain>, in ASCII")
    return inner


def part_headers(headers: Mapping[str, str] | None, field: str) -> dict[str, str]:
    """Check an attachment's own header fields. Fields without a value are left out."""
    checked: dict[str, str] = {}
    if not headers:
        return checked
    seen: set[str] = set()
    try:
        pairs = dict(headers).items()
        for name, value in pairs:
            lower = check_name(name).lower()
            if lower in _OWN_HEADERS:
                raise InvalidAttachment(f"{field}.headers: {name}: use {_OWN_HEADERS[lower]}")
            if lower in seen:
                raise InvalidAttachment(f"{field}.headers: {name} is given twice")
            where = f"{field}.headers: {name}"
            if value:
                text = header_text(as_text(value, where, InvalidHeader), where, InvalidHeader)
                if text.strip(" "):
                    seen.add(lower)
                    checked[name] = text
    except InvalidHeader as error:
        raise InvalidAttachment(f"{field}.headers: {error}") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidAttachment):
            raise
        raise InvalidAttachment(f"{field}.headers: must be a dict of names and values") from None
    return checked


def safe_filename(filename: object, limit: int, field: str, *, ascii_only: bool) -> str | None:
    """Make a file name that is a name and nothing else, or None where nothing is left of it.

    Only what follows the last slash or backslash stays; controls, surrogates and bidirectional
    overrides become ``_``; more than ``limit`` octets of UTF-8 are cut off in front of the
    extension.
    """
    if filename is None:
        return None
    if type(filename) is str and len(filename) <= limit and _PLAIN_FILENAME.fullmatch(filename):
        return filename
    name = _UNSAFE.sub("_", as_text(filename, f"{field}.filename", InvalidAttachment))
    is_folded = ascii_only and not name.isascii()
    if is_folded:  # before it is cut: slashes of other scripts become slashes
        name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii")
        name = " ".join(_UNSAFE.sub("_", name).split())
    name = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    name = _unwrapped(name)
    if is_folded:
        name = name or "attachment"
    if name in {".", ".."}:
        name = "_"
    if len(name.encode()) > limit:
        name = _unwrapped(_cut(name, limit))
    return name or None


def _unwrapped(name: str) -> str:
    """Take off what readers take off: outer white space, and a pair of quotes or angle brackets."""
    name = name.strip()
    while len(name) > 1 and name[0] + name[-1] in {'""', "<>"}:
        name = name[1:-1].strip()
    return name


def _cut(name: str, limit: int) -> str:
    stem, extension = os.path.splitext(name)
    if len(extension.encode()) > min(_LONGEST_EXTENSION, limit - 1):
        stem, extension = name, ""
    room = limit - len(extension.encode())
    return stem.encode()[:room].decode(errors="ignore").rstrip() + extension


def guess_type(filename: object, data: object) -> str:
    """Tell a media type by the file's name, else by the kind of data."""
    guessed = compression = None
    if isinstance(filename, str):
        guessed, compression = mimetypes.guess_type(filename, strict=True)
    if compression:
        return "application/gzip" if compression == "gzip" else "application/octet-stream"
    if guessed:
        return guessed
    if hasattr(data, "as_bytes"):
        return "message/rfc822"
    return "text/plain" if isinstance(data, str) else "application/octet-stream"


def _prepare(attachment: Attachment, limits: Limits, field: str) -> Prepared:
    """Encode an attachment, or take what was encoded before from the same data and type."""
    data = attachment.data
    kept = attachment.prepared
    if kept is not None and kept[0] is data and kept[1] == attachment.content_type:
        return kept[2]
    prepared = _encode(attachment, limits, field)
    if not _may_change(data):
        attachment.prepared = (data, attachment.content_type, prepared)
    return prepared


def _may_change(data: object) -> bool:
    """Tell whether the same object may stand for other octets next time."""
    return isinstance(data, (os.PathLike, bytearray, memoryview)) or hasattr(data, "as_bytes")


def _encode(attachment: Attachment, limits: Limits, field: str) -> Prepared:
    declared = check_content_type(attachment.content_type, field)
    # What a text is encoded as depends on all of it, wherever it comes from.
    in_memory = _LARGEST_TEXT if declared.type == "text" else _SMALL
    octets = _octets(attachment.data, limits.message_size, f"{field}.data", in_memory)
    if declared.type == "message":
        whole = octets if isinstance(octets, bytes) else b"".join(octets.blocks())
        return _encode_message(declared, whole, field)
    if not isinstance(octets, bytes):
        return Prepared(declared, "base64", bodies.Base64Source(octets))
    if declared.type == "text" and len(octets) <= _LARGEST_TEXT:
        guessed = not attachment.has_explicit_type
        return _encode_text(declared, octets, guessed=guessed)
    body: bytes | Stream = bodies.Base64Octets(octets)
    if len(octets) <= _SMALL:
        body = bodies.base64(octets)
    return Prepared(declared, "base64", body)


def _encode_text(declared: MediaType, octets: bytes, *, guessed: bool) -> Prepared:
    """Encode a text file so that every octet of it is kept, its line ends too."""
    if declared.parameter("charset") is None:
        try:
            octets.decode("utf-8")
        except UnicodeDecodeError:
            if guessed:
                declared = MediaType("application", "octet-stream", ())
                return Prepared(declared, "base64", bodies.Base64Octets(octets))
        else:
            declared = declared._replace(parameters=(*declared.parameters, ("charset", "utf-8")))
    unixed = octets.replace(b"\r\n", b"\n")
    specials = len(unixed.translate(None, bodies.PLAIN))
    # Only a file whose lines end as mail's lines do is read back the same from 7bit.
    as_sent = not specials and octets.count(b"\n") == octets.count(b"\r\n")
    if as_sent and bodies.has_short_lines(unixed):
        return Prepared(declared, "7bit", octets)
    if bodies.is_mostly_ascii(octets, specials):
        return Prepared(declared, "quoted-printable", bodies.quoted_printable(octets, text=False))
    return Prepared(declared, "base64", bodies.base64(octets))


def _encode_message(declared: MediaType, octets: bytes, field: str) -> Prepared:
    """Keep a message as it is: message types may not be encoded (RFC 2046, section 5.2.1)."""
    octets = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\0" in octets or not bodies.has_short_lines(octets):
        raise InvalidAttachment(
            f"{field}.data: an attached message holds NUL or lines over 998 octets; attach it as "
            "application/octet-stream"
        )
    octets = octets.replace(b"\n", b"\r\n")
    if declared.subtype == "rfc822":
        header, blank, body = octets.partition(b"\r\n\r\n")
        header, found = without_bcc(header + b"\r\n")
        if found:
            _logger.warning("%s: the attached message had a Bcc field; it was taken out", field)
            octets = header + blank[2:] + body
    return Prepared(declared, "7bit" if octets.isascii() else "8bit", octets)


def _octets(data: object, limit: int, field: str, in_memory: int) -> bytes | bodies.Source:
    """Get the octets of whatever an author gave, or a source of more than ``in_memory`` of them."""
    if isinstance(data, str):
        data = _from_text(str.__str__(data), field)
    elif isinstance(data, os.PathLike):
        path = bodies.PathSource(data, field)
        _check_size(path.size, limit, field)
        return path.read() if path.size <= in_memory else path
    elif callable(getattr(data, "as_bytes", None)):
        data = data.as_bytes()  # type: ignore[attr-defined]
    elif callable(getattr(data, "read", None)):
        return _from_file(t.cast("t.BinaryIO", data), limit, field)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidAttachment(
            f"{field}: must be bytes, str or an open binary file, not {type(data).__name__}"
        )
    _check_size(len(data), limit, field)
    return bytes(data)


def _from_text(text: str, field: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        position = error.start
    raise InvalidAttachment(
        f"{field}: U+{ord(text[position]):04X} at position {position} is half a character"
    )


def _from_file(file: t.BinaryIO, limit: int, field: str) -> bytes | bodies.Source:
    """Read a file object from where it stands; of a large file on disk keep hold instead."""
    try:
        start = file.tell() if file.seekable() else None
    except (AttributeError, OSError, ValueError):
        start = None
    octets = _read(file, _LARGEST_TEXT + 1, field)
    if len(octets) <= _LARGEST_TEXT:
        return octets
    source = _on_disk(file, start, field) if start is not None else None
    if source is not None:
        _check_size(source.size, limit, field)
        return source
    octets += _read(file, limit + 1 - len(octets), field)
    _check_size(len(octets), limit, field)
    return octets


def _read(file: t.BinaryIO, size: int, field: str) -> bytes:
    """Read up to ``size`` octets, however few come at once."""
    blocks: list[bytes] = []
    while size > 0:
        try:
            block: object = file.read(size)
        except (OSError, ValueError) as error:
            raise InvalidAttachment(f"{field}: the file object cannot be read: {error}") from error
        if not isinstance(block, bytes):
            raise InvalidAttachment(
                f'{field}: reading the file gives {type(block).__name__}; open it with mode "rb"'
            )
        if not block:
            break
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)


def _on_disk(file: t.BinaryIO, start: int, field: str) -> bodies.Source | None:
    """Return a source for a regular file that can be read without its file object."""
    if not hasattr(os, "pread"):
        return None
    try:
        descriptor = file.fileno()
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode):
            return None
        return bodies.DescriptorSource(descriptor, start, seen.st_size - start, field)
    except (AttributeError, OSError, ValueError):
        return None


def _check_size(size: int, limit: int, field: str) -> None:
    if size > limit:
        raise MessageTooLarge(f"{field}: {size} octets; a message may have {limit} (limits)")
