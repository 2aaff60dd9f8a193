"""A message as a job: what waits in a queue, and what is done with it when it is its turn.

    {"v": 1, "id": "<...>", "env": {"from": "...", "to": ["..."]}, "mime": "...", "mailer": ""}

The content is rendered once, when it is packed, so that every try and every redelivery sends the
same octets with the same Message-ID. In ``env``, ``mail`` and ``rcpt`` are ESMTP parameters, and
``all`` is true where every recipient must be taken; ``encoding`` says how octets beyond ASCII are
in ``mime`` ("utf-8", else "base64") and ``needs`` which extensions they take; ``exp`` is when the
job is no longer worth sending, in seconds since 1970.

Invariant: a job is nothing but JSON, with neither a credential nor a host in it: ``mailer`` is a
name, and who handles the job knows what it stands for. ``unpack`` takes what ``pack`` writes and
nothing else, for whoever can write to a queue can write anything.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import hashlib
import logging
import math
import secrets
import time
import typing as t
from dataclasses import dataclass

from amail.envelope import Envelope
from amail.errors import (
    ConfigError,
    DeliveryUnknown,
    MailError,
    MessageError,
    MessageTooLarge,
    NotSent,
    RecipientsRejected,
    SendError,
    UsageError,
)
from amail.mime import Content, compose
from amail.mime.raw import check_composed
from amail.receipt import Receipt

if t.TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from amail.address import Person
    from amail.mailer import Mailer
    from amail.message import Message
    from amail.queues.ledger import Entry, Ledger
    from amail.receipt import Reply

_logger = logging.getLogger("amail.queue")

VERSION = 1
TIMEOUT = 660.0
"""Seconds that one try may take, the server's last reply and all (RFC 5321, section 4.5.3.2)."""

Json: t.TypeAlias = t.Any
Job: t.TypeAlias = dict[str, Json]
"""A dict of nothing but what JSON has."""

_REQUIRED = frozenset({"v", "id", "env", "mime", "mailer"})
_OPTIONAL = frozenset({"encoding", "needs", "exp"})
_EXTENSIONS = ("8BITMIME", "SMTPUTF8")
_LONGEST_NAME = 100
_CHUNK = 64 * 1024
_LARGE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Handled:
    """What was done with a job that did not fail.

    ``outcome`` is "sent", and then there is a ``receipt``; "skipped" where the ledger knows that it
    was done before; or "expired", and then it was not sent. ``rest`` is a job for the recipients
    that the server refused for the time being: it has to be queued for later.
    """

    outcome: t.Literal["sent", "skipped", "expired"]
    message_id: str
    receipt: Receipt | None = None
    rest: Job | None = None


def pack(
    message: Message | None = None,
    *,
    envelope: Envelope | None = None,
    content: Content | None = None,
    mailer: str = "",
    default_sender: Person | None = None,
    expires: float | None = None,
    limit: int | None = None,
) -> Job:
    """Make a job of a message, or of an envelope and content that are composed already.

    ``mailer`` is the name of the mailer that shall send it, ``expires`` a time in seconds since
    1970, ``limit`` the most octets of content that the queue takes. Attached files are read now.

    Raises MessageError, MessageTooLarge beyond ``limit``, UsageError.
    """
    if message is not None and content is None:
        envelope, content = compose(message, default_sender=default_sender, envelope=envelope)
    elif message is not None or envelope is None or content is None:
        raise UsageError("pack: give it a message, or an envelope and content")
    if limit is not None and len(content) > limit:
        raise _too_large(len(content), limit)
    octets = bytes(content)
    job: Job = {
        "v": VERSION,
        "id": content.message_id,
        "env": _pack_envelope(envelope),
        "mailer": mailer,
        **_pack_octets(octets),
    }
    needs = zip(_EXTENSIONS, (content.needs_8bit, content.needs_utf8), strict=True)
    if found := [name for name, is_needed in needs if is_needed]:
        job["needs"] = found
    if expires is not None:
        job["exp"] = expires
    unpack(job)
    return job


def unpack(job: Json) -> tuple[Envelope, Content]:
    """Check a job, and return what is to be sent. Raises MessageError that names the field."""
    _check_keys(job, _REQUIRED, _OPTIONAL, "job")
    if type(job["v"]) is not int or job["v"] != VERSION:
        raise MessageError(f"v: is not {VERSION}, the one that is read here")
    name = job["mailer"]
    if type(name) is not str or len(name) > _LONGEST_NAME or not (name.isprintable() or not name):
        raise MessageError("mailer: must be the name of a mailer")
    _expiry(job)
    envelope = _unpack_envelope(job["env"])
    octets = _unpack_octets(job)
    return envelope, _content(job, envelope, octets)


def key_of(job: Job) -> str:
    """Return what tells a job from others in a ledger: its Message-ID and its recipients.

    The same message may go to others later, and then it is another job.
    """
    env = job["env"]
    parts = (job["id"], env["from"], *env["to"])
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def rest_of(job: Job, ended: Receipt | MailError) -> Job | None:
    """Return the job that is left to be tried later, for whom it may then succeed.

    All of it where it certainly was not taken and may be later; the recipients that were refused
    for the time being (4yz) where others were taken or refused for good; None where nobody is left.
    Of an unknown delivery nobody is left whose fate is not known.
    """
    paths = tuple(job["env"]["to"])
    match ended:
        case Receipt() | DeliveryUnknown():
            left = [path for path in paths if _is_transient(ended.refused, path)]
        case RecipientsRejected(retryable=True) if not job["env"].get("all"):
            left = [path for path in paths if not _is_permanent(ended.refused, path)]
        case SendError(retryable=True):
            return job
        case _:
            return None
    return {**job, "env": {**job["env"], "to": left}} if left else None


def has_expired(job: Job) -> bool:
    """Tell whether it is too late to send a job."""
    expires = _expiry(job)
    return expires is not None and time.time() >= expires


async def handle(
    job: Job,
    mailer: Mailer,
    ledger: Ledger | None = None,
    *,
    time_limit: float = TIMEOUT,
    before_last_octet: Callable[[], None] | None = None,
) -> Handled:
    """Send a job, unless it has expired or ``ledger`` knows that it was sent.

    ``time_limit`` is in seconds and covers everything. ``before_last_octet`` is called in the loop
    before the last octet of the content is handed out: until then nothing can have been sent, and
    if it raises a MailError nothing is.

    Raises MessageError for what is no job, and the SendErrors of ``Mailer.send``: ``rest_of`` says
    what of the job is left to try later, which for an unknown delivery is never the unknown part.
    Raises NotSent, retryable, while another worker has the same job under way.
    """
    envelope, content = await _unpacked(job)
    if has_expired(job):
        _logger.warning("%s: expired before it could be sent", job["id"])
        return Handled("expired", job["id"])
    watched = _Watched(content, before_last_octet)
    send = functools.partial(mailer.deliver, envelope, watched.content, timeout=time_limit)
    if ledger is None:
        return _sent(job, await send())
    if ledger.lease <= time_limit:
        raise ConfigError(f"lease: must be more than {time_limit:g} s, which one try may take")
    return await _handle_once(job, ledger, send, watched)


async def _unpacked(job: Job) -> tuple[Envelope, Content]:
    """Check a job; a large one in a thread, for that takes a while."""
    is_large = type(job) is dict and type(job.get("mime")) is str and len(job["mime"]) > _LARGE
    return await asyncio.to_thread(unpack, job) if is_large else unpack(job)


async def _handle_once(
    job: Job,
    ledger: Ledger,
    send: Callable[[], Awaitable[Receipt]],
    watched: _Watched,
) -> Handled:
    """Send a job that no other worker has sent or is sending."""
    key, token = key_of(job), secrets.token_hex(16)
    entry = await _begin(ledger, key, token, job["id"])
    if entry.state != "begun":
        _logger.info("%s: not sent again: it is %s already", job["id"], entry.state)
        return Handled("skipped", job["id"], rest=_for_recipients(job, entry.deferred))
    try:
        receipt = await send()
    except MailError as error:
        if isinstance(error, DeliveryUnknown):
            await _note(ledger.unknown(key, token, _deferred(job, error)), job["id"])
        else:
            await _note(ledger.release(key, token), job["id"])
        raise
    except BaseException:
        # Cancelled, or worse. What cannot have been sent may be begun again at once.
        noting = ledger.unknown if watched.last_octet_is_out else ledger.release
        await asyncio.shield(_note(noting(key, token), job["id"]))
        raise
    await _note(ledger.sent(key, token, _deferred(job, receipt)), job["id"])
    return _sent(job, receipt)


def _sent(job: Job, receipt: Receipt) -> Handled:
    return Handled("sent", job["id"], receipt, rest_of(job, receipt))


async def _begin(ledger: Ledger, key: str, token: str, message_id: str) -> Entry:
    details: dict[str, t.Any] = {"retryable": True, "message_id": message_id}
    try:
        entry = await ledger.begin(key, token)
    except (ConfigError, UsageError):
        raise
    except Exception as error:
        text = f"the ledger cannot be asked ({type(error).__name__}); nothing was sent"
        raise NotSent(text, **details) from error
    if entry.state == "busy":
        text = "another worker has this job under way; try again when its lease has ended"
        raise NotSent(text, **details)
    return entry


async def _note(noting: t.Coroutine[t.Any, t.Any, None], message_id: str) -> None:
    """Tell the ledger. That it cannot be told changes nothing about what was sent."""
    try:
        await noting
    except Exception:
        _logger.exception("%s: the ledger could not be told what became of it", message_id)


class _Watched:
    """Content that knows when its last octet was handed out."""

    def __init__(self, content: Content, before_last_octet: Callable[[], None] | None) -> None:
        octets = bytes(content)
        self.last_octet_is_out = False
        self._octets = octets[:-2]  # behind them is the CRLF of the last line
        self._before = before_last_octet
        self.content = Content(
            [self, b"\r\n"],
            message_id=content.message_id,
            needs_utf8=content.needs_utf8,
            needs_8bit=content.needs_8bit,
        )

    def __len__(self) -> int:
        return len(self._octets)

    def chunks(self) -> Iterator[bytes]:
        """Yield all but the last two octets, and say so when those are wanted."""
        for start in range(0, len(self._octets), _CHUNK):
            yield self._octets[start : start + _CHUNK]
        if self._before is not None:
            self._before()
        self.last_octet_is_out = True


# The recipients


def _is_transient(refused: Mapping[str, Reply], path: str) -> bool:
    return path in refused and refused[path].transient


def _is_permanent(refused: Mapping[str, Reply], path: str) -> bool:
    return path in refused and not refused[path].transient


def _deferred(job: Job, ended: Receipt | MailError) -> tuple[int, ...]:
    """Return the numbers of the recipients left for later: no ledger needs their addresses."""
    rest = rest_of(job, ended)
    paths = job["env"]["to"]
    return () if rest is None else tuple(map(paths.index, rest["env"]["to"]))


def _for_recipients(job: Job, numbers: tuple[int, ...]) -> Job | None:
    paths = job["env"]["to"]
    left = [paths[number] for number in numbers if 0 <= number < len(paths)]
    return {**job, "env": {**job["env"], "to": left}} if left else None


# Out of JSON, and into it


def _pack_envelope(envelope: Envelope) -> dict[str, Json]:
    packed: dict[str, Json] = {
        "from": envelope.reverse_path,
        "to": list(envelope.forward_paths),
    }
    if envelope.mail_options:
        packed["mail"] = list(envelope.mail_options)
    if envelope.rcpt_options:
        packed["rcpt"] = list(envelope.rcpt_options)
    if envelope.all_recipients:
        packed["all"] = True
    return packed


def _unpack_envelope(packed: Json) -> Envelope:
    _check_keys(packed, {"from", "to"}, {"mail", "rcpt", "all"}, "env")
    if type(packed["from"]) is not str:
        raise MessageError("env.from: must be a str")
    lists = {}
    for name in ("to", "mail", "rcpt"):
        values = packed.get(name, [])
        if type(values) is not list or not all(type(value) is str for value in values):
            raise MessageError(f"env.{name}: must be a list of str")
        lists[name] = tuple(values)
    if packed.get("all", True) is not True:
        raise MessageError("env.all: must be true, or left out")
    try:
        return Envelope(packed["from"], lists["to"], lists["mail"], lists["rcpt"], "all" in packed)
    except MessageError as error:
        raise type(error)(f"env: {error}") from None


def _pack_octets(octets: bytes) -> dict[str, str]:
    """Write content as text: as it is where it is 7-bit, else so that each octet comes back."""
    if octets.isascii():
        return {"mime": octets.decode("ascii")}
    try:
        return {"mime": octets.decode("utf-8"), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"mime": base64.b64encode(octets).decode("ascii"), "encoding": "base64"}


def _unpack_octets(job: Job) -> bytes:
    text, encoding = job["mime"], job.get("encoding", "ascii")
    if type(text) is not str:
        raise MessageError("mime: must be a str")
    try:
        match encoding:
            case "ascii" | "utf-8" if encoding == "utf-8" or "encoding" not in job:
                return text.encode(encoding)
            case "base64":
                return base64.b64decode(text, validate=True)
    except UnicodeEncodeError as error:
        raise MessageError(f"mime: position {error.start} is not {encoding}") from None
    except (binascii.Error, ValueError):
        raise MessageError("mime: is no base64") from None
    raise MessageError('encoding: must be "utf-8", "base64", or left out')


def _content(job: Job, envelope: Envelope, octets: bytes) -> Content:
    """Return the content, as safe to send as if it had been composed here."""
    try:
        composed = check_composed(octets)
    except MessageError as error:
        raise type(error)(f"mime: {error}") from None
    if job["id"] != composed.message_id:
        raise MessageError("id: is not the Message-ID of the content")
    needs = job.get("needs", [])
    if type(needs) is not list or needs not in ([], ["8BITMIME"], ["SMTPUTF8"], [*_EXTENSIONS]):
        raise MessageError(f"needs: must be a list of {' and '.join(_EXTENSIONS)}, in this order")
    if not octets.isascii() and "8BITMIME" not in needs:
        raise MessageError("needs: 8BITMIME is missing, and the content has octets beyond ASCII")
    paths = "".join((envelope.reverse_path, *envelope.forward_paths))
    if not (composed.header_is_ascii and paths.isascii()) and "SMTPUTF8" not in needs:
        raise MessageError("needs: SMTPUTF8 is missing, and the header or envelope takes it")
    return Content(
        [octets],
        message_id=composed.message_id,
        needs_utf8="SMTPUTF8" in needs,
        needs_8bit="8BITMIME" in needs,
    )


def _expiry(job: Job) -> float | None:
    if "exp" not in job:
        return None
    expires = job["exp"]
    if type(expires) not in {int, float} or not math.isfinite(expires) or expires < 0:
        raise MessageError("exp: must be a time in seconds since 1970")
    return float(expires)


def _check_keys(
    value: Json, required: t.AbstractSet[str], optional: t.AbstractSet[str], field: str
) -> None:
    if type(value) is not dict:
        raise MessageError(f"{field}: must be an object, not {type(value).__name__}")
    for key in sorted(required - value.keys()):
        raise MessageError(f"{key}: is missing in {field}")
    if value.keys() - required - optional:
        raise MessageError(f"{field}: has a key that is not read here; is it of another version?")


def _too_large(size: int, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"the message has {size} octets and this queue takes {limit}: put large files where the "
        "recipient can download them and send a link, send it at once (mail.send), or use "
        "MAIL_QUEUE=folder:///..., which takes what the mail server takes"
    )
