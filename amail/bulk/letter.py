"""Letter: what everybody gets, each in their own words. Knows no list, no journal, no server."""

from __future__ import annotations

import hashlib
import json
import typing as t
from pathlib import Path

from amail import Address, Attachment, ConfigError, Limits, Message, MessageError
from amail.templates import templates_of

if t.TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from amail.address import Person
    from amail.bulk.recipients import Recipient
    from amail.templates import Part, Templates

T = t.TypeVar("T")

_NAME = "given/the-letter"  # nothing that a template includes by a name of its own
_URL = "given/the-url"
_SAID_AS = {
    f"{_URL}.subject.txt": "unsubscribe",
    f"{_NAME}.subject.txt": "subject",
    f"{_NAME}.txt": "text",
    f"{_NAME}.html": "html",
}
_ARGUMENTS = frozenset({"strict", "inline_css"})


class Addressed(Message):
    """A message that knows whose row it was made of, and whether a copy may be out there."""

    recipient: Recipient
    was_unknown = False


class Letter:
    """What everybody gets. ``subject``, ``text`` and ``html`` are the texts of Jinja templates.

    The columns of a row are their variables, and ``row`` is all of it: ``{{ row["First name"] }}``.
    One that is missing is an error. What they include is looked for in ``folders``. Without
    ``text`` it is made of the html, with ``inline_css`` the html's styles are moved into its
    elements; see ``amail.templates``.

    ``sender`` may be left to the mailer's ``default_sender``. ``attachments`` are paths, read now,
    or Attachments with bytes or str. ``unsubscribe`` is a template too, of a URL (an https one is
    one-click, RFC 8058) or of "mailto:...". ``headers`` are the same for all.

    Raises ConfigError for what no message can be made of, MessageError for a template that cannot
    be read, InvalidAttachment.
    """

    def __init__(
        self,
        subject: str,
        *,
        text: str | None = None,
        html: str | None = None,
        sender: Person | None = None,
        reply_to: Person | None = None,
        attachments: Iterable[Attachment | str | os.PathLike[str]] = (),
        unsubscribe: str | None = None,
        headers: Mapping[str, str] | None = None,
        inline_css: bool = False,
        folders: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        if text is None and html is None:
            raise ConfigError("text: is missing, and html too; a letter says something")
        self.sender = None if sender is None else Address.of(sender, field="sender")
        self._reply_to = None if reply_to is None else Address.of(reply_to, field="reply_to")
        self._attachments = [_read(each) for each in attachments]
        self._headers = dict(headers or {})
        self._inline_css = inline_css
        given: dict[Part, str | None] = {"subject": subject, "text": text, "html": html}
        texts: dict[Part, str] = {part: said for part, said in given.items() if said is not None}
        self._templates = templates_of(texts, name=_NAME, folders=folders, message_class=Addressed)
        # A URL is one line, as a subject is.
        self._unsubscribe = (
            None
            if unsubscribe is None
            else templates_of({"subject": unsubscribe, "text": ""}, name=_URL)
        )
        self.digest = self._digest()

    def __repr__(self) -> str:
        return f"<Letter {self.digest[:8]}>"

    def message_for(
        self,
        recipient: Recipient,
        *,
        sender: Person | None = None,
        message_id: str | None = None,
        date: float | None = None,
    ) -> Addressed:
        """Return what one recipient gets, from ``sender`` where the letter itself has none.

        Raises MessageError, naming the template.
        """
        context = {
            name: value
            for name, value in recipient.fields.items()
            if isinstance(name, str) and name not in _ARGUMENTS
        }
        context["row"] = recipient.fields
        message = _said(
            lambda: self._templates.render(
                _NAME, strict=True, inline_css=self._inline_css, **context
            )
        )
        message.recipient = recipient
        message.recipients = [recipient.address]
        message.sender = self.sender or sender
        message.reply_to = self._reply_to
        message.attachments = list(self._attachments)  # the same ones, so encoded once
        message.extra_headers = dict(self._headers)
        message.message_id = message_id
        message.date = date
        if self._unsubscribe is not None:
            self._add_unsubscribe(message, self._unsubscribe, context)
        return message

    def _add_unsubscribe(
        self, message: Message, templates: Templates[Message], context: Mapping[str, t.Any]
    ) -> None:
        url = _said(lambda: templates.render(_URL, strict=True, **context)).subject
        if url.lower().startswith("mailto:"):
            message.add_unsubscribe(mailto=url)
        else:
            message.add_unsubscribe(url)

    def _digest(self) -> str:
        """Return what differs as soon as anybody would get something else."""
        sources = [_said(lambda: self._templates.sources(_NAME))]
        if self._unsubscribe is not None:
            unsubscribe = self._unsubscribe
            sources.append(_said(lambda: unsubscribe.sources(_URL)))
        said = {
            "sources": sources,
            "sender": str(self.sender),
            "reply_to": str(self._reply_to),
            "headers": self._headers,
            "inline_css": self._inline_css,
            "attachments": [
                [each.filename, each.content_type, each.disposition, each.headers, _hash(each)]
                for each in self._attachments
            ],
        }
        text = json.dumps(said, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _said(render: Callable[[], T]) -> T:
    """Have what is wrong with a template name the part that was given."""
    try:
        return render()
    except MessageError as error:
        text = str(error)
        for file, part in _SAID_AS.items():
            text = text.replace(file, part)
        error.args = (text,)
        raise


def _read(attachment: Attachment | str | os.PathLike[str]) -> Attachment:
    """Return an attachment that is in memory."""
    if isinstance(attachment, Attachment):
        if not isinstance(attachment.data, bytes | str):
            raise ConfigError("attachments: give paths, or Attachments with bytes or str")
        return attachment
    path = Path(attachment)
    limit = Limits().message_size
    try:
        if not path.is_file():
            raise ConfigError(f"attachments: {path} is no file")
        if path.stat().st_size > limit:
            raise ConfigError(f"attachments: {path} is larger than {limit} octets")
        return Attachment(path.name, data=path.read_bytes())
    except OSError as error:
        raise ConfigError(f"attachments: {path} cannot be read: {error.strerror}") from error


def _hash(attachment: Attachment) -> str:
    data = attachment.data
    octets = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)  # type: ignore[arg-type]
    return hashlib.blake2b(octets, digest_size=16).hexdigest()
