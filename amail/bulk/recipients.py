"""Recipients: reads who gets a letter, out of CSV or JSON lines, a row at a time.

Invariant: no more than one row is held, so that a list of any length costs the same memory. What is
wrong with one row is said of it, with its line and column, and the next one is read; what makes
every row doubtful is an error.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import itertools
import json
import os
import re
import typing as t
from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path

from amail import Address, MailError, MessageError

_LONGEST_LINE = 1024 * 1024
_DELIMITERS = (",", ";", "\t")
_QUOTED = re.compile(r'"[^"]*"')
_SURROGATE = re.compile("[\udc80-\udcff]")

Fields: t.TypeAlias = Mapping[str, t.Any]
"""A row: a value for each column, a str where the list is CSV."""


class RecipientsError(MailError, ValueError):
    """A list of recipients that cannot be read; says the file, the line and what to do."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """One row with an address. ``line`` is where it begins in the file, counted from 1."""

    line: int
    address: Address
    fields: Fields

    @property
    def mailbox(self) -> str:
        """The address as it is told from others: exact local part, domain in lower case."""
        local_part, _, _ = self.address.addr_spec.rpartition("@")
        return f"{local_part}@{self.address.ascii_domain.lower()}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be used, and why."""

    line: int
    error: str


Row: t.TypeAlias = Recipient | BadRow


def key_of(mailbox: str) -> bytes:
    """Return what stands for a mailbox in memory: 120 bits of its hash."""
    return hashlib.blake2b(mailbox.encode(), digest_size=15).digest()


class Recipients:
    """The rows of ``source``, read anew each time this is iterated.

    ``source`` is the path of a file, CSV with a row of column names or an object of JSON in each
    line, or an iterable of mappings. ``column`` holds the address, "ada@example.com" or "Ada
    <ada@example.com>"; ``name_column`` the display name, where there is such a column.
    ``delimiter`` is what separates the columns of CSV: comma, semicolon or tab as the first line
    has them, if it is None. Files are UTF-8.

    Iterating raises RecipientsError.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Iterable[Fields],
        *,
        column: str = "email",
        name_column: str = "name",
        delimiter: str | None = None,
    ) -> None:
        self._path: Path | None = None
        self._rows: Iterable[Fields] = ()
        if isinstance(source, str | os.PathLike):
            self._path = Path(source)
        else:
            self._rows = source
        if delimiter is not None and len(delimiter) != 1:
            raise RecipientsError("delimiter: must be one character")
        self._column = column
        self._name_column = name_column
        self._delimiter = delimiter

    def __repr__(self) -> str:
        return f"<Recipients of {self._path or type(self._rows).__name__}>"

    def __iter__(self) -> Generator[Row, None, None]:
        if self._path is not None:
            yield from self._of_file(self._path)
        else:
            for number, fields in enumerate(self._rows, 1):
                yield self._row(number, fields)

    def count(self) -> int | None:
        """Return how many rows there are, None where only reading them would tell.

        A file is read for that. Raises RecipientsError for one that cannot be read to its end.
        """
        if self._path is not None:
            return sum(1 for _ in self._of_file(self._path))
        return len(self._rows) if isinstance(self._rows, Sized) else None

    def _of_file(self, path: Path) -> Iterator[Row]:
        try:
            # Not "strict", which would tell neither line nor row.
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                lines = _Lines(path.name, file)
                first = next((line for line in lines if line.strip()), "")
                if not first:
                    raise RecipientsError(f"{path.name}: is empty")
                read = self._json_lines if first.lstrip().startswith("{") else self._csv
                yield from read(lines, first)
        except OSError as error:
            raise RecipientsError(f"{path}: cannot be read: {error.strerror}") from error

    def _csv(self, lines: _Lines, first: str) -> Iterator[Row]:
        delimiter = self._delimiter or _delimiter_of(first)
        rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            begin = lines.number + 1 if header else lines.number
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise RecipientsError(
                    f"{lines.name}, line {begin}: {error}; a quoted field may not end"
                ) from None
            if cells is None:
                return
            bad = lines.take_bad()
            if header is None:
                header = self._header(f"{lines.name}, line {begin}", cells, bad)
            elif bad is not None:
                yield BadRow(begin, bad)
            elif len(cells) == len(header):
                yield self._row(begin, dict(zip(header, cells, strict=True)))
            elif cells:
                text = f"has {len(cells)} cells where there are {len(header)} columns"
                yield BadRow(begin, text)

    def _header(self, where: str, cells: list[str], bad: str | None) -> list[str]:
        """Check the names of the columns."""
        if bad is not None:
            raise RecipientsError(f"{where}: {bad}")
        names = [cell.strip() for cell in cells]
        for number, name in enumerate(names, 1):
            if not name:
                raise RecipientsError(f"{where}: column {number} has no name")
            if name in names[: number - 1]:
                raise RecipientsError(f"{where}: two columns are called {name!r}")
        if self._column not in names:
            close = difflib.get_close_matches(self._column, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise RecipientsError(
                f"{where}: must name the columns, and none is called {self._column!r}; {hint}"
            )
        return names

    def _json_lines(self, lines: _Lines, first: str) -> Iterator[Row]:
        for line in itertools.chain([first], lines):
            bad = lines.take_bad()
            if not line.strip():
                continue
            if bad is not None:
                yield BadRow(lines.number, bad)
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                at = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                yield BadRow(lines.number, f"is no JSON{at}: {getattr(error, 'msg', error)}")
                continue
            except RecursionError:
                yield BadRow(lines.number, "is JSON that is nested too deeply")
                continue
            yield self._row(lines.number, fields)

    def _row(self, line: int, fields: object) -> Row:
        if not isinstance(fields, Mapping):
            return BadRow(line, f"must be an object with names, not {type(fields).__name__}")
        if self._column not in fields:
            return BadRow(line, f"has no {self._column!r}")
        try:
            address = Address.of(fields[self._column], field=f"column {self._column!r}")
            name = fields.get(self._name_column)
            if isinstance(name, str) and name.strip() and not address.name:
                # A tuple, for the name is one whatever it looks like.
                field = f"column {self._name_column!r}"
                address = Address.of((name, address.addr_spec), field=field)
        except MessageError as error:
            return BadRow(line, str(error))
        return Recipient(line, address, fields)


class _Lines:
    """The lines of a file, each of a bounded length. ``number`` is that of the last one."""

    def __init__(self, name: str, file: t.TextIO) -> None:
        self.name = name
        self.number = 0
        self._file = file
        self._bad: str | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_LONGEST_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == _LONGEST_LINE:
            raise RecipientsError(
                f"{self.name}, line {self.number}: is longer than {_LONGEST_LINE} characters"
            )
        if not line.isascii() and (found := _SURROGATE.search(line)):
            octet, at = ord(found[0]) - 0xDC00, found.start() + 1
            self._bad = f"is not UTF-8: octet 0x{octet:02X} at character {at} of line {self.number}"
        return line

    def take_bad(self) -> str | None:
        """Return what was wrong with a line since the last call."""
        bad, self._bad = self._bad, None
        return bad


def _delimiter_of(header: str) -> str:
    """Return which delimiter a row of names has most of, outside of quotes."""
    outside = _QUOTED.sub("", header)
    return max(_DELIMITERS, key=outside.count)
