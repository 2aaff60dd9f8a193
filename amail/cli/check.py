"""``amail check``: whether a server would take a message, stage by stage, and else what to change.

Invariant: nothing that is printed holds a secret. A user name is one with some providers.
"""

from __future__ import annotations

import asyncio
import typing as t

import click

from amail import Mailer, MailError, ServerInfo, SMTPTransport

if t.TYPE_CHECKING:
    from amail import SMTPSettings

_MODES = {
    "none": "no TLS",
    "starttls": "STARTTLS",
    "implicit": "TLS from the start",
}


@click.command()
@click.argument("url", required=False)
@click.option("--ca-file", type=click.Path(), help="A PEM file of authorities to trust, too.")
@click.option(
    "--timeout", type=float, default=30.0, show_default=True, help="Seconds for all of it."
)
def check(url: str | None, ca_file: str | None, timeout: float) -> None:
    """Open a session with a server, as far as AUTH, and say what is found on the way.

    URL is smtp://user:password@host:port or smtps://..., MAIL_URL of the environment if it is left
    out, where other users of this machine do not see the password. No message is sent. What fails
    is said with what to change, and the exit code is then 1.
    """
    options: dict[str, t.Any] = {"timeout": timeout}
    if ca_file is not None:
        options["ca_file"] = ca_file
    try:
        mailer = Mailer.from_env(**options) if url is None else Mailer(url, **options)
        asyncio.run(_verify(mailer, _Printer()))
    except MailError as error:
        click.echo(_line("failed", str(error)), err=True)
        raise SystemExit(1) from None
    click.echo(_line("ok", "ready for messages; none was sent"))


async def _verify(mailer: Mailer, show: _Printer) -> None:
    async with mailer:
        transport = mailer.transport
        if not isinstance(transport, SMTPTransport):
            show(await mailer.verify())
            return
        show(ServerInfo(transport.settings.relay))
        click.echo(_line("asked for", _asked_for(transport.settings)))
        await transport.verify(show)


class _Printer:
    """Prints each line once, as soon as it is known."""

    def __init__(self) -> None:
        self._printed: set[tuple[str, str]] = set()

    def __call__(self, info: ServerInfo) -> None:
        for line in info.lines():
            if line not in self._printed:
                self._printed.add(line)
                click.echo(_line(*line))


def _asked_for(settings: SMTPSettings) -> str:
    credentials = "credentials" if settings.username else "no credentials"
    return f"{_MODES[settings.effective_tls]}, {credentials}"


def _line(what: str, text: str) -> str:
    return f"{what:<12} {text}"
