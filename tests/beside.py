"""Programs that look at the source run beside the other tests, and are awaited by their own.

A test that is marked with ``@pytest.mark.beside("program", "argument")`` asks for the fixture
``beside``, which is that program. All of them are started when the tests have been collected, and
let every test go first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Program:
    """A program that was started in the root of the project, with all it says kept in a file."""

    def __init__(self, *command: str) -> None:
        nice = shutil.which("nice")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # A pipe that nobody reads meanwhile could fill up and hold up who writes.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self._process = subprocess.Popen(
            [*([nice, "-n", "19"] if nice else []), *command],
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def is_content(self, *, seconds: float = 240) -> None:
        """Wait for its end. Fail with what it said if it has found something."""
        code = self._process.wait(seconds)
        self._output.seek(0)
        said = self._output.read().decode(errors="replace")
        assert code == 0, said[-8000:]

    def stop(self) -> None:
        """End it, and what it has started itself, if nobody has waited for it."""
        if self._process.poll() is None and hasattr(os, "killpg"):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._output.close()
