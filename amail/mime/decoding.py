"""Octets -> text, by the charset a message names. Which charsets those are is decided here.

Invariant: text that comes out of here is what the octets say; nothing is replaced or left out.
"""

from __future__ import annotations

import re
from encodings.aliases import aliases

# By the names of Python's codecs. No name from outside ever reaches the codec registry.
_CODECS = frozenset(
    (
        "utf_8 utf_16 utf_16_le utf_16_be ascii latin_1 "
        "koi8_r koi8_u koi8_t mac_roman mac_cyrillic "
        "gb2312 gbk gb18030 hz big5 big5hkscs cp950 euc_jp shift_jis cp932 euc_kr cp949 johab "
        "iso2022_jp iso2022_jp_1 iso2022_jp_2 iso2022_jp_3 iso2022_jp_ext iso2022_kr tis_620 "
        "cp437 cp850 cp852 cp855 cp866 cp874 "
        + " ".join(f"iso8859_{part}" for part in range(2, 17) if part != 12)
        + " "
        + " ".join(f"cp125{page}" for page in range(9))
    ).split()
)
# Two tables for one name: writers mean the larger set, as the Encoding Standard has it. Composing
# writes nothing that the two read differently.
_FIRST = {"latin_1": "cp1252", "iso8859_9": "cp1254", "iso8859_11": "cp874"}
_SECOND = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "cp950",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
}
_SIGNS = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME = 40


def decode(octets: bytes, charset: str | None) -> str | None:
    """Decode octets, or return None where the charset is not known or does not fit.

    Without a charset, or with us-ascii, octets over 127 are taken for UTF-8 and else for
    windows-1252, which is what writers use who name none.
    """
    codec = _codec(charset)
    if codec is None:
        return None
    if codec == "ascii":
        return guess(octets)
    for one in (_FIRST.get(codec), codec, _SECOND.get(codec)):
        text = _decoded(octets, one) if one else None
        if text is not None:
            return text
    return None


def guess(octets: bytes) -> str:
    """Decode octets whose charset nobody named."""
    for codec in ("utf_8", "cp1252"):
        text = _decoded(octets, codec)
        if text is not None:
            return text
    return octets.decode("latin_1")


def _codec(charset: str | None) -> str | None:
    if not charset:
        return "ascii"
    if len(charset) > _LONGEST_NAME or not charset.isascii():
        return None
    name = _SIGNS.sub("_", charset.lower()).strip("_")
    name = aliases.get(name, name)
    return name if name in _CODECS else None


def _decoded(octets: bytes, codec: str) -> str | None:
    try:
        return octets.decode(codec)
    except UnicodeError:
        return None
