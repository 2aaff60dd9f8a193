"""What a FaultServer notes down: commands and the messages it holds. Values only."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass


class Command(t.NamedTuple):
    """A line that a client sent outside a content. Credentials are cut out of it."""

    connection: int
    line: str
    encrypted: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A message that arrived as a whole and was not answered with a 4yz or 5yz.

    Where the reply was scripted away (a FIN after the final dot, say) the message counts as held:
    that is the case in which sending again makes a second copy. ``content`` is without
    dot-stuffing. ``rcpt_options`` holds one string of ESMTP parameters for each forward-path.
    """

    reverse_path: str
    forward_paths: tuple[str, ...]
    content: bytes
    connection: int
    mail_options: tuple[str, ...] = ()
    rcpt_options: tuple[str, ...] = ()
    encrypted: bool = False
    authenticated_as: str | None = None
