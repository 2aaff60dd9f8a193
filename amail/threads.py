"""Threads of the operating system, and which of them runs a loop, also where gevent has patched.

After ``gevent.monkey.patch_all()`` a ``threading.Thread`` is a greenlet, and what blocks in one
holds up all others of its thread. What gevent replaced it keeps, and that is used here. Nothing
imports gevent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import sys
import threading
import typing as t

from amail.errors import UsageError

if t.TYPE_CHECKING:
    from collections.abc import Callable

T = t.TypeVar("T")


def loop_is_running() -> bool:
    """Tell whether this thread runs an event loop, which must not be blocked.

    Under gevent it is this greenlet that counts. asyncio knows threads only, and takes a loop in
    any greenlet for the loop of them all.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    here = threading.get_ident()
    return bool(getattr(loop, "_thread_id", here) == here)


def check_may_block(call: str) -> None:
    """Raise UsageError where a call would block a running loop, and say what to write."""
    if loop_is_running():
        raise UsageError(
            f"{call} would block the running event loop: write await asyncio.to_thread({call})"
        )


def threads_are_greenlets() -> bool:
    """Tell whether gevent has patched threading."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def original(module: str, name: str) -> t.Any:
    """Return what a module has under that name, or had before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(importlib.import_module(module), name)
    return monkey.get_original(module, name)


def start_daemon(
    function: Callable[[], object], name: str, ended: Callable[[], object] | None = None
) -> None:
    """Call a function in a thread that does not hold the exit of the process.

    Under gevent it is no greenlet, has no name, and must not take a lock that greenlets take: it
    must not even log. What users write is called by ``start_for_users``.

    ``ended`` is called there when nothing is left to do: who hears of it may let the interpreter
    end, in the middle of whatever the thread still did. Raises RuntimeError where no thread can be
    started any more.
    """

    def run() -> None:
        try:
            function()
        finally:
            if threads_are_greenlets():
                # What waits in this thread makes it a hub, which nobody else would destroy.
                sys.modules["gevent"].get_hub().destroy(destroy_loop=True)
            if ended is not None:
                ended()

    if threads_are_greenlets():
        original("_thread", "start_new_thread")(run, ())
    else:
        threading.Thread(target=run, name=name, daemon=True).start()


def start_for_users(
    function: Callable[[], object], name: str, ended: Callable[[], object] | None = None
) -> None:
    """Call what a user has written in a thread, from the running loop. As ``start_daemon``.

    From the background loop of a process that gevent has patched it is called in a greenlet, where
    users expect to be.
    """
    spawn = getattr(asyncio.get_running_loop(), "spawn_greenlet", None)
    if spawn is None:
        start_daemon(function, name, ended)
        return

    def run() -> None:
        try:
            function()
        finally:
            if ended is not None:
                ended()

    spawn(run)


async def in_users_thread(function: Callable[[], object], name: str) -> None:
    """Call what a user has written as ``start_for_users`` does, and wait until it has returned.

    In the background loop it would hold up every session; not in the loop's executor either, whose
    few threads resolve names.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def ended() -> None:
        loop.call_soon_threadsafe(done.set_result, None)

    try:
        start_for_users(function, name, ended)
    except RuntimeError:  # the process is ending; nobody is held up any more
        function()
        return
    await done


async def in_daemon_thread(function: Callable[[], T], name: str) -> T:
    """Call a function in a thread with that name and return what it returns, or raise what it does.

    Not in the loop's executor: its threads hold the exit of the process until each call has
    returned. Cancelling this lets the thread finish by itself. Where no thread can be started any
    more (the interpreter is shutting down) the executor's may be running already.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    outcome: Callable[[], None]

    def call() -> None:
        nonlocal outcome
        try:
            outcome = functools.partial(done.set_result, function())
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            outcome = functools.partial(done.set_exception, error)

    def settle() -> None:
        if not done.done():
            outcome()

    def ended() -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(settle)

    try:
        start_daemon(call, name, ended)
    except RuntimeError:
        return await loop.run_in_executor(None, function)
    return await done
