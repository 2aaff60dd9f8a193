"""Parts -> one entity (RFC 2046, section 5.1).

Invariant: the boundary of a multipart stands in none of its parts.
"""

from __future__ import annotations

import hashlib
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from amail.mime.content import Stream


class Entity(t.NamedTuple):
    """A MIME entity: header fields, then pieces of its body, without a final line end."""

    header: str
    body: Sequence[bytes | Stream]
    is_8bit: bool = False


def boundary(message_id: str, number: int) -> str:
    """Return the ``number``-th boundary of a message: who cannot guess its id cannot write it.

    "=_" can occur neither in quoted-printable nor in base64.
    """
    unique = message_id[1 : message_id.find("@")]
    if len(unique) != 32 or not (unique.isascii() and unique.isalnum()):
        # Not an id of ours, and perhaps nothing that may stand in a boundary.
        unique = hashlib.blake2b(message_id.encode(), digest_size=16).hexdigest()
    return f"=_{number}.{unique}"


def multipart_header(subtype: str, boundary: str, root: str | None = None) -> str:
    """Write the Content-Type of a multipart; ``root`` is the type of what related is about."""
    of_type = "" if root is None else f' type="{root}";'
    return f'Content-Type: multipart/{subtype};{of_type}\r\n boundary="{boundary}"\r\n'


def multipart(
    subtype: str,
    parts: Sequence[Entity],
    message_id: str,
    numbers: Iterator[int],
    root: str | None = None,
) -> Entity:
    """Join parts. ``numbers`` are those of the boundaries that the message has not tried yet."""
    name = boundary(message_id, next(numbers))
    while _holds(parts, name.encode()):
        name = boundary(message_id, next(numbers))
    pieces: list[bytes | Stream] = []
    line_end, is_8bit = "", False
    for header, body, part_is_8bit in parts:
        pieces.append(f"{line_end}--{name}\r\n{header}\r\n".encode())
        pieces += body
        line_end = "\r\n"
        is_8bit = is_8bit or part_is_8bit
    pieces.append(f"\r\n--{name}--".encode())
    header = multipart_header(subtype, name, root)
    if is_8bit:
        header += "Content-Transfer-Encoding: 8bit\r\n"
    return Entity(header, pieces, is_8bit)


def _holds(parts: Sequence[Entity], needle: bytes) -> bool:
    """Tell whether octets stand in the parts. Streams, which are base64, need no look."""
    for part in parts:
        for piece in part.body:
            if isinstance(piece, bytes) and needle in piece:
                return True
    return False
