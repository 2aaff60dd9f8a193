"""Postfix's smtp-sink: takes everything as fast as it comes, and counts."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import typing as t
from dataclasses import dataclass

from tests.servers.programs import free_port, require, speaks_smtp, wait_until

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# As root the program insists on becoming somebody else.
_USER = ("-u", "nobody") if os.geteuid() == 0 else ()


@dataclass(frozen=True)
class SmtpSink:
    """A running smtp-sink."""

    port: int
    counters: Path
    host: str = "127.0.0.1"

    @property
    def messages(self) -> int:
        """Messages taken so far. The program tells at the end of each."""
        counts = re.findall(rb"mesg=(\d+)", self.counters.read_bytes())
        return int(counts[-1]) if counts else 0


@contextlib.contextmanager
def smtp_sink(folder: Path, *, backlog: int = 1000) -> Iterator[SmtpSink]:
    """Run smtp-sink on a free port. Skips where it is not installed."""
    (program,) = require("smtp-sink")
    sink = SmtpSink(free_port(), folder / "counters")
    with sink.counters.open("wb") as counters:
        process = subprocess.Popen(
            [program, "-c", *_USER, f"{sink.host}:{sink.port}", str(backlog)],
            stdin=subprocess.DEVNULL,
            stdout=counters,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(
            lambda: process.poll() is not None or speaks_smtp(sink.port), "smtp-sink to greet"
        )
        assert process.poll() is None, sink.counters.read_text()
        yield sink
    finally:
        process.terminate()
        process.wait()
