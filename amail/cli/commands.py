"""The group that all commands hang on."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points, version

import click

from amail.cli.bulk import bulk
from amail.cli.check import check
from amail.cli.queue import queue


class Commands(click.Group):
    """A group whose commands are loaded when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands that are installed."""
        return sorted({*super().list_commands(ctx), *_installed()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command. One whose packages are missing says so, and is no command."""
        command = super().get_command(ctx, cmd_name)
        entry = _installed().get(cmd_name)
        if command is not None or entry is None:
            return command
        try:
            loaded = entry.load()
        except ImportError as error:
            extra = f"amail-asyncio[{cmd_name}]"
            click.echo(
                f"amail {cmd_name}: {error.name} is missing: pip install '{extra}'", err=True
            )
            return None
        return loaded if isinstance(loaded, click.Command) else None


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="amail.commands")}


@click.group(cls=Commands)
@click.version_option(version("amail-asyncio"), prog_name="amail")
def amail() -> None:
    """Compose mail and send it, on asyncio."""


amail.add_command(bulk)
amail.add_command(check)
amail.add_command(queue)
