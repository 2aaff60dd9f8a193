"""The message that all send: text and html, about 1.25 KB, made anew for its own recipient.

With ``size`` it has that many octets attached, the same ones each time, as one writes it down: a
new Attachment over the same bytes object.
"""

from __future__ import annotations

import functools
import io
import random
import typing as t
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from pathlib import Path

from amail import Attachment, Message
from benchmarks.install import package

SENDER = "Ada <ada@example.com>"
TEXT = "Dear reader,\n\n" + "this is a line of the newsletter, of an ordinary length.\n" * 8
HTML = "<html><body><p>Dear reader,</p>" + "<p>this is a <b>line</b> of html.</p>" * 16 + "</body>"
NAME, TYPE = "a.bin", "application/octet-stream"


@functools.cache
def octets(size: int) -> bytes:
    """Return what is attached: base64 has no easy time with it, and it is the same in each run."""
    return random.Random(size).randbytes(size)


def octets_of(path: str) -> bytes:
    return Path(path).read_bytes()


def subject(number: int) -> str:
    return f"News {number}"


def recipients(number: int, count: int = 1) -> list[str]:
    """Return whom a message goes to: of several recipients each has an address of their own."""
    if count == 1:
        return [f"Reader {number} <reader{number}@example.org>"]
    return [f"Reader {number} <reader{number}.{each}@example.org>" for each in range(count)]


def amail_message(
    number: int, size: int = 0, count: int = 1, *, html: str | None = HTML
) -> Message:
    message = Message(subject(number), recipients(number, count), TEXT, html, sender=SENDER)
    if size:
        message.attachments.append(Attachment(NAME, TYPE, octets(size)))
    return message


def email_message(
    number: int, size: int = 0, count: int = 1, *, html: str | None = HTML
) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["Subject"] = subject(number)
    message["From"] = SENDER
    message["To"] = ", ".join(recipients(number, count))
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain="example.com")
    message.set_content(TEXT)
    if html is not None:
        message.add_alternative(html, subtype="html")
    if size:
        message.add_attachment(octets(size), *TYPE.split("/"), filename=NAME)
    return message


def flask_mail_message(
    number: int, size: int = 0, count: int = 1, *, html: str | None = HTML
) -> t.Any:
    to = recipients(number, count)
    message = package("flask_mail").Message(subject(number), to, TEXT, html, sender=SENDER)
    if size:
        message.attach(NAME, TYPE, octets(size))
    return message


def flask_mailman_message(
    number: int, size: int = 0, count: int = 1, *, connection: t.Any = None
) -> t.Any:
    message = package("flask_mailman").EmailMultiAlternatives(
        subject(number), TEXT, SENDER, recipients(number, count), connection=connection
    )
    message.attach_alternative(HTML, "text/html")
    if size:
        message.attach(NAME, octets(size), TYPE)
    return message


def fastapi_mail_message(number: int, size: int = 0, count: int = 1) -> t.Any:
    fastapi_mail, starlette = package("fastapi_mail"), package("starlette.datastructures")
    files = []
    if size:
        headers = starlette.Headers({"content-type": TYPE})
        files = [starlette.UploadFile(io.BytesIO(octets(size)), filename=NAME, headers=headers)]
    return fastapi_mail.MessageSchema(
        subject=subject(number),
        recipients=recipients(number, count),
        body=TEXT,
        alternative_body=HTML,
        subtype=fastapi_mail.MessageType.plain,
        multipart_subtype=fastapi_mail.MultipartSubtypeEnum.alternative,
        attachments=files,
    )
