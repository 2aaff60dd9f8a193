"""From a host name to a connected socket: name resolution, then the address that answers first.

Addresses are tried a quarter of a second apart (Happy Eyeballs, RFC 8305).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import os
import socket
import typing as t

import aiohappyeyeballs

from amail.errors import ConfigError, ConnectError, ConnectionLost, SendTimeout
from amail.threads import in_daemon_thread, original

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from amail.errors import Stage
    from amail.smtp.settings import SMTPSettings

_logger = logging.getLogger("amail.smtp")

AddrInfo: t.TypeAlias = tuple[int, int, int, str, t.Any]

_STAGGER = 0.25
_PERMANENT = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


async def dial(
    settings: SMTPSettings, seconds: float, resolved: Callable[[tuple[str, ...]], None]
) -> socket.socket:
    """Connect to the server of the settings within that time.

    ``resolved`` is told the addresses that will be tried.

    Raises ConnectError, SendTimeout (stage "dns" or "connect"), ConnectionLost for a connection
    that was taken and dropped, and ConfigError for a source address that this machine does not
    have.
    """
    stage: Stage = "dns"
    relay = settings.relay
    try:
        async with asyncio.timeout(seconds):
            if settings.socket_path is not None:
                stage = "connect"
                return await _dial_unix(os.fspath(settings.socket_path))
            addresses = await _resolve(settings.host, settings.effective_port)
            resolved(tuple(dict.fromkeys(str(where[0]) for *_, where in addresses)))
            stage = "connect"
            connected = await aiohappyeyeballs.start_connection(
                addresses,
                local_addr_infos=_local_addresses(settings),
                happy_eyeballs_delay=_STAGGER,
            )
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
    except TimeoutError as error:
        what = "the name was not resolved" if stage == "dns" else "no connection was made"
        text = f"{relay}: {what} within {seconds:g} s"
        raise SendTimeout(text, stage=stage, retryable=True, relay=relay) from error
    except socket.gaierror as error:
        permanent = error.errno in _PERMANENT
        hint = "; check the host name (host)" if permanent else ""
        text = f"{relay}: the name cannot be resolved: {error.strerror}{hint}"
        raise ConnectError(text, stage="dns", retryable=not permanent, relay=relay) from error
    except (UnicodeError, RuntimeError) as error:
        text = f"{relay}: no connection can be made: {type(error).__name__}"
        raise ConnectError(text, stage=stage, relay=relay) from error
    except (ConnectionResetError, ConnectionAbortedError) as error:
        # The server took it and dropped it before we could look, as it may a moment later.
        text = f"{relay} closed the connection at the stage 'connect'"
        raise ConnectionLost(text, stage="connect", retryable=True, relay=relay) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL and settings.source_address is not None:
            text = "source_address: this machine does not have that address"
            raise ConfigError(text) from error
        text = f"{relay}: {_reason(error)}"
        if error.errno in _OUT_OF_DESCRIPTORS:
            _logger.error(text)  # noqa: TRY400 - it is not the send that is at fault
        raise ConnectError(text, stage="connect", retryable=True, relay=relay) from error


async def _resolve(host: str, port: int) -> Sequence[AddrInfo]:
    """Look a name up. A resolver that never answers does not hold the exit of the process."""
    with contextlib.suppress(ValueError):
        return [_numeric(ipaddress.ip_address(host), port)]
    getaddrinfo = original("socket", "getaddrinfo")
    look_up = functools.partial(getaddrinfo, host, port, type=socket.SOCK_STREAM)
    return await in_daemon_thread(look_up, "amail-resolver")


def _numeric(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> AddrInfo:
    where: t.Any = (str(address), port)
    if address.version == 4:
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where
    scope = int(address.scope_id or 0)  # ValueError for a name, which the resolver knows
    numbered = (str(address).partition("%")[0], port, 0, scope)
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", numbered


def _reason(error: OSError) -> str:
    if error.errno in _OUT_OF_DESCRIPTORS:
        return "this process has too many files open"
    if error.errno == errno.ECONNREFUSED:
        return "connection refused: nothing listens there; check host and port, and whether it runs"
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _local_addresses(settings: SMTPSettings) -> t.Any:
    if settings.source_address is None:
        return None
    family = socket.AF_INET6 if ":" in settings.source_address else socket.AF_INET
    return [(family, socket.SOCK_STREAM, 0, "", (settings.source_address, 0))]


async def _dial_unix(path: str) -> socket.socket:
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connecting, path)
    except BaseException:
        connecting.close()
        raise
    return connecting
