"""``amail queue``: what waits in a folder, what to do with what is parked, and a worker for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
import typing as t

import click

from amail import Mailer, MailError
from amail.queues.foreground import run_in_foreground
from amail.queues.report import ACTIONS, report
from amail.queues.worker import FolderWorker

if t.TYPE_CHECKING:
    from amail.queues.folder import FolderQueue
    from amail.queues.report import Action

_NOT_IN_A_NAME = re.compile("[^A-Za-z0-9]+")


@click.command()
@click.argument("folder", type=click.Path())
@click.argument("action", type=click.Choice(ACTIONS), default="list")
@click.argument("names", nargs=-1)
@click.option("--limit", default=50, show_default=True, help="How many that wait are listed.")
@click.option("--run", is_flag=True, help="Send what waits, until SIGTERM or Ctrl-C.")
@click.option("--once", is_flag=True, help="With --run: end when nothing is due any more.")
@click.option("--connections", default=5, show_default=True, help="How many messages at once.")
def queue(
    folder: str,
    action: Action,
    names: tuple[str, ...],
    *,
    limit: int,
    run: bool,
    once: bool,
    connections: int,
) -> None:
    """Show the jobs in FOLDER: list, show NAME, retry NAME, drop NAME, status MESSAGE-ID.

    A job that is unknown may have been sent or not: retry may make a second copy, drop may lose it.
    "unknown" is the name of all of them.

    With --run jobs are sent to MAIL_URL, those of the mailer "bulk" to MAIL_URL_BULK.
    """
    try:
        from amail.queues.folder import FolderQueue  # noqa: PLC0415 - not on every system
    except ImportError as error:
        raise click.ClickException(f"this system has no {error.name}, which it takes") from error
    if not run and not os.path.isdir(folder):
        raise click.ClickException(f"{folder}: there is no such folder")
    try:
        with contextlib.closing(FolderQueue(folder)) as spool:
            if run:
                asyncio.run(_run(spool, connections, once=once))
                return
            for line in report(spool, action, names, limit=limit):
                click.echo(line)
    except (MailError, OSError) as error:
        raise click.ClickException(str(error)) from error


async def _run(spool: FolderQueue, connections: int, *, once: bool) -> None:
    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(levelname)s %(message)s")
    mailers: dict[str, Mailer] = {}

    def mailer(name: str) -> Mailer:
        if name not in mailers:
            mailers[name] = Mailer.from_env(_variable(name), max_connections=connections)
        return mailers[name]

    if not any(name == "MAIL_URL" or name.startswith("MAIL_URL_") for name in os.environ):
        mailer("")  # says what is missing
    worker = FolderWorker(spool, mailer, concurrency=connections)
    try:
        await run_in_foreground(worker, once=once)
    finally:
        for each in mailers.values():
            await each.aclose()


def _variable(mailer: str) -> str:
    """Return which variable of the environment has the URL of a mailer."""
    return f"MAIL_URL_{_NOT_IN_A_NAME.sub('_', mailer).upper()}" if mailer else "MAIL_URL"
