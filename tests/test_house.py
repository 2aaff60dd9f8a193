"""What holds of the source itself: lint, types, import rules, what the README promises."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import subprocess
import sys
import tomllib
import typing as t
from pathlib import Path

import pytest

if t.TYPE_CHECKING:
    from tests.beside import Program

ROOT = Path(__file__).parent.parent
CODE = ("amail", "amail_flask", "tests", "examples", "benchmarks")


PYTHON = (sys.executable, "-m")
WITH_TYPES = ("amail", "amail_flask", "tests/typing_api.py")


@pytest.mark.beside(*PYTHON, "ruff", "check", "--output-format=concise", *CODE)
def test_ruff_finds_nothing(beside: Program) -> None:
    beside.is_content()


@pytest.mark.beside(*PYTHON, "ruff", "format", "--check", *CODE)
def test_everything_is_formatted(beside: Program) -> None:
    beside.is_content()


@pytest.mark.timeout(250)
@pytest.mark.beside(*PYTHON, "mypy", *CODE)
def test_mypy_is_strict_and_content(beside: Program) -> None:
    beside.is_content()


@pytest.mark.timeout(250)
@pytest.mark.beside(*PYTHON, "pyright", "--pythonpath", sys.executable, *WITH_TYPES)
def test_pyright_is_content_with_the_packages(beside: Program) -> None:
    if importlib.util.find_spec("pyright") is None:
        if os.environ.get("CI"):
            pytest.fail("pyright is not installed; in CI nothing is skipped")
        pytest.skip("pyright is not installed (pip install -e '.[ci]')")
    beside.is_content()


@pytest.mark.beside("lint-imports", "--no-cache")
def test_imports_go_the_way_they_may(beside: Program) -> None:
    beside.is_content()


def test_the_readme_has_the_two_commands_as_they_are_run() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert (
        'python3 -m venv .venv && .venv/bin/pip install -q ".[demo]" && .venv/bin/amail demo'
        in [line.strip() for line in lines]
    )
    assert 'python3 -m venv .venv && .venv/bin/pip install -q -e ".[dev]" && .venv/bin/pytest' in [
        line.strip() for line in lines
    ]


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert ".venv/bin/amail demo" in script
    assert ".venv/bin/pytest" in script


def project() -> dict[str, t.Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: dict[str, t.Any] = tomllib.load(file)["project"]
    return found


def test_the_core_needs_three_packages_without_upper_bounds() -> None:
    names = [need.partition(">=")[0] for need in project()["dependencies"]]
    assert names == ["aiosmtplib", "idna", "aiohappyeyeballs"]
    extras = project()["optional-dependencies"].values()
    every = [*project()["dependencies"], *itertools.chain.from_iterable(extras)]
    assert [need for need in every if "<" in need or "==" in need] == []


def test_both_packages_say_that_they_are_typed() -> None:
    for package in ("amail", "amail_flask"):
        assert (ROOT / package / "py.typed").is_file()


def test_the_core_imports_nothing_but_its_dependencies() -> None:
    code = (
        "import sys; before = set(sys.modules); import amail; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert foreign <= {"amail", "aiosmtplib", "idna", "aiohappyeyeballs"}


def test_every_public_name_is_listed_and_documented() -> None:
    import amail
    import amail_flask

    for package in (amail, amail_flask):
        tree = ast.parse(Path(str(package.__file__)).read_text("utf-8"))
        imported = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert imported == set(package.__all__)
        undocumented = [name for name in package.__all__ if not getattr(package, name).__doc__]
        assert undocumented == []


def test_the_adapter_is_thin() -> None:
    """What is not about Flask lives in amail."""
    files = ("extension.py", "config.py", "signals.py", "commands.py")
    texts = [(ROOT / "amail_flask" / name).read_text("utf-8") for name in files]
    assert sum(len(text.splitlines()) for text in texts) < 600
