"""The properties of any text, for an hour: ``pytest -m soak``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mime import test_any_text

EXAMPLES = 100_000
SECONDS = 4 * 3600
PROPERTIES = [name for name in vars(test_any_text) if name.startswith("test_")]


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", PROPERTIES)
def test_it_holds_for_100_000_examples(name: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(f"--timeout={SECONDS}", f"{test_any_text.__file__}::{name}"),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "AMAIL_EXAMPLES": str(EXAMPLES)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert "1 passed" in done.stdout


def test_all_properties_are_soaked_and_none_by_default() -> None:
    assert "test_any_subject_is_refused_or_read_back_exactly" in PROPERTIES
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"{len(PROPERTIES)} deselected" in done.stdout
