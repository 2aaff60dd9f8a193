"""Lists of recipients, letters, and ends for tests of bulk runs."""

from __future__ import annotations

import json
import typing as t
from collections import Counter

from hypothesis import settings

from amail import Mailer, MemoryTransport, NullTransport
from amail.bulk import Letter, run
from tests.messages import ADA
from tests.strategies import EXAMPLES

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from amail import Content, Envelope, Receipt
    from amail.bulk import Report
    from amail.testing import FaultServer
    from amail.transports.base import Transport

SLOW_EXAMPLES = settings(EXAMPLES, max_examples=max(20, EXAMPLES.max_examples // 8))
"""For properties whose examples each write files and wait for the disk; they draw more at once."""

LETTER = Letter("Hello {{ name }}", text="Dear {{ name }}, hello.", sender=ADA)


def address(number: int) -> str:
    return f"reader{number}@example.org"


def write_list(path: Path, count: int) -> Path:
    rows = (f"{address(number)},Reader {number}\n" for number in range(count))
    path.write_text("email,name\n" + "".join(rows))
    return path


def rows(*numbers: int) -> list[dict[str, str]]:
    return [{"email": address(number), "name": f"Reader {number}"} for number in numbers]


async def send_to(
    transport: Transport | str,
    recipients: t.Any,
    journal: Path,
    letter: Letter = LETTER,
    **options: t.Any,
) -> Report:
    async with Mailer(transport) as mailer:
        return await run(mailer, letter, recipients, journal=journal, **options)


def lines_of(journal: Path) -> list[dict[str, t.Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def events_of(journal: Path) -> dict[str, list[str]]:
    """What the journal says of each mailbox, in its order."""
    events: dict[str, list[str]] = {}
    for line in lines_of(journal):
        if "id" in line:
            events.setdefault(line["to"], []).append(line["event"])
    return events


def copies_in(*servers: FaultServer | MemoryTransport) -> Counter[str]:
    """How many messages each mailbox has."""
    copies: Counter[str] = Counter()
    for server in servers:
        for message in server.messages:
            paths = getattr(message, "forward_paths", None)
            copies.update(paths if paths is not None else message.envelope.forward_paths)  # type: ignore[union-attr]
    return copies


class At:
    """A transport that accepts, and calls back with each address before it does."""

    def __init__(self, on_send: Callable[[str], object], concurrency: int = 3) -> None:
        self.concurrency = concurrency
        self.sent: list[str] = []
        self._on_send = on_send
        self._accepting = NullTransport()

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        (to,) = envelope.forward_paths
        self._on_send(to)
        self.sent.append(to)
        return await self._accepting.send(envelope, content)

    async def aclose(self) -> None:
        """Nothing to let go of."""


def addresses(numbers: Iterable[int]) -> set[str]:
    return {address(number) for number in numbers}
