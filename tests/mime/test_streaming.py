"""Large attachments are never in memory as a whole, hold up nobody and arrive as they were."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import textwrap
import typing as t

import pytest

from amail import Attachment, Mailer
from amail.mime import compose
from amail.testing import FaultServer
from tests.messages import tokened
from tests.mime.reading import message
from tests.oracle import read

if t.TYPE_CHECKING:
    from pathlib import Path

    from tests.musts import Musts

MIB = 1024 * 1024
SIZE = 25 * MIB

# How far the high-water mark of memory rose while the content was made and read. The mark never
# falls, so that each has a process of its own; ru_maxrss would begin with what pytest has.
_MEASURED = """
import re, sys
from amail import Message
from amail.mime import compose

def peak():
    with open("/proc/self/status") as status:
        return int(re.search("VmHWM:\\s+([0-9]+) kB", status.read())[1]) * 1024

def read(attach):
    message = Message("Hello", ["bob@example.org"], "Hi", sender="ada@example.com")
    attach(message)
    _, content = compose(message)
    read = sum(map(len, content.chunks()))
    assert read == len(content)
    return read

read(lambda message: message.attach("small.bin", data=b"x" * 100_000))
before = peak()
with open(sys.argv[1], "rb") as file:
    {attach}
print(peak() - before, octets)
"""
_ATTACH = {
    "path": "octets = read(lambda message: message.attach_file(sys.argv[1]))",
    "file": "octets = read(lambda message: message.attach('large.bin', data=file))",
    "nothing is streamed": "octets = read(lambda message: message.attach('a', data=file.read()))",
}


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 MiB that repeat nothing."""
    path = tmp_path_factory.mktemp("streaming") / "large.bin"
    with path.open("wb") as file:
        for number in range(25):
            file.write(hashlib.shake_128(bytes([number])).digest(MIB))
    return path


def extra_memory(how: str, path: Path) -> int:
    code = textwrap.dedent(_MEASURED).replace("{attach}", _ATTACH[how])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    memory, octets = map(int, done.stdout.split())
    assert octets > SIZE * 4 // 3
    return memory


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
@pytest.mark.parametrize("how", ["path", "file"])
def test_25_mib_from_a_file_cost_at_most_8_mib(large_file: Path, how: str) -> None:
    assert extra_memory(how, large_file) <= 8 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
def test_the_measure_of_memory_sees_what_is_not_streamed(large_file: Path) -> None:
    assert extra_memory("nothing is streamed", large_file) > 2 * 8 * MIB


@pytest.mark.parametrize("how", ["path", "file"])
async def test_25_mib_arrive_intact_and_hold_up_nobody(
    musts: Musts, large_file: Path, how: str
) -> None:
    async with FaultServer() as server:
        musts.watch(server)
        token = musts.token()
        written = tokened(token)
        async with Mailer(server.url) as mailer:
            with large_file.open("rb") as file:
                if how == "path":
                    written.attach_file(large_file)
                else:
                    written.attach(large_file.name, data=file)
                receipt = await musts.outcome_of(mailer.send(written), token=token)
        assert getattr(receipt, "outcome", None) == "accepted"
        [stored] = server.messages
        with musts.not_counting():
            name, encoded = re.findall(
                rb"Content-Transfer-Encoding: base64\r\n"
                rb'Content-Disposition: attachment; filename="(.*)"\r\n\r\n'
                rb"([A-Za-z0-9+/=\r\n]+)\r\n--",
                stored.content,
            )[0]
            assert name == b"large.bin"
            assert base64.b64decode(encoded) == large_file.read_bytes()
            assert max(map(len, encoded.split(b"\r\n"))) == 76


async def test_the_largest_text_that_is_composed_as_a_whole_holds_up_nobody(
    musts: Musts, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(("Grüße, und mehr vom selben\n".encode() * MIB)[:MIB])
    async with FaultServer() as server:
        musts.watch(server)
        token = musts.token()
        written = tokened(token)
        written.attach_file(path)
        async with Mailer(server.url) as mailer:
            await musts.outcome_of(mailer.send(written), token=token)
        with musts.not_counting():
            [attached] = read(server.messages[0].content).attachments
            assert attached.octets == path.read_bytes()


def test_the_size_is_known_before_anything_is_encoded(tmp_path: Path) -> None:
    path = tmp_path / "gone.bin"
    path.write_bytes(b"x" * MIB)
    octets = b"y" * MIB
    written = message(body="x", attachments=[Attachment("b.bin", data=octets)])
    written.attach_file(path)
    _, content = compose(written)
    octets_read = bytes(content)
    _, content = compose(written)
    path.unlink()  # nobody reads it any more
    assert len(content) == len(octets_read)


def test_an_attachment_of_bytes_is_encoded_once_for_any_number_of_messages() -> None:
    attachment = Attachment("a.bin", data=b"x" * MIB)
    contents = [
        compose(message(subject=str(number), attachments=[attachment]))[1] for number in range(3)
    ]
    blocks = [[chunk for chunk in content.chunks() if len(chunk) > 20_000] for content in contents]
    assert sum(map(len, blocks[0])) > MIB
    for others in blocks[1:]:
        assert all(one is other for one, other in zip(blocks[0], others, strict=True))


def test_a_small_attachment_of_bytes_is_encoded_once_too() -> None:
    attachment = Attachment("a.bin", data=b"x" * 1000)
    compose(message(attachments=[attachment]))
    prepared = attachment.prepared
    assert prepared is not None
    compose(message(attachments=[attachment]))
    assert attachment.prepared is prepared


def test_other_data_is_encoded_anew() -> None:
    attachment = Attachment("a.bin", data=b"x" * 1000)
    first = bytes(compose(message(attachments=[attachment]))[1])
    attachment.data = b"y" * 1000
    second = bytes(compose(message(attachments=[attachment]))[1])
    assert base64.b64encode(b"x" * 57) in first
    assert base64.b64encode(b"y" * 57) in second
    assert base64.b64encode(b"x" * 57) not in second
