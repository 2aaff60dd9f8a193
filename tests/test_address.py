"""A person is read as exactly one mailbox or refused (rows B23 to B51 of the inputs)."""

from __future__ import annotations

import copy
import email.policy
import email.utils
import pickle
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.address import Address
from amail.errors import InvalidAddress, InvalidHeader, MessageError
from tests.strategies import EXAMPLES, nasty_text


def test_a_plain_address_is_taken_apart() -> None:
    address = Address("Ada.Lovelace+x@Example.ORG")
    assert (address.name, address.local_part, address.domain) == (
        "",
        "Ada.Lovelace+x",
        "Example.ORG",
    )
    assert address.addr_spec == "Ada.Lovelace+x@Example.ORG"
    assert not address.needs_utf8


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Ada <ada@x.org>", "Ada"),
        ("  Ada  Lovelace <ada@x.org> ", "Ada  Lovelace"),
        ('"Lovelace, Ada" <ada@x.org>', "Lovelace, Ada"),
        ('"A \\"B\\" \\\\ C" <ada@x.org>', 'A "B" \\ C'),
        ('Dr. "A. B." C <ada@x.org>', "Dr. A. B. C"),
        ("Jürgen Müller <ada@x.org>", "Jürgen Müller"),
        ("李雷 <ada@x.org>", "李雷"),
        ("<ada@x.org>", ""),
        ('"" <ada@x.org>', ""),
        ('"ceo@bank.com" <ada@x.org>', "ceo@bank.com"),
        ("=?utf-8?q?J=C3=B6rg?= <ada@x.org>", "=?utf-8?q?J=C3=B6rg?="),
    ],
)
def test_a_name_in_front_of_the_address_is_read(written: str, name: str) -> None:
    address = Address(written)
    assert (address.name, address.addr_spec) == (name, "ada@x.org")


def test_a_person_may_be_a_str_a_pair_or_an_address() -> None:
    address = Address("ada@x.org", name="Ada")
    assert Address.of("Ada <ada@x.org>") == Address.of(("Ada", "ada@x.org")) == address
    assert Address.of(address) is address


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a,b", "a;b", "<b>", "(b", "a@b", "a:b", "Dr. No"])
def test_b28_any_printable_name_survives_writing_and_reading(name: str) -> None:
    address = Address("ada@x.org", name=name)
    assert Address(str(address)) == address
    assert address.name == name


@pytest.mark.parametrize(
    "control", ["\r\n", "\n", "\r", "\0", "\x0b", "\x0c", "\x1b", "\x1c", "\x1d", "\x1e", "\x7f"]
)
def test_b23_to_b27_a_name_with_a_control_character_is_refused(control: str) -> None:
    for person in (f"A{control}B <ada@x.org>", (f"A{control}B", "ada@x.org")):
        with pytest.raises(InvalidHeader, match=r"U\+00.. at position 1 "):
            Address.of(person)


def test_b13_separators_that_come_with_pasted_text_become_spaces_in_a_name() -> None:
    assert Address("ada@x.org", name="A\tB\u2028C\u2029D\x85E").name == "A B C D E"


def test_b15_a_name_with_a_surrogate_is_refused() -> None:
    with pytest.raises(InvalidHeader, match="U\\+D800 at position 1"):
        Address("ada@x.org", name="A\ud800")


def test_b32_a_name_beyond_any_use_is_refused() -> None:
    assert Address("ada@x.org", name="n" * 1200).name == "n" * 1200
    with pytest.raises(InvalidHeader, match="4096"):
        Address("ada@x.org", name="n" * 65536)


def test_b33_a_name_of_nothing_but_spaces_is_none() -> None:
    assert Address.of(("   ", "ada@x.org")).name == ""


@pytest.mark.parametrize("written", ["", " ", "\t"])
def test_b34_an_empty_address_is_refused(written: str) -> None:
    with pytest.raises(InvalidAddress):
        Address(written)


@pytest.mark.parametrize(
    "written",
    [
        *("a", "@", "a@", "@x.com", "a@@x.com", "a@b@c.com"),  # B35
        *(
            "a\nb@x.com",
            "a\r\nRCPT TO:<z@y>@x.com",
            "a\0@x.com",
            "a\x0bb@x.com",
            "a\x7f@x.com",
        ),  # B36
        *("a b@x.com", "a@x.com b", "a@x .com", "a @x.com", "a@ x.com", "a@x.com\n"),  # B37
        *("a@x.com> NOTIFY=NEVER", "a@x.com ORCPT=rfc822;b", "<a@x.com> SIZE=1"),  # B38
        *("b@x.com>,<evil@y.com", "b@x.com,c@y.com", "b@x.com;c@y.com", "b@x.com\nc@y.com"),  # B39
        *("g: a@x.com;", "<@r:a@x>", '"x" <a@x> <b@y>', "<a@x>b@y", "<<a@x>>"),  # B40
        *("a(c)@x.com", "a@x.com (c)", "(c)a@x.com", "a@(c)x.com"),  # B41
        *('"a b"@x', '"a@b"@x', '"a\\"b"@x', '"\r\n"@x', '""@x', '"a"b@x', '"@x'),  # B43
        *('"evil@attacker x"@internal', '"to@other.com"@example.com'),  # B44
        *("a@x..com", "a@-x.com", "a@x-.com", "a@[x.com", "a@x]", "a@.x", "a@.", "a@x.."),  # B46
        *("a@[999.1.1.1]", "a@[IPv6:zz]", "a@[]", "a@[1.2.3.4", "a@[IPv6:fe80::1%eth0]"),  # B47
        *("a@☃.net", "a@xn--", "a@xn--zzzzzz99999999.de", "a@xn--a"),  # B48
        *(
            "a@x\u200b.com",
            "a@so\u00adft.de",
            "a@\ufeffx.com",
            "a\u200b@x.com",
            "a\ufeff@x.com",
        ),  # B49
        *("j\xa0g@x.com", "j\u2028@x.com", "\ud800@x.com", "a@\ud800.com", "a@x\x85.com"),
        *("to@other.com <to@example.com>", "Lovelace, Ada <ada@x.org>", "Ada <>", "<>"),
        *("=?utf-8?q?a=0D=0ABcc:_x?=@x.com", "=?utf-8?b?DQpCY2M6IHg=?=@x.com"),
    ],
)
def test_b35_to_b49_what_is_no_single_mailbox_is_refused(written: str) -> None:
    for person in (written, f"<{written}>", ("Ada", written)):
        with pytest.raises(InvalidAddress):
            Address.of(person)


def test_b41_nested_comments_are_refused_without_looking_long() -> None:
    begun = time.thread_time()
    for depth in (100, 1_000, 100_000):
        with pytest.raises(InvalidAddress):
            Address("(" * depth + "a" + ")" * depth + "@x.com")
        with pytest.raises(InvalidAddress):
            Address('"' * (depth + 1) + "<a@x.com>")
        with pytest.raises(InvalidAddress):
            Address("\\" * depth + "<a@x.com>")
    assert time.thread_time() - begun < 1


def test_b37_outer_spaces_are_taken_off() -> None:
    assert Address("  ada@x.org\t") == Address("ada@x.org")


@pytest.mark.parametrize("local_part", [".a", "a.", "a..b", "..."])
def test_b42_dots_in_the_wrong_place_put_the_local_part_in_quotes(local_part: str) -> None:
    address = Address(f"{local_part}@x.org")
    assert address.addr_spec == f'"{local_part}"@x.org'
    assert address.local_part == local_part
    assert Address(address.addr_spec) == address


def test_needless_quotes_around_a_local_part_are_taken_off() -> None:
    assert Address('"a.b"@x.org').addr_spec == "a.b@x.org"


def test_b45_sizes_are_those_of_rfc_5321_in_octets() -> None:
    label = "a" * 63
    longest = f"{label}.{label}.{label}.{'b' * 55}"
    assert Address(f"a@{longest[:252]}").addr_spec.endswith("b")
    for domain in ("a" * 64, f"{longest}.{'b' * 10}"):
        with pytest.raises(InvalidAddress):
            Address(f"a@{domain}")
    exactly = "v" * 65 + "@" + f"{label}.{label}.{'c' * 60}"
    assert len(exactly) == 254
    assert Address(exactly).addr_spec == exactly
    with pytest.raises(InvalidAddress, match="254"):
        Address("v" + exactly)
    # Octets are counted, not characters.
    Address("é" * 124 + "@x.org")
    with pytest.raises(InvalidAddress, match="254"):
        Address("é" * 125 + "@x.org")


@pytest.mark.parametrize(
    "domain", ["localhost", "x", "_dmarc.x.org", "123.456", "r3---sn.example.com", "X.Com"]
)
def test_b46_domains_only_a_server_can_judge_are_sent_as_written(domain: str) -> None:
    assert Address(f"a@{domain}").addr_spec == f"a@{domain}"


def test_b46_the_final_dot_of_a_domain_is_dropped() -> None:
    assert Address("a@x.com.").addr_spec == "a@x.com"


@pytest.mark.parametrize("literal", ["[127.0.0.1]", "[IPv6:::1]", "[IPv6:2001:db8::1]"])
def test_b47_address_literals_are_kept(literal: str) -> None:
    assert Address(f"a@{literal}").addr_spec == f"a@{literal}"


@pytest.mark.parametrize(
    ("domain", "ascii_domain"),
    [
        ("münchen.de", "xn--mnchen-3ya.de"),
        ("BÜCHER.de", "xn--bcher-kva.de"),
        ("faß.de", "xn--fa-hia.de"),
        ("éxample.com", "xn--xample-9ua.com"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("xn--fa-hia", "xn--fa-hia"),
        ("xn--nxasmm1c", "xn--nxasmm1c"),
        ("xn--10cl1a0b660p", "xn--10cl1a0b660p"),
        ("xn--mgba3gch31f060k", "xn--mgba3gch31f060k"),
        ("\uff58.com", "x.com"),
        ("x。com", "x.com"),
        ("例子.广告", "xn--fsqu00a.xn--4rr70v"),
        ("_dmarc.münchen.de", "_dmarc.xn--mnchen-3ya.de"),
        ("\u0430pple.com", "xn--pple-43d.com"),  # B50: a Cyrillic letter, shown as what it is
    ],
)
def test_b48_a_domain_is_written_as_its_a_labels(domain: str, ascii_domain: str) -> None:
    address = Address(f"a@{domain}")
    assert address.addr_spec == f"a@{ascii_domain}"
    assert not address.needs_utf8


def test_b51_a_local_part_beyond_ascii_needs_smtputf8_and_makes_the_domain_unicode() -> None:
    for written in ("jörg@münchen.de", "jörg@xn--mnchen-3ya.de"):
        address = Address(written)
        assert address.needs_utf8
        assert address.addr_spec == "jörg@münchen.de"
        assert address.ascii_domain == "xn--mnchen-3ya.de"


@pytest.mark.parametrize(
    "person", [None, 1, b"a@x.org", ["a@x.org"], ("a", "b", "c"), (None, None)]
)
def test_what_is_no_person_is_refused_with_its_type(person: object) -> None:
    with pytest.raises(InvalidAddress):
        Address.of(person)  # type: ignore[arg-type]


def test_an_error_names_the_field_the_code_point_and_its_position_but_not_the_value() -> None:
    with pytest.raises(InvalidAddress) as caught:
        Address.of("secret-user\n@x.org", field="cc")
    assert str(caught.value).startswith("cc: U+000A at position 11 ")
    assert "secret" not in str(caught.value)


def test_a_lazy_string_is_resolved() -> None:
    class Lazy:
        def __str__(self) -> str:
            return "Ada <ada@x.org>"

    assert Address.of(Lazy()).addr_spec == "ada@x.org"  # type: ignore[arg-type]


def test_an_address_is_a_value() -> None:
    address = Address("Ada <ada@X.org>")
    assert address == Address("Ada <ada@x.ORG>")
    assert address != Address("Ada <ADA@x.org>")
    assert address != "Ada <ada@X.org>"
    assert len({address, Address("Ada <ada@x.org>")}) == 1
    assert pickle.loads(pickle.dumps(address)) == copy.deepcopy(address) == address
    with pytest.raises(AttributeError):
        address.name = "Eve"
    with pytest.raises(AttributeError):
        del address.name


@EXAMPLES
@given(nasty_text, st.none() | nasty_text)
def test_any_address_that_is_taken_reads_back_as_the_same_single_mailbox(
    text: str, name: str | None
) -> None:
    try:
        address = Address(text + "@x.org") if name is None else Address.of((name, text + "@x.org"))
    except MessageError:
        return
    assert Address(str(address)) == address
    assert not re.search(r"[\s\x00-\x1f\x7f-\x9f\u200b\ufeff\ud800-\udfff<>]", address.addr_spec)
    if address.addr_spec.isascii():
        header = email.policy.default.header_factory("To", f"<{address.addr_spec}>")
        [found] = header.addresses
        assert (found.username, found.domain) == (address.local_part, address.domain)


@EXAMPLES
@given(st.from_regex(r"[a-z.=?_-]{1,12}@[a-z0-9_.-]{1,12}(\.-?[a-z]{1,70})?", fullmatch=True))
def test_the_fast_path_and_the_careful_path_agree(text: str) -> None:
    def read(person: str) -> str | None:
        try:
            return Address(person).addr_spec
        except InvalidAddress:
            return None

    # A final dot of the domain, dropped later, keeps the text off the fast path.
    careful = read(f"{text}.") if not text.endswith(".") else read(text)
    assert read(text) == careful


@EXAMPLES
@given(st.text("aB1 .<", max_size=12))
def test_the_fast_path_and_the_careful_path_read_the_same_name(name: str) -> None:
    def read(person: str) -> Address | None:
        try:
            return Address(person)
        except InvalidAddress:
            return None

    assert read(f"{name} <a@x.org>") == read(f"{name} <a@x.org.>")
