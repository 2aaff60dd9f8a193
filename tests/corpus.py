"""Two hundred messages, always the same: what people write, and what breaks parsers.

Each message takes the next structure, name, file name, charset, text and subject. The lists have
lengths without a common divisor, so that each item of one meets those of the others.
"""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass, field
from itertools import combinations

from amail import Message

SIZE = 200

ADA = "ada@example.com"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 3
ATTACHED_MESSAGE = (
    b"From: eve@example.net\r\nTo: ada@example.com\r\nSubject: inner\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n.a dot\r\n\r\nlast\r\n"
)
EVENT = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nMETHOD:REQUEST\r\nSUMMARY:Fête\r\nEND:VCALENDAR\r\n"

NAMES = (
    "",
    "Ada",
    "Müller, Jörg",
    'Ada "the first" \\ Byron',
    "A very long name, with a comma and then more of it until no line can hold it any longer",
    "李雷",
    "مرحبا بالعالم",
    "👩\u200d👩\u200d👧 family",
    "=?utf-8?q?x=0D=0ABcc:_y?=",
    "ceo@bank.example",
    "O'Hara (home)",
    "é" * 80,
    "Dr. A. <b>; c: d",
)
FILE_NAMES = (
    "report.pdf",
    "a b.txt",
    'q"uo"te.pdf',
    "semi;colon=.pdf",
    "报告.pdf",
    "ü" * 60 + ".txt",
    "👩\u200d👩\u200d👧.png",
    "100%.txt",
    "it's.txt",
    "=?utf-8?q?x?=.txt",
    "مرحبا.doc",
    "no extension",
    "résumé (1).docx",
    "日本語のとても長いファイル名" * 3 + ".zip",
    ",comma,.csv",
    "utf-8''x%20y.bin",
)
CHARSETS = (
    None,
    "iso-8859-1",
    "windows-1252",
    "koi8-r",
    "iso-2022-jp",
    "shift_jis",
    "gb18030",
    "big5",
    "euc-kr",
)
TEXTS = (
    "Hello\n",
    "Grüße aus Köln, für 5 €\nund zurück",
    "Καλημέρα κόσμε\n\nΤέλος\n",  # noqa: RUF001 - this is Greek
    "Съешь ещё этих мягких французских булок " * 21,
    "שלום עולם \u200f مرحبا\n",
    "नमस्ते दुनिया\nสวัสดีชาวโลก\n",
    "你好，世界！\n" * 40,
    "こんにちは、世界。\n5〜6\u22127 ¥¢\n" * 3,
    "안녕하세요 세계\n",
    "👩\u200d👩\u200d👧 e\u0301 \U0001f1e9\U0001f1ea\n",
    "one line of " * 200 + "\n",
    "é" * 1500,
    ".\n..\n.a\n\n.\n" * 3,
    "From here\n>From there\nSubject: none\nBcc: eve@example.net\n--=_0123\n--\n",
    "trailing  \n\ttabs\t\n\n\n  inner\n \nend",
    "CRLF\r\nand CR\rand LF\n\x0cform feed\x0b\x1b[0m\n",
    "=3D=\n=?utf-8?q?x?= a=b=\n=\n" + "=" * 200 + "\n",
)
SUBJECTS = (
    "Hello",
    "A subject that is so long that it has to be folded, and then once more, for it will not end",
    "x" * 300,
    "é" * 100,
    "你好，世界！" * 20,
    "👩\u200d👩\u200d👧" * 20,
    "  two in front, two  inside and two behind  ",
    "=?utf-8?q?a=0D=0AX-Injected:_yes?=",
    "=? and ?= alone",
    'quotes " and \\ backslashes',
    "مرحبا \u202eabc\u202c שלום",
    "e\u0301 " * 40,
    "Re: [list] a, b; c: d",
    "",
    "a é b é " * 20,
    "ÿ ¤ ½",
    "안녕하세요",
    "Съешь ещё этих мягких французских булок",
    "x@y.example <z@y.example>, w@y.example",
)


@dataclass
class Written:
    """A message and what everybody has to read in it."""

    message: Message
    subject: str
    sender: tuple[str, str]
    to: list[tuple[str, str]]
    cc: list[tuple[str, str]]
    text: str | None = None
    html: str | None = None
    files: list[tuple[str, bytes]] = field(default_factory=list)

    def attach(self, filename: str, octets: bytes, content_type: str | None = None) -> None:
        self.message.attach(filename, content_type, octets)
        self.files.append((filename, octets))

    def embed(self, filename: str) -> None:
        content_id = self.message.embed(PNG, filename, "image/png")
        # embed() draws it; here it has to be the same each time.
        self.message.attachments[-1].headers["Content-ID"] = f"<{len(self.files)}@inline>"
        assert content_id
        self.files.append((filename, PNG))


def _text(written: Written, text: str, filename: str) -> None:
    written.text = text


def _html(written: Written, text: str, filename: str) -> None:
    written.html = f"<p>{text}</p>"


def _file(written: Written, text: str, filename: str) -> None:
    written.attach(filename, PNG)


def _text_file(written: Written, text: str, filename: str) -> None:
    written.attach(filename, text.encode(), "text/plain")


def _large_file(written: Written, text: str, filename: str) -> None:
    written.attach(filename, PNG * 130, "application/octet-stream")


def _image(written: Written, text: str, filename: str) -> None:
    written.embed(filename)


def _message(written: Written, text: str, filename: str) -> None:
    written.attach("inner.eml", ATTACHED_MESSAGE, "message/rfc822")


def _calendar(written: Written, text: str, filename: str) -> None:
    written.message.alts["calendar; method=REQUEST"] = EVENT


STRUCTURES: tuple[tuple[t.Callable[[Written, str, str], None], ...], ...] = (
    (_text,),
    (_html,),
    (_text, _html),
    (_text, _file),
    (_html, _large_file),
    (_text, _html, _text_file),
    (_html, _image),
    (_text, _html, _image, _file),
    (_text, _html, _calendar),
    (_file, _message),
    (_text, _text_file, _large_file),
)

_LISTS = (STRUCTURES, NAMES, FILE_NAMES, CHARSETS, TEXTS, SUBJECTS)
assert all(math.gcd(len(one), len(other)) == 1 for one, other in combinations(_LISTS, 2))


def written(number: int) -> Written:
    """Write the message of that number."""

    def pick(choices: tuple[t.Any, ...], skip: int = 0) -> t.Any:
        return choices[(number + skip) % len(choices)]

    sender = pick(NAMES), ADA
    to = [(pick(NAMES, 1), "bob@example.org"), (pick(NAMES, 2), "x@xn--mnchen-3ya.de")]
    cc = [(pick(NAMES, 3), "o'hara+tag@sub.example.org")]
    message = Message(
        pick(SUBJECTS),
        list(to),
        sender=sender,
        cc=list(cc),
        bcc="hidden@example.net",
        charset=pick(CHARSETS),
        date=1_700_000_000 + number,
        message_id=f"<corpus-{number}@example.com>",
        references=[f"<{n}.{'x' * 40}@example.com>" for n in range(number % 5)],
        extra_headers={"List-Unsubscribe": f"<https://example.com/{'u' * (number % 7) * 30}>"},
    )
    done = Written(message, pick(SUBJECTS), sender, to, cc)
    for add in pick(STRUCTURES):
        add(done, pick(TEXTS), pick(FILE_NAMES))
    message.body, message.html = done.text, done.html
    return done


def corpus() -> list[Written]:
    """Write them all."""
    return [written(number) for number in range(SIZE)]
