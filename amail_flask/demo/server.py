"""The demo's SMTP server, aiosmtpd in a process of its own.

Run as ``python -m amail_flask.demo.server``: prints its port; for each line on standard input it
prints what it received, as JSON; ends with its standard input.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import sys
import typing as t

from aiosmtpd.smtp import SMTP, Envelope, Session

REFUSED = "nobody@example.org"
HOST = "127.0.0.1"


class Handler:
    """Keeps every message, and knows one recipient that does not exist."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.recipients: list[list[str]] = []
        self.sessions = 0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take every recipient but one."""
        if address == REFUSED:
            return "550 5.1.1 nobody lives here"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Keep a message."""
        self.messages.append(envelope.original_content or b"")
        self.recipients.append(list(envelope.rcpt_tos))
        return f"250 2.0.0 ok, queued as D{len(self.messages):05}"

    def report(self) -> dict[str, t.Any]:
        """Read back what was received, with the standard library's parser."""
        return {
            "sessions": self.sessions,
            "messages": [
                _described(content, to)
                for content, to in zip(self.messages, self.recipients, strict=True)
            ],
        }


def _described(content: bytes, recipients: list[str]) -> dict[str, t.Any]:
    message = email.message_from_bytes(content, policy=email.policy.default)
    parts = [part for part in message.walk() if not part.is_multipart()]
    return {
        "message_id": str(message["Message-ID"]),
        "subject": str(message["Subject"]),
        "to": recipients,
        "octets": len(content),
        "parts": [part.get_content_type() for part in parts],
        "files": [part.get_filename() for part in parts if part.get_filename()],
    }


async def serve() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    handler = Handler()

    def protocol() -> SMTP:
        handler.sessions += 1
        return SMTP(handler, loop=loop, hostname="demo.amail.test", enable_SMTPUTF8=True)

    listener = await loop.create_server(protocol, HOST, 0)
    _say(listener.sockets[0].getsockname()[1])
    while await loop.run_in_executor(None, sys.stdin.readline):
        _say(handler.report())
    listener.close()


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve())
