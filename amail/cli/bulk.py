"""``amail bulk``: the command and its options. What it does is in ``bulk_run``."""

from __future__ import annotations

import typing as t
from pathlib import Path

import click


class Options(t.TypedDict):
    """What stands on the command line."""

    recipients: Path
    subject: str
    text: Path | None
    html: Path | None
    sender: str
    reply_to: str | None
    attach: tuple[Path, ...]
    unsubscribe: str | None
    header: tuple[str, ...]
    inline_css: bool
    email_column: str
    name_column: str
    delimiter: str | None
    url: str | None
    relay: tuple[str, ...]
    round_robin: bool
    max_connections: int | None
    rate: tuple[str, ...]
    journal: Path | None
    dry_run: bool
    resend_unknown: bool
    retry_rejected: bool
    allow_changed: bool
    give_up_after: int
    report_json: Path | None
    report_html: Path | None


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OUT = click.Path(dir_okay=False, path_type=Path)


class _Missing(click.ClickException):
    """A package that is not installed."""

    exit_code = 2


@click.command()
@click.argument("recipients", type=_FILE)
@click.option("--subject", required=True, help="A Jinja template: 'Hello {{ name }}'.")
@click.option("--text", type=_FILE, help="A file with the template of the text.")
@click.option("--html", type=_FILE, help="A file with the template of the html.")
@click.option("--from", "sender", required=True, metavar="ADDRESS", help="The author.")
@click.option("--reply-to", metavar="ADDRESS")
@click.option("--attach", type=_FILE, multiple=True, help="A file for everybody; repeatable.")
@click.option(
    "--unsubscribe", metavar="URL", help="A template: https (one-click) or mailto: to leave by."
)
@click.option("--header", metavar="'NAME: VALUE'", multiple=True, help="For all; repeatable.")
@click.option("--inline-css", is_flag=True, help="Move the html's <style> into its elements.")
@click.option("--email-column", default="email", show_default=True)
@click.option("--name-column", default="name", show_default=True)
@click.option("--delimiter", help="Of CSV; else the one that the first line has.")
@click.option(
    "--url",
    help="The server; else MAIL_URL of the environment, where others do not see the password.",
)
@click.option(
    "--relay",
    metavar="URL",
    multiple=True,
    envvar="MAIL_RELAYS",
    help="Several in place of --url: the first that can be had. Else MAIL_RELAYS, with spaces.",
)
@click.option("--round-robin", is_flag=True, help="Share messages out over the relays.")
@click.option("--max-connections", type=click.IntRange(1), help="At once, to each relay.")
@click.option("--rate", multiple=True, help="At most: 14/s, 500/h; of several each holds.")
@click.option("--journal", type=_OUT, help="Default: RECIPIENTS with .journal behind it.")
@click.option("--dry-run", is_flag=True, help="Render and check all, show three, send nothing.")
@click.option("--resend-unknown", is_flag=True, help="Send those again who may have it already.")
@click.option("--retry-rejected", is_flag=True, help="Try those again whom a server refused.")
@click.option("--allow-changed", is_flag=True, help="Go on with a letter that was corrected.")
@click.option(
    "--give-up-after",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Messages in a row that were not sent.",
)
@click.option("--report-json", type=_OUT, help="Write the report there.")
@click.option("--report-html", type=_OUT, help="Write the report as a page with a chart.")
def bulk(**options: t.Unpack[Options]) -> None:
    """Send a letter to everybody in RECIPIENTS, once.

    RECIPIENTS is CSV with a row of column names, or an object of JSON in each line; the columns are
    the variables of the templates. Run again, the same command goes on where it was: the journal
    says who has the letter. Of whom nothing is known is listed, and sent to again only with
    --resend-unknown. Ctrl-C lets those under way finish; a second one does not.

    Exit codes: 0 everybody has it, 1 not everybody, 2 it could not be done as asked, 130 Ctrl-C.
    """
    try:
        from amail.cli.bulk_run import bulk_run  # noqa: PLC0415 - an extra that may be missing
    except ImportError as error:
        raise _Missing(str(error)) from None
    raise SystemExit(bulk_run(options))
