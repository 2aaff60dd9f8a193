"""The ledger in Redis, a real one: what holds of every ledger, and what is its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import typing as t
from concurrent import futures

import pytest

from amail import ConfigError, Mailer, MemoryTransport, NotSent
from amail.queues import handle, key_of
from tests.queues.ledger_facts import *  # noqa: F403 - these are this module's tests too
from tests.queues.ledger_facts import KEY, LEASE, a_job
from tests.servers.programs import free_port, require_module
from tests.servers.redis_server import redis_server
from tests.transports.ends import End

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import redis

    from amail.queues.ledger import Entry
    from tests.queues.ledger_facts import Later, NewLedger
    from tests.servers.redis_server import RedisServer

pytestmark = pytest.mark.brokers

PASSWORD = "pw-in-the-url"


@pytest.fixture(scope="module")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    require_module("redis")
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def client(running_redis: RedisServer) -> Iterator[redis.Redis]:
    import redis

    with redis.Redis.from_url(running_redis.url) as client:
        client.flushall()
        yield client


@pytest.fixture
async def new_ledger(running_redis: RedisServer, client: redis.Redis) -> AsyncIterator[NewLedger]:
    from amail.queues.redis_ledger import RedisLedger

    made = []

    def new(lease: float) -> RedisLedger:
        made.append(RedisLedger(running_redis.url, lease=lease))
        return made[-1]

    yield new
    for ledger in made:
        await ledger.aclose()


@pytest.fixture
def later(client: redis.Redis) -> Later:
    """Have all that Redis knows end so much earlier, which is all that its clock does for us."""

    def go_on(seconds: float) -> None:
        for key in t.cast("list[bytes]", client.keys()):
            left = client.pttl(key) - int(seconds * 1000)
            client.pexpire(key, max(left, 0))

    return go_on


async def test_a_key_ends_by_itself_and_says_nothing_of_the_message(
    new_ledger: NewLedger, client: redis.Redis
) -> None:
    job = a_job()
    await handle(job, Mailer(MemoryTransport()), new_ledger(LEASE))
    [name] = t.cast("list[bytes]", client.keys())
    assert name.decode() == f"amail:ledger:{key_of(job)}"
    value = t.cast("bytes", client.get(name))
    assert json.loads(value)[0] == "sent"
    assert b"bob" not in value
    assert 6 * 86_400_000 < client.pttl(name) <= 7 * 86_400_000


async def test_what_somebody_else_wrote_is_taken_for_under_way(
    new_ledger: NewLedger, client: redis.Redis
) -> None:
    ledger = new_ledger(LEASE)
    for octets in (b"", b"\xff", b"[]", b"{}", b'["done", "1", []]', b'["sent", "1", 5]', b"7"):
        client.set(f"amail:ledger:{KEY}", octets)
        assert (await ledger.begin(KEY, "2")).state == "busy"


async def test_a_begin_whose_answer_was_lost_is_begun_by_asking_again(
    running_redis: RedisServer, client: redis.Redis
) -> None:
    from amail.queues.redis_ledger import RedisLedger

    async with losing_the_first_answer(running_redis.port, to=b"PX") as port:
        ledger = RedisLedger(f"redis://127.0.0.1:{port}/0", lease=LEASE)
        entry = await ledger.begin(KEY, "1")
        await ledger.aclose()
    assert entry.state == "begun"


async def test_a_redis_that_cannot_be_reached_has_nothing_sent() -> None:
    from amail.queues.redis_ledger import RedisLedger

    require_module("redis")
    end = End("end")
    ledger = RedisLedger(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(NotSent, match="ledger cannot be asked") as caught:
        await handle(a_job(), Mailer(end), ledger)
    assert caught.value.retryable
    assert end.tried == []


def test_one_ledger_serves_one_loop_after_another(
    running_redis: RedisServer, client: redis.Redis
) -> None:
    from amail.queues.redis_ledger import RedisLedger

    ledger = RedisLedger(running_redis.url)

    async def begin(token: str) -> str:
        entry = await ledger.begin(KEY, token)
        await ledger.aclose()
        return entry.state

    assert [asyncio.run(begin("1")), asyncio.run(begin("2"))] == ["begun", "busy"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_leaves_the_connections_of_its_parent_alone(
    new_ledger: NewLedger, client: redis.Redis
) -> None:
    ledger = new_ledger(LEASE)
    await ledger.begin(KEY, "1")
    child = os.fork()
    if not child:
        code = 1
        try:
            state = in_a_thread(lambda: asyncio.run(ledger.begin(KEY, "2"))).state
            code = 0 if state == "busy" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    before = t.cast("dict[str, int]", client.info("stats"))["total_connections_received"]
    await ledger.sent(KEY, "1")
    after = t.cast("dict[str, int]", client.info("stats"))["total_connections_received"]
    assert (await ledger.begin(KEY, "3")).state == "sent"
    assert after == before


def test_a_ledger_that_cannot_work_is_a_config_error() -> None:
    require_module("redis")
    from amail.queues.redis_ledger import RedisLedger

    for url in ("", "http://localhost", f"redis://:{PASSWORD}@localhost:{PASSWORD}", None, 5):
        with pytest.raises(ConfigError, match="url") as caught:
            RedisLedger(t.cast("str", url))
        assert PASSWORD not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(ConfigError, match="lease"):
        RedisLedger("redis://localhost", lease=0)
    with pytest.raises(ConfigError, match="kept"):
        RedisLedger("redis://localhost", kept=LEASE - 1)
    assert PASSWORD not in repr(vars(RedisLedger(f"redis://:{PASSWORD}@localhost"))["_url"])


def in_a_thread(work: t.Callable[[], Entry]) -> Entry:
    """Run what needs a thread that has no loop."""
    with futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result(30)


@contextlib.asynccontextmanager
async def losing_the_first_answer(port: int, *, to: bytes) -> AsyncIterator[int]:
    """Stand before a Redis, and close the connection in place of its answer to one command."""
    lost = False

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        behind, into = await asyncio.open_connection("127.0.0.1", port)
        while asked := await reader.read(65536):
            into.write(asked)
            answer = await behind.read(65536)
            if to in asked and not lost:
                lost = True
                break
            writer.write(answer)
        for end in (writer, into):
            end.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    assert lost
