"""What a FaultServer is told to do: stages, actions, and which action is due when. Values only.

An action is what the server does once. A script says which action is due at a stage:

    "550 5.1.1 no such user"        that reply, always (short for ``Say``)
    ["421 4.3.2 closing", OK]       one after another; the last one stays
    {5: "451 4.3.0 try later"}      the fifth time; ``OK`` at all others
    lambda moment: ...              worked out from the ``Moment``; None means ``OK``

Times are counted over the life of the server. ``EachConnection`` and ``EachMessage`` count anew in
each connection or message; ``ByConnection`` and ``ByMessage`` go by the number of the connection or
message. They nest: ``ByConnection({2: EachMessage({3: "550 5.1.1 no"})})`` refuses the third
recipient of every message on the second connection.
"""

from __future__ import annotations

import re
import typing as t
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

Stage = t.Literal[
    "connect",
    "tls",
    "greeting",
    "ehlo",
    "helo",
    "starttls",
    "auth",
    "mail",
    "rcpt",
    "data",
    "body",
    "chunk",
    "final",
    "rset",
    "noop",
    "quit",
]
"""Where a server can act. "connect" is before everything, "tls" before the handshake, "body" after
the 354 or BDAT, "chunk" after any chunk but the last, "final" after the last one or the dot."""

STAGES: t.Final[tuple[Stage, ...]] = t.get_args(Stage)

_REPLY = re.compile(r"[0-9]{3}(?:[ -]|$)")


@dataclass(frozen=True, slots=True)
class Usual:
    """Do what a server in good health does at this stage. Written ``OK``."""


OK: t.Final = Usual()


@dataclass(frozen=True, slots=True)
class Say:
    r"""Give a reply, then go on with ``then`` if it is given.

    Further lines of ``text`` become further lines of the reply:
    ``Say("250 fault.test\nPIPELINING")``. Raises ValueError unless the text begins with a
    three-digit code; what is no reply at all is said with ``Bytes``.
    """

    text: str
    then: Step | None = None

    def __post_init__(self) -> None:
        _check_reply(self.text)


@dataclass(frozen=True, slots=True)
class Drip:
    """Give a reply one octet at a time, ``every`` seconds apart."""

    text: str
    every: float = 0.2
    then: Step | None = None

    def __post_init__(self) -> None:
        _check_reply(self.text)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Write these octets in one piece: garbage, two replies in one segment, half a line."""

    data: bytes
    then: Step | None = None


@dataclass(frozen=True, slots=True)
class Partial:
    """Write the beginning of a reply, without a line end, then FIN."""

    text: str


@dataclass(frozen=True, slots=True)
class Early:
    """Reply in the middle of the content, once ``after`` of its octets were read.

    For the stage "body". What the client still sends up to the dot is read and thrown away, and
    no second reply is given.
    """

    text: str
    after: int = 0
    then: Step | None = None

    def __post_init__(self) -> None:
        _check_reply(self.text)


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait that many seconds first."""

    seconds: float
    then: Step = OK


@dataclass(frozen=True, slots=True)
class Hang:
    """Do nothing until ``FaultServer.release()``, then go on with ``then``.

    At the stage "body" nothing is read meanwhile, beyond the first ``after`` octets: the client's
    window closes.
    """

    then: Step = OK
    after: int = 0


@dataclass(frozen=True, slots=True)
class Slow:
    """Read the content at no more than that many octets a second. For the stage "body"."""

    octets_per_second: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection: FIN, and over TLS a close_notify before it if ``notify``.

    At the stage "body" once ``after`` octets of the content were read. Where the client is still
    sending, the kernel follows the FIN with an RST, as it does for every server.
    """

    after: int = 0
    notify: bool = True


@dataclass(frozen=True, slots=True)
class HalfClose:
    """FIN, but go on reading and throw away what comes, until the client closes too.

    At the stage "body" once ``after`` octets of the content were read. Over TLS the same as
    ``Close(notify=False)``.
    """

    after: int = 0


@dataclass(frozen=True, slots=True)
class Reset:
    """RST. At the stage "body" once ``after`` octets of the content were read."""

    after: int = 0


Action = (
    Usual | Say | Drip | Bytes | Partial | Early | Delay | Hang | Slow | Close | HalfClose | Reset
)
Step = Action | str


@dataclass(frozen=True, slots=True)
class Moment:
    """A client stands at a stage. All numbers count from 1.

    ``message`` is the number of the MAIL commands seen so far, 0 before the first. ``nth`` says
    the how-manieth time this is on the server, ``nth_in_connection`` and ``nth_in_message`` the
    same within its connection and message. ``line`` is the command, "" where there is none.
    """

    stage: Stage
    connection: int
    message: int
    nth: int
    nth_in_connection: int
    nth_in_message: int
    line: str
    encrypted: bool


@dataclass(frozen=True, slots=True)
class EachConnection:
    """The script, its times counted anew in each connection."""

    script: Script


@dataclass(frozen=True, slots=True)
class EachMessage:
    """The script, its times counted anew in each message."""

    script: Script


@dataclass(frozen=True, slots=True)
class ByConnection:
    """The script, going by the number of the connection instead of times."""

    script: Script


@dataclass(frozen=True, slots=True)
class ByMessage:
    """The script, going by the number of the message instead of times."""

    script: Script


Script: t.TypeAlias = (
    Step
    | Sequence["Script"]
    | Mapping[int, "Script"]
    | Callable[[Moment], "Script | None"]
    | EachConnection
    | EachMessage
    | ByConnection
    | ByMessage
)


def due(script: Script | None, moment: Moment) -> Action:
    """Find the action that a script has for a moment."""
    if callable(script):
        return due(script(moment), moment)
    match script:
        case None:
            return OK
        case str():
            return Say(script)
        case EachConnection(inner):
            return due(inner, replace(moment, nth=moment.nth_in_connection))
        case EachMessage(inner):
            return due(inner, replace(moment, nth=moment.nth_in_message))
        case ByConnection(inner):
            return due(inner, replace(moment, nth=moment.connection))
        case ByMessage(inner):
            return due(inner, replace(moment, nth=moment.message))
        case Mapping():
            return due(script.get(moment.nth), moment)
        case Sequence():
            return due(script[min(moment.nth, len(script)) - 1] if script else None, moment)
    return script


def as_action(step: Step) -> Action:
    """Make a step an action: a text is short for saying it."""
    return Say(step) if isinstance(step, str) else step


def first_reply(step: Step | None, usual: str) -> str | None:
    """Foretell the first complete reply that a step will give, None if it gives none.

    ``usual`` is what ``OK`` says.
    """
    match step:
        case str():
            return step
        case Usual() | Slow():
            return usual
        case Say(text) | Drip(text) | Early(text):
            return text
        case Delay(then=then) | Hang(then=then):
            return first_reply(then, usual)
        case Bytes(data, then):
            text = data.decode("latin-1")
            if _REPLY.match(text) and "\n" in text:
                return _with_its_code(text.rstrip("\r\n").replace("\r\n", "\n"))
            return first_reply(then, usual)
    return None


def _with_its_code(text: str) -> str:
    """Put the code of a reply's last line first: that one counts where they differ."""
    lines = text.split("\n")
    last = next((line for line in lines if line[3:4] != "-" and _REPLY.match(line)), text)
    return last[:3] + text[3:]


def code_of(reply: str | None) -> int:
    """Take the code of a reply, 0 if there is none."""
    return int(reply[:3]) if reply else 0


def wire_form(text: str) -> bytes:
    """Write a reply, each of its lines with the code in front (RFC 5321, section 4.2.1)."""
    code, first = text[:3], text[3:].lstrip(" -")
    lines = [first.partition("\n")[0], *text.split("\n")[1:]]
    texts = [line[4:] if line.startswith((f"{code} ", f"{code}-")) else line for line in lines]
    marks = ["-"] * (len(texts) - 1) + [" "]
    reply = "".join(f"{code}{m}{x}\r\n" for m, x in zip(marks, texts, strict=True))
    return reply.encode("utf-8", "surrogateescape")


def _check_reply(text: str) -> None:
    if not _REPLY.match(text):
        raise ValueError(f"a reply begins with its three-digit code; say Bytes(...) for {text!r}")
