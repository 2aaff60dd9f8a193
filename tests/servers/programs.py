"""Programs that are not Python: found or skipped, given a free port, and awaited."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import time
import typing as t

import pytest

if t.TYPE_CHECKING:
    from collections.abc import Callable

_SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def require(*programs: str, install: str = "apt-get install postfix sasl2-bin") -> list[str]:
    """Where these programs are. Skips the test without them; in CI that is an error."""
    paths = [shutil.which(program, path=_SYSTEM_PATH) for program in programs]
    missing = [program for program, path in zip(programs, paths, strict=True) if not path]
    if missing:
        give_up(f"{', '.join(missing)} not installed (Debian: {install})")
    return [path for path in paths if path]


def give_up(reason: str) -> t.NoReturn:
    """Skip the test, or fail it where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI nothing is skipped")
    pytest.skip(reason)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def wait_until(
    condition: Callable[[], bool], what: str, *, seconds: float = 20, every: float = 0.01
) -> None:
    """Poll another process, which has no other way to tell us."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(every)


def speaks_smtp(port: int) -> bool:
    """Whether a server greets on that loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            greeted = connection.recv(3) == b"220"
            connection.sendall(b"QUIT\r\n")
            while connection.recv(1000):
                pass
    except OSError:
        return False
    return greeted


def require_module(name: str) -> None:
    """Skip the test where a package is not installed; in CI that is an error."""
    if importlib.util.find_spec(name) is None:
        give_up(f"{name} is not installed (pip install -e '.[ci]')")
