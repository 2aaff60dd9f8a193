"""From a host name to a connected socket: name resolution, then the address that answers first.

Addresses are tried a quarter of a second apart (Happy Eyeballs, RFC 8305).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import typing as t

import aiohappyeyeballs

from amail.errors import ConfigError, ConnectError, SendTimeout

if t.TYPE_CHECKING:
    from amail.errors import Stage
    from amail.smtp.settings import SMTPSettings

_STAGGER = 0.25
_PERMANENT = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
)
_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


async def dial(settings: SMTPSettings, seconds: float) -> socket.socket:
    """Connect to the server of the settings within that time.

    Raises ConnectError, SendTimeout (stage "dns" or "connect"), and ConfigError for a source
    address that this machine does not have.
    """
    stage: Stage = "dns"
    relay = settings.relay
    try:
        async with asyncio.timeout(seconds):
            if settings.socket_path is not None:
                stage = "connect"
                return await _dial_unix(os.fspath(settings.socket_path))
            loop = asyncio.get_running_loop()
            addresses = await loop.getaddrinfo(
                settings.host, settings.effective_port, type=socket.SOCK_STREAM
            )
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
        hint = "; check the host name" if permanent else ""
        text = f"{relay}: the name cannot be resolved: {error.strerror}{hint}"
        raise ConnectError(text, stage="dns", retryable=not permanent, relay=relay) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL and settings.source_address is not None:
            text = "source_address: this machine does not have that address"
            raise ConfigError(text) from error
        text = f"{relay}: {_reason(error)}"
        raise ConnectError(text, stage="connect", retryable=True, relay=relay) from error


def _reason(error: OSError) -> str:
    if error.errno in _OUT_OF_DESCRIPTORS:
        return "this process has too many files open"
    if error.errno == errno.ECONNREFUSED:
        return "connection refused; is the server running, and is it the right port?"
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
