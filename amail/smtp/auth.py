"""SMTP AUTH (RFC 4954): which mechanism, what is said in it, what a refusal means. Values only.

One mechanism, one attempt: what the server refuses is not tried again in another way.

Invariant: no repr, text or exception of this module holds a password or a token.
"""

from __future__ import annotations

import base64
import json
import re
import typing as t

from amail.errors import AuthenticationError, ConfigError, MailError
from amail.frames import first_place
from amail.secret import quotes
from amail.smtp import hints
from amail.text import printable

if t.TYPE_CHECKING:
    from collections.abc import Collection

    from amail.receipt import Reply
    from amail.smtp.settings import SMTPSettings

Mechanism: t.TypeAlias = t.Literal["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"]

# In the order in which they are preferred.
_WITH_PASSWORD: t.Final[tuple[Mechanism, ...]] = ("PLAIN", "LOGIN")
_WITH_TOKEN: t.Final[tuple[Mechanism, ...]] = ("XOAUTH2", "OAUTHBEARER")

# Octets of a command line with its CRLF (RFC 5321, section 4.5.3.1.4). A longer initial response
# has to wait for a challenge (RFC 4954, section 4), and servers do cut such lines off.
_COMMAND_LINE = 512
_TOKEN = re.compile(r"[!-~]+")
_SHOWN = 200


def choose_mechanism(settings: SMTPSettings, offered: Collection[str]) -> Mechanism:
    """Return the one mechanism to use, of those the server offers (in any case).

    Raises AuthenticationError, which says what is offered.
    """
    by_token = settings.oauth_token is not None
    wanted = _WITH_TOKEN if by_token else _WITH_PASSWORD
    names = [each.upper() for each in offered]
    for mechanism in wanted:
        if mechanism in names:
            return mechanism
    what = "username and oauth_token" if by_token else "username and password"
    where = " without TLS" if settings.effective_tls == "none" else ""
    has = f"offers AUTH {printable(', '.join(names), _SHOWN)}" if names else "offers no AUTH"
    if where:
        advice = hints.SET_TLS
    elif not names:
        advice = "use the port for submission (587 or 465)"
    elif set(names) & {*_WITH_PASSWORD, *_WITH_TOKEN}:
        advice = f"use {'password' if by_token else 'oauth_token'}"
    else:
        advice = "use another server"
    raise AuthenticationError(
        f"{settings.relay} {has}{where}; {what} need {' or '.join(wanted)}: {advice}, or leave "
        "them out",
        stage="auth",
        relay=settings.relay,
    )


class Exchange:
    """Our half of one exchange: the AUTH command, then an answer to each challenge (334).

    ``secret`` is the password or the access token. ``complaint`` is what the server said in a
    challenge about a token it refuses, "" if nothing.
    """

    def __init__(self, mechanism: Mechanism, settings: SMTPSettings, secret: str) -> None:
        said = _responses(mechanism, settings, secret)
        responses = [base64.b64encode(each) for each in said]
        # The last one holds it. What may be shown is what holds nothing of these.
        self._secrets = (secret, responses[-1].decode())
        command = [b"AUTH", mechanism.encode()]
        # LOGIN has no initial response: its server speaks first.
        line = len(b" ".join([*command, responses[0], b"\r\n"])) - 1
        if mechanism != "LOGIN" and line <= _COMMAND_LINE:
            command.append(responses.pop(0))
        self.complaint = ""
        self._command = tuple(command)
        self._responses = responses
        if mechanism in _WITH_TOKEN:
            # A challenge that follows the token is a refusal, and has to be answered before the
            # reply comes: with nothing, or a lone Control-A (RFC 7628, section 3.2.3).
            self._responses += [b"" if mechanism == "XOAUTH2" else b"AQ=="] * 2

    @property
    def command(self) -> tuple[bytes, ...]:
        """The words of the AUTH command."""
        return self._command

    @property
    def has_answer(self) -> bool:
        """False once the server asks for more than the mechanism has."""
        return bool(self._responses)

    def answer(self, challenge: str) -> bytes:
        """Return the line that answers a challenge, and remember what that says of the token."""
        self.complaint = self.complaint or self.showable(complaint_in(challenge))
        return self._responses.pop(0)

    def showable(self, text: str) -> str:
        """Return what the server said, unless it quotes the credentials.

        Some servers quote the line that they do not understand, or the beginning of it.
        """
        if any(quotes(text, secret) for secret in self._secrets):
            return "<not shown: it quotes the credentials>"
        return text


def _responses(mechanism: Mechanism, settings: SMTPSettings, secret: str) -> list[bytes]:
    """Return what the mechanism says, in its order, not yet in base64."""
    user = settings.username or ""
    match mechanism:
        case "PLAIN":  # RFC 4616
            said = [f"\0{user}\0{secret}"]
        case "LOGIN":
            said = [user, secret]
        case "XOAUTH2":
            said = [f"user={user}\x01auth=Bearer {secret}\x01\x01"]
        case "OAUTHBEARER":  # RFC 7628, section 3.1
            name = user.replace("=", "=3D").replace(",", "=2C")
            place = f"host={settings.host}\x01port={settings.effective_port}"
            said = [f"n,a={name},\x01{place}\x01auth=Bearer {secret}\x01\x01"]
    return [each.encode() for each in said]


def complaint_in(challenge: str) -> str:
    """Return what a server says of a token it refuses (RFC 7628, section 3.2.2), for an error.

    The challenge is JSON in base64. "" for anything else: prompts of LOGIN, an empty challenge,
    garbage.
    """
    try:
        said = json.loads(base64.b64decode(challenge, validate=True))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(said, dict):
        return ""
    parts = [
        f"{name} {printable(str(said[name]), _SHOWN)}"
        for name in ("status", "scope", "schemes")
        if isinstance(said.get(name), str | int) and said[name] != ""
    ]
    return ", ".join(parts)


def refusal(settings: SMTPSettings, reply: Reply, complaint: str) -> AuthenticationError:
    """Say that the server does not accept the credentials, and what may help."""
    what = "password" if settings.oauth_token is None else "the token of oauth_token"
    text = f"{settings.relay} does not accept username and {what}: {reply}"
    if complaint:
        text += f" ({complaint})"
    return AuthenticationError(
        hints.with_hint(text, _hint(settings, reply)),
        stage="auth",
        reply=reply,
        retryable=reply.transient,
        relay=settings.relay,
    )


def _hint(settings: SMTPSettings, reply: Reply) -> str:
    """Say what a reply to AUTH asks for, "" where that is not known."""
    if hints.wants_tls(reply):
        wants = f"it wants TLS first: {hints.SET_TLS}"
        return wants if settings.effective_tls == "none" else ""
    if settings.oauth_token is not None:
        return hints.about_credentials(reply)
    return hints.about_password(reply)


def no_token(error: BaseException, relay: str) -> AuthenticationError:
    """Say that the token source failed, and where. Only our own errors are quoted.

    The text of any other may hold what the source was about to send.
    """
    if isinstance(error, MailError):
        why, retryable = printable(str(error)), getattr(error, "retryable", False)
    else:
        place = first_place(error)
        why = f"{type(error).__name__} in {place}" if place else type(error).__name__
        retryable = isinstance(error, OSError)
    return AuthenticationError(
        f"{relay}: the token source (oauth_token) failed: {why}",
        stage="auth",
        retryable=retryable,
        relay=relay,
    )


def check_token(token: object) -> str:
    """Return an access token that can be written (RFC 6750, section 2.1).

    Raises ConfigError, which does not quote it.
    """
    if not isinstance(token, str):
        wrong = f"is {type(token).__name__}, not a str; return the access token alone"
    elif not token:
        wrong = "is empty"
    elif not _TOKEN.fullmatch(token):
        wrong = "holds a space, a control character (a trailing newline?) or no ASCII; strip it"
    else:
        return str(token)
    raise ConfigError(f"what it returned {wrong}")
