"""A rehearsal: everything is rendered and checked, and nothing is sent or written."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from amail import Address, MessageError
from amail.bulk.recipients import BadRow, Recipients, key_of

if t.TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from amail import Message
    from amail.address import Person
    from amail.bulk.letter import Addressed, Letter
    from amail.bulk.recipients import Fields, Row

_MOST_LISTED = 1000


@dataclass
class Rehearsal:
    """What would be sent: to ``valid`` mailboxes, and three of the messages as ``samples``.

    ``bad`` are rows that would be skipped, the first 1,000 of ``invalid``; ``duplicates`` are rows
    of a mailbox that is in the list before.
    """

    rows: int = 0
    valid: int = 0
    invalid: int = 0
    duplicates: int = 0
    bad: list[BadRow] = field(default_factory=list)
    samples: list[Message] = field(default_factory=list)

    def refuse(self, line: int, error: str) -> None:
        """Note a row that would be skipped."""
        self.invalid += 1
        if len(self.bad) < _MOST_LISTED:
            self.bad.append(BadRow(line, error))


def rehearse(
    letter: Letter,
    recipients: Recipients | str | os.PathLike[str] | Iterable[Fields],
    *,
    sender: Person | None = None,
    on_row: Callable[[Rehearsal], object] | None = None,
) -> Rehearsal:
    """Render and check the message of each row, without a server and without a journal.

    ``sender`` is for a letter that has none. ``on_row`` is called behind each row. The samples are
    the first message, one of the middle and the last. It computes, so call it outside of a loop.
    Raises RecipientsError, and ConfigError for what is wrong with every message.
    """
    if not isinstance(recipients, Recipients):
        recipients = Recipients(recipients)
    author = letter.sender or (None if sender is None else Address.of(sender, field="sender"))
    middle = (recipients.count() or 0) // 2
    done = Rehearsal()
    seen: set[bytes] = set()
    last: Addressed | None = None
    for row in recipients:
        done.rows += 1
        message = _checked(letter, row, author, seen, done)
        if message is not None:
            done.valid += 1
            if not done.samples or (len(done.samples) == 1 and done.rows > middle):
                done.samples.append(message)
            else:
                last = message
        if on_row is not None:
            on_row(done)
    if last is not None:
        done.samples.append(last)
    return done


def _checked(
    letter: Letter, row: Row, sender: Address | None, seen: set[bytes], done: Rehearsal
) -> Addressed | None:
    if isinstance(row, BadRow):
        done.refuse(row.line, row.error)
        return None
    key = key_of(row.mailbox)
    if key in seen:
        done.duplicates += 1
        return None
    seen.add(key)
    try:
        message = letter.message_for(row, sender=sender)
        message.validate()
    except MessageError as error:
        done.refuse(row.line, str(error))
        return None
    return message
