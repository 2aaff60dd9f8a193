"""Keys: the settings of a mailer under the names that a framework's config has for them.

A table says of each key how its value is read, what it means, and its default. A config is a
mapping that is read by it (``Config``), and the documentation is made of it (``as_markdown``).
Invariant: no error and no repr shows a value.
"""

from __future__ import annotations

import difflib
import typing as t
from dataclasses import dataclass

from amail import values
from amail.errors import ConfigError
from amail.smtp.settings import SMTPSettings

if t.TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping


class Key(t.NamedTuple):
    """A key of a config.

    ``read`` returns what a value means, or raises ValueError with what it must be. ``setting`` is
    amail's name for it; ``by_default`` says in words what no ``default`` can.
    """

    read: Callable[[object], t.Any]
    meaning: str
    setting: str = ""
    default: t.Any = None
    by_default: str = ""


def option(setting: str, meaning: str, by_default: str = "") -> Key:
    """Return the key of a field of SMTPSettings: what that may be, and its default, it knows."""
    field = SMTPSettings.__dataclass_fields__[setting]
    read = values.credential if setting in _CREDENTIALS else _READERS[str(field.type)]
    return Key(read, meaning, setting, field.default, by_default)


_CREDENTIALS = frozenset({"username", "password"})
_READERS: dict[str, Callable[[object], t.Any]] = {
    "bool": values.truth,
    "int": values.whole_number,
    "int | None": values.whole_number,
    "str": values.text,
    "str | None": values.text,
    "str | os.PathLike[str] | None": values.path,
}


class Given(t.NamedTuple):
    """A value as it was written, and where."""

    value: t.Any
    source: str

    @property
    def is_nothing(self) -> bool:
        """True for what is as if it had not been written."""
        return self.value is None or self.value == ""


@dataclass(frozen=True, repr=False)
class Config:
    """What a config says: ``config["KEY"]`` is the value, or the default of the table.

    ``sources`` says of those that were set where; ``empty`` are those that were set to nothing.
    """

    values: Mapping[str, t.Any]
    sources: Mapping[str, str]
    empty: frozenset[str]

    @classmethod
    def of(cls, given: Mapping[str, Given], keys: Mapping[str, Key]) -> t.Self:
        """Read what was written. Raises ConfigError, naming the key and never its value."""
        found = {name: key.default for name, key in keys.items()}
        for name, each in given.items():
            if not each.is_nothing:
                try:
                    found[name] = keys[name].read(each.value)
                except ValueError as error:
                    raise ConfigError(f"{name}: {error}") from None
        empty = frozenset(name for name, each in given.items() if each.is_nothing)
        return cls(found, {name: given[name].source for name in given.keys() - empty}, empty)

    def __getitem__(self, name: str) -> t.Any:
        return self.values[name]

    def rows(self, keys: Mapping[str, Key]) -> Iterator[tuple[str, str, str]]:
        """Yield of each key its name, its value as it may be shown, and where that is from."""
        for name, key in keys.items():
            said = "" if name in self.sources else key.by_default.replace("`", "")
            yield name, said or values.masked(self[name]), self.sources.get(name, "default")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {', '.join(sorted(self.sources)) or 'defaults'}>"


def given_in(
    written: Mapping[str, t.Any], keys: Container[str], source: str, unknown: Callable[[str], None]
) -> dict[str, Given]:
    """Return what a mapping says of some keys; ``unknown`` is called with each other one in it."""
    for name in written:
        if name not in keys:
            unknown(name)
    return {name: Given(value, source) for name, value in written.items() if name in keys}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" where something known looks like a name, else ""."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def as_markdown(sections: Mapping[str, Mapping[str, Key]]) -> str:
    """Return a table of keys for each section, as documentation has them."""
    lines = []
    for title, keys in sections.items():
        lines += [f"### {title}", "", "| key | default | meaning |", "|---|---|---|"]
        for name, key in keys.items():
            default = key.by_default or ("" if key.default is None else f"`{key.default!r}`")
            lines.append(f"| {name} | {default} | {key.meaning} |")
        lines.append("")
    return "\n".join(lines)


def as_columns(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows as lines, for terminals."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
