"""DKIMSigned: signs content before it hands it on (RFC 6376, 8301, 8463). Needs the extra ``dkim``.

Invariant: what is handed on is the content that was given, octet for octet, below one more field.
The same content gets the same signature each time (it has no ``t=``), so that a message keeps its
octets however often it is tried.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import os
import pathlib
import re
import time
import typing as t

from amail.address import Address
from amail.errors import ConfigError, InvalidAddress, InvalidHeader, SendTimeout
from amail.mime.headers import fold
from amail.transports.base import Wrapper

try:
    import dkim
    import nacl.signing
    from dkim.canonicalization import CanonicalizationPolicy
    from dkim.crypto import RSASSA_PKCS1_v1_5_sign, parse_pem_private_key
except ImportError as missing:
    raise ImportError(
        'signing needs dkimpy and PyNaCl: pip install "amail-asyncio[dkim]"'
    ) from missing

if t.TYPE_CHECKING:
    from collections.abc import Callable

    from amail.envelope import Envelope
    from amail.mime import Content
    from amail.receipt import Receipt
    from amail.transports.base import Transport

    Algorithm = t.Literal["rsa-sha256", "ed25519-sha256"]
    Sign = Callable[["hashlib._Hash"], bytes]

# Signed once more than they occur: one added on the way, to be shown in place of ours, would break
# the signature (RFC 6376, section 8.15).
_OVERSIGNED = (
    *("from", "to", "cc", "reply-to", "subject", "date", "message-id"),
    *("mime-version", "content-type", "content-transfer-encoding"),
    *("list-unsubscribe", "list-unsubscribe-post"),
)
# Signed as often as they occur; mailing lists may add them where they are not.
_SIGNED = frozenset(
    (
        *_OVERSIGNED,
        *("sender", "in-reply-to", "references", "auto-submitted", "list-id", "list-help"),
        *("list-subscribe", "list-post", "list-owner", "list-archive"),
    )
)
_RELAXED = CanonicalizationPolicy.from_c_value(b"relaxed/relaxed")
_SMALL = 64 * 1024
_WIDTH = 70
_SMALLEST_RSA = 1024  # bits; verifiers take no less (RFC 8301, section 3.2)
_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----\s+(.+?)\s+-----END \1-----", re.DOTALL)
_SEED = re.compile(r"[A-Za-z0-9+/]{43}=")
_ED25519_PREFIX = bytes.fromhex("302e020100300506032b657004220420")  # RFC 8410, section 7
_BLANKS = re.compile(rb"[\t ]+")

_KEY_HELP = (
    "key: must be a private key, RSA as PEM or Ed25519 as PEM or base64 of its 32 octets, "
    "or the path of a file that holds one"
)


class DKIMSigned(Wrapper):
    """Signs content for ``domain`` and hands it to ``transport``.

    ``key`` is the private key: for RSA its PEM text, for Ed25519 its PEM text or 32 octets in
    base64 (as dkimpy's ``dknewkey`` writes them), or the path of a file holding one. Its public
    half belongs into DNS at ``<selector>._domainkey.<domain>``. Header and body are canonicalised
    "relaxed"; From, To, Subject, Date, Message-ID, List-Unsubscribe and the other fields a reader
    acts on cannot be added or doubled afterwards without breaking the signature.

    A streamed attachment is read once more, for its hash, and never as a whole. dkimpy computes RSA
    in Python, which costs milliseconds a message where Ed25519 costs next to nothing; RSA, and
    whatever is large, is signed in a thread. Two of these in one another sign twice, as for
    verifiers that do not know Ed25519. Closing this closes ``transport``. Raises ConfigError.
    """

    def __init__(
        self, transport: Transport, *, domain: str, selector: str, key: str | os.PathLike[str]
    ) -> None:
        super().__init__(transport)
        self._domain = _dns_name(domain, "domain")
        self._selector = _dns_name(selector, "selector")
        self._algorithm, self._sign = _signer(key)

    def __repr__(self) -> str:
        return (
            f"<DKIMSigned for {self._domain} ({self._selector}, {self._algorithm}) "
            f"over {self._transport!r}>"
        )

    async def send(
        self, envelope: Envelope, content: Content, *, deadline: float | None = None
    ) -> Receipt:
        """Sign and hand on; see Transport.

        Raises InvalidAttachment when a file that is streamed has changed.
        """
        if len(content) <= _SMALL and self._algorithm != "rsa-sha256":
            signed = self.signed(content)
        else:
            signed = await self._signed_in_thread(envelope, content, deadline)
        return await self._transport.send(envelope, signed, deadline=deadline)

    def signed(self, content: Content) -> Content:
        """Return the content with its DKIM-Signature field on top. Blocks while files are read."""
        head, body_hash = _read(content)
        try:
            headers, _ = dkim.rfc822_parse(head)
        except (dkim.DKIMException, IndexError) as error:
            raise InvalidHeader("the content does not begin with header fields") from error
        present = [name.lower().decode("ascii") for name, _ in headers]
        names = [name for name in present if name in _SIGNED] + [*_OVERSIGNED]
        tags = [
            "v=1;",
            f"a={self._algorithm};",
            "c=relaxed/relaxed;",
            f"d={self._domain};",
            f"s={self._selector};",
            f"bh={base64.b64encode(body_hash).decode()};",
            *f"h={' :'.join(names)};".split(" "),
            "b=",
        ]
        # Signed is the field itself too, with b= still empty (RFC 6376, section 3.7).
        unsigned = fold("DKIM-Signature", tags).encode().partition(b":")[2]
        digest = hashlib.sha256()
        dkim.hash_headers(
            digest,
            _RELAXED,
            _RELAXED.canonicalize_headers(headers),
            [name.encode() for name in names],
            (b"DKIM-Signature", unsigned),
            {},
        )
        signature = base64.b64encode(self._sign(digest)).decode()
        tags += [signature[start : start + _WIDTH] for start in range(0, len(signature), _WIDTH)]
        return content.with_field(fold("DKIM-Signature", tags).encode())

    async def _signed_in_thread(
        self, envelope: Envelope, content: Content, deadline: float | None
    ) -> Content:
        left = None if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await asyncio.to_thread(self.signed, content)
        except TimeoutError:
            raise SendTimeout(
                "the deadline passed while the content was being signed",
                retryable=True,
                message_id=content.message_id,
                recipients=envelope.forward_paths,
            ) from None


def _dns_name(name: object, setting: str) -> str:
    """Return a domain or a selector as DNS has it, or raise ConfigError."""
    if not isinstance(name, str):
        raise ConfigError(f"{setting}: must be a str, not {type(name).__name__}")
    try:
        found = Address(f"dkim@{name}").ascii_domain
    except InvalidAddress as error:
        raise ConfigError(f"{setting}: is no name in DNS ({error})") from None
    if found.startswith("["):
        raise ConfigError(f"{setting}: must be a name in DNS, not an address")
    return found


def _signer(key: object) -> tuple[Algorithm, Sign]:
    """Return the algorithm of a private key and a function that signs a digest with it.

    Raises ConfigError. No error has one for its context that holds the key.
    """
    text = _key_text(key)
    if _SEED.fullmatch(text):
        return _ed25519(base64.b64decode(text))
    found = _PEM.search(text)
    if found is None:
        raise ConfigError(_KEY_HELP)
    if "ENCRYPTED" in text:
        raise ConfigError("key: is encrypted; write it without a passphrase")
    octets = b""
    with contextlib.suppress(binascii.Error):
        octets = base64.b64decode(found[2])
    seed = octets.removeprefix(_ED25519_PREFIX)
    if len(seed) == 32 < len(octets):
        return _ed25519(seed)
    return _rsa(octets)


def _ed25519(seed: bytes) -> tuple[Algorithm, Sign]:
    private = nacl.signing.SigningKey(seed)
    return "ed25519-sha256", lambda digest: private.sign(digest.digest()).signature


def _rsa(octets: bytes) -> tuple[Algorithm, Sign]:
    """Read an RSA private key in DER, PKCS #1 or #8."""
    armoured = b"--\n" + base64.b64encode(octets) + b"\n--"
    private: dict[str, int] | None = None
    with contextlib.suppress(Exception):  # dkimpy raises many kinds, IndexError among them
        private = parse_pem_private_key(armoured)
    if private is None:
        raise ConfigError(_KEY_HELP)
    if private["modulus"].bit_length() < _SMALLEST_RSA:
        raise ConfigError(f"key: RSA with under {_SMALLEST_RSA} bits, which no verifier accepts")
    return "rsa-sha256", lambda digest: bytes(RSASSA_PKCS1_v1_5_sign(digest, private))


def _key_text(key: object) -> str:
    """Return the text of a key that is given as such or as the path of a file."""
    if isinstance(key, str):
        text = key.strip()
        if "-----BEGIN" in text or _SEED.fullmatch(text):
            return text
    if not isinstance(key, str | os.PathLike) or not key:
        raise ConfigError(f"{_KEY_HELP}; not {type(key).__name__}")
    try:
        return pathlib.Path(key).read_text("ascii").strip()
    except OSError as error:
        reason = error.strerror
    except ValueError:
        reason = "it is no text"
    # Raised out here, for a chained error would show what may be a key and no path.
    raise ConfigError(f"{_KEY_HELP}; the file cannot be read: {reason}")


def _read(content: Content) -> tuple[bytes, bytes]:
    """Read content once: its header with the blank line below it, and the hash of its body."""
    chunks = content.chunks()
    head = b""
    for chunk in chunks:
        head += chunk
        if b"\r\n\r\n" in head:
            break
    head, _, rest = head.partition(b"\r\n\r\n")
    body = RelaxedBody()
    body.update(rest)
    for chunk in chunks:
        body.update(chunk)
    return head + b"\r\n\r\n", body.digest()


class RelaxedBody:
    """The SHA-256 of a body in relaxed canonicalisation (RFC 6376, section 3.4.4), piece by piece.

    Invariant: no more than the last line is kept.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._line = b""
        # Line ends that count only if something follows them.
        self._line_ends = 0
        self._empty = True

    def update(self, chunk: bytes) -> None:
        """Take the next piece of the body, wherever it was cut."""
        octets = self._line + chunk
        end = octets.rfind(b"\r\n") + 2
        if end == 1:
            self._line = octets
            return
        self._line = octets[end:]
        lines = octets[:end]
        if b" " in lines or b"\t" in lines:
            lines = _BLANKS.sub(b" ", lines).replace(b" \r\n", b"\r\n")
        text = len(lines)
        while lines.endswith(b"\r\n", 0, text):
            text -= 2
        if text:
            self._hash.update(b"\r\n" * self._line_ends)
            self._hash.update(memoryview(lines)[:text])
            self._line_ends = 0
            self._empty = False
        self._line_ends += (len(lines) - text) // 2

    def digest(self) -> bytes:
        """Return the hash of a body that has come as a whole, up to its last CRLF."""
        if not self._empty:
            self._hash.update(b"\r\n")
        return self._hash.digest()
