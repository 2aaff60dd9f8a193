"""How long to compose a message: amail, the stdlib's EmailMessage, Flask-Mail?

    python -m benchmarks.compose [--quick]

Each makes a message anew and gives its octets: text and html; text and 100 KB attached; the same
Attachment once more, which amail has encoded by then; and the same bytes in a new one. They run in
turn in one process, every run in short slices, so that what disturbs one disturbs the others too;
processor time is counted.
"""

from __future__ import annotations

import contextlib
import functools
import time
import typing as t

from amail import Attachment
from benchmarks import messages
from benchmarks.install import has_package, package
from benchmarks.measure import Task
from benchmarks.peers import flask_app
from benchmarks.report import Series, Table, command

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.measure import Plan

    Compose = Callable[[int], bytes]

AMAIL, STDLIB, FLASK_MAIL = "amail", "EmailMessage", "Flask-Mail"
HTML, ATTACHED = "text + html", "text + 100 KB"
AGAIN, SAME_BYTES = "the same attachment again", "the same bytes, attached anew"
SECONDS = 0.02  # a slice repeats until that much time has passed
SLICES = 15
SIZE = 100_000


def amail_html(number: int) -> bytes:
    return messages.amail_message(number).as_bytes()


def amail_attached(number: int) -> bytes:
    """What nobody has encoded yet: new octets each time."""
    message = messages.amail_message(number, html=None)
    octets = number.to_bytes(4, "big") + messages.octets(SIZE)[4:]
    message.attachments = [Attachment(messages.NAME, messages.TYPE, octets)]
    return message.as_bytes()


ATTACHMENT = Attachment(messages.NAME, messages.TYPE, messages.octets(SIZE))


def amail_attached_again(number: int) -> bytes:
    message = messages.amail_message(number, html=None)
    message.attachments = [ATTACHMENT]
    return message.as_bytes()


def amail_same_bytes(number: int) -> bytes:
    return messages.amail_message(number, SIZE, html=None).as_bytes()


def stdlib_html(number: int) -> bytes:
    return messages.email_message(number).as_bytes()


def stdlib_attached(number: int) -> bytes:
    return messages.email_message(number, SIZE, html=None).as_bytes()


def flask_mail_html(number: int) -> bytes:
    return bytes(messages.flask_mail_message(number).as_bytes())


def flask_mail_attached(number: int) -> bytes:
    return bytes(messages.flask_mail_message(number, SIZE, html=None).as_bytes())


SCENARIOS: dict[str, dict[str, Compose]] = {
    HTML: {AMAIL: amail_html, STDLIB: stdlib_html, FLASK_MAIL: flask_mail_html},
    ATTACHED: {
        AMAIL: amail_attached,
        STDLIB: stdlib_attached,
        FLASK_MAIL: flask_mail_attached,
    },
    AGAIN: {
        AMAIL: amail_attached_again,
        STDLIB: stdlib_attached,
        FLASK_MAIL: flask_mail_attached,
    },
    SAME_BYTES: {
        AMAIL: amail_same_bytes,
        STDLIB: stdlib_attached,
        FLASK_MAIL: flask_mail_attached,
    },
}


def composed(compose: Compose, seconds: float) -> tuple[float, int]:
    """Compose for one slice: seconds of processor time, and how many messages."""
    number, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        for _ in range(5):
            number += 1
            compose(number)
    return spent, number


def measure_run(composers: list[Compose], slices: int, seconds: float) -> list[float]:
    """Run the peers in turn, slice by slice: microseconds a message of each."""
    spent = [0.0] * len(composers)
    made = [0] * len(composers)
    for _ in range(slices):
        for at, compose in enumerate(composers):
            slice_spent, slice_made = composed(compose, seconds)
            spent[at] += slice_spent
            made[at] += slice_made
    return [total / count * 1e6 for total, count in zip(spent, made, strict=True)]


def measure(plan: Plan) -> list[Table]:
    """Measure all scenarios, run by run."""
    with contextlib.ExitStack() as stack:
        peers = [AMAIL, STDLIB]
        if has_package("flask_mail"):
            peers.append(FLASK_MAIL)
            stack.enter_context(in_app())
        slices = plan.count(SLICES)
        one_run = functools.partial(measure_run, slices=slices, seconds=SECONDS * plan.share)
        runs = [
            {
                scenario: one_run([composers[peer] for peer in peers])
                for scenario, composers in SCENARIOS.items()
            }
            for _ in range(plan.runs)
        ]
    return [
        Table(
            scenario,
            "us a message",
            "less",
            tuple(
                Series(peer, tuple(run[scenario][at] for run in runs))
                for at, peer in enumerate(peers)
            ),
            AMAIL,
        )
        for scenario in SCENARIOS
    ]


@contextlib.contextmanager
def in_app() -> Iterator[None]:
    """Be where Flask-Mail composes: in an app that has it."""
    app = flask_app(Task())
    package("flask_mail").Mail(app)
    with app.app_context():
        yield


if __name__ == "__main__":
    command("compose", measure, __doc__)
