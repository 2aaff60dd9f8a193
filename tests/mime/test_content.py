"""Content is sized, immutable and readable any number of times."""

from __future__ import annotations

import tracemalloc
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.mime import Content, Stream, bodies, compose
from tests.mime.reading import message

if t.TYPE_CHECKING:
    from pathlib import Path


class Letters:
    """A stream made of one letter."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def chunks(self) -> t.Iterator[bytes]:
        for _ in range(self._size):
            yield b"x"


@given(st.lists(st.one_of(st.binary(max_size=20), st.integers(0, 5)), max_size=6))
def test_the_size_is_known_before_and_every_reading_gives_the_same(
    parts: list[bytes | int],
) -> None:
    content = Content(
        [part if isinstance(part, bytes) else Letters(part) for part in parts], message_id="<a@b>"
    )
    octets = b"".join(content.chunks())
    assert octets == bytes(content) == b"".join(content.chunks())
    assert len(octets) == len(content)
    assert octets.endswith(b"\r\n")
    given_octets = b"".join([part if isinstance(part, bytes) else b"x" * part for part in parts])
    assert octets in (given_octets, given_octets + b"\r\n")
    chunks = list(content.chunks())
    assert b"" not in chunks
    streamed = [part for part in parts if isinstance(part, int)]
    assert any(streamed) or chunks == [octets]


def test_small_content_is_one_chunk_and_large_content_many() -> None:
    assert len(list(Content([b"a", b"b" * 60_000], message_id="<a@b>").chunks())) == 1
    chunks = list(Content([b"b" * 200_000], message_id="<a@b>").chunks())
    assert max(map(len, chunks)) <= 65536
    assert len(list(compose(message(body="x", html="y"))[1].chunks())) == 1


def test_content_cannot_be_changed() -> None:
    content = Content([b"x"], message_id="<a@b>")
    with pytest.raises(AttributeError, match="immutable"):
        content.message_id = "<c@d>"
    with pytest.raises(AttributeError, match="immutable"):
        del content.needs_utf8


def test_content_says_what_it_needs_and_shows_nothing_of_itself() -> None:
    content = Content([b"Subject: secret"], message_id="<a@b>", needs_utf8=True, needs_8bit=True)
    assert (content.message_id, content.needs_utf8, content.needs_8bit) == ("<a@b>", True, True)
    assert repr(content) == "<Content <a@b> 17 octets>"
    assert isinstance(Letters(1), Stream)


@given(st.integers(0, 300_000))
def test_the_size_of_base64_is_known_by_formula(size: int) -> None:
    assert len(bodies.base64(bytes(size))) == bodies.base64_size(size)


def test_a_file_on_disk_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(25 * 1024 * 1024)
    written = message(body="x")
    written.attach_file(path)
    tracemalloc.start()
    try:
        _, content = compose(written)
        assert sum(map(len, content.chunks())) == len(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024
