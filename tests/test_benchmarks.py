"""What the benchmarks compare is the same message, whoever composes it. Nothing is timed here."""

from __future__ import annotations

import email
import email.policy
import typing as t
from xml.etree import ElementTree as ET

import pytest
from flask import Flask

from tests.servers.programs import give_up

if t.TYPE_CHECKING:
    from email.message import EmailMessage
    from types import ModuleType


@pytest.fixture
def compose() -> ModuleType:
    try:
        import flask_mail  # noqa: F401 - an extra
    except ImportError:
        give_up("Flask-Mail is not installed (pip install -e '.[ci]')")
    from benchmarks import compose

    return compose


def test_every_peer_composes_the_same_message(compose: ModuleType) -> None:
    app = Flask(__name__)
    compose.flask_mail.Mail(app)
    for scenario, composers in compose.SCENARIOS.items():
        read = []
        for composer in composers:
            with app.app_context():
                octets: bytes = composer(7)
            message = email.message_from_bytes(octets, policy=email.policy.default)
            read.append(_said(message))
        assert read[0] == read[1] == read[2], scenario
        assert read[0]["subject"] == "News 7"
        assert len(read[0]["parts"]) == 2


def _said(message: EmailMessage) -> dict[str, t.Any]:
    parts = [part for part in message.walk() if not part.is_multipart()]
    return {
        "subject": message["subject"],
        "from": message["from"].addresses,
        "to": message["to"].addresses,
        "has": bool(message["date"] and message["message-id"]),
        "parts": [_content(part) for part in parts],
    }


def _content(part: EmailMessage) -> tuple[str, object]:
    content = part.get_content()
    text = content.replace("\r\n", "\n").rstrip("\n") if isinstance(content, str) else content
    return part.get_content_type(), text


def test_table_and_chart_hold_every_figure(compose: ModuleType) -> None:
    times = {
        peer: compose.Times(tuple(float(10**number + each) for each in range(5)))
        for number, peer in enumerate(compose.PEERS)
    }
    found = {"text & html": times}
    rows = compose.table(found).splitlines()[2:]
    assert rows[0] == "| text & html | amail | 3.0 | 1.0-5.0 | 1.0 |"
    assert rows[2] == "| text & html | Flask-Mail | 102.0 | 100.0-104.0 | 34.0 |"
    drawn = ET.fromstring(compose.chart(found))
    bars = [each for each in drawn.iter() if each.get("fill") in compose.COLOURS.values()]
    assert [int(bar.get("width") or 0) for bar in bars] == [12, 49, 420]
    assert "102 us (34.0x)" in "".join(drawn.itertext())
