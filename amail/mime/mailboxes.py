"""Address lists -> Addresses (RFC 5322, section 3.4).

Invariant: a mailbox is never cut in two, nor two made one. A list is cut into tokens first, names
are decoded last, and what is no mailbox for certain raises InvalidAddress.
"""

from __future__ import annotations

import typing as t

from amail.address import Address
from amail.errors import InvalidAddress
from amail.mime.tokens import tokens
from amail.mime.words import decode_words

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from amail.mime.tokens import Token


def read_mailboxes(text: str, field: str) -> list[Address]:
    """Read an address list. Raises InvalidAddress, and InvalidHeader as Address does.

    An empty group ("undisclosed-recipients:;") is nobody. A group of people is refused: its name
    would be lost.
    """
    return [_mailbox(entry, field) for entry in _entries(text, field) if _has_words(entry)]


def _entries(text: str, field: str) -> Iterator[list[Token]]:
    """Cut an address list at its commas."""
    entry: list[Token] = []
    in_group = in_angles = False
    for token in tokens(text):
        if token.kind == "broken":
            raise InvalidAddress(f"{field}: a quote, bracket or comment in it never ends")
        if token.kind != "special" or (in_angles and token.raw != ">"):
            entry.append(token)
            continue
        if token.raw in "<>":
            if in_angles == (token.raw == "<"):
                raise InvalidAddress(f"{field}: < and > do not stand in pairs")
            in_angles = not in_angles
            entry.append(token)
            continue
        if in_group and _has_words(entry):
            raise InvalidAddress(f"{field}: a group of people cannot be kept; write them singly")
        if token.raw == ",":
            yield entry
        elif (token.raw == ":") == in_group or (token.raw == ":" and not _has_words(entry)):
            raise InvalidAddress(f"{field}: {token.raw} stands where no group begins or ends")
        else:
            in_group = not in_group
        entry = []
    if in_group or in_angles:
        raise InvalidAddress(f"{field}: a group or an address in it never ends")
    yield entry


def _has_words(entry: Iterable[Token]) -> bool:
    return any(token.kind not in {"space", "comment"} for token in entry)


def _mailbox(entry: list[Token], field: str) -> Address:
    raws = [token.raw for token in entry]
    if "<" in raws:
        start, end = raws.index("<"), raws.index(">")
        if _has_words(entry[end + 1 :]):
            raise InvalidAddress(f"{field}: something stands behind the > of an address")
        name, spec = _phrase(entry[:start]), "".join(raws[start + 1 : end])
        if not spec.strip(" \t"):
            raise InvalidAddress(f"{field}: there is no address between < and >")
        unquoted = "".join(token.raw for token in entry[:start] if token.kind == "atom")
        if "@" in unquoted and name.casefold() != spec.strip().casefold():
            raise InvalidAddress(f"{field}: another address stands unquoted in front of <address>")
    else:
        name, spec = "", "".join(token.raw for token in entry if token.kind != "comment")
    if not name:
        # Where the name stood before RFC 822 was twenty years old.
        comments = [token.inner for token in entry if token.kind == "comment"]
        name = decode_words(comments[0]) if len(comments) == 1 else ""
    return Address.of((name, spec), field=field)


def _phrase(entry: list[Token]) -> str:
    """Return a display name. Encoded-words are none inside quotes (RFC 2047, section 5)."""
    pieces: list[str] = []
    run = ""
    for token in entry:
        if token.kind == "quoted":
            pieces += [decode_words(run), token.inner]
            run = ""
        else:
            run += " " if token.kind == "space" else token.raw
    pieces.append(decode_words(run))
    # Blanks between the words are none of the name; those a quote or an encoded-word holds are.
    return "".join(pieces).strip(" ")
