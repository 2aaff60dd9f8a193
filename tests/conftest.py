"""Fixtures that many tests share."""

from __future__ import annotations

import typing as t

import pytest

from tests.servers.postfix import postfix_server

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.postfix import PostfixServer


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
