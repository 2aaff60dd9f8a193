"""How long to compose a message: amail, the stdlib's EmailMessage, Flask-Mail?

    python -m benchmarks.compose [--chart benchmarks/results/compose.svg]

Needs Flask-Mail (pip install -e ".[ci]"). Each makes a message anew and gives its octets: text and
html; text and 100 KB attached; and the same attachment once more, which amail has encoded by then.
All are pinned to one core and run in turn, five times each and every run in short slices, so that
what disturbs one disturbs the others too; processor time is counted, not what other programs take.
Prints a Markdown table and with --chart writes an SVG: quote the ratio, not the absolute figures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import typing as t
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from pathlib import Path
from xml.sax.saxutils import escape

import flask_mail
from flask import Flask

from amail import Attachment, Message
from benchmarks.gather import HTML, TEXT

if t.TYPE_CHECKING:
    from collections.abc import Callable

RUNS, SLICES = 5, 15
SECONDS = 0.02  # a slice repeats until that much time has passed
AMAIL, STDLIB, FLASK_MAIL = PEERS = ("amail", "EmailMessage", "Flask-Mail")

DATA = os.urandom(100_000)
AMAIL_ATTACHMENT = Attachment("a.bin", "application/octet-stream", DATA)
FLASK_MAIL_ATTACHMENT = flask_mail.Attachment("a.bin", "application/octet-stream", DATA)


def amail_message(number: int, **fields: t.Any) -> Message:
    to = [f"Reader {number} <reader{number}@example.org>"]
    return Message(f"News {number}", to, TEXT, sender="Ada <ada@example.com>", **fields)


def amail_html(number: int) -> bytes:
    return amail_message(number, html=HTML).as_bytes()


def amail_attached(number: int) -> bytes:
    attachment = Attachment("a.bin", "application/octet-stream", DATA)
    return amail_message(number, attachments=[attachment]).as_bytes()


def amail_attached_again(number: int) -> bytes:
    return amail_message(number, attachments=[AMAIL_ATTACHMENT]).as_bytes()


def stdlib_message(number: int) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = f"News {number}"
    message["From"] = "Ada <ada@example.com>"
    message["To"] = f"Reader {number} <reader{number}@example.org>"
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain="example.com")
    message.set_content(TEXT)
    return message


def stdlib_html(number: int) -> bytes:
    message = stdlib_message(number)
    message.add_alternative(HTML, subtype="html")
    return message.as_bytes(policy=SMTP)


def stdlib_attached(number: int) -> bytes:
    message = stdlib_message(number)
    message.add_attachment(DATA, "application", "octet-stream", filename="a.bin")
    return message.as_bytes(policy=SMTP)


def flask_mail_message(number: int, **fields: t.Any) -> flask_mail.Message:
    to: list[t.Any] = [f"Reader {number} <reader{number}@example.org>"]
    return flask_mail.Message(f"News {number}", to, TEXT, sender="Ada <ada@example.com>", **fields)


def flask_mail_html(number: int) -> bytes:
    return bytes(flask_mail_message(number, html=HTML).as_bytes())


def flask_mail_attached(number: int) -> bytes:
    attachment = flask_mail.Attachment("a.bin", "application/octet-stream", DATA)
    return bytes(flask_mail_message(number, attachments=[attachment]).as_bytes())


def flask_mail_attached_again(number: int) -> bytes:
    message = flask_mail_message(number, attachments=[FLASK_MAIL_ATTACHMENT])
    return bytes(message.as_bytes())


SCENARIOS: dict[str, tuple[Callable[[int], bytes], ...]] = {
    "text + html": (amail_html, stdlib_html, flask_mail_html),
    "text + 100 KB": (amail_attached, stdlib_attached, flask_mail_attached),
    "the same 100 KB again": (amail_attached_again, stdlib_attached, flask_mail_attached_again),
}


class Times(t.NamedTuple):
    """Microseconds a message: one figure for each run."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


def composed(compose: Callable[[int], bytes]) -> tuple[float, int]:
    """Compose for one slice: seconds of processor time, and how many messages."""
    number, began = 0, time.process_time()
    while (seconds := time.process_time() - began) < SECONDS:
        for _ in range(5):
            number += 1
            compose(number)
    return seconds, number


def measure_run(composers: tuple[Callable[[int], bytes], ...]) -> list[float]:
    """Run the peers in turn, slice by slice: microseconds a message of each."""
    slices = [[composed(compose) for compose in composers] for _ in range(SLICES)]
    totals = [
        [sum(column) for column in zip(*peer, strict=True)] for peer in zip(*slices, strict=True)
    ]
    return [seconds / number * 1e6 for seconds, number in totals]


def measure() -> dict[str, dict[str, Times]]:
    """Measure all scenarios, run by run."""
    runs: dict[str, list[list[float]]] = {scenario: [] for scenario in SCENARIOS}
    for _ in range(RUNS):
        for scenario, composers in SCENARIOS.items():
            runs[scenario].append(measure_run(composers))
    return {
        scenario: {
            peer: Times(tuple(figures))
            for peer, figures in zip(PEERS, zip(*found, strict=True), strict=True)
        }
        for scenario, found in runs.items()
    }


def table(found: dict[str, dict[str, Times]]) -> str:
    """Write the figures as Markdown; the ratio is how many times longer it takes than amail."""
    lines = ["| | | us a message (median) | range | ratio |", "|---|---|---|---|---|"]
    for scenario, times in found.items():
        for peer, each in times.items():
            lines.append(
                f"| {scenario} | {peer} | {each.median:,.1f} "
                f"| {min(each.runs):,.1f}-{max(each.runs):,.1f} "
                f"| {each.median / times[AMAIL].median:.1f} |"
            )
    return "\n".join(lines)


COLOURS = {AMAIL: "#2563eb", STDLIB: "#94a3b8", FLASK_MAIL: "#cbd5e1"}
LEFT, WIDTH, BAR, GAP = 250, 420, 22, 26


def chart(found: dict[str, dict[str, Times]]) -> str:
    """Draw bars of how many times longer than amail each takes, scenario by scenario."""
    body: list[str] = []
    y = 44
    for scenario, times in found.items():
        longest = max(each.median for each in times.values())
        body.append(f'<text x="12" y="{y}" font-weight="bold">{escape(scenario)}</text>')
        for peer, each in times.items():
            width = max(2, round(each.median / longest * WIDTH))
            ratio = each.median / times[AMAIL].median
            y += BAR + 4
            body.append(
                f'<text x="{LEFT - 8}" y="{y}" text-anchor="end">{peer}</text>'
                f'<rect x="{LEFT}" y="{y - 15}" width="{width}" height="{BAR - 2}" '
                f'fill="{COLOURS[peer]}"/>'
                f'<text x="{LEFT + width + 8}" y="{y}">{each.median:,.0f} us ({ratio:.1f}x)</text>'
            )
        y += GAP + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 150} {y - 10}" '
        'font-family="system-ui, sans-serif" font-size="14">\n'
        "<title>Time to compose a message</title>\n"
        '<rect width="100%" height="100%" fill="white"/>\n'
        '<text x="12" y="20">Microseconds to compose one message; shorter is better</text>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description="Time composing, side by side.")
    arguments.add_argument("--chart", type=Path, help="where to write an SVG")
    where: Path | None = arguments.parse_args().chart
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    app = Flask(__name__)
    flask_mail.Mail(app)
    with app.app_context():
        found = measure()
    print(table(found))
    if where is not None:
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(chart(found), "utf-8")


if __name__ == "__main__":
    main()
