"""The process of one contender: reads tasks from its input, a line of JSON each, and does them."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
from dataclasses import asdict

from benchmarks.install import find_peers
from benchmarks.measure import Clock, Task


def main() -> None:
    """Answer each task with what it took."""
    find_peers()
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    # What a contender prints is not an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        task, clock = Task(**json.loads(line)), Clock()
        if inspect.iscoroutinefunction(function):
            asyncio.run(function(task, clock))
        else:
            function(task, clock)
        answers.write(json.dumps(asdict(clock)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
