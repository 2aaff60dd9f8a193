"""Transfer encodings: 7bit, quoted-printable and base64 (RFC 2045, section 6).

Invariant: what is encoded here holds lines of at most 998 octets ending in CRLF (of at most 76
where it is quoted-printable or base64), no NUL, and decodes to exactly the text or octets given.
An encoded body has no line break of its own at its end unless the text has one there.
"""

from __future__ import annotations

import binascii
import os
import re
import stat
import struct
import typing as t
import weakref

from amail.errors import InvalidAttachment, MessageError
from amail.mime.charsets import encoded
from amail.text import place

if t.TYPE_CHECKING:
    from collections.abc import Iterator

TransferEncoding = t.Literal["7bit", "8bit", "quoted-printable", "base64"]

_LONGEST_LINE = 998
_LONGEST_ENCODED = 76
PLAIN = b"\t\n" + bytes(range(0x20, 0x7F))
_BLOCK = 57 * 512  # octets that make 512 whole lines of base64
# A run of lines is encoded, cut and joined while it lies in the cache. Longer runs are slower: to
# join a line takes 80 octets more than the line.
_RUN = 57 * 64
_LINES = struct.Struct("76s" * 64)
# In front of a line feed binascii takes one octet too many into a line, or two for a blank.
_TOO_LONG = re.compile(rb"^(?:(.{74,75})(=20|=09)|(.{75})(.=))$", re.MULTILINE)
_KEEP_ENCODED = 16 * 1024 * 1024


class EncodedText(t.NamedTuple):
    """Text as it stands in a part."""

    charset: str
    encoding: TransferEncoding
    octets: bytes


def encode_text(text: str, charset: str, field: str) -> EncodedText:
    """Encode text in ``charset``, or in UTF-8 where that cannot hold it. Line ends become CRLF.

    Raises MessageError for a surrogate, which no charset can hold.
    """
    if charset == "utf-8" and (plain := seven_bit(text)) is not None:
        return EncodedText(charset, "7bit", plain)
    return encode_carefully(text, charset, field)


def seven_bit(text: str) -> bytes | None:
    """Return printable ASCII of short lines as it stands in a 7bit part, or None for other text.

    Its lines end in line feeds; a carriage return is for the careful path.
    """
    if not text.isascii():
        return None
    raw = text.encode("ascii")
    if raw.translate(None, PLAIN) or not has_short_lines(raw):
        return None
    return raw.replace(b"\n", b"\r\n")


def encode_carefully(text: str, charset: str, field: str) -> EncodedText:
    """Encode any text: see ``encode_text``, which takes a glance first."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    charset, raw = _to_octets(text, charset, field)
    specials = len(raw.translate(None, PLAIN))
    if not specials and has_short_lines(raw):
        return EncodedText(charset, "7bit", raw.replace(b"\n", b"\r\n"))
    if is_mostly_ascii(raw, specials):
        return EncodedText(charset, "quoted-printable", quoted_printable(raw, text=True))
    return EncodedText(charset, "base64", base64(raw.replace(b"\n", b"\r\n")))


def _to_octets(text: str, charset: str, field: str) -> tuple[str, bytes]:
    if charset != "utf-8" and (raw := encoded(text, charset)) is not None:
        return charset, raw
    position = None
    try:
        return "utf-8", text.encode("utf-8")
    except UnicodeEncodeError as error:
        position = error.start
    # Raised out here, so that the text does not hang on the exception as its context.
    raise MessageError(f"{field}: {place(text, position)} is half a character (a surrogate)")


def has_short_lines(raw: bytes) -> bool:
    """Tell whether every line has at most 998 octets."""
    start = 0
    while len(raw) - start > _LONGEST_LINE:
        # From a line's start to the last line end that is near enough: no line between is long.
        start = raw.rfind(b"\n", start, start + _LONGEST_LINE + 1) + 1
        if start == 0:
            return False
    return True


def is_mostly_ascii(raw: bytes, specials: int) -> bool:
    """Tell whether quoted-printable is the shorter encoding, or the readable one for ASCII."""
    return specials * 6 <= len(raw) or raw.isascii()


def quoted_printable(raw: bytes, *, text: bool) -> bytes:
    """Encode as quoted-printable. With ``text`` the line feeds in ``raw`` are line ends."""
    encoded = binascii.b2a_qp(raw, istext=text)
    # binascii ends lines as the data does.
    encoded = encoded.replace(b"\r\n", b"\n")
    if max(map(len, encoded.split(b"\n"))) > _LONGEST_ENCODED:
        encoded = _TOO_LONG.sub(rb"\1\3=\n\2\4", encoded)
    return encoded.replace(b"\n", b"\r\n")


def base64(raw: bytes) -> bytes:
    """Encode as base64 in lines of 76, without a line end behind the last one."""
    return b"".join(_base64_blocks(raw))


def base64_size(size: int) -> int:
    """How many octets ``size`` octets are in base64, line ends between lines included."""
    characters = (size + 2) // 3 * 4
    return characters + 2 * (max(characters - 1, 0) // 76)


def _base64_blocks(raw: bytes) -> Iterator[bytes]:
    view = memoryview(raw)
    for start in range(0, len(raw), _BLOCK):
        yield _base64_block(view[start : start + _BLOCK], first=start == 0)


def _base64_block(block: bytes | memoryview, *, first: bool) -> bytes:
    whole = len(block) - len(block) % _RUN
    runs: list[bytes] = [] if first else [b""]
    for start in range(0, whole, _RUN):
        encoded = binascii.b2a_base64(block[start : start + _RUN], newline=False)
        runs.append(b"\r\n".join(_LINES.unpack(encoded)))
    if whole < len(block):
        encoded = binascii.b2a_base64(block[whole:], newline=False)
        runs.append(b"\r\n".join([encoded[at : at + 76] for at in range(0, len(encoded), 76)]))
    return b"\r\n".join(runs)


class Base64Octets:
    """A stream of octets held in memory. They are encoded when first read, and that is kept."""

    __slots__ = ("_encoded", "_raw", "_size")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._size = base64_size(len(raw))
        self._encoded: list[bytes] | None = None

    def __len__(self) -> int:
        return self._size

    def chunks(self) -> Iterator[bytes]:
        """Yield the encoded octets block by block."""
        if self._encoded is not None:
            yield from self._encoded
            return
        keep = len(self._raw) <= _KEEP_ENCODED
        encoded = []
        for block in _base64_blocks(self._raw):
            if keep:
                encoded.append(block)
            yield block
        if keep:
            self._encoded = encoded


class Source(t.Protocol):
    """Octets outside memory, of a size that was seen when the message was composed."""

    size: int

    def blocks(self) -> Iterator[bytes]:
        """Yield ``size`` octets in blocks of whole lines (the last may be shorter)."""
        ...


class Base64Source:
    """A stream that reads a source and encodes it, one block in memory at a time."""

    __slots__ = ("_source",)

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return base64_size(self._source.size)

    def chunks(self) -> Iterator[bytes]:
        """Yield the encoded octets block by block. Raises InvalidAttachment as the source does."""
        first = True
        for block in self._source.blocks():
            yield _base64_block(block, first=first)
            first = False


class PathSource:
    """A regular file that is opened each time it is read.

    Raises InvalidAttachment for what is no regular file or cannot be looked at.
    """

    def __init__(self, path: str | os.PathLike[str], field: str) -> None:
        self._path = os.fspath(path)
        self._field = field
        try:
            seen = os.stat(self._path)
        except (OSError, ValueError) as error:
            raise _unreadable(field, error) from error
        if not stat.S_ISREG(seen.st_mode):
            raise InvalidAttachment(f"{field}: only a regular file can be attached by its path")
        self.size = seen.st_size
        self._seen = _fingerprint(seen)

    def read(self) -> bytes:
        """Return the whole file."""
        return b"".join(self.blocks())

    def blocks(self) -> Iterator[bytes]:
        """Yield the file. Raises InvalidAttachment if it is not what was seen before."""
        try:
            # Not to wait for a writer, should a FIFO have taken the file's place.
            descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise _unreadable(self._field, error) from error
        with open(descriptor, "rb", buffering=0) as file:
            if _fingerprint(os.fstat(descriptor)) != self._seen:
                raise _changed(self._field)
            yield from _exactly(self.size, file.read, self._field)
            if _fingerprint(os.fstat(descriptor)) != self._seen:
                raise _changed(self._field)


class DescriptorSource:
    """An open regular file, read from ``start`` through a descriptor of its own.

    The file's own position is neither used nor moved, and its owner may close it.
    """

    def __init__(self, descriptor: int, start: int, size: int, field: str) -> None:
        self.size = size
        self._descriptor = os.dup(descriptor)
        self._start = start
        self._field = field
        weakref.finalize(self, os.close, self._descriptor)

    def blocks(self) -> Iterator[bytes]:
        """Yield the file from its start. Raises InvalidAttachment if it became shorter."""
        position = self._start

        def read(size: int) -> bytes:
            nonlocal position
            octets = os.pread(self._descriptor, size, position)
            position += len(octets)
            return octets

        yield from _exactly(self.size, read, self._field)


def _exactly(size: int, read: t.Callable[[int], bytes], field: str) -> Iterator[bytes]:
    """Read ``size`` octets in whole blocks, or raise InvalidAttachment."""
    left = size
    while left:
        block = b""
        wanted = min(left, _BLOCK)
        while len(block) < wanted:
            try:
                more = read(wanted - len(block))
            except OSError as error:
                raise _unreadable(field, error) from error
            if not more:
                raise _changed(field)
            block += more
        left -= wanted
        yield block


def _fingerprint(seen: os.stat_result) -> tuple[int, ...]:
    return seen.st_mode, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


def _changed(field: str) -> InvalidAttachment:
    return InvalidAttachment(f"{field}: the file has changed since the message was composed")


def _unreadable(field: str, error: Exception) -> InvalidAttachment:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return InvalidAttachment(f"{field}: the file cannot be read: {reason}")
