"""A Date field -> an aware datetime (RFC 5322, sections 3.3 and 4.3)."""

from __future__ import annotations

import datetime as dt
import re

from amail.errors import InvalidHeader
from amail.mime.tokens import without_comments

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATE = re.compile(
    r"(?:[a-z]{3,9},?[ ])?([0-9]{1,2})[ -](" + "|".join(_MONTHS) + r")[a-z]{0,6}[ -]([0-9]{2,4})[ ]"
    r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?[ ]?([+-][0-9]{4}|[a-z]{1,3})",
    re.IGNORECASE,
)
_ZONES = {  # hours from Greenwich
    "ut": 0, "utc": 0, "gmt": 0, "z": 0,
    "edt": -4, "est": -5, "cdt": -5, "cst": -6, "mdt": -6, "mst": -7, "pdt": -7, "pst": -8,
}  # fmt: skip


def read_date(text: str, field: str) -> dt.datetime:
    """Read a date. Raises InvalidHeader for what is none, or whose zone is not known."""
    found = _DATE.fullmatch(" ".join(without_comments(text).split()))
    if found is None:
        raise InvalidHeader(f"{field}: is no date of RFC 5322")
    day, month, year, hour, minute, second, zone = found.groups()
    try:
        moment = dt.datetime(
            _year(year),
            _MONTHS.index(month.lower()) + 1,
            int(day),
            int(hour),
            int(minute),
            tzinfo=dt.timezone(_offset(zone.lower())),
        )
        # Added, for a leap second is written :60.
        return moment + dt.timedelta(seconds=min(int(second or 0), 60))
    except (ValueError, OverflowError, KeyError):
        raise InvalidHeader(f"{field}: there is no such day, time or zone") from None


def _year(year: str) -> int:
    """Return the year; one of two or three digits is of the last century or this one."""
    number = int(year)
    if len(year) == 4:
        return number
    return number + (2000 if len(year) == 2 and number < 50 else 1900)


def _offset(zone: str) -> dt.timedelta:
    if zone[0] in "+-":
        offset = dt.timedelta(hours=int(zone[1:3]), minutes=int(zone[3:]))
        return -offset if zone[0] == "-" else offset
    return dt.timedelta(hours=_ZONES[zone])
