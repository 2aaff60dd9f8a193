"""``flask mail queue`` and ``flask mail status``: what waits, and what became of it."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import typing as t

import click
from flask import current_app
from flask.cli import with_appcontext

from amail import MailError
from amail.queues.report import ACTIONS, report

if t.TYPE_CHECKING:
    from amail.queues.report import Action
    from amail_flask.folder import FolderEngine
    from amail_flask.state import State


@click.command("queue")
@click.argument("action", type=click.Choice(ACTIONS), default="list")
@click.argument("names", nargs=-1)
@click.option("--limit", default=50, show_default=True, help="How many that wait are listed.")
@click.option("--run", is_flag=True, help="Send what waits, until SIGTERM or Ctrl-C.")
@click.option("--once", is_flag=True, help="With --run: end when nothing is due any more.")
@with_appcontext
def queue(action: Action, names: tuple[str, ...], *, limit: int, run: bool, once: bool) -> None:
    """Show the jobs in the folder of MAIL_QUEUE: list, show NAME, retry NAME, drop NAME.

    A job that is unknown may have been sent or not: retry may make a second copy, drop may lose it.
    "unknown" is the name of all of them.
    """
    folder = _folder()
    if run:
        _run(folder, once=once)
    else:
        _report(folder, action, names, limit)


@click.command("status")
@click.argument("message_id")
@with_appcontext
def status(message_id: str) -> None:
    """Say what became of a message: accepted, rejected, waiting, unknown.

    Exits with 1 where nothing is known of it.
    """
    _report(_folder(), "status", (message_id,), 0)


def _report(folder: FolderEngine, action: Action, names: tuple[str, ...], limit: int) -> None:
    try:
        with contextlib.closing(folder.another()) as queue:
            for line in report(queue, action, names, limit=limit):
                click.echo(line)
    except (MailError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _run(folder: FolderEngine, *, once: bool) -> None:
    if folder.is_suppressed:
        raise click.ClickException("nothing is sent: MAIL_SUPPRESS_SEND, or TESTING, is on")
    if not once:
        # At exit those under way have MAIL_DRAIN_TIMEOUT to end.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    folder.serve()
    while not once:
        time.sleep(3600)
    folder.drain(None)
    folder.end()
    folder.drain(None)


def _folder() -> FolderEngine:
    from amail_flask.folder import FolderEngine  # noqa: PLC0415 - not on every system

    state: State | None = current_app.extensions.get("mail")
    for engine in () if state is None else state.engines:
        if isinstance(engine, FolderEngine):
            return engine
    raise click.ClickException(
        "there is no folder to look into: set MAIL_QUEUE to folder:///var/spool/app-mail"
    )
