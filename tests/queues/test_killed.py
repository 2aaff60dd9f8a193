"""A process that is killed at any of its steps loses no message and makes no second copy.

But for those that are listed as unknown, of which nobody can tell.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("what", ["put", "sent"])
@pytest.mark.skipif(not hasattr(sys, "addaudithook") or sys.platform == "win32", reason="POSIX")
def test_whoever_is_killed_at_whatever_step_loses_nothing_and_doubles_nothing(
    tmp_path: Path, what: str
) -> None:
    command = [sys.executable, "-m", "tests.queues.killed", str(tmp_path / "base"), what]
    ran = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    steps = ran.stdout.splitlines()
    assert len(steps) > 40
    assert any("unknown" in step for step in steps)  # so that some were killed in the middle
