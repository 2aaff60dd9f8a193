"""What the sender can change about a refusal: from a reply to a hint, "" where none is known.

Servers say what they want in codes (RFC 5248) and in words of their own. Words are looked for only
beside their codes, and only those that a provider has used for years. Values only.
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Collection

    from amail.receipt import Reply

SET_TLS: t.Final = 'set tls ("starttls" or "implicit")'
SMALLER: t.Final = "leave attachments out, or send links to them"

_ONE_FOR_APPS = (
    "password must be an app password, made for one application at the provider's own page"
)
_AUTHORIZATION_CODE = (
    "password must be the authorization code (授权码) that the mailbox's own settings page makes "
    "when its SMTP service is switched on"
)
_CHECK_BOTH = (
    "check username and password; many providers want an app password (an authorization code), "
    "made at their own page, in place of the account's"
)


class _Wording(t.NamedTuple):
    """``words`` are in lower case; one of them is enough, beside one of the codes."""

    codes: Collection[int]
    words: tuple[str, ...]
    hint: str


_OF_PASSWORDS = (
    # Gmail
    _Wording(
        {534, 535},
        ("application-specific password", "badcredentials", "username and password not accepted"),
        f"{_ONE_FOR_APPS}, or use oauth_token",
    ),
    # QQ, and NetEase for a mailbox whose SMTP service is off
    _Wording({535}, ("authorization code", "service.mail.qq.com"), _AUTHORIZATION_CODE),
    _Wording({550}, ("user has no permission",), _AUTHORIZATION_CODE),
    # Microsoft 365
    _Wording(
        {535},
        ("smtpclientauthentication is disabled",),
        "an administrator has to allow SMTP AUTH for this mailbox, or use oauth_token",
    ),
    _Wording(
        {535, 550},
        ("basic authentication is disabled", "basic authentication is not supported"),
        "it takes no passwords any more, no app password either: use oauth_token",
    ),
)
_BY_ENHANCED_CODE = {
    "4.7.12": "the password has to be entered once at the provider's own page",
    "5.7.9": "it wants a stronger mechanism; many providers want oauth_token, or a password that "
    "is made for one application",
    "5.7.13": "the account is disabled",
    "5.7.14": "the provider does not trust this sign-in; confirm it at the provider's own page",
}
_CLEAR_TEXT_CODES = frozenset({530, 538})

_FROM = (
    _Wording(
        {501, 550, 553, 554},
        (
            "not owned by",  # Postfix, Yandex
            "same as authorization user",  # QQ
            "equal authorized user",  # NetEase
            "send as this sender",  # Exchange
            "sendasdenied",
            "verified sender identity",  # SendGrid
            "email address is not verified",  # Amazon SES
            "not allowed to send as",
            "not authorized to send as",
            "not permitted to send as",
        ),
        "username may not send as this address: change sender (default_sender), and envelope_from "
        "if that is set, to one of its own",
    ),
)
_SESSIONS = (
    _Wording(
        {421, 432, 450, 451, 452, 454},
        (
            "too many connections",
            "too many concurrent",
            "too many sessions",
            "concurrent connections",
            "concurrent server connections",
            "simultaneous connections",
            "thread limit exceeded",  # Exchange
        ),
        "lower max_connections, which each process has for itself",
    ),
)
_LATER = (
    "that is for now, as by greylisting: send the same message again in five minutes or more "
    "(Retrying does, or a queue)"
)


def about_password(reply: Reply) -> str:
    """Say what a refusal of user name and password asks for."""
    usual = _CHECK_BOTH if reply.code == 535 else ""
    return _found(_OF_PASSWORDS, reply) or about_credentials(reply) or usual


def about_credentials(reply: Reply) -> str:
    """Say what a refusal asks for by its code alone (RFC 4954, section 6; RFC 5248)."""
    enhanced = "5.7.9" if reply.code == 534 and reply.enhanced is None else reply.enhanced
    return _BY_ENHANCED_CODE.get(enhanced or "", "")


def wants_tls(reply: Reply) -> bool:
    """Tell whether AUTH is refused because it is said in the clear."""
    return reply.code in _CLEAR_TEXT_CODES or reply.enhanced == "5.7.11"


def about_sender(reply: Reply) -> str:
    """Say what to change where a relay takes no mail from this address."""
    if reply.enhanced == "5.7.60":
        return _FROM[0].hint
    return _found(_FROM, reply)


def about_recipient(reply: Reply) -> str:
    """Say what to do where a recipient is refused, for now or because of the sender."""
    return _LATER if reply.transient else about_sender(reply)


def about_sessions(reply: Reply) -> str:
    """Say what to change where a server has too many sessions of ours."""
    return _found(_SESSIONS, reply)


def with_hint(text: str, hint: str) -> str:
    """Put a hint behind a text, if there is one."""
    return f"{text.removesuffix('.')}; {hint}" if hint else text


def _found(wordings: tuple[_Wording, ...], reply: Reply) -> str:
    text = reply.text.lower()
    for codes, words, hint in wordings:
        if reply.code in codes and any(word in text for word in words):
            return hint
    return ""
