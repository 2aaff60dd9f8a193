"""How many small messages a second: asyncio.gather over 10 sessions, and Flask-Mail's connect()?

    python -m benchmarks.gather

Needs smtp-sink (Debian: apt-get install postfix) and Flask-Mail (pip install -e ".[ci]"). Both run
in turn, five times each, each against an smtp-sink of its own and pinned to one core; what arrived
is counted by the sink. Prints a Markdown table: quote the ratio, not the absolute figures.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
import typing as t
from pathlib import Path

import flask_mail
from flask import Flask

from amail import Mailer, Message
from tests.servers.sink import smtp_sink

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.sink import SmtpSink

RUNS = 5
SESSIONS = 10
AMAIL_MESSAGES, FLASK_MAIL_MESSAGES = 10_000, 1_000

TEXT = "Dear reader,\n\n" + "this is a line of the newsletter, of an ordinary length.\n" * 8
HTML = "<html><body><p>Dear reader,</p>" + "<p>this is a <b>line</b> of html.</p>" * 16 + "</body>"


def through_flask_mail(sink: SmtpSink, count: int) -> None:
    """Send one after another over one connection, as Flask-Mail's page on bulk mail has it."""
    app = Flask(__name__)
    app.config.update(MAIL_SERVER=sink.host, MAIL_PORT=sink.port, MAIL_DEFAULT_SENDER="a@x.org")
    mail = flask_mail.Mail(app)
    with app.app_context(), mail.connect() as connection:
        for number in range(count):
            message = flask_mail.Message(
                f"News {number}", recipients=[f"reader{number}@example.org"], body=TEXT, html=HTML
            )
            connection.send(message)


def through_amail(sink: SmtpSink, count: int) -> None:
    """Send all at once; the pool holds ten sessions."""

    async def main() -> None:
        async with Mailer(
            f"smtp://{sink.host}:{sink.port}",
            default_sender="a@x.org",
            max_connections=SESSIONS,
            max_messages=0,
        ) as mailer:
            await asyncio.gather(
                *(
                    mailer.send(
                        Message(f"News {n}", [f"reader{n}@example.org"], body=TEXT, html=HTML)
                    )
                    for n in range(count)
                )
            )

    asyncio.run(main())


def rate(send: Callable[[SmtpSink, int], None], count: int) -> float:
    """Messages a second, to a fresh sink that has to have counted every one of them."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, smtp_sink(Path(folder)) as sink:
        # The sink has inherited all cores and settles where this process is not.
        os.sched_setaffinity(0, cores[:1])
        began = time.perf_counter()
        send(sink, count)
        seconds = time.perf_counter() - began
        os.sched_setaffinity(0, cores)
        if sink.messages != count:
            raise SystemExit(f"{count} sent, {sink.messages} arrived")
    return count / seconds


def main() -> None:
    """Measure and print."""
    rates: dict[str, list[float]] = {"Flask-Mail connect()": [], "amail gather": []}
    for _ in range(RUNS):
        rates["Flask-Mail connect()"].append(rate(through_flask_mail, FLASK_MAIL_MESSAGES))
        rates["amail gather"].append(rate(through_amail, AMAIL_MESSAGES))
    peer = statistics.median(rates["Flask-Mail connect()"])
    print("| | messages/s (median) | range | ratio |\n|---|---|---|---|")
    for name, found in rates.items():
        median = statistics.median(found)
        print(
            f"| {name} | {median:,.0f} | {min(found):,.0f}-{max(found):,.0f} "
            f"| {median / peer:.1f} |"
        )


if __name__ == "__main__":
    main()
