"""What a server offers is read from its EHLO keywords, and a strange SIZE is no limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.smtp.extensions import Extensions
from tests.strategies import EXAMPLES


def test_a_server_that_offers_nothing_has_no_extension() -> None:
    assert Extensions.from_ehlo({}) == Extensions(
        pipelining=False,
        chunking=False,
        smtputf8=False,
        eightbitmime=False,
        size_offered=False,
        size=None,
        dsn=False,
    )


def test_each_keyword_is_its_extension() -> None:
    assert Extensions.from_ehlo({"pipelining": ""}) == Extensions(pipelining=True)
    assert Extensions.from_ehlo({"chunking": ""}) == Extensions(chunking=True)
    assert Extensions.from_ehlo({"smtputf8": ""}) == Extensions(smtputf8=True)
    assert Extensions.from_ehlo({"8bitmime": ""}) == Extensions(eightbitmime=True)
    assert Extensions.from_ehlo({"size": "1000"}) == Extensions(size_offered=True, size=1000)
    assert Extensions.from_ehlo({"dsn": ""}) == Extensions(dsn=True)
    assert Extensions.from_ehlo({"x-chunking": "", "x-size": "5", "x-dsn": ""}) == Extensions()


@pytest.mark.parametrize(
    ("parameter", "size"),
    [
        ("52428800", 52_428_800),
        (" 10 ", 10),
        ("0", None),
        ("", None),
        ("many", None),
        ("-1", None),
        ("1e3", None),
        ("1_000", None),
        ("10 20", None),
        ("٣", None),
        ("9" * 20, int("9" * 20)),
        ("9" * 21, None),
        ("9" * 5000, None),
    ],
)
def test_size_is_a_limit_only_where_it_is_a_number_above_0(
    parameter: str, size: int | None
) -> None:
    extensions = Extensions.from_ehlo({"size": parameter})
    assert extensions.size == size
    assert extensions.size_offered


@EXAMPLES
@given(st.dictionaries(st.sampled_from(["size", "pipelining", "8bitmime"]), st.text()))
def test_no_parameter_of_any_keyword_is_too_much(keywords: dict[str, str]) -> None:
    extensions = Extensions.from_ehlo(keywords)
    assert extensions.size_offered == ("size" in keywords)
    assert extensions.size is None or extensions.size > 0
