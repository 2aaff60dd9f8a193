"""Installs what is compared with into a folder of its own, and compiles what is written in C."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = {
    "flask_mail": "flask-mail",
    "flask_mailman": "flask-mailman",
    "fastapi_mail": "fastapi-mail",
}


def cache() -> Path:
    """Return the folder, made if it is not there: in XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "amail-benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _packages() -> Path:
    return cache() / f"python{sys.version_info.major}.{sys.version_info.minor}"


def find_peers() -> None:
    """Let the packages of that folder be imported, behind those that are installed anyway."""
    if (folder := str(_packages())) not in sys.path:
        sys.path.append(folder)


def has_package(module: str) -> bool:
    """Whether a peer can be imported. Installs it if it is not there, and says so if it cannot."""
    find_peers()
    if importlib.util.find_spec(module) is None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(_packages())]
        if subprocess.run([*command, PACKAGES[module]], check=False).returncode:
            print(f"left out: {PACKAGES[module]} (pip cannot install it)", file=sys.stderr)
            return False
        importlib.invalidate_caches()
    return True


def package(module: str) -> t.Any:
    """Return a peer's package. Without types: whether it is there is known when it is asked for."""
    find_peers()
    return importlib.import_module(module)


def node_folder(package: str) -> Path | None:
    """Return where npm has put a package, installed there by now; None if that is not possible."""
    folder = cache() / "node"
    if shutil.which("node") is None or shutil.which("npm") is None:
        print(f"left out: {package} (Node is not installed)", file=sys.stderr)
        return None
    if not (folder / "node_modules" / package).is_dir():
        folder.mkdir(exist_ok=True)
        command = ["npm", "install", "--silent", "--prefix", str(folder), package]
        if subprocess.run(command, check=False).returncode:
            print(f"left out: {package} (npm cannot install it)", file=sys.stderr)
            return None
    return folder


@functools.cache
def compiled(source: str, *flags: str) -> str:
    """Return the program made of a C file of this folder. Ends the command where it cannot be."""
    text = (HERE / source).read_bytes()
    name = hashlib.sha256(text + repr(flags).encode()).hexdigest()[:16]
    program = cache() / f"{Path(source).stem}-{name}"
    if not program.exists():
        compiler = shutil.which("cc")
        if compiler is None:
            raise SystemExit(f"{source}: needs a C compiler (Debian: apt-get install gcc)")
        made = program.with_suffix(".new")
        command = [compiler, "-O2", "-o", str(made), str(HERE / source), "-pthread", *flags]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{source}: cannot be compiled (Debian: apt-get install libssl-dev)")
        made.replace(program)
    return str(program)


def versions() -> dict[str, str]:
    """Return of what the figures are: Python, and the peers that are there."""
    find_peers()
    found = {"Python": platform.python_version()}
    for name in ("aiosmtplib", *PACKAGES.values()):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    package = cache() / "node" / "node_modules" / "nodemailer" / "package.json"
    if package.is_file():
        found["Nodemailer"] = json.loads(package.read_text("utf-8"))["version"]
    return found
