"""A charset other than UTF-8 is used for what every reader reads the same in it."""

from __future__ import annotations

import pytest

from amail.mime import compose
from amail.mime.charsets import encoded
from tests.mime.reading import message


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("iso-8859-1", "Grüße"),
        ("windows-1252", "5 €"),
        ("shift_jis", "こんにちは、世界"),
        ("euc-jp", "こんにちは、世界"),
        ("iso-2022-jp", "こんにちは、世界"),
        ("big5", "你好，世界"),
        ("gb2312", "你好，世界"),
        ("euc-kr", "안녕하세요"),
        ("koi8-r", "Привет"),
    ],
)
def test_a_charset_holds_the_text_it_is_for(charset: str, text: str) -> None:
    octets = bytes(compose(message(subject=text, body=text, charset=charset))[1])
    assert f"Subject: =?{charset}?".encode() in octets
    assert f'charset="{charset}"'.encode() in octets
    assert encoded(text, charset) == text.encode(charset)


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("iso-8859-1", "5 €"),
        ("iso-8859-1", "\x85"),
        ("shift_jis", "5〜6"),
        ("euc-jp", "−1"),
        ("iso-2022-jp", "¬"),
        ("iso-2022-jp", "\x1b[0m"),
        ("iso-2022-jp", "\x1b$B!!\x1b(B"),
        ("big5", "こんにちは"),
        ("big5", "Привет"),
        ("big5", "／"),
        ("gb2312", "―・"),
        ("euc-kr", "똠방각하"),
    ],
)
def test_text_that_is_read_in_two_ways_goes_out_in_utf_8(charset: str, text: str) -> None:
    assert encoded(text, charset) is None
    octets = bytes(compose(message(body=text, charset=charset))[1])
    assert b'charset="utf-8"' in octets
    if text.isprintable():
        octets = bytes(compose(message(subject=text, charset=charset))[1])
        assert b"Subject: =?utf-8?" in octets
