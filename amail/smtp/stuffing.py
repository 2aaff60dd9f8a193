"""Dot-stuffing (RFC 5321, section 4.5.2). Pure."""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def dot_stuffed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Double the dot at the beginning of each line, wherever the chunks were cut."""
    before = b"\r\n"
    for chunk in chunks:
        joined = before + chunk
        if b"\r\n." in joined:
            yield joined.replace(b"\r\n.", b"\r\n..")[len(before) :]
        else:
            yield chunk
        before = joined[-2:]
