"""Fixtures that many tests share."""

from __future__ import annotations

import gc
import typing as t

import pytest

from tests.judges import node
from tests.musts import watching
from tests.servers.postfix import postfix_server
from tests.servers.sink import smtp_sink

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.musts import Musts
    from tests.servers.postfix import PostfixServer
    from tests.servers.sink import SmtpSink


def pytest_collection_finish() -> None:
    """Keep modules and tests out of the collections that follow, one after nearly every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def musts(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Musts]:
    """Check after the test what no send may ever do: see tests/musts.py."""
    async with watching(caplog) as musts:
        yield musts


@pytest.fixture(scope="session")
def running_postfix() -> Iterator[PostfixServer]:
    """One Postfix for all tests that need it."""
    with postfix_server() as server:
        yield server


@pytest.fixture
def postfix(running_postfix: PostfixServer) -> PostfixServer:
    """Postfix, with nothing stored yet."""
    running_postfix.clear()
    return running_postfix


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SmtpSink]:
    """Postfix's smtp-sink."""
    with smtp_sink(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def node_judges() -> Iterator[Callable[[bytes], node.Answer]]:
    """Ask mailparser and postal-mime what they read in the octets of a message."""
    with node.node_judges() as ask:
        yield ask
