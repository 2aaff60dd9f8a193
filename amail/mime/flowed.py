"""text/plain; format=flowed -> text whose paragraphs are lines (RFC 3676, section 4)."""

from __future__ import annotations

_SIGNATURE = "-- "


def unflow(text: str, *, delete_space: bool) -> str:
    """Join the lines of each paragraph. ``delete_space`` is the parameter delsp=yes."""
    lines: list[str] = []
    paragraph: list[str] = []
    quoting = 0
    for line in text.split("\n"):
        rest = line.lstrip(">")
        depth = len(line) - len(rest)
        rest = rest.removeprefix(" ")  # space-stuffed
        if paragraph and (depth != quoting or rest == _SIGNATURE):
            lines.append(_quoted(paragraph, quoting))
            paragraph = []
        quoting = depth
        is_flowed = rest.endswith(" ") and rest != _SIGNATURE
        paragraph.append(rest[:-1] if is_flowed and delete_space else rest)
        if not is_flowed:
            lines.append(_quoted(paragraph, depth))
            paragraph = []
    if paragraph:
        lines.append(_quoted(paragraph, quoting))
    return "\n".join(lines)


def _quoted(paragraph: list[str], depth: int) -> str:
    marks, line = ">" * depth, "".join(paragraph)
    return f"{marks} {line}" if depth and line else marks + line
