"""The parsers that are not Python, in one Node process: see judge.mjs."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import tempfile
import typing as t
from pathlib import Path

from tests.servers.programs import give_up, require

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).parent
NAMES = ("mailparser", "postal-mime")

Answer: t.TypeAlias = dict[str, dict[str, t.Any]]
"""What each judge read, by its name. The fields are those that judge.mjs writes."""


@contextlib.contextmanager
def node_judges() -> Iterator[Callable[[bytes], Answer]]:
    """Start the judges and give a function that asks them about the octets of a message.

    Skips where Node or the judges are not installed; in CI that is an error.
    """
    (node,) = require("node", install="apt-get install nodejs npm")
    missing = [name for name in NAMES if not (FOLDER / "node_modules" / name).is_dir()]
    if missing:
        give_up(f"{', '.join(missing)} not installed (npm ci --prefix tests/{FOLDER.name})")
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [node, FOLDER / "judge.mjs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def read(content: bytes) -> Answer:
            ask.write(base64.b64encode(content) + b"\n")
            ask.flush()
            line = answers.readline()
            if not line:
                errors.seek(0)
                raise AssertionError(f"the judges ended: {errors.read()[-2000:].decode()}")
            answer: Answer = json.loads(line)
            return answer

        yield read
        ask.close()  # the end of its input ends the process
