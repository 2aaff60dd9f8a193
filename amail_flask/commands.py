"""The commands of ``flask mail``: does it work, send a test, what is configured."""

from __future__ import annotations

import json
import os
import typing as t

import click
from flask import current_app
from flask.cli import AppGroup

from amail import MailError, Message, SendError
from amail.keys import as_columns
from amail_flask.config import BESIDE_URL, KEYS
from amail_flask.queue_commands import queue, status

if t.TYPE_CHECKING:
    from amail_flask.state import State

mail = AppGroup("mail", help="Try the configuration of mail, and look after its queue.")
mail.add_command(queue)
mail.add_command(status)

_mailer = click.option("--mailer", "name", metavar="NAME", help="One of MAIL_MAILERS.")


@mail.command("check")
@_mailer
def check(name: str | None) -> None:
    """Log in to the server, of every mailer, and say what it offers.

    No message is sent. Exits with 1 where a message could not be sent.
    """
    failed = False
    for state in [_state(name)] if name else _state(None).every:
        try:
            click.echo(f"{state.name or 'mail'}: {state.mailer.transport!r}")
            click.echo(state.run(state.mailer.verify()))
        except MailError as error:
            click.echo(f"  {_text_of(error)}", err=True)
            failed = True
    if failed:
        raise SystemExit(1)


@mail.command("send-test")
@click.argument("address")
@_mailer
def send_test(address: str, name: str | None) -> None:
    """Send a short message to ADDRESS, and say what came of it.

    Exits with 1 where no server has it for that address. No signal is sent.
    """
    state = _state(name)
    body = f"flask mail send-test of {current_app.name} sent this."
    try:
        mailer, suppressed = state.now()
        receipt = state.run(mailer.send(Message("Test", recipients=[address], body=body)))
    except MailError as error:
        raise click.ClickException(_text_of(error)) from error
    if suppressed:
        raise click.ClickException("not sent: MAIL_SUPPRESS_SEND, or TESTING, is on")
    reached = ", ".join(receipt.accepted) or "nobody"
    click.echo(f"{receipt.message_id} to {reached}, by {receipt.relay}: {receipt.reply}")
    if receipt.suppressed:
        raise click.ClickException(
            "not sent to that address: MAIL_ALLOWED_RECIPIENTS does not have it"
        )


@mail.command("config")
@_mailer
def config(name: str | None) -> None:
    """Show each key, its value without secrets, and where that comes from."""
    settings = _state(name).config
    rows = [("key", "value", "from")]
    for key, value, source in settings.rows(KEYS):
        found = (source == "app.config" and _environment_of(key)) or source
        if key in BESIDE_URL and settings["MAIL_URL"]:
            found += ", but MAIL_URL wins" if key in settings.sources else ", and MAIL_URL wins"
        rows.append((key, value, found))
    click.echo(as_columns(rows))


def _state(name: str | None) -> State:
    state: State | None = current_app.extensions.get("mail")
    if state is None:
        raise click.ClickException("this app has no Mail: write Mail(app) or mail.init_app(app)")
    try:
        return state.using(name)
    except MailError as error:
        raise click.ClickException(str(error)) from error


def _text_of(error: MailError) -> str:
    outcome = f" [{error.outcome}, at {error.stage}]" if isinstance(error, SendError) else ""
    return f"{error}{outcome}"


def _environment_of(key: str) -> str | None:
    """Return the variable that holds what the config has, as from_prefixed_env reads it."""
    variable = f"FLASK_{key}"
    written = os.environ.get(variable)
    if written is None:
        return None
    try:
        read = json.loads(written)
    except ValueError:
        read = written
    return variable if current_app.config.get(key) == read else None
