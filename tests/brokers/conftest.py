"""The brokers, once for all tests, and a queue of its own for each."""

from __future__ import annotations

import itertools
import typing as t

import pytest

from tests.brokers.broker import OverRabbitMQ, OverRedis
from tests.servers.programs import require_module
from tests.servers.rabbitmq import rabbitmq
from tests.servers.redis_server import redis_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.brokers.broker import Broker
    from tests.servers.rabbitmq import RabbitMQ
    from tests.servers.redis_server import RedisServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def running_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    require_module("celery")
    with rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(scope="session")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    for name in ("celery", "redis"):
        require_module(name)
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def over_rabbitmq(running_rabbitmq: RabbitMQ) -> Broker:
    return OverRabbitMQ(running_rabbitmq.url, f"mail-{next(_numbers)}")


@pytest.fixture
def over_redis(running_redis: RedisServer) -> Broker:
    return OverRedis(running_redis.url, f"mail-{next(_numbers)}")


@pytest.fixture(params=["rabbitmq", "redis"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn."""
    found: Broker = request.getfixturevalue(f"over_{request.param}")
    return found


@pytest.fixture
def ledger_url(running_redis: RedisServer) -> str:
    """A place for a ledger, with nothing in it."""
    import redis

    url = running_redis.url.replace("/0", "/1")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url
