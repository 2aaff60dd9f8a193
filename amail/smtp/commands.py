"""The one writer of transaction commands (RFC 5321, section 4.1.1). Pure.

Invariant: one call writes exactly one line. What goes into it is an Envelope's, which holds nothing
that could end a path or a line.
"""

from __future__ import annotations

import typing as t

from amail.envelope import DSN

if t.TYPE_CHECKING:
    from amail.envelope import Envelope
    from amail.mime import Content
    from amail.smtp.extensions import Extensions

RSET = b"RSET\r\n"
DATA = b"DATA\r\n"
DOT = b".\r\n"
QUIT = b"QUIT\r\n"


def mail(envelope: Envelope, content: Content, extensions: Extensions) -> bytes:
    """Write MAIL, with the parameters that the content needs and the server offers."""
    options = ""
    if extensions.size_offered:
        options = f" SIZE={len(content)}"
    if content.needs_8bit and extensions.eightbitmime:
        options += " BODY=8BITMIME"
    if content.needs_utf8:
        options += " SMTPUTF8"
    if envelope.mail_options:
        options = " ".join([options, *_offered(envelope.mail_options, extensions)])
    return f"MAIL FROM:<{envelope.reverse_path}>{options}\r\n".encode()


def rcpts(envelope: Envelope, extensions: Extensions) -> list[bytes]:
    """Write RCPT for each forward-path."""
    options = " ".join(["", *_offered(envelope.rcpt_options, extensions)])
    return [f"RCPT TO:<{path}>{options}\r\n".encode() for path in envelope.forward_paths]


def bdat(size: int) -> bytes:
    """Write BDAT for content that is one chunk of so many octets (RFC 3030, section 2)."""
    return b"BDAT %d LAST\r\n" % size


def left_out(envelope: Envelope, extensions: Extensions) -> list[str]:
    """List the keywords of the parameters that are not written because DSN is not offered."""
    options = (*envelope.mail_options, *envelope.rcpt_options)
    if not options or extensions.dsn:
        return []
    return [keyword for keyword in map(_keyword, options) if keyword in DSN]


def _offered(options: tuple[str, ...], extensions: Extensions) -> tuple[str, ...]:
    """Leave out what a server without DSN would refuse the message for (RFC 3461, section 4)."""
    if not options or extensions.dsn:
        return options
    return tuple([option for option in options if _keyword(option) not in DSN])


def _keyword(option: str) -> str:
    return option.partition("=")[0].upper()
