"""For tests of code that sends mail: a scripted SMTP server on asyncio."""

from amail.testing.fault_server import FaultServer
from amail.testing.record import Command, Received
from amail.testing.script import (
    OK,
    ByConnection,
    ByMessage,
    Bytes,
    Close,
    Delay,
    Drip,
    EachConnection,
    EachMessage,
    Early,
    HalfClose,
    Hang,
    Moment,
    Partial,
    Reset,
    Say,
    Slow,
)

__all__ = [
    "OK",
    "ByConnection",
    "ByMessage",
    "Bytes",
    "Close",
    "Command",
    "Delay",
    "Drip",
    "EachConnection",
    "EachMessage",
    "Early",
    "FaultServer",
    "HalfClose",
    "Hang",
    "Moment",
    "Partial",
    "Received",
    "Reset",
    "Say",
    "Slow",
]
