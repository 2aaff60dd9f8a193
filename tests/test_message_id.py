"""A Message-ID made of a key is the same wherever and whenever it is made."""

from __future__ import annotations

import re
import subprocess
import sys
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.errors import InvalidAddress, InvalidHeader, MessageError
from amail.message import Message
from tests.mime.reading import judged, message
from tests.strategies import EXAMPLES, nasty_text


def test_the_same_key_and_domain_are_the_same_id_in_every_process() -> None:
    made = Message.make_id("order-42", domain="example.com")
    code = 'import amail; print(amail.Message.make_id("order-42", domain="example.com"), end="")'
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert made == other.stdout == "<c4f0948fe13aa826d3d225eb24bdc5e6@example.com>"


def test_another_key_or_domain_is_another_id() -> None:
    ids = {
        Message.make_id(key, domain=domain)
        for key in ("order-42", "order-43", "Order-42", "order-42 ", "é", "e\u0301")
        for domain in ("example.com", "example.org")
    }
    assert len(ids) == 12


def test_a_domain_in_capitals_or_as_unicode_is_the_same_domain() -> None:
    one = Message.make_id("k", domain="BÜCHER.de")
    assert one == Message.make_id("k", domain="xn--bcher-kva.de")
    assert one.endswith("@xn--bcher-kva.de>")
    assert Message.make_id("k", domain="X.Org") == Message.make_id("k", domain="x.org")
    assert Message.make_id("k", domain="[192.0.2.1]").endswith("@[192.0.2.1]>")


def test_the_key_does_not_show_and_the_message_has_the_id() -> None:
    made = Message.make_id("secret order\r\nBcc: x@y.org", domain="example.com")
    assert re.fullmatch(r"<[0-9a-f]{32}@example\.com>", made)
    assert judged(message(message_id=made)).headers["Message-ID"] == made


@pytest.mark.parametrize("key", ["", None, 42, b"order-42", "\ud800"])
def test_what_is_no_key_is_refused(key: t.Any) -> None:
    with pytest.raises(InvalidHeader, match="make_id: key: "):
        Message.make_id(key, domain="example.com")


@pytest.mark.parametrize("domain", ["", " ", "a b", "x@y.org", "x.org>", "x\r\n", "a..b", None, 7])
def test_what_is_no_domain_is_refused(domain: t.Any) -> None:
    with pytest.raises(InvalidAddress, match="make_id: domain: "):
        Message.make_id("order-42", domain=domain)


@EXAMPLES
@given(key=nasty_text, domain=st.just("example.com") | nasty_text)
def test_any_key_and_domain_are_refused_or_make_an_id_that_can_be_sent(
    key: str, domain: str
) -> None:
    try:
        made = Message.make_id(key, domain=domain)
    except MessageError:
        return
    assert judged(message(message_id=made)).headers["Message-ID"] == made
    assert Message.make_id(key, domain=domain) == made
