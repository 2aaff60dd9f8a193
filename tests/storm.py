"""A storm (row F77): a server that fails at random and senders that give up at random.

Everything that is drawn comes out of one seed: ``waves`` describes, ``ride_out`` does what is
described and checks the must-nevers behind each wave. The network and the clock are real, so the
same seed gives the same faults and the same impatience, not the same order of events.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import typing as t
from collections import Counter
from dataclasses import dataclass, field

from amail import Attachment, Mailer
from amail.testing import (
    EXTENSIONS,
    Bytes,
    Close,
    Delay,
    Drip,
    Early,
    FaultServer,
    HalfClose,
    Hang,
    Partial,
    Reset,
    Say,
    Slow,
    Stage,
)
from tests.messages import tokened
from tests.musts import PASSWORD, watching

if t.TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    import pytest

    from amail import MailError, Message, Receipt, Result
    from amail.testing import Moment, Script
    from amail.transports.base import PoolStats
    from tests.musts import Musts

Way = t.Literal["gather", "connect", "send_many", "send_many, ordered"]
Impatience = t.Literal["none", "timeout=", "asyncio.timeout", "cancelled"]

WAYS: tuple[Way, ...] = t.get_args(Way)
STAGES: tuple[Stage, ...] = t.get_args(Stage)
SECONDS_A_WAVE = 50.0
LETTERS_A_WAVE = 60

# What a server does when it fails. Delays are shorter and longer than the timeouts of the waves.
_ENDS: list[Script] = [Close(), Close(notify=False), HalfClose(), Reset()]
_LATE: list[Script] = [Delay(0.01), Delay(0.1), Delay(0.5), Hang()]
_NO_REPLY: list[Script] = [
    Bytes(b"\x00\x80\xff is this SMTP?\r\n"),
    Bytes(b"2x0 what\r\n"),
    Bytes(b"25"),
    Partial("2"),
    Partial("250-and"),
    "199 unheard of",
    "399 unheard of",
]
_TWO_AT_ONCE = Bytes(b"250 2.0.0 ok\r\n421 4.3.2 closing\r\n")
_CLOSING: list[Script] = ["421 4.3.2 closing", Say("421 4.3.2 closing", then=Close())]

OPENING: Mapping[Stage, Sequence[Script]] = {
    "connect": [*_ENDS, *_LATE],
    "greeting": [*_ENDS, *_LATE, *_NO_REPLY, *_CLOSING, "450 4.3.2 later", "554 5.3.2 no"],
    "ehlo": [*_ENDS, *_LATE, *_NO_REPLY, *_CLOSING, "451 4.3.0 later", "550 5.7.1 no"],
}
# An EHLO that failed is no reason to do without extensions, unless none is needed.
OPENING_IN_CLEAR: Mapping[Stage, Sequence[Script]] = {
    **OPENING,
    "ehlo": [*OPENING["ehlo"], "502 5.5.1 what is EHLO?", Drip("250 fault.test", 0.001)],
}
# No 5yz to AUTH: it ends the wave, for nobody asks again within a minute.
OPENING_INSIDE_TLS: Mapping[Stage, Sequence[Script]] = {
    **OPENING,
    "starttls": [
        *[*_ENDS, *_LATE, *_NO_REPLY, "454 4.7.0 not now"],
        Bytes(b"220 2.0.0 go ahead\r\n250 2.0.0 injected\r\n"),
    ],
    "tls": [*_ENDS, *_LATE],
    "auth": [*_ENDS, *_LATE, "454 4.7.0 later", "421 4.3.2 closing"],
}
TRANSACTION: Mapping[Stage, Sequence[Script]] = {
    "mail": [
        *[*_ENDS, *_LATE, *_NO_REPLY, *_CLOSING, _TWO_AT_ONCE, Drip("250 2.1.0 ok", 0.002)],
        *["451 4.3.0 later", "452 4.3.1 full", "503 5.5.1 not now", "550 5.7.1 not you"],
    ],
    "rcpt": [
        *[*_ENDS, *_LATE, *_NO_REPLY, *_CLOSING, "251 2.1.5 forwarded", "252 2.1.5 perhaps"],
        *["450 4.2.1 later", "550 5.1.1 who?", "552 5.2.2 full"],
        *["452 4.5.3 too many"] * 6,
    ],
    "data": [*_ENDS, *_LATE, *_NO_REPLY, *_CLOSING, "250 what?", "451 4.3.0 later", "554 5.6.0 no"],
    "body": [
        *[Close(after) for after in (0, 1_000, 100_000)],
        *[HalfClose(after) for after in (0, 1_000, 100_000)],
        *[Reset(after) for after in (0, 1_000, 100_000)],
        *[Hang(after=after) for after in (0, 100_000)],
        *[Early(text, after=200) for text in ("421 4.3.2 closing", "451 4.3.0 no", "552 5.3.4 no")],
        Early("554 5.6.0 no", after=100_000, then=Close()),
        Slow(400_000),
    ],
    "final": [
        *[*_ENDS, *_LATE, *_NO_REPLY, *_CLOSING, _TWO_AT_ONCE, Drip("250 2.0.0 ok", 0.005)],
        *[Say("250 2.0.0 ok", then=Reset()), Say("250 2.0.0 ok", then=Close())],
        Partial("25"),
        *["451 4.3.0 later", "452 4.3.1 full", "552 5.3.4 too large", "554 5.7.1 spam"],
    ],
    "rset": [*_ENDS, Hang(), "451 4.3.0 later", "500 5.5.1 what?"],
    "quit": [*_ENDS, Hang(), "500 5.5.1 what?"],
}
OPENING_RATE, TRANSACTION_RATE, RCPT_RATE = 0.1, 0.25, 0.12
"""How often a stage fails that is among those that fail; a message has many recipients."""

UNDER_WAY: tuple[Stage, ...] = ("rcpt", "data", "body", "final")
"""Where the server has a message that it can be asked to have cancelled."""


# What is going to happen, drawn from a seed


@dataclass(frozen=True)
class Letter:
    """One message, and how long its sender has patience: from the start, or since a stage."""

    token: str
    recipients: int
    attached: int
    all_recipients: bool
    impatience: Impatience
    since: Stage | None
    patience: float

    def message(self) -> Message:
        message = tokened(self.token, self.recipients)
        if self.attached:
            message.attachments = [Attachment("data.bin", data=bytes(self.attached))]
        return message


@dataclass(frozen=True)
class Wave:
    """Some messages, one mailer, one server and the stages at which it fails."""

    name: str
    letters: tuple[Letter, ...] = field(repr=False)
    way: Way
    encrypted: bool
    rates: Mapping[Stage, float]
    options: Mapping[str, t.Any]
    offers: tuple[str, ...] = EXTENSIONS
    restarts: tuple[float, ...] = ()
    closes_after: float | None = None
    results_wanted: int | None = None
    _actions: Mapping[Stage, Sequence[Script]] = field(repr=False, default_factory=dict)

    def due(self, moment: Moment) -> Script | None:
        """Say what the server does: at each coming to a stage the same, whoever comes."""
        if moment.stage not in self.rates:
            return None
        rng = random.Random(f"{self.name} {moment.stage} {moment.nth}")
        fails = rng.random() < self.rates[moment.stage]
        return rng.choice(self._actions[moment.stage]) if fails else None


def waves(seed: int, messages: int) -> Iterator[Wave]:
    """Describe a storm of that many messages."""
    for number, begin in enumerate(range(0, messages, LETTERS_A_WAVE)):
        yield wave(seed, number, min(LETTERS_A_WAVE, messages - begin))


def wave(seed: int, number: int, letters: int) -> Wave:
    """Describe one wave of a storm."""
    name = f"{seed}, wave {number}"
    rng = random.Random(name)
    encrypted = rng.random() < 0.5
    opening = OPENING_INSIDE_TLS if encrypted else OPENING_IN_CLEAR
    actions = {**opening, **TRANSACTION}
    rates: dict[Stage, float] = {
        stage: OPENING_RATE if stage in opening else TRANSACTION_RATE
        for stage in rng.sample(sorted(actions), len(actions) // 2)
    }
    if "rcpt" in rates:
        rates["rcpt"] = RCPT_RATE
    way = rng.choice(WAYS)
    leaves_early = way.startswith("send_many") and rng.random() < 0.3
    chunking = random.Random(f"{name}, chunking")
    return Wave(
        name=name,
        letters=tuple(
            letter(rng, f"token-{seed % 2**48:012x}{number:010x}{each:010x}")
            for each in range(letters)
        ),
        way=way,
        encrypted=encrypted,
        rates=rates,
        options={
            "tls": rng.choice(["starttls", "implicit"]) if encrypted else "none",
            "pipelining": rng.random() < 0.7,
            "pipeline_depth": chunking.choice([1, 1, 3, 8]),
            "max_connections": rng.randint(1, 6),
            "max_messages": rng.choice([0, 1, 3, 20]),
            "max_age": rng.choice([0.3, 300.0]),
            "idle_timeout": rng.choice([0.02, 30.0]),
            "timeout": rng.choice([0.4, 2.0]),
            "connect_timeout": 0.3,
            "command_timeout": 0.2,
            "data_timeout": 0.2,
            "final_timeout": 0.2,
            "pool_timeout": rng.choice([1.0, 10.0]),
        },
        offers=(*EXTENSIONS, "CHUNKING") if chunking.random() < 0.6 else EXTENSIONS,
        restarts=tuple(rng.uniform(0.05, 1.0) for _ in range(rng.choice([0, 0, 1, 2]))),
        closes_after=rng.uniform(0.05, 1.0) if rng.random() < 0.2 else None,
        results_wanted=rng.randrange(letters) if leaves_early else None,
        _actions=actions,
    )


def letter(rng: random.Random, token: str) -> Letter:
    """Describe one message."""
    impatience: Impatience = rng.choice(
        ["none", "none", "none", "timeout=", "asyncio.timeout", "cancelled", "cancelled"]
    )
    since = rng.choice([None, *UNDER_WAY]) if impatience == "cancelled" else None
    return Letter(
        token=token,
        recipients=rng.choice([1, 1, 2, 5]),
        # Content beyond 64 KiB is streamed; beyond some megabyte it waits for the server.
        attached=rng.choice([0, 0, 0, 1_000, 60_000, 200_000, 2_000_000]),
        all_recipients=rng.random() < 0.2,
        impatience=impatience,
        since=since,
        # As many give up in the first millisecond, of a message under way, as in the next ten.
        patience=10 ** (rng.uniform(-5, -1.5) if since else rng.uniform(-2.5, 0.4)),
    )


# What happens


class Contexts(t.NamedTuple):
    """Both ends of TLS."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def ride_out(
    seed: int,
    messages: int,
    contexts: Contexts,
    caplog: pytest.LogCaptureFixture,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> Counter[str]:
    """Do what ``waves`` describes, each wave in a loop of its own; how many came to what.

    Raises AssertionError for what must never be, and says how to see it again.
    """
    came_to: Counter[str] = Counter()
    for each in waves(seed, messages):
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                came_to += runner.run(_ride_out(each, contexts, caplog))
        except BaseException as error:
            error.add_note(f"To see it again: AMAIL_SEED={seed}. {each}")
            for concerned in (letter for letter in each.letters if letter.token in str(error)):
                error.add_note(repr(concerned))
            raise
        caplog.clear()
    return came_to


async def _ride_out(
    each: Wave, contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> Counter[str]:
    async with asyncio.timeout(SECONDS_A_WAVE), watching(caplog) as musts:
        ride = Ride(each, contexts, musts)
        await ride.run()
    return Counter(musts.outcomes.values())


class Ride:
    """One wave on its way."""

    def __init__(self, wave: Wave, contexts: Contexts, musts: Musts) -> None:
        self._wave = wave
        self._musts = musts
        self._begun = 0
        self._rng = random.Random(f"{wave.name}, weather")
        self._is_open = asyncio.Event()
        self._is_open.set()
        # Who is to be cancelled when the server has come that far, and whose each message is.
        self._to_cancel: dict[tuple[str, Stage], Callable[[], object]] = {}
        self._tokens: dict[int, str] = {}
        self._letters: dict[str, Letter] = {}  # by Message-ID
        self._late: list[Receipt | MailError] = []
        users = {"ada": PASSWORD} if wave.encrypted else None
        self._server = musts.watch(
            FaultServer(
                dict.fromkeys(STAGES, self._due),
                extensions=wave.offers,
                tls=contexts.server if wave.encrypted else None,
                implicit=wave.options["tls"] == "implicit",
                users=users,
                auth_required=wave.encrypted,
            ),
            tls_required=wave.encrypted,
        )
        self._options = dict(wave.options)
        if wave.encrypted:
            login = {"username": "ada", "password": PASSWORD}
            self._options |= {**login, "ssl_context": contexts.client}

    async def run(self) -> None:
        """Send all letters while the weather changes, and see that nothing is left."""
        wave, server = self._wave, self._server
        late = self._late.append
        async with server, Mailer(server.url, on_resolved=late, **self._options) as mailer:
            self._mailer = mailer
            weather = [self._release(), self._restart()]
            if wave.closes_after is not None:
                weather.append(self._close_and_reopen(wave.closes_after))
            changing = [asyncio.create_task(each) for each in weather]
            try:
                await self._send_all()
            finally:
                for task in changing:
                    task.cancel()
                ends = await asyncio.gather(*changing, return_exceptions=True)
            for end in ends:
                if end is not None and not isinstance(end, asyncio.CancelledError):
                    raise end
            await self._all_free()
            self._check_counts()
        assert mailer.stats().open == 0
        for each in self._late:
            token = self._letters[str(getattr(each, "message_id", None))].token
            self._musts.resolved(token, each)
        assert set(self._musts.outcomes) == {each.token for each in wave.letters}, "N3: no outcome"

    def _due(self, moment: Moment) -> Script | None:
        """Cancel whose message has come that far, then do as the wave says."""
        stage, number = moment.stage, moment.message
        if stage == "rcpt":
            self._tokens[number] = moment.line.partition("<")[2].partition("+")[0]
        if stage in UNDER_WAY:
            self._to_cancel.pop((self._tokens.get(number, ""), stage), bool)()
        return self._wave.due(moment)

    # Senders

    def _message(self, letter: Letter) -> Message:
        message = letter.message()
        self._letters[str(message.message_id)] = letter
        return message

    async def _send_all(self) -> None:
        letters = list(self._wave.letters)
        match self._wave.way:
            case "gather":
                while letters:
                    await self._is_open.wait()
                    crowd = self._rng.randint(1, 40)
                    await asyncio.gather(*[self._send(each) for each in letters[:crowd]])
                    del letters[:crowd]
            case "connect":
                lanes = self._wave.options["max_connections"] + 1
                await asyncio.gather(*[self._connection(letters[n::lanes]) for n in range(lanes)])
            case way:
                await self._send_many(letters, ordered=way.endswith("ordered"))

    async def _connection(self, letters: list[Letter]) -> None:
        async with self._mailer.connect() as connection:
            for each in letters:
                await self._is_open.wait()
                message = self._message(each)
                await self._impatiently(each, functools.partial(connection.send, message))

    async def _send(self, letter: Letter) -> None:
        is_deadline = letter.impatience == "timeout="
        send = functools.partial(
            self._mailer.send,
            self._message(letter),
            timeout=letter.patience if is_deadline else None,
            all_recipients=letter.all_recipients,
        )
        within = self._musts.within(letter.patience) if is_deadline else contextlib.nullcontext()
        async with within:
            await self._impatiently(letter, send)

    async def _impatiently(self, letter: Letter, send: Callable[[], Awaitable[Receipt]]) -> None:
        """Send, and give up as the letter says."""
        musts, token = self._musts, letter.token

        async def sending() -> None:
            self._begun += 1
            await musts.outcome_of(send(), token=token)
            self._check_pool()

        match letter.impatience:
            case "none" | "timeout=":
                await sending()
            case "asyncio.timeout":
                try:
                    async with asyncio.timeout(letter.patience):
                        await sending()
                except TimeoutError as error:
                    musts.cancelled(token, error.__cause__)
            case "cancelled":
                task = asyncio.create_task(sending())
                with self._cancelling(letter, task):
                    try:
                        await task
                    except asyncio.CancelledError as error:
                        musts.cancelled(token, error)

    @contextlib.contextmanager
    def _cancelling(self, letter: Letter, task: asyncio.Task[None]) -> Iterator[None]:
        """Cancel a task when the letter's patience is over."""
        timers: list[asyncio.TimerHandle] = []

        def begin() -> None:
            loop = asyncio.get_running_loop()
            timers.append(loop.call_later(letter.patience, task.cancel))

        if letter.since is None:
            begin()
        else:
            self._to_cancel[letter.token, letter.since] = begin
        try:
            yield
        finally:
            if letter.since is not None:
                self._to_cancel.pop((letter.token, letter.since), None)
            for timer in timers:
                timer.cancel()

    async def _send_many(self, letters: list[Letter], *, ordered: bool) -> None:
        """Send through one generator, which may be left early."""
        pulled: list[Letter] = []
        wanted = self._wave.results_wanted

        def messages() -> Iterator[Message]:
            for each in letters:
                pulled.append(each)
                self._begun += 1
                yield self._message(each)

        results = self._mailer.send_many(
            messages(), concurrency=self._rng.randint(1, 8), ordered=ordered
        )
        async with contextlib.aclosing(results):
            async for result in results:
                token = self._letters[str(result.message.message_id)].token
                await self._musts.outcome_of(_of(result), token=token)
                if wanted is not None and len(self._musts.outcomes) > wanted:
                    break
        if wanted is not None:
            never_pulled = letters[len(pulled) :]
            for each in never_pulled:
                self._musts.cancelled(each.token, asyncio.CancelledError())
            for each in pulled:
                if each.token not in self._musts.outcomes:
                    self._musts.cancelled(each.token)

    # Weather

    async def _release(self) -> None:
        """Let those go on from time to time that the server holds; look at the pool each time."""
        while True:
            await asyncio.sleep(self._rng.uniform(0.01, 0.3))
            self._server.release()
            self._check_pool()

    async def _restart(self) -> None:
        for seconds in self._wave.restarts:
            await asyncio.sleep(seconds)
            await self._server.aclose()
            try:
                await asyncio.sleep(self._rng.choice([0.0, 0.1]))
            finally:
                await self._server.start()

    async def _close_and_reopen(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._is_open.clear()
        await self._mailer.aclose()
        await self._mailer.__aenter__()
        self._is_open.set()

    # What must hold

    async def _all_free(self) -> None:
        """Wait for slots whose sessions are said goodbye to or wait for late replies: seconds."""
        for _ in range(400):
            stats = self._check_pool()
            if stats.leased == stats.waiting == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"N4: {stats}")

    def _check_pool(self) -> PoolStats:
        stats, size = self._mailer.stats(), self._wave.options["max_connections"]
        assert stats.open <= size, stats
        assert stats.leased <= size, stats
        return stats

    def _check_counts(self) -> None:
        """See that the mailer has counted one outcome for each send that it was asked for.

        A closed mailer counts none, and a generator left early may have begun what it pulled.
        """
        stats = self._mailer.stats()
        counted = stats.accepted + stats.rejected + stats.not_sent + stats.unknown
        assert counted <= self._begun, stats
        if self._wave.closes_after is None and self._wave.results_wanted is None:
            assert counted == self._begun, stats


async def _of(result: Result) -> Receipt:
    """Return or raise what came of one of many."""
    if result.receipt is None:
        assert result.error is not None
        raise result.error
    return result.receipt
