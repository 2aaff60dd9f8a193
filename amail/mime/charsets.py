"""Which charsets mail is written in, and whether one holds a text so that all read the same.

Invariant: what ``encoded`` returns gives back the text in Python's table of the charset and in the
one that browsers and most mail programs have (the Encoding Standard), which differ here and there.
"""

from __future__ import annotations

import re
import typing as t

_CHARSETS = frozenset(
    (
        "utf-8 us-ascii iso-2022-jp shift_jis euc-jp gb2312 gbk gb18030 big5 euc-kr koi8-r koi8-u "
        + " ".join(f"iso-8859-{part}" for part in range(1, 17) if part != 12)
        + " "
        + " ".join(f"windows-125{page}" for page in range(9))
    ).split()
)
_ALIASES = {"utf8": "utf-8", "ascii": "us-ascii", "latin-1": "iso-8859-1"}
# Tables that have to agree with a charset's own. In Big5 kana and Cyrillic letters moved, in EUC-KR
# Python spells out syllables that have no code, in GB 2312 two dashes are others.
_SIBLINGS: t.Final = {
    "shift_jis": ("cp932",),
    "big5": ("big5hkscs", "cp950"),
    "gb2312": ("gbk",),
    "euc-kr": ("cp949",),
    "iso-8859-1": ("cp1252",),
    "iso-8859-9": ("cp1254",),
    "iso-8859-11": ("cp874",),
}
# The same characters as in Shift JIS, and the same few of them disputed (the wave dash is one).
_JAPANESE = frozenset({"euc-jp", "iso-2022-jp"})
_SHIFTS = re.compile("[\x0e\x0f\x1b]")


def allowed(charset: str) -> str | None:
    """Return the name of a charset that mail is written in, in lower case; None for any other."""
    name = charset.lower()
    name = _ALIASES.get(name, name)
    return name if name in _CHARSETS else None


def encoded(text: str, charset: str) -> bytes | None:
    """Encode text, or return None where the charset cannot hold it or is read in two ways."""
    try:
        raw = text.encode(charset)
        # A charset with shift states can take text and give back another.
        if raw.decode(charset) != text:
            return None
        if charset in _JAPANESE and text.encode("cp932").decode("cp932") != text:
            return None
        if charset == "iso-2022-jp" and _SHIFTS.search(text):
            return None
        for sibling in _SIBLINGS.get(charset, ()):
            if raw.decode(sibling) != text:
                return None
    except UnicodeError:
        return None
    return raw
