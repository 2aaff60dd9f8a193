"""One client's session at a FaultServer: commands in, replies out, violations noted.

The server's side of RFC 5321, with RFC 1870, 2920, 3030, 3207, 4954, 6152, 6531 and 7628 where
offered.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
import typing as t
from collections import Counter
from dataclasses import dataclass, field

from amail.testing.content import ChunkReader, ContentReader
from amail.testing.record import Command, Received
from amail.testing.script import (
    Bytes,
    Close,
    Delay,
    Drip,
    Early,
    HalfClose,
    Hang,
    Partial,
    Reset,
    Say,
    Slow,
    Stage,
    Step,
    Usual,
    as_action,
    code_of,
    first_reply,
    wire_form,
)
from amail.testing.wire import GoneError

if t.TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from amail.testing.fault_server import FaultServer
    from amail.testing.script import Action
    from amail.testing.wire import Wire

_NAME = "fault.test"
_BDAT = re.compile(r"BDAT ([0-9]{1,20})( LAST)?", re.IGNORECASE)
_PATH = re.compile(r"<((?:[^<>\s\"]|\"(?:[^\"\\]|\\.)*\")*)>((?: [^ ]+)*)$")
# Parameters of MAIL and the extension that must have been offered for each.
_MAIL_PARAMETERS = {
    "SIZE": "SIZE",
    "BODY": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    "AUTH": "AUTH",
    "RET": "DSN",
    "ENVID": "DSN",
}
_RCPT_PARAMETERS = {"NOTIFY": "DSN", "ORCPT": "DSN"}
# These end a group of pipelined commands (RFC 2920, section 3.1).
_LAST_IN_GROUP = ("EHLO", "DATA", "VRFY", "EXPN", "TURN", "QUIT", "NOOP", "STARTTLS", "AUTH")
# Octets. An initial response may not make its command longer than any (RFC 4954, section 4).
_COMMAND_LINE, _AUTH_COMMAND, _AUTH_RESPONSE = 1024, 512, 12288
_COMPLAINT = {"status": "401", "schemes": "bearer", "scope": "https://mail.test/"}
_BY_PASSWORD, _BY_TOKEN = ("PLAIN", "LOGIN"), ("XOAUTH2", "OAUTHBEARER")
# Whom a token is for, and the token: XOAUTH2, and RFC 7628, section 3.1.
_BEARER = re.compile(
    r"user=(?P<user>[^\x01]+)\x01auth=Bearer (?P<token>[^\x01]+)\x01\x01"
    r"|n,a=(?P<name>[^\x01,]+),(?:\x01(?:host|port)=[^\x01]*)*\x01auth=Bearer (?P<bearer>[^\x01]+)"
    r"\x01\x01"
)


@dataclass(slots=True)
class _Transaction:
    reverse_path: str
    mail_options: tuple[str, ...]
    forward_paths: list[str] = field(default_factory=list)
    rcpt_options: list[str] = field(default_factory=list)
    chunks: ChunkReader | None = None

    @property
    def keywords(self) -> set[str]:
        return {option.partition("=")[0].upper() for option in self.mail_options}

    @property
    def eight_bit(self) -> bool:
        options = {option.upper() for option in self.mail_options}
        return bool(options & {"BODY=8BITMIME", "SMTPUTF8"})


class Session:
    """Serves one connection until either side ends it."""

    def __init__(self, server: FaultServer, wire: Wire, number: int) -> None:
        self.wire = wire
        self.number = number
        self.message = 0
        self.times: Counter[Stage] = Counter()
        self.times_in_message: Counter[Stage] = Counter()
        self._server = server
        self._offered: dict[str, str] = {}
        self._greeted = False
        self._authenticated_as: str | None = None
        self._reset_refused = False
        self._transaction: _Transaction | None = None
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "EHLO": self._ehlo,
            "HELO": self._helo,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._bdat,
            "RSET": self._rset,
            "NOOP": self._noop,
            "QUIT": self._quit,
        }

    async def run(self) -> None:
        """Serve until the connection has ended. Raises only what a script raises."""
        try:
            await self._open()
            while True:
                line = await self._read_command()
                verb = line.partition(" ")[0].upper()
                command = self._commands.get(verb)
                if command:
                    await command(line)
                else:
                    self._violation(f"unknown command {verb[:20]!r}")
                    self._reply("500 5.5.2 command not recognized")
        except GoneError:
            pass

    # Opening

    async def _open(self) -> None:
        if not self._server.implicit:
            self.wire.hold(False)
        await self._act("connect")
        if self._server.implicit:
            await self._handshake()
        action = self._due("greeting", "")
        await self._perform(action, f"220 {_NAME} ESMTP ready")
        if self.wire.pending:
            self._violation("octets before the greeting")

    async def _ehlo(self, line: str) -> None:
        lines = [f"250 {_NAME} at your service", *self._extensions()]
        reply = await self._act("ehlo", line, "\n".join(lines))
        if code_of(reply) == 250:
            self._begin()
            offered = [each.removeprefix("250").lstrip(" -") for each in reply.split("\n")[1:]]
            self._offered = {each.partition(" ")[0].upper(): each for each in offered}

    async def _helo(self, line: str) -> None:
        reply = await self._act("helo", line, f"250 {_NAME}")
        if code_of(reply) == 250:
            self._begin()
            self._offered = {}

    def _begin(self) -> None:
        self._greeted = True
        self._transaction = None

    def _extensions(self) -> list[str]:
        server, encrypted = self._server, self.wire.encrypted
        extensions = list(server.extensions)
        if server.tls and not encrypted:
            extensions.append("STARTTLS")
        mechanisms = [
            *(_BY_PASSWORD if server.users else ()),
            *(_BY_TOKEN if server.tokens else ()),
        ]
        scripted = any(each.upper().startswith("AUTH ") for each in extensions)
        if mechanisms and not scripted and (encrypted or not server.tls):
            extensions.append(" ".join(["AUTH", *mechanisms]))
        return extensions

    async def _starttls(self, line: str) -> None:
        possible = self._server.tls and not self.wire.encrypted
        usual = "220 2.0.0 go ahead" if possible else "503 5.5.1 not possible here"
        if self.wire.pending:
            self._violation("octets behind STARTTLS, before its reply")
            self.wire.throw_away()
        self.wire.hold(True)
        reply = await self._act("starttls", line, usual)
        if code_of(reply) == 220:
            await self._handshake()
            self._begin()
            self._greeted, self._offered = False, {}
        else:
            self.wire.hold(False)

    async def _handshake(self) -> None:
        await self._act("tls")
        if self._server.tls is None:
            raise GoneError
        await self.wire.start_tls(self._server.tls)

    # Authentication

    async def _auth(self, line: str) -> None:
        while True:
            action = self._due("auth", "AUTH")
            if isinstance(action, Usual):
                self._reply(await self._authenticate(line))
                return
            reply = await self._perform(action, "")
            if code_of(reply) == 235:
                self._authenticated_as = self._authenticated_as or "scripted"
            if code_of(reply) != 334:
                return
            if await self._read_secret() == "*":
                self._reply("501 5.7.0 cancelled")
                return

    async def _authenticate(self, line: str) -> str:
        """Check the credentials (RFC 4954, 4616, 7628); the reply to give."""
        server = self._server
        _, _, arguments = line.partition(" ")
        mechanism, _, initial = arguments.partition(" ")
        mechanism = mechanism.upper()
        if server.tls and not self.wire.encrypted:
            self._violation("AUTH in the clear where TLS is offered")
            return "538 5.7.11 encryption required"
        if mechanism not in self._offered.get("AUTH", "").upper().split(" ")[1:]:
            return "504 5.5.4 mechanism not supported"
        if self._authenticated_as:
            self._violation("AUTH after authentication")
            return "503 5.5.1 already authenticated"
        if len(line) + 2 > _AUTH_COMMAND:
            self._violation("AUTH with an initial response that is too long for a command")
        check = self._check_token if mechanism in _BY_TOKEN else self._check_password
        try:
            user = await check(mechanism, initial)
        except ValueError:
            return "501 5.5.2 cannot be decoded"
        if user is None:
            return "535 5.7.8 authentication failed"
        self._authenticated_as = user
        return "235 2.7.0 authenticated"

    async def _check_password(self, mechanism: str, initial: str) -> str | None:
        """Return the user, None if the password is wrong. Raises ValueError."""
        if mechanism == "PLAIN":
            _, user, password = _decode(initial or await self._challenge("")).split("\0")
        else:
            user = _decode(initial or await self._challenge("VXNlcm5hbWU6"))
            password = _decode(await self._challenge("UGFzc3dvcmQ6"))
        return user if self._server.users.get(user) == password else None

    async def _check_token(self, mechanism: str, initial: str) -> str | None:
        """Return the user, None if the token is wrong. Raises ValueError."""
        match = _BEARER.fullmatch(_decode(initial or await self._challenge("")))
        if match is None or bool(match["user"]) != (mechanism == "XOAUTH2"):
            raise ValueError
        user = match["user"] or match["name"].replace("=2C", ",").replace("=3D", "=")
        if self._server.tokens.get(user) == (match["token"] or match["bearer"]):
            return user
        complaint = base64.b64encode(json.dumps(_COMPLAINT).encode()).decode()
        wanted = "" if mechanism == "XOAUTH2" else "AQ=="
        if await self._challenge(complaint) != wanted:
            self._violation(f"the challenge of {mechanism} is not answered with {wanted!r}")
        return None

    async def _challenge(self, challenge: str) -> str:
        self._reply(f"334 {challenge}")
        return await self._read_secret()

    # Transactions

    async def _mail(self, line: str) -> None:
        path, options, problem = self._path(line, "MAIL FROM:", _MAIL_PARAMETERS)
        if not self._greeted:
            problem = self._violation("MAIL before EHLO", "503 5.5.1 say EHLO first")
        elif self._transaction:
            problem = "503 5.5.1 nested MAIL"
            if not self._reset_refused:  # behind one the client may have pipelined it in good faith
                self._violation("MAIL inside a transaction", problem)
        elif self._server.auth_required and not self._authenticated_as:
            problem = "530 5.7.0 authentication required"
        elif not problem and self._over_limit(_declared_size(options)):
            problem = "552 5.3.4 message too large"
        reply = await self._act("mail", line, problem or "250 2.1.0 sender ok")
        if code_of(reply) == 250:
            self._transaction = _Transaction(path, options)
            if not line.isascii() and "SMTPUTF8" not in self._transaction.keywords:
                self._violation("non-ASCII octets in MAIL without SMTPUTF8")

    async def _rcpt(self, line: str) -> None:
        path, options, problem = self._path(line, "RCPT TO:", _RCPT_PARAMETERS)
        transaction = self._transaction
        if transaction is None:
            problem = "503 5.5.1 say MAIL first"
        elif not line.isascii() and "SMTPUTF8" not in transaction.keywords:
            self._violation("non-ASCII octets in RCPT without SMTPUTF8")
        reply = await self._act("rcpt", line, problem or "250 2.1.5 recipient ok")
        if transaction and code_of(reply) in {250, 251, 252}:
            transaction.forward_paths.append(path)
            transaction.rcpt_options.append(" ".join(options))

    async def _data(self, line: str) -> None:
        if self._transaction is None:
            usual = "503 5.5.1 say MAIL first"
        elif self._transaction.chunks is not None:
            usual = self._violation("DATA behind BDAT", "503 5.5.1 BDAT has begun")
        elif not self._transaction.forward_paths:
            usual = "554 5.5.1 no valid recipients"
        else:
            usual = "354 end with a dot on a line of its own"
        reply = await self._act("data", line, usual)
        if code_of(reply) == 354:
            await self._content(self._transaction or _Transaction("", ()))
            self._transaction = None

    async def _bdat(self, line: str) -> None:
        """Take a chunk, whatever becomes of it (RFC 3030, section 2)."""
        match = _BDAT.fullmatch(line)
        if match is None or "CHUNKING" not in self._offered:
            self._violation("BDAT with bad syntax" if match is None else "BDAT is not offered")
            self._reply("500 5.5.2 command not recognized")
            return
        transaction = self._transaction or _Transaction("", ())
        reader = transaction.chunks = transaction.chunks or ChunkReader()
        is_last = match[2] is not None
        reader.expect(int(match[1]), last=is_last)
        early = reader.feed(b"") is None and await self._read_content(reader)
        if self.wire.pending and "PIPELINING" not in self._offered:
            self._violation("command sent before the reply to 'BDAT'")
        if is_last:
            transaction.chunks = None
        if early:
            self._transaction = None
        elif is_last:
            self._object(transaction, reader)
            await self._end_content(transaction, reader)
            if transaction.forward_paths:  # one for nobody stays open at some servers
                self._transaction = None
        elif self._transaction is None:
            self._reply("503 5.5.1 say MAIL first")
        else:
            await self._act("chunk", line, f"250 2.0.0 {match[1]} octets")

    async def _content(self, transaction: _Transaction) -> None:
        if self.wire.pending:
            self._violation("content before the reply to DATA")
        reader = ContentReader()
        early = await self._read_content(reader)
        self._object(transaction, reader)
        if not early:
            await self._end_content(transaction, reader)

    def _object(self, transaction: _Transaction, reader: ChunkReader | ContentReader) -> None:
        for objection in reader.objections:
            self._violation(objection)
        if reader.eight_bit and not transaction.eight_bit and self._transaction is not None:
            self._violation("8-bit content without BODY=8BITMIME")

    async def _end_content(
        self, transaction: _Transaction, reader: ChunkReader | ContentReader
    ) -> None:
        if self._transaction is None:
            usual = "503 5.5.1 say MAIL first"
        elif not transaction.forward_paths:
            usual = "554 5.5.1 no valid recipients"
        elif self._over_limit(reader.received):
            usual = "552 5.3.4 message too large"
        else:
            usual = f"250 2.0.0 ok, queued as F{len(self._server.messages) + 1:05}"
        action = self._due("final", "")
        says_no = 400 <= (code_of(first_reply(action, usual)) or code_of(usual)) < 600
        # Held from here on: whether our reply arrives, nobody can promise. But for somebody: BDAT
        # brings content whatever was said to its envelope.
        if transaction.forward_paths and not says_no:
            self._keep(transaction, reader.content)
        await self._perform(action, usual)

    async def _read_content(self, reader: ChunkReader | ContentReader) -> bool:
        """Read until its end. True if the reply was given before it."""
        action = self._server.due("body", self, "")
        due_after: float = getattr(action, "after", 0)
        replied = False
        pace = action.octets_per_second if isinstance(action, Slow) else None
        began = time.monotonic()
        while True:
            if reader.received >= due_after:
                due_after = float("inf")
                self._server.announce("body")
                replied = bool(await self._perform_in_body(action))
            most = 1 << 16
            if pace:
                ahead = reader.received / pace - (time.monotonic() - began)
                await self.wire.rest(max(0.0, ahead))
                most = max(1, pace // 50)
            elif due_after < float("inf"):
                most = max(1, min(most, int(due_after) - reader.received))
            rest = reader.feed(await self.wire.read_some(most))
            if rest is not None:
                self.wire.put_back(rest)
                return replied

    async def _perform_in_body(self, action: Action) -> str:
        self.wire.hold(isinstance(action, Hang))
        reply = await self._perform(action, "")
        self.wire.hold(False)
        return reply

    def _keep(self, transaction: _Transaction, content: bytes) -> None:
        self._server.messages.append(
            Received(
                reverse_path=transaction.reverse_path,
                forward_paths=tuple(transaction.forward_paths),
                content=content,
                connection=self.number,
                mail_options=transaction.mail_options,
                rcpt_options=tuple(transaction.rcpt_options),
                encrypted=self.wire.encrypted,
                authenticated_as=self._authenticated_as,
            )
        )
        self._server.notify()

    async def _rset(self, line: str) -> None:
        self._reset_refused = code_of(await self._act("rset", line, "250 2.0.0 ok")) != 250
        if not self._reset_refused:
            self._transaction = None

    async def _noop(self, line: str) -> None:
        await self._act("noop", line, "250 2.0.0 ok")

    async def _quit(self, line: str) -> None:
        if self.wire.pending:
            self._violation("octets behind QUIT")
        if code_of(await self._act("quit", line, "221 2.0.0 bye")) == 221:
            raise GoneError

    # Reading lines and judging them

    async def _read_command(self) -> str:
        octets = await self.wire.read_line()
        if not octets.endswith(b"\r\n"):
            self._violation("bare LF in a command")
        if b"\r" in octets.removesuffix(b"\n").removesuffix(b"\r"):
            self._violation("bare CR in a command")
        line = octets.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
        verb = line.partition(" ")[0].upper()
        if len(octets) > _COMMAND_LINE and verb != "AUTH":
            self._violation("command line too long")
        self._note(line)
        if self.wire.pending and verb not in {"QUIT", "BDAT"}:  # which have sentences of their own
            if "PIPELINING" not in self._offered:
                self._violation(f"command sent before the reply to {verb[:20]!r}")
            elif verb in _LAST_IN_GROUP:
                self._violation(f"{verb} is not the last of its group")
        return line

    async def _read_secret(self) -> str:
        octets = await self.wire.read_line()
        if len(octets) > _AUTH_RESPONSE:
            self._violation("response to a challenge too long")
        line = octets.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
        self._note(line, secret=line != "*")
        return line

    def _note(self, line: str, *, secret: bool = False) -> None:
        shown = line
        if not self._server.keep_credentials:
            words = line.split(" ")
            if secret:
                shown = "<redacted>"
            elif words[0].upper() == "AUTH" and len(words) > 2:
                shown = " ".join([*words[:2], "<redacted>"])
        self._server.commands.append(Command(self.number, shown, self.wire.encrypted))
        self._server.notify()

    def _path(
        self, line: str, start: str, known: dict[str, str]
    ) -> tuple[str, tuple[str, ...], str]:
        """Take MAIL or RCPT apart: path, parameters, and the reply if they are wrong."""
        match = _PATH.match(line, len(start)) if line.upper().startswith(start) else None
        if match is None:
            problem = self._violation(f"{start[:4]} with bad syntax", "501 5.5.4 bad syntax")
            return "", (), problem
        options = tuple(match[2].split())
        for option in options:
            keyword = option.partition("=")[0].upper()
            if known.get(keyword) not in self._offered:
                wrong = f"{start[:4]} with the parameter {keyword}, which is not offered"
                return match[1], options, self._violation(wrong, "555 5.5.4 not supported")
        return match[1], options, ""

    def _over_limit(self, size: int) -> bool:
        _, _, limit = self._offered.get("SIZE", "").partition(" ")
        return limit.isdecimal() and 0 < int(limit) < size

    def _violation(self, sentence: str, reply: str = "") -> str:
        self._server.violations.append(f"connection {self.number}: {sentence}")
        return reply

    # Acting

    async def _act(self, stage: Stage, line: str = "", usual: str = "") -> str:
        """Do what is due at a stage. The first reply given, "" if none was."""
        return await self._perform(self._due(stage, line), usual)

    def _due(self, stage: Stage, line: str) -> Action:
        action = self._server.due(stage, self, line)
        self._server.announce(stage)
        return action

    async def _perform(self, step: Step, usual: str) -> str:
        action: Action | None = as_action(step)
        reply = first_reply(step, usual) or ""
        while action:
            following = await self._do(action, usual)
            action = None if following is None else as_action(following)
        return reply

    async def _do(self, action: Action, usual: str) -> Step | None:
        """Do one thing; what to do next."""
        match action:
            case Usual() | Slow():
                if usual:
                    self._reply(usual)
                return None
            case Say(text, then) | Early(text, _, then):
                self._reply(text)
                return then
            case Bytes(data, then):
                self.wire.write(data)
                return then
            case Drip(text, every, then):
                for octet in wire_form(text):
                    self.wire.write(bytes([octet]))
                    await self.wire.rest(every)
                return then
            case Delay(seconds, then):
                await self.wire.rest(seconds)
                return then
            case Hang(then):
                released: asyncio.Future[None] = self._server.released
                await self.wire.rest(None, released)
                return then
            case _:
                await self._end(action)
                raise GoneError

    async def _end(self, action: Action) -> None:
        match action:
            case Partial(text):
                self.wire.write(text.encode())
                self.wire.close()
            case Close(notify=notify):
                self.wire.close(notify=notify)
            case HalfClose():
                if self.wire.write_eof():
                    await self.wire.skip_all()
                self.wire.close(notify=False)
            case Reset():
                self.wire.reset()

    def _reply(self, text: str) -> None:
        self.wire.write(wire_form(text))


def _decode(secret: str) -> str:
    """Base64 as in AUTH. Raises ValueError."""
    try:
        return base64.b64decode(secret, validate=True).decode()
    except binascii.Error as error:
        raise ValueError from error


def _declared_size(options: tuple[str, ...]) -> int:
    sizes = [option[5:] for option in options if option.upper().startswith("SIZE=")]
    return int(sizes[0]) if sizes and sizes[0].isdecimal() else 0
