"""Message <-> a record: a dict of nothing but what JSON has, with all that an author set.

Invariant: ``unpack`` takes exactly what ``pack`` writes. A record may come from a queue or from
the network: nothing in it names code, and no file in it is opened unless the caller allows it.
What has an order is a list, for some stores of JSON sort keys.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import os
import pathlib
import re
import typing as t
from collections.abc import Iterable, Iterator

from amail.address import Address
from amail.errors import InvalidAttachment, InvalidHeader, MessageError, MessageTooLarge
from amail.limits import Limits
from amail.mime import bodies
from amail.mime.attachments import attachment_part
from amail.mime.fields import check_message_id
from amail.mime.headers import HeaderWriter
from amail.text import as_text, place, printable

if t.TYPE_CHECKING:
    from amail.message import Attachment, Message

VERSION = 1

Json: t.TypeAlias = t.Any
"""None, a bool, number or str, or a list or dict of such. Not yet looked at when it is unpacked."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_UNIQUE = re.compile(r"[0-9a-f]{32}")
_LATEST = 253_402_300_799  # the last second of the year 9999
_LIMITS = Limits()


class Codec(t.NamedTuple):
    """How one value goes into a record and comes out of it. Errors begin with the key given."""

    pack: t.Callable[[t.Any, str], Json]
    unpack: t.Callable[[Json, str], t.Any]


class Unpacked(t.NamedTuple):
    """A record, checked: what to call Message, Attachment and Drawn with."""

    message: dict[str, t.Any]
    attachments: list[dict[str, t.Any]]
    drawn: dict[str, t.Any]


def pack(message: Message, *, inline_files: bool) -> dict[str, Json]:
    """Write a message as a record. Raises MessageError for what no message can be composed of."""
    identity = message.identity
    record: dict[str, Json] = {"version": VERSION}
    for key, codec in _MESSAGE.items():
        value = getattr(identity if key in _GIVEN else message, _GIVEN.get(key, key))
        record[key] = codec.pack(value, key)
    record["drawn"] = {
        key: codec.pack(getattr(identity.drawn, key), f"drawn.{key}")
        for key, codec in _DRAWN.items()
    }
    record["attachments"] = [
        _pack_attachment(attachment, f"attachments[{number}]", inline_files=inline_files)
        for number, attachment in enumerate(message.attachments)
    ]
    return record


def unpack(record: Json, *, allow_paths: bool) -> Unpacked:
    """Check a record. Raises MessageError with the name of the key that is not as written."""
    if type(record) is dict and "version" in record:
        version = record["version"]
        if type(version) is not int or version != VERSION:
            raise MessageError(f"version: is not {VERSION}, the one that is read here")
    values = _object(record, ("version", *_MESSAGE, "drawn", "attachments"), "")
    drawn = _fields(values["drawn"], _DRAWN, "drawn")
    made = drawn["message_id"]
    if made is not None and not made.startswith(f"<{drawn['unique']}@"):
        raise MessageError("drawn.message_id: is not made of drawn.unique")
    return Unpacked(
        {key: codec.unpack(values[key], key) for key, codec in _MESSAGE.items()},
        [
            _unpack_attachment(attachment, f"attachments[{number}]", allow_paths=allow_paths)
            for number, attachment in enumerate(_list(values["attachments"], "attachments"))
        ],
        drawn,
    )


def _pack_attachment(attachment: Attachment, field: str, *, inline_files: bool) -> dict[str, Json]:
    if not hasattr(attachment, "has_explicit_type"):
        raise InvalidAttachment(f"{field}: is a {type(attachment).__name__} and no Attachment")
    record = {
        key: codec.pack(getattr(attachment, key), f"{field}.{key}")
        for key, codec in _ATTACHMENT.items()
    }
    record["data"] = _pack_data(attachment, f"{field}.data", inline_files=inline_files)
    return record


def _unpack_attachment(record: Json, field: str, *, allow_paths: bool) -> dict[str, t.Any]:
    values = _object(record, (*_ATTACHMENT, "data"), field)
    fields = {
        key: codec.unpack(values[key], f"{field}.{key}") for key, codec in _ATTACHMENT.items()
    }
    fields["data"] = _unpack_data(values["data"], f"{field}.data", allow_paths=allow_paths)
    return fields


def _pack_data(attachment: Attachment, field: str, *, inline_files: bool) -> dict[str, str]:
    data: object = attachment.data
    if isinstance(data, str):
        return {"text": _text(str.__str__(data), field)}
    if isinstance(data, os.PathLike) and not inline_files:
        return {"path": _text(os.path.abspath(os.fspath(data)), field)}
    if isinstance(data, os.PathLike):
        file = bodies.PathSource(data, field)
        if file.size > _LIMITS.message_size:
            raise MessageTooLarge(f"{field}: {file.size} octets; {_LIMITS.message_size} are packed")
        octets: object = file.read()
    elif callable(getattr(data, "as_bytes", None)):
        octets = data.as_bytes()  # type: ignore[attr-defined]
    elif callable(getattr(data, "read", None)):
        octets = _octets_of_file(attachment, field)
    else:
        octets = data
    if not isinstance(octets, (bytes, bytearray, memoryview)):
        raise InvalidAttachment(f"{field}: must be bytes, not {type(octets).__name__}")
    return {"base64": base64.b64encode(octets).decode("ascii")}


def _octets_of_file(attachment: Attachment, field: str) -> bytes:
    """Read a file object as composing does: once, and the attachment keeps what was read."""
    attachment_part(attachment, HeaderWriter(), _LIMITS, ascii_names=False, field=field)
    assert attachment.prepared is not None  # noqa: S101 - composing keeps it of a file object
    _, encoding, body = attachment.prepared[2]
    encoded = body if isinstance(body, bytes) else b"".join(body.chunks())
    if encoding == "base64":
        return binascii.a2b_base64(encoded)
    return binascii.a2b_qp(encoded) if encoding == "quoted-printable" else encoded


def _unpack_data(record: Json, field: str, *, allow_paths: bool) -> bytes | str | pathlib.Path:
    if type(record) is not dict or len(record) != 1:
        raise MessageError(f"{field}: must be one of text, base64 and path")
    [(kind, value)] = record.items()
    field = f"{field}.{kind}" if kind in {"text", "base64", "path"} else field
    match kind:
        case "text":
            return _text(value, field)
        case "base64":
            try:
                return binascii.a2b_base64(_text(value, field).encode(), strict_mode=True)
            except binascii.Error:
                raise MessageError(f"{field}: is no base64") from None
        case "path" if allow_paths:
            return pathlib.Path(_text(value, field))
        case "path":
            raise MessageError(
                f"{field}: names a file; only of a record that nobody else can have written, "
                "from_dict(record, allow_paths=True) attaches it"
            )
        case _:
            raise MessageError(f"{field}: must be one of text, base64 and path")


def _object(record: Json, keys: Iterable[str], field: str) -> dict[str, Json]:
    """Return a dict that has these keys and no others."""
    if type(record) is not dict:
        raise MessageError(f"{field or 'record'}: must be a dict, not {type(record).__name__}")
    wanted = dict.fromkeys(keys)
    prefix = f"{field}." if field else ""
    for key in record:
        if key not in wanted:
            raise MessageError(f"{prefix}{printable(str(key), 40)}: there is no such key")
    for key in wanted:
        if key not in record:
            raise MessageError(f"{prefix}{key}: is missing")
    return record


def _fields(record: Json, codecs: dict[str, Codec], field: str) -> dict[str, t.Any]:
    values = _object(record, codecs, field)
    return {key: codec.unpack(values[key], f"{field}.{key}") for key, codec in codecs.items()}


def _list(value: Json, field: str) -> list[Json]:
    if type(value) is not list:
        raise MessageError(f"{field}: must be a list, not {type(value).__name__}")
    return value


def _text(value: t.Any, field: str) -> str:
    """Check text. Half a character is none: no charset and not every reader of JSON has it."""
    if type(value) is not str:
        raise MessageError(f"{field}: must be a str, not {type(value).__name__}")
    found = _SURROGATE.search(value)
    if found:
        raise MessageError(f"{field}: {place(value, found.start())} is half a character")
    return value


def _written(value: object, field: str) -> str:
    """Return what an author wrote as text, lazy or not."""
    return _text(as_text(value, field, MessageError), field)


def _pack_filename(value: object, field: str) -> str:
    # A name that was no UTF-8 on disk. Composing writes the same.
    return _SURROGATE.sub("_", as_text(value, field, InvalidAttachment))


def _optional(codec: Codec) -> Codec:
    return Codec(
        lambda value, field: None if value is None else codec.pack(value, field),
        lambda value, field: None if value is None else codec.unpack(value, field),
    )


def _listed(codec: Codec) -> Codec:
    return Codec(
        lambda value, field: [codec.pack(one, field) for one in _several(value, field)],
        lambda value, field: [codec.unpack(one, field) for one in _list(value, field)],
    )


def _one_or_several(codec: Codec, one: tuple[type, ...]) -> Codec:
    several = _listed(codec)
    return Codec(
        lambda value, field: (codec if isinstance(value, one) else several).pack(value, field),
        lambda value, field: (several if type(value) is list else codec).unpack(value, field),
    )


def _several(value: t.Any, field: str) -> list[t.Any]:
    if isinstance(value, Iterator):
        raise MessageError(f"{field}: an iterator can be read once only; write a list")
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise MessageError(f"{field}: must be a list, not {type(value).__name__}")
    return list(value)


def _pack_person(person: object, field: str) -> Json:
    """Write a person so that a str, a (name, address) and an Address are told apart again."""
    if isinstance(person, Address):
        return {"name": person.name, "address": person.addr_spec}
    if isinstance(person, tuple):
        if len(person) != 2:
            raise MessageError(f"{field}: a tuple is (name, address), not {len(person)} long")
        return {"pair": [_TEXT_OR_NONE.pack(person[0], field), _written(person[1], field)]}
    return _written(person, field)


def _unpack_person(value: Json, field: str) -> str | tuple[str | None, str] | Address:
    if type(value) is not dict:
        return _text(value, field)
    if "pair" in value:
        pair = _list(_object(value, ("pair",), field)["pair"], f"{field}.pair")
        if len(pair) != 2:
            raise MessageError(f"{field}.pair: has {len(pair)} items; name and address are two")
        return _TEXT_OR_NONE.unpack(pair[0], f"{field}.pair"), _text(pair[1], f"{field}.pair")
    person = _object(value, ("name", "address"), field)
    name, address = (_text(person[key], f"{field}.{key}") for key in ("name", "address"))
    return Address.of((name, address), field=field)


def _pack_pairs(value: t.Any, field: str) -> list[list[Json]]:
    try:
        pairs = dict(value).items()
    except (TypeError, ValueError):
        raise InvalidHeader(f"{field}: must be a dict of names and values") from None
    # Composing leaves out what is empty, but not what is a number by mistake.
    return [
        [
            _written(name, field),
            None
            if not (text or isinstance(text, str | int | float | bytes))
            else _written(text, field),
        ]
        for name, text in pairs
    ]


def _unpack_pairs(value: Json, field: str) -> dict[str, str | None]:
    pairs: dict[str, str | None] = {}
    for pair in _list(value, field):
        if type(pair) is not list or len(pair) != 2:
            raise MessageError(f"{field}: must be a list of [name, value]")
        name = _text(pair[0], field)
        if name in pairs:
            raise MessageError(f"{field}: a name is given twice")
        pairs[name] = _TEXT_OR_NONE.unpack(pair[1], field)
    return pairs


def _pack_date(value: object, field: str) -> str | int | float:
    if isinstance(value, dt.datetime):
        if value.utcoffset() is None:
            raise MessageError(f"{field}: the datetime has no time zone")
        return value.isoformat()
    return _seconds(value, field)


def _unpack_date(value: Json, field: str) -> dt.datetime | int | float:
    if type(value) is not str:
        return _seconds(value, field)
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.utcoffset() is None or moment.isoformat() != value:
        raise MessageError(f"{field}: is no datetime with a time zone as isoformat() writes it")
    return moment


def _seconds(value: t.Any, field: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MessageError(f"{field}: must be seconds or a datetime, not {type(value).__name__}")
    if not -_LATEST <= value <= _LATEST:  # nor is NaN
        raise MessageError(f"{field}: must be seconds since 1970 of a year up to 9999")
    return value


def _priority(value: t.Any, field: str) -> int | str:
    if isinstance(value, str):
        return _text(str.__str__(value), field)
    if type(value) is not int or not 1 <= value <= 5:
        raise MessageError(f"{field}: must be 1 to 5 or a name")
    return value


def _bool(value: t.Any, field: str) -> bool:
    if type(value) is not bool:
        raise MessageError(f"{field}: must be true or false, not {type(value).__name__}")
    return value


def _unique(value: t.Any, field: str) -> str:
    if not _UNIQUE.fullmatch(_text(value, field)):
        raise MessageError(f"{field}: must be 32 hexadecimal digits")
    return str(value)


def _drawn_id(value: t.Any, field: str) -> str:
    # Composing writes it without another look.
    if check_message_id(_text(value, field)) != value:
        raise MessageError(f"{field}: must be <unique@domain>")
    return str(value)


_TEXT = Codec(_written, _text)
_TEXT_OR_NONE = _optional(_TEXT)
_PERSON = Codec(_pack_person, _unpack_person)
_PEOPLE = _listed(_optional(_PERSON))
_PAIRS = _optional(Codec(_pack_pairs, _unpack_pairs))
_DATE = _optional(Codec(_pack_date, _unpack_date))

# What the author gave of the identity, by its names there.
_GIVEN = {"message_id": "given_message_id", "date": "given_date"}

_MESSAGE: dict[str, Codec] = {
    "subject": _TEXT_OR_NONE,
    "recipients": _PEOPLE,
    "body": _TEXT_OR_NONE,
    "alts": _PAIRS,
    "sender": _optional(_PERSON),
    "cc": _PEOPLE,
    "bcc": _PEOPLE,
    "reply_to": _optional(_one_or_several(_optional(_PERSON), (str, tuple, Address))),
    "date": _DATE,
    "charset": _TEXT_OR_NONE,
    "extra_headers": _PAIRS,
    "mail_options": _optional(_listed(_TEXT)),
    "rcpt_options": _optional(_listed(_TEXT)),
    "envelope_from": _optional(_PERSON),
    "message_id": _TEXT_OR_NONE,
    "in_reply_to": _TEXT_OR_NONE,
    "references": _optional(_one_or_several(_TEXT, (str,))),
    "priority": _optional(Codec(_priority, _priority)),
}
_DRAWN: dict[str, Codec] = {
    "unique": Codec(_unique, _unique),
    "message_id": _optional(Codec(_drawn_id, _drawn_id)),
    "date": _optional(Codec(_seconds, _seconds)),
}
_ATTACHMENT: dict[str, Codec] = {
    "filename": _optional(Codec(_pack_filename, _text)),
    "content_type": _TEXT,
    "has_explicit_type": Codec(_bool, _bool),
    "disposition": _TEXT,
    "headers": _PAIRS,
}
