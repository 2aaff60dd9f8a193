"""The command line: ``amail COMMAND``. Commands come by the entry-point group amail.commands."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what is missing for it."""
    try:
        from amail.cli.commands import amail  # noqa: PLC0415 - an extra that may be missing
    except ImportError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit(f"amail: {error.name} is missing: pip install 'amail-asyncio[cli]'")
    amail()
