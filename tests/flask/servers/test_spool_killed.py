"""Every server is killed in the middle of 200 messages that wait in a folder, and started again.

No message that a page has promised is lost, and none has a second copy. Those that may have been
sent when the process died are listed as unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import typing as t
from collections import Counter

import pytest

from amail.queues.folder import FolderQueue
from amail.testing import Delay, FaultServer
from tests.flask.servers.app import QUEUED
from tests.flask.servers.test_servers import (
    MAX_CONNECTIONS,
    SERVERS,
    Running,
    require_modules,
    running,
)

if t.TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.servers

MESSAGES = 200
SENT_BEFORE = 60
WITHOUT_EXTENSION = {"quart-hypercorn"}


def ids(mail: FaultServer) -> Counter[str]:
    """How often each message was taken by the mail server."""
    found = [re.search(rb"(?m)^Message-ID: (.*?)\r$", each.content) for each in mail.messages]
    return Counter(match[1].decode() for match in found if match)


async def promised(at: Running) -> list[str]:
    """Have messages queued, and return which the page says are; none where it says nothing."""
    with contextlib.suppress(OSError):
        async with at.asked("/queue") as reader:
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        with contextlib.suppress(ValueError):
            return [str(each) for each in json.loads(body)] if b" 200 " in head[:20] else []
    return []


async def nothing_waits(queue: FolderQueue) -> None:
    while any(found.state in {"waiting", "claimed"} for found in queue.jobs()):
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", [name for name in SERVERS if name not in WITHOUT_EXTENSION])
async def test_a_server_that_is_killed_loses_no_message_and_makes_no_second_copy(
    name: str, tmp_path: Path
) -> None:
    server = SERVERS[name]
    require_modules(server)
    folder = tmp_path / "spool"
    config = {"MAIL_QUEUE": f"folder://{folder}"}
    async with FaultServer(final=Delay(0.02)) as mail:
        async with running(server.command, mail, **config) as at:
            asking = [asyncio.create_task(promised(at)) for _ in range(MESSAGES // QUEUED)]
            await mail.until(lambda: len(mail.messages) >= SENT_BEFORE)
            await at.kill()
            queued = [each for some in await asyncio.gather(*asking) for each in some]
        queue = FolderQueue(folder)
        left = [found for found in queue.jobs() if found.state in {"waiting", "claimed"}]
        assert left, "it was not in the middle of them"

        async with running(server.command, mail, **config) as at:
            queued += await promised(at)
            await asyncio.wait_for(nothing_waits(queue), 40)
        sent = ids(mail)
        unknown = {found.job()["id"] for found in queue.jobs() if found.state == "unknown"}
        assert not [each for each in queued if not sent[each] and each not in unknown]
        assert max(sent.values()) == 1
        assert len(unknown) <= MAX_CONNECTIONS * server.processes
    assert len(queued) >= 2 * QUEUED
