"""A structured field cut into tokens (RFC 5322, section 3.2). What they mean is decided elsewhere.

Invariant: the tokens of a text, joined, are the text. Each character is looked at once.
"""

from __future__ import annotations

import re
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterator

Kind = t.Literal["space", "quoted", "literal", "special", "atom", "comment", "broken"]

_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]++)"
    r'|(?P<quoted>"(?:[^"\\]|\\.)*+")'
    r"|(?P<literal>\[[^\[\]]*+\])"
    r"|(?P<special>[,:;<>])"
    r'|(?P<atom>[^ \t\r\n"\[\](),:;<>]++)',
    re.DOTALL,
)
_IN_COMMENT = re.compile(r"[()]|\\.", re.DOTALL)
_PAIR = re.compile(r"\\(.)", re.DOTALL)


class Token(t.NamedTuple):
    """A token as it stands in the field. A broken one begins something that never ends."""

    kind: Kind
    raw: str

    @property
    def inner(self) -> str:
        """What stands inside quotes or parentheses, without the backslashes of quoted pairs."""
        return _PAIR.sub(r"\1", self.raw[1:-1])


def tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of a field."""
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is not None:
            yield Token(t.cast("Kind", found.lastgroup), found[0])
            position = found.end()
            continue
        end = _end_of_comment(text, position) if text[position] == "(" else None
        if end is None:
            yield Token("broken", text[position:])
            return
        yield Token("comment", text[position:end])
        position = end


def _end_of_comment(text: str, start: int) -> int | None:
    depth = 0
    for found in _IN_COMMENT.finditer(text, start):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth == 0:
            return found.end()
    return None


def without_comments(text: str) -> str:
    """Return a field with a space for each comment."""
    if "(" not in text:
        return text
    return "".join([" " if token.kind == "comment" else token.raw for token in tokens(text)])
