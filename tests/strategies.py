"""Text as attackers, copy-and-paste and the world's scripts write it, for hypothesis.

``AMAIL_EXAMPLES`` in the environment is how many examples each property gets; if it is unset, 300,
and 2,000 where every field is drawn at once. ``pytest -m soak`` sets it to 100,000.
"""

from __future__ import annotations

import itertools
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = settings(
    max_examples=int(os.environ.get("AMAIL_EXAMPLES", "300")),
    # Milliseconds for one example, which takes a few: none may hang, and a busy machine may wait.
    deadline=10_000,
    suppress_health_check=[HealthCheck.too_slow],
)
MANY_EXAMPLES = settings(EXAMPLES, max_examples=int(os.environ.get("AMAIL_EXAMPLES", "2000")))

_NASTY = [
    *("\r\n", "\n", "\r", "\r\n ", "\r\n\t", "\r\n\r\n", "\0", "\x0b", "\x0c", "\x1b[31m"),
    *("\x1c", "\x1d", "\x1e", "\t", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\ud800", "\udc80"),
    *("\ufeff", "\u200b", "\u202e", "\u2066", " ", "  ", "   ", "\xa0", "\u3000"),
    *("Bcc: victim@example.net", "X-Injected: yes", "--", "=_", ".", "..", "From "),
    *("=?utf-8?q?a=0D=0ABcc:_x?=", "=?utf-8?b?DQpCY2M6IHg=?=", "=?", "?=", "=?utf-8?q?x"),
    *("=?a?b?c?= =?a?b?c?=", '"', "\\", "'", ",", ";", ":", "<", ">", "@", "(", ")", "[", "]"),
    *("<x@y.z>", ", evil@example.net", "a@b.c", "%0D%0A", "utf-8''", "filename=", "../", "/"),
    *(
        "C:\\",
        ".exe",
        "é",
        "ß",
        "主题",
        "日本語",
        "مرحبا",
        "👩‍👩‍👧",
        "e\u0301",
        "\U0010ffff",
        "\ufffe",
    ),
    *["x" * 80, "word " * 40, "long-" * 250, "é" * 200],
]


assert 2 * len(_NASTY) < 200, "of an octet's numbers hardly one would be left for other text"

_NUMBERS = st.binary(max_size=9)
_OTHER_TEXT = st.text(max_size=12)


@st.composite
def _nasty(draw: st.DrawFn) -> str:
    """Join the piece of each number; those above the pieces stand for two other texts, in turn.

    These are few choices, each of which decides much: what an example costs is mostly its choices,
    and a list of pieces takes three for each. None is without effect, or examples would be alike.
    """
    numbers, count = draw(_NUMBERS), len(_NASTY)
    others = sum(number >= 2 * count for number in numbers)
    texts = itertools.cycle([draw(_OTHER_TEXT) for _ in range(min(others, 2))])
    return "".join(
        _NASTY[number % count] if number < 2 * count else next(texts) for number in numbers
    )


nasty_text = _nasty()
"""Any str, made of pieces that have broken composers before."""

mailbox = st.sampled_from(
    ["ada@example.com", "a.b+c@sub.example.org", "x@xn--mnchen-3ya.de", "o'hara@example.net"]
)
utf8_mailbox = st.sampled_from(["jörg@münchen.de", "用户@例子.广告"])
