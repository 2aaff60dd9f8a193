"""What a server said it can do, from its last EHLO reply (RFC 5321, section 4.1.1.1)."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

if t.TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Extensions:
    """The service extensions that matter to a transaction.

    ``size`` is the largest content in octets that the server takes (RFC 1870); None if it names
    no limit, and ``size_offered`` says whether MAIL may carry SIZE at all. ``offered`` holds all
    keywords, in capitals, with their parameters.
    """

    pipelining: bool = False
    chunking: bool = False
    smtputf8: bool = False
    eightbitmime: bool = False
    size_offered: bool = False
    size: int | None = None
    dsn: bool = False
    offered: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_ehlo(cls, keywords: Mapping[str, str]) -> Extensions:
        """Read lower-case EHLO keywords and their parameters."""
        size = keywords.get("size", "").strip()
        limit = int(size) if size.isascii() and size.isdigit() and len(size) <= 20 else 0
        return cls(
            pipelining="pipelining" in keywords,
            chunking="chunking" in keywords,
            smtputf8="smtputf8" in keywords,
            eightbitmime="8bitmime" in keywords,
            size_offered="size" in keywords,
            size=limit or None,  # "SIZE 0" and a bare "SIZE" mean: no fixed limit
            dsn="dsn" in keywords,
            offered={name.upper(): value.strip() for name, value in keywords.items()},
        )
