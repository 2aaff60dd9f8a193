"""Attachments: names, types, data of every kind, and what is kept of them (rows B67 to B81)."""

from __future__ import annotations

import copy
import email.message
import io
import logging
import os
import pickle
import tempfile
import time
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import FileStorage

from amail.errors import InvalidAttachment, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.message import Attachment, Message
from amail.mime import compose
from tests import oracle
from tests.mime.reading import judged, message, read
from tests.strategies import EXAMPLES

if t.TYPE_CHECKING:
    from pathlib import Path


def attached(*arguments: t.Any, **named: t.Any) -> oracle.Leaf:
    """Attach this, compose, judge, and return the attachment as read."""
    written = message(body="x")
    written.attachments.append(Attachment(*arguments, **named))
    [leaf] = judged(written).attachments
    return leaf


@pytest.mark.parametrize(
    ("given_name", "sent_name"),
    [
        ("a\r\nBcc: x@y.org.txt", "a__Bcc: x@y.org.txt"),  # B67
        ("a\0\x0b\x7f\x85.txt", "a____.txt"),
        ("=?utf-8?q?a=0D=0ABcc:_x?=.txt", "=?utf-8?q?a=0D=0ABcc:_x?=.txt"),
        ('a"b;c=d.txt', 'a"b;c=d.txt'),  # B68
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\x.txt", "x.txt"),
        ("dir/", "dir"),
        ("..", "_"),
        ("exe\u202egpj.scr", "exe_gpj.scr"),
        (" a.txt ", "a.txt"),
        ('"quoted.txt"', "quoted.txt"),
        ('<"é.txt">', "é.txt"),
        ("", None),
        ("/", None),
        ("  ", None),
        (".htaccess", ".htaccess"),
        ("CON.txt", "CON.txt"),
        ("party 🎉.pdf", "party 🎉.pdf"),
        ("a\ud800;filename\udc00=evil.exe", "a_;filename_=evil.exe"),  # F54
        ("a\tb", "a_b"),  # F53
        ("ends with \\", "ends with"),
        ("une pièce jointe.pdf", "une pièce jointe.pdf"),  # F51
        ("Ɣ------" * 7, "Ɣ------" * 7),  # F52
        ("ü" + "x" * 80 + "ü.txt", "ü" + "x" * 80 + "ü.txt"),
        ("n" * 300 + ".pdf", "n" * 196 + ".pdf"),
        ("日" * 300 + ".pdf", "日" * 65 + ".pdf"),
        ("e." + "x" * 300, ("e." + "x" * 300)[:200]),
    ],
)
def test_b67_to_b74_a_file_name_becomes_a_name_and_nothing_else(
    given_name: str, sent_name: str | None
) -> None:
    assert attached(given_name, "image/png", b"x").filename == sent_name


def test_b74_ascii_names_are_plain_and_all_others_rfc_2231_alone() -> None:
    plain, other = (
        message(attachments=[Attachment(name, "image/png", b"x")]).as_bytes()
        for name in ("a b.png", "é.png")
    )
    assert b'filename="a b.png"' in plain
    assert b"filename*" not in plain
    assert b"filename*=utf-8''%C3%A9.png" in other
    assert b"filename=" not in other


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("éa  ü.png", "ea u.png"),
        ("файл.png", ".png"),
        ("日", "attachment"),
        ("\uff3c", "attachment"),  # a fullwidth backslash
        ("..\uff0f..\uff0fetc\uff0fpasswd", "passwd"),
    ],
)
def test_file_names_are_written_in_ascii_where_that_is_wanted(name: str, expected: str) -> None:
    written = message(attachments=[Attachment(name, "image/png", b"x")])
    assert judged(written, ascii_attachments=True).attachments[0].filename == expected


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/html\r\nX: y", "text", "a/b/c", "", "té/xt", "x" * 1024, "text/plain;", "a/b; c"),
        *("a/b; c=d\r\ne", "a/b; c=1; C=2", "multipart/mixed", 'a/b; c="d', "a/b;c=\u00e9", b"a/b"),
    ],
)
def test_b75_what_is_no_media_type_is_refused(content_type: t.Any) -> None:
    with pytest.raises(InvalidAttachment, match="content_type"):
        Attachment("a", content_type, b"x")
    kept = Attachment("a", "image/png", b"x")
    kept.content_type = content_type
    with pytest.raises(InvalidAttachment, match=r"attachments\[0\]\.content_type"):
        compose(message(attachments=[kept]))


def test_b75_parameters_of_a_media_type_are_written_safely() -> None:
    written = message()
    written.attach("a.ics", 'text/calendar; METHOD=request; x="a;\\"b"; w="=?utf-8?q?y?="', "x")
    content = written.as_bytes()
    assert b'Content-Type: text/calendar; method="request"; x="a;\\"b"' in content
    assert b"w*=utf-8''%3D%3Futf-8%3Fq%3Fy%3F%3D" in content


@pytest.mark.parametrize("name", ["p" * 61, "p" * 5000, "a\r\nb", "a*", "a*0*", "a b", "ä", ""])
def test_b76_a_parameter_name_no_reader_takes_is_refused_at_once(name: str) -> None:
    begun = time.thread_time()
    with pytest.raises(InvalidAttachment):
        Attachment("a", f"image/png; {name}=x", b"x")
    assert time.thread_time() - begun < 0.1


@pytest.mark.parametrize(
    "content_id", ["a\r\nX: y@z", "a b@z", "no-domain", "=?a?q?b?=@z", "<a@b", "<a@b> <c@d>", "é@x"]
)
def test_b77_what_is_no_content_id_is_refused(content_id: str) -> None:
    with pytest.raises(InvalidAttachment):
        compose(
            message(attachments=[Attachment(None, None, b"x", None, {"Content-ID": content_id})])
        )


def test_b77_a_content_id_given_twice_is_refused() -> None:
    same = [Attachment(None, None, b"x", "inline", {"Content-ID": "<a@b>"}) for _ in range(2)]
    with pytest.raises(InvalidAttachment, match=r"attachments\[1\]"):
        compose(message(attachments=same))


@pytest.mark.parametrize("disposition", ["form-data", "attachment\r\nX: y", "inline; x=y", 7])
def test_b81_a_disposition_is_attachment_or_inline(disposition: t.Any) -> None:
    with pytest.raises(InvalidAttachment, match="disposition"):
        Attachment("a", None, b"x", disposition)
    assert attached("a", None, b"x", "INLINE").disposition == "inline"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "a/b"},
        {"content-disposition": "inline"},
        {"X-A": "a\r\nb"},
        {"X A": "b"},
        {"X-A": "1", "x-a": "2"},
        {"X-A": b"x"},
        7,
    ],
)
def test_headers_of_an_attachment_are_checked(headers: t.Any) -> None:
    with pytest.raises(InvalidAttachment, match="headers"):
        Attachment("a", None, b"x", None, headers)


@pytest.mark.timeout(10)
def test_very_many_headers_of_an_attachment_are_checked_at_once() -> None:
    headers = {f"X-{number}": "x" for number in range(100_000)}
    assert Attachment("a", None, b"x", None, headers).headers == headers
    with pytest.raises(InvalidAttachment, match="X-7 is given twice"):
        Attachment("a", None, b"x", None, {"x-7": "y", **headers})


def test_headers_of_an_attachment_are_written() -> None:
    written = message(attachments=[Attachment("a", None, b"x", None, {"X-A": "é", "X-B": ""})])
    assert b"\r\nX-A: =?utf-8?" in written.as_bytes()
    assert b"X-B" not in written.as_bytes()


@pytest.mark.parametrize(
    ("filename", "data", "expected"),
    [
        ("a.pdf", b"%PDF", "application/pdf"),
        ("a.unheard-of", b"x", "application/octet-stream"),
        ("README", b"x", "application/octet-stream"),
        (None, b"x", "application/octet-stream"),
        (None, "x", "text/plain"),
        ("a.tar.gz", b"x", "application/gzip"),
        ("a.txt", "é".encode(), "text/plain"),
        ("a.txt", b"\xe9", "application/octet-stream"),
    ],
)
def test_f49_f50_a_type_is_guessed_from_the_name(
    filename: str | None, data: t.Any, expected: str
) -> None:
    leaf = attached(filename, data=data)
    assert leaf.content_type == expected
    assert leaf.octets == (data if isinstance(data, bytes) else data.encode())


def test_f50_an_explicit_type_wins_however_wrong() -> None:
    assert attached("a.pdf", "text/plain", b"\xe9\xff").octets == b"\xe9\xff"
    assert attached("a.pdf", "text/plain", b"\xe9\xff").content_type == "text/plain"


@pytest.mark.parametrize(
    "text", ["a\nb\n", "a\r\nb\r\n", "a\rb", "no end", "\n.\n", "x" * 2000, "ü\n", ""]
)
def test_a_text_file_keeps_every_octet(text: str) -> None:
    for data in (text, text.encode()):
        assert attached("a.csv", None, data).octets == text.encode()


def test_plain_ascii_text_is_never_base64() -> None:
    written = message(attachments=[Attachment("a.txt", None, "plain\nlines\n" * 500)])
    assert b"base64" not in written.as_bytes()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 56, 57, 58, 114, 58367, 58368, 58369, 150_001])
def test_f45_octets_of_any_size_arrive_without_a_blank_line(size: int) -> None:
    data = os.urandom(size)
    written = message(attachments=[Attachment("a.bin", None, data)])
    content = written.as_bytes()
    assert judged(written).attachments[0].octets == data
    assert b"\r\n\r\n--" not in content.partition(b"octet-stream")[2] or size == 0


@EXAMPLES
@given(st.binary(max_size=400), st.sampled_from(["a.txt", "a.bin", "a.ics"]), st.booleans())
def test_any_octets_arrive_as_they_are(data: bytes, filename: str, explicit: bool) -> None:
    assert attached(filename, "text/plain" if explicit else None, data).octets == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_b78_octets_may_be_held_in_any_buffer(kind: t.Callable[[bytes], t.Any]) -> None:
    assert attached("a", data=kind(b"xyz")).octets == b"xyz"


def test_b78_no_data_at_all_is_refused() -> None:
    for data in (None, 7, ["x"], object()):
        with pytest.raises(InvalidAttachment, match="data"):
            compose(message(attachments=[Attachment("a", data=t.cast("t.Any", data))]))


def test_b78_a_file_object_is_read_once_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        file.seek(5)
        written = message(attachments=[Attachment("a.bin", data=file)])
        first = written.as_bytes()
    assert judged(written).attachments[0].octets == b"56789"
    assert written.as_bytes() == first


class Trickle(io.RawIOBase):
    """A file that cannot seek and gives little at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece, self._data = self._data[: min(size, 7)], self._data[min(size, 7) :]
        return piece


def test_b78_a_file_object_that_cannot_seek_is_read() -> None:
    assert attached("a", data=Trickle(b"x" * 100)).octets == b"x" * 100


@pytest.mark.parametrize("size", [1000, 3 * 1024 * 1024])
def test_b78_a_spooled_file_is_read_where_it_is(size: int) -> None:
    data = os.urandom(size)
    with tempfile.SpooledTemporaryFile(max_size=5000) as file:
        file.write(data)
        file.seek(0)
        assert attached("a", data=t.cast("t.BinaryIO", file)).octets == data


def test_b78_text_mode_closed_files_and_async_files_are_refused() -> None:
    class AsyncFile:
        async def read(self, size: int) -> bytes:
            raise NotImplementedError

    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(InvalidAttachment, match='mode "rb"'):
        compose(message(attachments=[Attachment("a", data=t.cast("t.Any", io.StringIO("x")))]))
    with pytest.raises(InvalidAttachment, match="cannot be read"):
        compose(message(attachments=[Attachment("a", data=closed)]))
    with (
        pytest.warns(RuntimeWarning, match="never awaited"),
        pytest.raises(InvalidAttachment, match="coroutine"),
    ):
        compose(message(attachments=[Attachment("a", data=t.cast("t.Any", AsyncFile()))]))


def test_b78_a_large_open_file_is_streamed_and_its_owner_may_close_it(tmp_path: Path) -> None:
    data = os.urandom(2 * 1024 * 1024 + 5)
    path = tmp_path / "a.bin"
    path.write_bytes(b"skip" + data)
    descriptors = set(os.listdir("/proc/self/fd"))
    with path.open("rb") as file:
        file.seek(4)
        written = message(attachments=[Attachment("a.bin", data=file)])
        _, content = compose(written)
    assert max(map(len, content.chunks())) < 100_000
    assert judged(written).attachments[0].octets == data
    del written, content
    assert set(os.listdir("/proc/self/fd")) == descriptors


def test_b78_a_large_open_file_that_shrinks_fails_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(2 * 1024 * 1024))
    with path.open("r+b") as file:
        _, content = compose(message(attachments=[Attachment("a.bin", data=file)]))
        file.truncate(1024 * 1024)
    with pytest.raises(InvalidAttachment, match="changed"):
        bytes(content)


@pytest.mark.parametrize("size", [0, 10, 60_000, 200_000])
def test_a_file_is_attached_by_its_path_under_its_own_name(tmp_path: Path, size: int) -> None:
    path = tmp_path / "année.bin"
    path.write_bytes(os.urandom(size))
    for given_path in (path, str(path)):
        written = message(body="x")
        written.attach_file(given_path)
        [leaf] = judged(written).attachments
        assert (leaf.filename, leaf.octets) == ("année.bin", path.read_bytes())


def test_a_str_is_content_and_a_path_only_in_attach_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("from the disk")
    assert attached("a.txt", data=str(path)).octets == str(path).encode()
    with pytest.raises(InvalidAttachment, match="attach_file"):
        message().attach_file(b"content")


def test_b78_only_regular_files_are_attached_by_path(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / "missing", tmp_path, fifo, loop, "/dev/zero", "nul\0byte"):
        written = message()
        written.attach_file(path)
        with pytest.raises(InvalidAttachment, match=r"attachments\[0\]"):
            compose(written)


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite", "remove", "fifo"])
def test_a_file_that_changes_while_it_waits_fails_while_it_is_read(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(200_000))
    written = message()
    written.attach_file(path)
    _, content = compose(written)
    size = len(content)
    assert size == len(bytes(content))
    match change:
        case "grow":
            path.write_bytes(bytes(200_001))
        case "shrink":
            os.truncate(path, 100)
        case "rewrite":
            path.write_bytes(b"x" * 200_000)
            os.utime(path, ns=(0, 0))
        case "remove":
            path.unlink()
        case "fifo":
            path.unlink()
            os.mkfifo(path)
    read_before: list[bytes] = []
    with pytest.raises(InvalidAttachment):
        read_before.extend(content.chunks())
    # It is seen before the first octet of the file, not behind the last one.
    assert len(read_before) == 1
    assert len(content) == size


def test_an_upload_is_attached_as_it_describes_itself() -> None:
    written = message(body="x")
    written.attach_file(
        FileStorage(io.BytesIO(b"x,y"), "../r\xe9port.csv", content_type="text/csv")
    )
    written.attach_file(FileStorage(io.BytesIO(b"x,y"), ""))
    named, unnamed = judged(written).attachments
    assert (named.filename, named.content_type, named.octets) == ("réport.csv", "text/csv", b"x,y")
    assert (unnamed.filename, unnamed.octets) == (None, b"x,y")


def test_b79_attachments_are_capped() -> None:
    many = [Attachment("a", data=b"x")] * 101
    with pytest.raises(InvalidAttachment, match="100 are allowed"):
        compose(message(attachments=many))


def test_b78_b89_more_octets_than_a_message_may_have_are_refused_before_they_are_read(
    tmp_path: Path,
) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += min(size, 65536)
            return bytes(min(size, 65536))

    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(10**12)
    endless = Endless()
    limits = Limits(message_size=5_000_000)
    for data in (endless, sparse, bytes(5_000_001)):
        with pytest.raises(MessageTooLarge):
            compose(
                message(attachments=[Attachment("a", data=t.cast("t.Any", data))]), limits=limits
            )
    assert endless.given <= 5_000_001
    # Each fits, both together do not.
    with pytest.raises(MessageTooLarge):
        compose(message(attachments=[Attachment("a", data=bytes(2_500_000))] * 2), limits=limits)


def test_octets_are_encoded_once_for_any_number_of_messages() -> None:
    shared = Attachment("a.bin", data=os.urandom(300_000))
    first, second = (compose(message(attachments=[shared]))[1] for _ in range(2))
    blocks = {id(chunk) for chunk in first.chunks()}
    assert len(blocks.intersection(id(chunk) for chunk in second.chunks())) >= 5


def test_data_that_is_replaced_is_encoded_anew() -> None:
    kept = Attachment("a.bin", data=b"one")
    written = message(attachments=[kept])
    assert judged(written).attachments[0].octets == b"one"
    kept.data = b"two"
    assert judged(written).attachments[0].octets == b"two"
    kept.data = buffer = bytearray(b"three")
    assert judged(written).attachments[0].octets == b"three"
    buffer[:] = b"THREE"
    assert judged(written).attachments[0].octets == b"THREE"


def test_an_attachment_can_be_copied_and_pickled() -> None:
    kept = Attachment("a.bin", data=b"x")
    judged(message(attachments=[kept]))
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert judged(message(attachments=[other])).attachments[0].octets == b"x"


def forwarded(data: t.Any, **options: t.Any) -> tuple[bytes, oracle.Leaf]:
    written = message(body="see below")
    written.attach("m.eml", "message/rfc822", data, **options)
    [leaf] = judged(written).attachments
    return written.as_bytes(), leaf


def test_f46_f47_an_attached_message_is_never_encoded() -> None:
    inner = email.message.EmailMessage()
    inner["Subject"] = "Inner"
    inner.set_content("inner text\n")
    for data in (inner, inner.as_bytes(), inner.as_string(), message(subject="Inner")):
        content, leaf = forwarded(data)
        assert leaf.content_type == "message/rfc822"
        assert b"Subject: Inner\r\n" in content
        assert b"Content-Transfer-Encoding: 7bit\r\nContent-Disposition: attachment" in content
    assert Attachment(data=t.cast("t.Any", inner)).content_type == "message/rfc822"


def test_f48_an_attached_message_in_8bit_stays_so_and_the_content_says_it() -> None:
    inner = "Subject: x\nContent-Type: text/plain; charset=utf-8\n\nGrüße\n".encode()
    written = message(body="see below")
    written.attach("m.eml", "message/rfc822", inner)
    _, content = compose(written)
    assert content.needs_8bit
    assert not content.needs_utf8
    assert bytes(content).count(b"Content-Transfer-Encoding: 8bit") == 2
    assert "Grüße".encode() in bytes(content)


def test_b99_the_bcc_of_an_attached_message_is_taken_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = (
        b"To: a@x.org\r\nBCC: secret@x.org,\r\n other@x.org\r\nSubject: x\r\n\r\n"
        b"Bcc: in the body\r\n"
    )
    with caplog.at_level(logging.WARNING, "amail"):
        content, _ = forwarded(inner)
    assert b"secret" not in content
    assert b"other@x.org" not in content
    assert b"\r\n\r\nBcc: in the body\r\n" in content
    assert "Bcc" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("inner", [b"Subject: x\n\n\0", b"Subject: x\n\n" + b"x" * 999])
def test_an_attached_message_that_cannot_be_carried_is_refused(inner: bytes) -> None:
    with pytest.raises(InvalidAttachment, match="octet-stream"):
        forwarded(inner)


def test_an_image_is_told_by_its_first_octets() -> None:
    for data, expected in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "application/octet-stream"),
    ):
        written = message(html="x")
        written.embed(data)
        assert judged(written).leaves[1].content_type == expected


def test_an_image_may_be_embedded_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "logo.png"
    path.write_bytes(b"\x89PNG")
    written = message(html="x")
    written.embed(path)
    image = judged(written).leaves[1]
    assert (image.filename, image.content_type, image.octets) == (
        "logo.png",
        "image/png",
        b"\x89PNG",
    )


def test_a_repr_says_nothing_of_name_or_content() -> None:
    assert repr(Attachment("secret.txt", None, "secret")) == "<Attachment 'text/plain' from str>"


def test_an_attachment_that_is_none_is_refused() -> None:
    written = message()
    written.attachments.append(t.cast("t.Any", "a.pdf"))
    with pytest.raises(MessageError, match=r"attachments\[0\]"):
        compose(written)
    assert isinstance(read(body="x"), oracle.Reading)
    assert isinstance(written, Message)
