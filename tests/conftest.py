"""Fixtures that many tests share."""

from __future__ import annotations

import gc
import os
import typing as t

import pytest

from tests.beside import Program
from tests.judges import node
from tests.loops import LOOPS
from tests.musts import LogWatch, watching
from tests.servers.authority import Authority
from tests.servers.postfix import PUNISHING, postfix_server
from tests.servers.sink import smtp_sink

if t.TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
    from pathlib import Path

    from tests.musts import Musts
    from tests.servers.postfix import PostfixServer
    from tests.servers.sink import SmtpSink


BESIDE = pytest.StashKey[dict[pytest.Item, Program]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "beside(*command): started with the session, see beside.py")
    config.stash[BESIDE] = {}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what runs beside the tests."""
    _keep_out_of_collections()
    if not session.config.option.collectonly:
        for item in session.items:
            if (mark := item.get_closest_marker("beside")) is not None:
                session.config.stash[BESIDE][item] = Program(*mark.args)


def pytest_unconfigure(config: pytest.Config) -> None:
    for program in config.stash[BESIDE].values():
        program.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Set aside after each module what it leaves."""
    ended = yield
    if nextitem is None or nextitem.path != item.path:
        _keep_out_of_collections()
    return ended


def _keep_out_of_collections() -> None:
    """Keep what lives now out of the collections that follow, one after nearly every test.

    Modules, tests and what hypothesis remembers would make each of them ten times as long.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def beside(request: pytest.FixtureRequest) -> Program:
    """The program that its test was marked with, which runs beside the others."""
    return request.config.stash[BESIDE][request.node]


@pytest.fixture(scope="session")
def log_watch() -> Iterator[LogWatch]:
    """Look for canaries in everything that the whole suite logs."""
    with LogWatch() as watch:
        yield watch
    watch.check()


@pytest.fixture(autouse=True)
def logs_keep_secrets(log_watch: LogWatch) -> Iterator[None]:
    """Fail the test during which a canary was logged (N5)."""
    yield
    log_watch.check()


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test in the loop that AMAIL_LOOP names: asyncio (the default), eager, uvloop."""
    # What sets the clock of the loop needs one written in Python.
    needs_asyncio = "clock" in getattr(item, "fixturenames", ())
    name = "asyncio" if needs_asyncio else os.environ.get("AMAIL_LOOP", "asyncio")
    return {name: LOOPS[name]}


@pytest.fixture
async def musts(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Musts]:
    """Check after the test what no send may ever do: see tests/musts.py."""
    async with watching(caplog) as musts:
        yield musts


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the certificates of the tests' servers."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def server_tls(authority: Authority) -> ssl.SSLContext:
    """What a server at 127.0.0.1 or localhost needs for TLS."""
    return authority.server_context("127.0.0.1", "localhost")


@pytest.fixture
def client_tls(authority: Authority) -> ssl.SSLContext:
    """What a client needs for TLS with such a server."""
    return authority.client_context()


@pytest.fixture(scope="session")
def running_postfix() -> Iterator[PostfixServer]:
    """One Postfix for all tests that need it, with a port for each way it punishes its clients."""
    with postfix_server(PUNISHING) as server:
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
