"""The command: sends what the README promises, asks the server what came, and compares."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass, field

import click
from flask import Flask
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from amail import Mailer, Message, RecipientsRejected
from amail_flask import Mail
from amail_flask.demo.server import HOST, REFUSED

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from amail import Receipt

ADA = ("Ada Lovelace", "ada@example.com")
MANY = 500
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Server:
    """The server process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._answer())

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"smtp://{HOST}:{self.port}"

    def report(self) -> dict[str, t.Any]:
        """Ask it what it received."""
        if self._process.stdin is not None:
            self._process.stdin.write("report\n")
            self._process.stdin.flush()
        found: dict[str, t.Any] = self._answer()
        return found

    def _answer(self) -> t.Any:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise click.ClickException("the demo's SMTP server did not start")
        return json.loads(line)


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """Run the server in a process of its own, on a port that the system chooses."""
    process = subprocess.Popen(
        [sys.executable, "-m", "amail_flask.demo.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    with process:
        try:
            yield Server(process)
        finally:
            process.terminate()


@dataclass
class Run:
    """What came of the demo's messages, as their sender saw it."""

    accepted: list[Receipt] = field(default_factory=list)
    refusal: str = ""
    seconds: float = 0.0


async def from_a_script(mailer: Mailer, run: Run) -> None:
    """Send one message as any asyncio program would."""
    message = Message("From a script", recipients=["bob@example.org"], body="Two lines did it.")
    run.accepted.append(await mailer.send(message))


def from_a_view(url: str, run: Run) -> None:
    """Send one message from an async Flask view."""
    app = Flask(__name__)
    app.config.update(MAIL_URL=url, MAIL_DEFAULT_SENDER=ADA)
    mail = Mail(app)

    @app.post("/welcome")
    async def welcome() -> str:
        message = Message("From an async view", recipients=["bob@example.org"], html="<b>Hi</b>")
        run.accepted.append(await mail.send(message))
        return "sent"

    answer = app.test_client().post("/welcome")
    if answer.status_code != 200:
        raise click.ClickException(f"the view answered {answer.status}")
    with app.app_context():
        mail.close()


async def with_everything(mailer: Mailer, run: Run) -> None:
    """Send a Chinese subject, an attachment and an image that the html shows."""
    message = Message("你好，世界", recipients=[("李雷", "lei@example.org")], body="你好！")
    image = message.embed(PIXEL, "红点.png", "image/png")
    message.html = f'<p>你好！</p><img src="cid:{image}">'
    message.attach("报告.csv", "text/csv", "名称,数量\r\n茶,3\r\n")
    run.accepted.append(await mailer.send(message))


async def to_nobody(mailer: Mailer, run: Run) -> None:
    """Send to a recipient that the server refuses."""
    message = Message("To nobody", recipients=[REFUSED], body="Is anybody there?")
    try:
        await mailer.send(message)
    except RecipientsRejected as error:
        run.refusal = f"{type(error).__name__}: {error}"


async def many(mailer: Mailer, run: Run, console: Console) -> None:
    """Send many messages at once; the pool bounds how many are under way."""
    with Progress(console=console) as progress:
        bar = progress.add_task(f"asyncio.gather over {MANY} messages", total=MANY)

        async def send(number: int) -> Receipt:
            to = f"reader{number}@example.org"
            receipt = await mailer.send(Message(f"Number {number}", [to], body="One of many."))
            progress.advance(bar)
            return receipt

        began = time.perf_counter()
        run.accepted += await asyncio.gather(*(send(number) for number in range(MANY)))
        run.seconds = time.perf_counter() - began


async def everything(url: str, run: Run, console: Console) -> None:
    """Send all that needs no Flask."""
    async with Mailer(url, default_sender=ADA) as mailer:
        await from_a_script(mailer, run)
        await with_everything(mailer, run)
        await to_nobody(mailer, run)
        await many(mailer, run, console)


def summarize(run: Run, report: dict[str, t.Any], console: Console) -> None:
    """Print what a person wants to know."""
    received = report["messages"]
    console.print(f"\n[bold]{len(run.accepted)} accepted[/bold], says the sender.")
    console.print(
        f"[bold]{len(received)} received[/bold], says the server, "
        f"over {report['sessions']} sessions. Some of them, as it read them:\n"
    )
    table = Table("subject", "to", "parts", "files", "octets")
    for message in received[:4]:
        table.add_row(
            message["subject"],
            ", ".join(message["to"]),
            "\n".join(message["parts"]),
            "\n".join(message["files"]),
            str(message["octets"]),
        )
    console.print(table)
    console.print("\nThe refused recipient, as you would see it:")
    console.print(f"  {run.refusal}", markup=False, highlight=False, soft_wrap=True)
    rate = MANY / run.seconds
    console.print(
        f"\n{rate:,.0f} messages a second. That is the speed of aiosmtpd, the Python server at the "
        "other end, which takes one command at a time; amail waits for it.\n"
    )


def missing(run: Run, report: dict[str, t.Any]) -> list[str]:
    """List the Message-IDs that were accepted and that the server does not have."""
    held = {message["message_id"] for message in report["messages"]}
    return [receipt.message_id for receipt in run.accepted if receipt.message_id not in held]


@click.command()
def demo() -> None:
    """Send mail to a server that this command brings along, and show what came of it."""
    console = Console()
    run = Run()
    with running_server() as server:
        console.print(f"A real SMTP server (aiosmtpd) listens on {server.url}")
        from_a_view(server.url, run)
        asyncio.run(everything(server.url, run, console))
        report = server.report()
    summarize(run, report, console)
    lost = missing(run, report)
    for message_id in lost:
        console.print(f"[red]accepted but not at the server: {message_id}[/red]")
    if lost or not run.refusal:
        raise SystemExit(1)
