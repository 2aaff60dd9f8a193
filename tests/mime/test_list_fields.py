"""What lists and machines say in headers: how to leave, and that nobody should answer."""

from __future__ import annotations

import copy
import pickle
import re
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.address import Address
from amail.errors import InvalidAddress, InvalidHeader, MessageError
from amail.mime import compose
from tests.mime.reading import judged, message, read
from tests.strategies import EXAMPLES, nasty_text

URL = "https://example.com/leave?id=7f3a&list=news"
POST = "List-Unsubscribe=One-Click"
BRACKETED = re.compile(r"<([^<>]*)>")


def unsubscribing(**fields: t.Any) -> dict[str, str]:
    written = message()
    written.add_unsubscribe(**fields)
    return judged(written).headers


def test_an_https_url_is_one_click_and_stands_in_front_of_the_address() -> None:
    headers = unsubscribing(url=URL, mailto="leave@example.com")
    assert headers["List-Unsubscribe"] == f"<{URL}>, <mailto:leave@example.com>"
    assert headers["List-Unsubscribe-Post"] == POST


@pytest.mark.parametrize("fields", [{"url": "http://example.com/x"}, {"mailto": "a@x.org"}])
def test_without_https_there_is_no_one_click(fields: dict[str, str]) -> None:
    headers = unsubscribing(**fields)
    assert headers["List-Unsubscribe"].startswith(("<http:", "<mailto:"))
    assert "List-Unsubscribe-Post" not in headers


@pytest.mark.parametrize(
    ("mailto", "written"),
    [
        ("leave@x.org", "mailto:leave@x.org"),
        ("Leave <leave+7@bücher.de>", "mailto:leave+7@xn--bcher-kva.de"),
        (("Leave", "leave@x.org"), "mailto:leave@x.org"),
        (Address("a%b&c?d@x.org"), "mailto:a%25b&c%3Fd@x.org"),
        ("jörg@münchen.de", "mailto:j%C3%B6rg@xn--mnchen-3ya.de"),
        ("a/b={c}@x.org", "mailto:a%2Fb%3D%7Bc%7D@x.org"),
        ("mailto:leave@x.org?subject=leave%20news", "mailto:leave@x.org?subject=leave%20news"),
    ],
)
def test_an_address_to_leave_by_is_written_as_a_url(mailto: t.Any, written: str) -> None:
    assert unsubscribing(mailto=mailto)["List-Unsubscribe"] == f"<{written}>"


def test_a_long_url_is_neither_folded_nor_encoded() -> None:
    url = "https://example.com/leave/" + "x" * 900
    written = message()
    written.add_unsubscribe(url, "leave@example.com")
    assert f"List-Unsubscribe: <{url}>,\r\n <mailto:leave@example.com>\r\n" in str(written)


def test_the_fields_replace_those_that_were_there_in_any_letter_case() -> None:
    given = {"list-UNSUBSCRIBE": "<https://old.example>", "X-A": "1"}
    written = message(extra_headers=given)
    written.add_unsubscribe(URL)
    written.add_unsubscribe("http://example.com/new")
    headers = judged(written).headers
    assert headers["List-Unsubscribe"] == "<http://example.com/new>"
    assert "List-Unsubscribe-Post" not in headers
    assert headers["X-A"] == "1"
    assert given == {"list-UNSUBSCRIBE": "<https://old.example>", "X-A": "1"}


def test_copies_and_later_changes_keep_the_fields() -> None:
    written = message(body="x")
    written.add_unsubscribe(URL)
    written.mark_auto_submitted()
    for other in (written, copy.deepcopy(written), pickle.loads(pickle.dumps(written))):
        assert isinstance(other.extra_headers, dict)
        other.extra_headers["X-A"] = "1"
        other.html = "<p>"
        other.renew()
        headers = judged(other).headers
        assert (headers["List-Unsubscribe-Post"], headers["X-A"]) == (POST, "1")
        assert headers["Auto-Submitted"] == "auto-generated"


@pytest.mark.parametrize(
    "url",
    [
        *("javascript:alert(1)", "JavaScript:x", "data:text/html,x", "file:///etc/passwd"),
        *("javascript://x.org/%0Aalert(1)", "data://x.org/,x", "\tjavascript:x", "java\nscript:x"),
        *("vbscript:x", "ftp://x.org/y", "//x.org/y", "/leave", "x.org", "", " ", "https:x.org"),
        *("https://", "https:///leave", "https://?x", "https://x.org/a b", "https://x.org/<b>"),
        *("https://x.org/\r\nBcc: y@z.org", "https://x.org/\n", "https://x.org/\0", "\ud800"),
        *("https://x.org/é", "https://x.org/?a=?utf-8?q?=0D=0ABcc:_x?=", 'https://x.org/"', 7),
        *("https://x.org/>, <javascript:x", "https://x.org/\u2028", "https://x.org/\\", b"x"),
    ],
)
def test_b66_what_is_no_url_to_leave_by_is_refused(url: t.Any) -> None:
    written = message()
    with pytest.raises(InvalidHeader, match="List-Unsubscribe: url"):
        written.add_unsubscribe(url)
    assert written.extra_headers is None


@pytest.mark.parametrize(
    "value",
    [
        *("<javascript://x.org/%0Aalert(1)>", "<data://x.org/,x>", "< javascript:x>"),
        *("<javascript:alert(1)>", "<data:text/html,x>", "<https://x.org/>, <data:x>", "<>"),
        *("https://x.org/", "leave@x.org", "<https://x.org/", "<https://x.org/ y>", "NO"),
        *("<https://x.org/> <https://y.org/>", "<https://x.org/>;", "<https://x.org/>, "),
        *("<https://x.org/>\r\nBcc: x@y.org", "<https://x.org/\r\n y>", "<mailto:x>"),
    ],
)
def test_b66_the_same_holds_for_a_field_written_by_hand(value: str) -> None:
    with pytest.raises(InvalidHeader, match="extra_headers: List-Unsubscribe"):
        compose(message(extra_headers={"List-Unsubscribe": value}))


@pytest.mark.parametrize(
    "unsubscribe",
    [None, "<http://x.org/>", "<mailto:a@x.org>", "<https://x.org/>, <http://x.org/>"],
)
def test_b66_one_click_without_one_https_url_is_refused(unsubscribe: str | None) -> None:
    headers = {"List-Unsubscribe-Post": POST, "List-Unsubscribe": unsubscribe}
    with pytest.raises(InvalidHeader, match="one-click needs exactly one https URL"):
        compose(message(extra_headers=headers))


def test_b66_one_click_has_one_value() -> None:
    headers = {"List-Unsubscribe": f"<{URL}>", "List-Unsubscribe-Post": "List-Unsubscribe=Yes"}
    with pytest.raises(InvalidHeader, match="List-Unsubscribe=One-Click"):
        compose(message(extra_headers=headers))


def test_a_way_to_leave_is_needed_and_an_address_is_one() -> None:
    written = message()
    with pytest.raises(InvalidHeader, match="a url, a mailto or both"):
        written.add_unsubscribe()
    for mailto in ("a@x.org, b@y.org", "nobody", "a\r\n@x.org"):
        with pytest.raises(InvalidAddress, match="List-Unsubscribe: mailto"):
            written.add_unsubscribe(mailto=mailto)
    for mailto in ("mailto:nobody", "mailto:a@x.org\r\nBcc: y@z.org", "mailto:a@x.org>,<b:c"):
        with pytest.raises(InvalidHeader, match="List-Unsubscribe: mailto"):
            written.add_unsubscribe(mailto=mailto)
    with pytest.raises(InvalidHeader, match="998"):
        written.add_unsubscribe("https://x.org/" + "u" * 1000)


def test_headers_that_are_no_dict_are_refused_when_a_field_is_added() -> None:
    with pytest.raises(InvalidHeader, match="extra_headers: must be a dict"):
        message(extra_headers=7).add_unsubscribe(URL)


def test_f32_comments_of_a_list_field_hide_no_url() -> None:
    for value in (
        "<https://x.org/help> (all about it)",
        "(Web) <https://x.org/a>, (mail) <mailto:a@x.org> (slow)",
        "<ftp://ftp.x.org/list.txt>",
    ):
        for name in ("List-Help", "List-Archive", "List-Owner", "List-Subscribe"):
            assert read(extra_headers={name: value}).headers[name] == value
    for comment in ("(open", "close)", "(a (b) c)", 'a "b', "(a \\) b)", "(<https://evil.org>)"):
        with pytest.raises(InvalidHeader, match="List-Help"):
            compose(message(extra_headers={"List-Help": f"<https://x.org/> {comment}"}))
        with pytest.raises(InvalidHeader, match="List-Help"):
            compose(message(extra_headers={"List-Help": f"{comment} <https://x.org/>"}))
    with pytest.raises(InvalidHeader, match="List-Help"):
        compose(message(extra_headers={"List-Help": "<https://x.org/> (a\r\nBcc: x@y.org)"}))


def test_a_list_nobody_may_post_to_says_so() -> None:
    for value in ("NO", "NO (closed)"):
        assert read(extra_headers={"List-Post": value}).headers["List-Post"] == value
    with pytest.raises(InvalidHeader, match="List-Post"):
        compose(message(extra_headers={"List-Post": "NOT"}))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("<news.example.com>", "<news.example.com>"),
        ("<a+b=1/2.example.com>", "<a+b=1/2.example.com>"),
        ("News <news.example.com>", "News <news.example.com>"),
        ('"News, daily" <news.example.com>', '"News, daily" <news.example.com>'),
        ("Grüße <news.example.com>", "=?utf-8?b?R3LDvMOfZQ==?= <news.example.com>"),
    ],
)
def test_f32_a_list_id_is_a_name_in_brackets_that_is_never_encoded(
    value: str, written: str
) -> None:
    assert read(extra_headers={"List-Id": value}).headers["List-Id"] == written


@pytest.mark.parametrize(
    "value",
    [
        *("<https://example.com/list>", "news.example.com", "<a> <b>", "<a b>", "<é.org>", "<>"),
        *(
            "<=?utf-8?q?x?=>",
            "<=?utf-8?q?x?=.x.org>",
            "<a..b>",
            'a "b <c.d>',
            '"a" b <c.d>',
            "<c.d> x",
        ),
    ],
)
def test_f32_what_is_no_list_id_is_refused(value: str) -> None:
    with pytest.raises(InvalidHeader, match=r"List-Id: write <news\.example\.com>"):
        compose(message(extra_headers={"List-Id": value}))


def test_a_message_of_a_machine_says_so_and_bounces_still_come() -> None:
    written = message()
    written.mark_auto_submitted()
    written.mark_auto_submitted()
    headers = judged(written).headers
    assert headers["Auto-Submitted"] == "auto-generated"
    # "All" would keep reports of non-delivery back too.
    assert headers["X-Auto-Response-Suppress"] == "OOF, AutoReply"


@EXAMPLES
@given(
    url=st.none() | nasty_text | nasty_text.map("https://x.org/{}".format),
    mailto=st.none() | nasty_text | nasty_text.map("mailto:a@x.org?subject={}".format),
)
def test_any_way_to_leave_is_refused_or_read_as_the_same_urls(
    url: str | None, mailto: str | None
) -> None:
    written = message()
    try:
        written.add_unsubscribe(url, mailto)
    except MessageError:
        return
    headers = judged(written).headers
    urls = BRACKETED.findall(headers["List-Unsubscribe"])
    assert len(urls) == (url is not None) + (mailto is not None)
    assert ", ".join([f"<{each}>" for each in urls]) == headers["List-Unsubscribe"]
    if url is not None:
        assert urls[0] == url.strip(" ")
        assert urls[0].lower().startswith(("https://", "http://"))
    if mailto is not None:
        assert urls[-1].lower().startswith("mailto:")
    assert ("List-Unsubscribe-Post" in headers) == urls[0].lower().startswith("https:")


@EXAMPLES
@given(
    name=st.sampled_from(["List-Help", "List-Unsubscribe", "List-Post", "List-Id", "List-Archive"]),
    pieces=st.lists(
        st.one_of(
            st.sampled_from(["<https://x.org/>", "<a.b>", ",", " ", "(a)", "NO", '"', "\\", ")"]),
            nasty_text,
        ),
        max_size=6,
    ),
)
def test_any_list_field_is_refused_or_read_back_with_every_url(
    name: str, pieces: list[str]
) -> None:
    try:
        compose(message(extra_headers={name: "".join(pieces)}))
    except MessageError:
        return
    written = read(extra_headers={name: "".join(pieces)}).headers.get(name, "")
    known = {"https://x.org/", "a.b"}
    assert set(BRACKETED.findall(written)) <= known
    assert written.count("<https://x.org/>") == "".join(pieces).count("<https://x.org/>")
