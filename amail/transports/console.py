"""ConsoleTransport: prints what it is given. For development."""

from __future__ import annotations

import asyncio
import sys
import typing as t

from amail.errors import NotSent
from amail.receipt import Receipt, Reply
from amail.text import printable

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail.envelope import Envelope
    from amail.mime import Content

_SHOWN = 256 * 1024
_LINE = 1000
_RULE = "-" * 72


class ConsoleTransport:
    """Prints envelope and content to ``stream``, standard output at the time if None.

    Control characters are escaped, so that no content has a say in the terminal; of content over
    256 KiB the rest is only counted.
    """

    def __init__(self, stream: t.TextIO | None = None) -> None:
        self._stream = stream

    def __repr__(self) -> str:
        return "<ConsoleTransport>"

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Print the message; see Transport. Raises NotSent where the stream cannot be written."""
        # In a thread: attachments are read from files, and a terminal may be held up.
        text = await asyncio.to_thread(_shown, envelope, content)
        try:
            await asyncio.to_thread(self._write, text)
        except (OSError, ValueError) as error:
            raise NotSent(
                f"console: cannot be written: {error}",
                message_id=content.message_id,
                recipients=envelope.forward_paths,
                relay="console",
            ) from error
        return Receipt(
            message_id=content.message_id,
            envelope=envelope,
            reply=Reply(250, "2.0.0", "printed"),
            accepted=envelope.forward_paths,
            relay="console",
        )

    async def aclose(self) -> None:
        """Do nothing: the stream is not ours."""

    def _write(self, text: str) -> None:
        stream = sys.stdout if self._stream is None else self._stream
        encoding = stream.encoding or "utf-8"
        # At once, so that messages do not get into one another.
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def _shown(envelope: Envelope, content: Content) -> str:
    lines = [
        _RULE,
        f"{printable(content.message_id)}, {len(content)} octets",
        f"MAIL FROM:<{printable(envelope.reverse_path)}>",
        *(f"RCPT TO:<{printable(path)}>" for path in envelope.forward_paths),
        *envelope.mail_options,
        *envelope.rcpt_options,
        "",
        *_lines(content),
        _RULE,
        "",
    ]
    return "\n".join(lines)


def _lines(content: Content) -> Iterator[str]:
    octets = b""
    for chunk in content.chunks():
        octets += chunk
        if len(octets) > _SHOWN:
            break
    beyond = len(content) - _SHOWN
    text = octets[:_SHOWN].decode("utf-8", "backslashreplace").removesuffix("\r\n")
    for line in text.split("\r\n"):
        yield printable(line, _LINE)
    if beyond > 0:
        yield f"... and {beyond} octets more"
