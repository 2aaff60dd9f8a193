"""What a server says is escaped and cut before it is logged or gets into the text of an error.

It may hold anything: a line break that begins a log record of its own, what drives a terminal, what
turns the rest of the line around, five thousand characters.
"""

from __future__ import annotations

import base64
import json
import typing as t

import pytest

from amail import Mailer, Receipt
from amail.testing import Bytes, Early, FaultServer, Say
from amail.testing.fault_server import EXTENSIONS
from amail.text import printable
from tests.messages import tokened
from tests.musts import PASSWORD

if t.TYPE_CHECKING:
    from tests.musts import Musts

NASTY = (
    "\x1b[2J\x07 a\rb\0c\x7f \x85\x9b31m \u202egnp.exe\u2066 \u2028x\t\ufeff\u200b" + "long " * 1000
)
LINE = 1300  # twice 500 characters that a server said, and what we say about it

STAGES: dict[str, dict[str, t.Any]] = {
    "greeting": {"greeting": f"554 {NASTY}"},
    "greeting, for now": {"greeting": f"421 {NASTY}"},
    "no greeting": {"greeting": Bytes(f"HTTP/1.0 {NASTY}\r\n".encode())},
    "ehlo": {"ehlo": f"550 {NASTY}"},
    "helo": {"ehlo": "502 no", "helo": f"550 {NASTY}"},
    "keywords": {"extensions": (*EXTENSIONS, NASTY[:900].replace("\r", ""))},
    "mechanisms": {"extensions": (*EXTENSIONS, f"AUTH {NASTY}".replace("\r", ""))},
    "starttls": {"extensions": (*EXTENSIONS, "STARTTLS"), "starttls": f"454 {NASTY}"},
    "auth": {"users": {"ada": PASSWORD}, "auth": f"535 5.7.8 {NASTY}"},
    "auth, another yes": {"users": {"ada": PASSWORD}, "auth": f"250 {NASTY}"},
    "complaint": {
        "tokens": {"ada": PASSWORD},
        "auth": [
            "334 " + base64.b64encode(json.dumps({"status": NASTY[:500]}).encode()).decode(),
            f"535 {NASTY}",
        ],
    },
    "mail": {"mail": f"550 5.7.1 {NASTY}"},
    "mail, closing": {"mail": f"421 {NASTY}"},
    "mail, log in": {"mail": f"530 {NASTY}"},
    "mail, too large": {"mail": f"552 5.3.4 {NASTY}"},
    "mail, bad sequence": {"mail": f"503 {NASTY}"},
    "rcpt, all": {"rcpt": f"550 {NASTY}"},
    "rcpt, some": {"rcpt": {1: f"550 {NASTY}"}},
    "data": {"data": f"554 {NASTY}"},
    "data, no yes": {"data": f"250 {NASTY}"},
    "body": {"body": Early(f"552 {NASTY}", after=1)},
    "final": {"final": f"554 {NASTY}"},
    "final, accepted": {"final": f"250 queued as {NASTY}"},
    "final, no reply": {"final": Bytes(f"{NASTY}\r\n".encode())},
    "lines": {"final": Say("554 " + "\n".join([NASTY[:100]] * 50))},
}
SAYS_NOTHING = {"keywords", "no greeting", "final, no reply", "data, no yes", "mail, bad sequence"}


def assert_fit(text: str, where: str) -> None:
    """It is one line that any terminal can take, and not a long one."""
    assert text.isprintable(), f"{where}: {text!r}"
    assert len(text) <= LINE, f"{where} has {len(text)} characters"


@pytest.mark.parametrize("stage", STAGES)
async def test_nothing_a_server_says_gets_into_a_text_or_a_log_as_it_is(
    musts: Musts, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    options: dict[str, t.Any] = {}
    if "tokens" in STAGES[stage]:
        options = {"username": "ada", "oauth_token": token}
    elif "auth" in STAGES[stage] or stage == "mechanisms":
        options = {"username": "ada", "password": PASSWORD}
    elif stage == "starttls":
        options = {"tls": "starttls"}
    # An early reply comes while a large content is being sent.
    more = {"body": "a line\n" * 200_000} if stage == "body" else {}
    async with FaultServer(**STAGES[stage]) as server, Mailer(server.url, **options) as mailer:
        result = await musts.outcome_of(mailer.send(tokened(musts.token(), recipients=2, **more)))
    if isinstance(result, Receipt):
        texts = [str(result.reply), str(result.queue_id), *map(str, result.refused.values())]
    else:
        texts = [str(result), str(getattr(result, "reply", "")), *getattr(result, "__notes__", ())]
        shown = "gnp.exe" in str(result).lower() and "\\u202e" in str(result)
        assert shown is (stage not in SAYS_NOTHING), str(result)
    for text in texts:
        assert_fit(text, "a text")
    logged = [record for record in caplog.records if record.name.startswith("amail")]
    assert logged
    for record in logged:
        assert_fit(record.getMessage(), f"a log record of {record.name}")


async def token() -> str:
    return PASSWORD


def test_what_is_shown_is_cut_after_it_is_escaped_and_between_characters() -> None:
    shown = printable("\x1b" * 5000)
    assert len(shown) <= 503
    assert shown == "\\x1b" * 125 + "..."
    assert printable("x" * 500) == "x" * 500
    assert printable("x" * 499 + "\n") == "x" * 499 + "..."
