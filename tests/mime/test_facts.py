"""Rows of the inputs and facts about messages that have no other test named after them."""

from __future__ import annotations

import email
import email.header
import email.policy
import logging
import typing as t

import pytest

from amail import Mailer, MemoryTransport, SMTPSettings
from amail.address import Address
from amail.errors import ConfigError, InvalidAddress, InvalidAttachment, InvalidHeader, MessageError
from amail.message import Attachment
from amail.mime import compose
from amail.testing import FaultServer
from tests.mime.reading import judged, message, read

if t.TYPE_CHECKING:
    from pathlib import Path

CONTROLS = [chr(point) for point in range(0x20)] + ["\x7f"]
BROKEN = [*CONTROLS, "\r\n", "\r\nBcc: eve@evil.example\r\n"]
FIELDS_WITH_PEOPLE = ["sender", "recipients", "cc", "bcc", "reply_to", "envelope_from"]


class Lazy:
    """A string of a translation library: it becomes text when asked."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


# Rows


@pytest.mark.parametrize("field", FIELDS_WITH_PEOPLE)
@pytest.mark.parametrize(
    "address",
    ['"a b"@x', '"a@b"@x', '"a\\"b"@x', '"\r\n"@x', '""@x', '"evil@attacker x"@internal'],
)
def test_b43_b44_a_local_part_that_needs_quotes_is_refused_in_every_field(
    field: str, address: str
) -> None:
    for person in (address, f"Ada <{address}>", ("Ada", address)):
        with pytest.raises(InvalidAddress, match=field):
            compose(message(**{field: [person] if field != "sender" else person}))


def test_b54_who_is_in_to_and_in_bcc_gets_one_copy_and_is_named_in_to_alone() -> None:
    written = message(recipients=["Bob <bob@x.org>"], bcc=["bob@X.ORG", "eve@x.org", "eve@x.org"])
    envelope, content = compose(written)
    assert envelope.forward_paths == ("bob@x.org", "eve@x.org")
    assert bytes(content).count(b"bob@") == 1
    assert b"eve" not in bytes(content)


@pytest.mark.parametrize("wrap", [str, lambda text: ["ok@x.org", text]], ids=["one", "several"])
@pytest.mark.parametrize(
    ("person", "error"),
    [
        *((f"A{control}B <r@x.org>", InvalidHeader) for control in ("\r\n", "\n", "\0", "\x0b")),
        *((person, InvalidAddress) for person in ("r", "r@", "@x.org", "r@x.org,s@x.org")),
        *((person, InvalidAddress) for person in ("r@x.org\n", "r\r\n@x.org", "g: r@x.org;")),
        *((person, InvalidAddress) for person in ('"r s"@x.org', "r@x.org> SIZE=1", "r@x..org")),
    ],
)
def test_b55_reply_to_is_read_as_strictly_as_any_address(
    wrap: t.Callable[[str], t.Any], person: str, error: type[MessageError]
) -> None:
    with pytest.raises(error, match="reply_to"):
        compose(message(reply_to=wrap(person)))
    # There the field is looked at first, its address then.
    with pytest.raises((InvalidHeader, InvalidAddress), match=r"reply_to|Reply-To"):
        compose(message(extra_headers={"Reply-To": person}))


def test_b55_reply_to_may_be_missing_one_or_a_list() -> None:
    nobodies: list[t.Any] = [None, "", []]
    for nobody in nobodies:
        assert "Reply-To" not in read(reply_to=nobody).headers
    assert read(reply_to="R <r@x.org>").mailboxes["Reply-To"] == [("R", "r@x.org")]
    both = read(reply_to=["r@x.org", "s@x.org"]).mailboxes["Reply-To"]
    assert [spec for _, spec in both] == ["r@x.org", "s@x.org"]


@pytest.mark.parametrize("where", ["/etc/passwd", "file:///etc/passwd", "https://example.com/x"])
def test_b80_text_that_names_a_file_or_a_url_is_text_and_is_never_opened(where: str) -> None:
    written = message(body=where, html=f'<img src="{where}">')
    written.attach("a.txt", data=where)
    written.embed(where.encode(), where)
    written.attachments.append(Attachment(where, "text/plain", where))
    leaves = judged(written).leaves
    assert where.encode() in [leaf.octets for leaf in leaves]
    assert b"root:" not in b"".join([leaf.octets for leaf in leaves])
    if "//" in where:
        written.attach_file(where)
        with pytest.raises(InvalidAttachment, match=r"attachments\[3\]"):
            compose(written)


def test_b90_html_alone_gets_no_text_that_nobody_wrote() -> None:
    assert read(html="<p>Hello</p>").tree == [("text/html",)]


# Facts about addresses and headers


def test_f9_composing_twice_doubles_no_field() -> None:
    written = message(cc="c@x.org", reply_to="r@x.org", extra_headers={"X-A": "1"}, priority=1)
    written.add_unsubscribe("https://x.org/leave")
    first = list(judged(written).headers)
    assert list(judged(written).headers) == first
    assert len(first) == len({name.lower() for name in first})


async def test_f10_a_subject_with_a_line_feed_is_an_error_and_nothing_is_sent() -> None:
    transport = MemoryTransport()
    async with Mailer(transport) as mailer:
        for subject in ("Subject\nInjection", Lazy("Subject\nInjection")):
            with pytest.raises(InvalidHeader, match=r"subject: U\+000A"):
                await mailer.send(message(subject=subject))
    assert transport.messages == []


@pytest.mark.parametrize("field", FIELDS_WITH_PEOPLE)
@pytest.mark.parametrize(
    "person",
    ["Na\nme <a@x.org>", "Name <a\n@x.org>", ("Na\nme", "a@x.org"), ("Name", "a@x.org\n")],
)
def test_f11_a_line_feed_in_a_name_or_an_address_is_an_error_in_each_form(
    field: str, person: t.Any
) -> None:
    with pytest.raises((InvalidHeader, InvalidAddress), match=field):
        compose(message(**{field: [person] if field not in {"sender", "reply_to"} else person}))


def test_f12_a_comma_in_an_encoded_name_parts_nobody() -> None:
    reading = read(recipients=['"Sürname, Firstname" <a@x.org>', "b@x.org"])
    assert reading.mailboxes["To"] == [("Sürname, Firstname", "a@x.org"), ("", "b@x.org")]
    assert reading.headers["To"].count(",") == 1


def test_f13_of_an_address_in_a_further_field_the_name_alone_is_encoded() -> None:
    for name in ("Sender", "Reply-To", "Disposition-Notification-To", "Errors-To"):
        field = read(extra_headers={name: "Jürgen <j@x.org>"}).headers[name]
        encoded, _, address = field.partition(" ")
        assert email.header.decode_header(encoded)[0][0].decode() == "Jürgen"
        assert address == "<j@x.org>"


def test_f15_a_long_ascii_subject_is_folded_at_a_space_that_is_kept() -> None:
    subject = "Nineteen words " * 8 + "and the end"
    assert len(subject) == 131
    written = message(subject=subject)
    field = written.as_bytes().partition(b"Subject: ")[2].partition(b"\r\nDate:")[0]
    assert field.count(b"\r\n ") == 1
    assert field.replace(b"\r\n", b"").decode() == subject
    assert judged(written).subject == subject


def test_f16_a_long_unicode_name_is_folded_between_words_and_the_address_is_whole() -> None:
    name = "Þórarinn Ævar " * 6
    reading = read(recipients=[(name, "thor@x.org")])
    assert reading.headers["To"].count("=?utf-8?") > 1
    assert reading.headers["To"].endswith(" <thor@x.org>")
    assert reading.mailboxes["To"] == [(name.strip(), "thor@x.org")]


@pytest.mark.parametrize(
    "domain", ["xn--fa-hia", "xn--nxasmm1c", "xn--10cl1a0b660p", "xn--mgba3gch31f060k"]
)
def test_f18_a_domain_that_is_encoded_already_stays_as_it_is(domain: str) -> None:
    envelope, content = compose(message(sender=f"a@{domain}.com", recipients=f"b@{domain}.com"))
    assert (envelope.reverse_path, *envelope.forward_paths) == (
        f"a@{domain}.com",
        f"b@{domain}.com",
    )
    assert f"To: b@{domain}.com\r\n".encode() in bytes(content)


def test_f19_a_name_that_is_an_address_stays_in_quotes_and_gets_nothing() -> None:
    written = message(recipients=['"to@other.com" <to@example.com>'])
    assert compose(written)[0].forward_paths == ("to@example.com",)
    assert judged(written).headers["To"] == '"to@other.com" <to@example.com>'


REFUSED_ADDRESSES = [
    *("to@other.com@example.com", "to@other.com <to@example.com>", "@", "to@", "@example.com"),
    *('"to@other.com"@example.com', '"evil@example.com\r\nto"@example.com'),
    *("to\nevil@example.com", "user@evil.com@good.com", ("", ""), "John Doe"),
]


@pytest.mark.parametrize("field", ["recipients", "cc", "bcc"])
async def test_f20_to_f23_f26_what_is_no_single_address_never_gets_to_a_server(field: str) -> None:
    async with FaultServer() as server, Mailer(server.url) as mailer:
        for address in REFUSED_ADDRESSES:
            with pytest.raises(InvalidAddress):
                await mailer.send(message(**{field: ["ok@x.org", address]}))
        assert (server.connections, server.commands) == (0, [])


@pytest.mark.parametrize(
    "address",
    [
        *("a@good.com,victim@evil.com", "a@good.com;victim@evil.com", "a@good.com victim@evil.com"),
        *('"a@good.com,victim"@evil.com', 'a@good.com",victim@evil.com', '"a@good.com, v@evil.com'),
        *("<a@good.com>,<victim@evil.com>", "a@good.com>,<victim@evil.com"),
    ],
)
def test_f24_two_addresses_in_one_are_refused_however_they_are_quoted(address: str) -> None:
    for person in (address, f"Name <{address}>", ("Name", address)):
        with pytest.raises(InvalidAddress):
            Address.of(person)


def test_f24_an_address_in_a_name_adds_no_recipient() -> None:
    for name in ("a@good.com,victim@evil.com", 'a", <victim@evil.com>, "b', "x;y@evil.com"):
        written = message(recipients=[(name, "a@good.com")])
        paths = compose(written)[0].forward_paths
        assert paths == ("a@good.com",)
        assert [spec for _, spec in judged(written).mailboxes["To"]] == list(paths)


@pytest.mark.parametrize("control", BROKEN, ids=ascii)
def test_f27_no_control_character_gets_into_a_header_block(control: str) -> None:
    fields: list[dict[str, t.Any]] = [
        {"subject": f"a{control}b"},
        {"extra_headers": {"X-Note": f"a{control}b"}},
        {"extra_headers": {"List-Help": f"<https://x.org/>{control}, <https://y.org/>"}},
        {"message_id": f"<a{control}b@x.org>"},
        {"in_reply_to": f"<a{control}b@x.org>"},
        {"references": [f"<a{control}b@x.org>"]},
        {"sender": f"A{control}B <a@x.org>"},
    ]
    for field in fields:
        try:
            _, content = compose(message(**field))
        except MessageError:
            continue
        # What is left are tabs, each of which became a space or parted two ids.
        assert control == "\t"
        block = bytes(content).partition(b"\r\n\r\n")[0].replace(b"\r\n", b"")
        assert block.decode("ascii").isprintable()


@pytest.mark.parametrize("control", ["\r\n", "\r", "\n", "\r\nRSET", "\0", " "])
def test_f33_a_line_break_in_the_name_of_the_client_is_a_config_error(control: str) -> None:
    with pytest.raises(ConfigError, match="local_hostname"):
        SMTPSettings("mail.example.com", local_hostname=f"me.example.com{control}")


# Facts about bodies and attachments


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\n\r", "\r\r\n"])
def test_f39_the_octets_have_no_bare_cr_or_lf(line_end: str) -> None:
    written = message(body=f"a{line_end}b", html=f"<p>{line_end}é</p>")
    written.attach("a.txt", data=f"a{line_end}b")
    written.attach("m.eml", "message/rfc822", f"Subject: x{line_end}")
    octets = written.as_bytes()
    assert octets.count(b"\r") == octets.count(b"\n") == octets.count(b"\r\n")


@pytest.mark.parametrize(
    "content_type", ["image/png", "application/pdf", "application/zip", "audio/mpeg", "font/woff2"]
)
def test_f46_a_binary_type_is_base64(content_type: str) -> None:
    written = message()
    written.attach("a", content_type, b"plain enough to be text")
    assert b"Content-Transfer-Encoding: base64\r\n" in written.as_bytes()


def named(filename: str) -> tuple[str, str | None]:
    """The field that names an attachment, unfolded, and the name that parsers read."""
    written = message(attachments=[Attachment(filename, "image/png", b"x")])
    part = email.message_from_bytes(written.as_bytes(), policy=email.policy.compat32)
    [inner] = t.cast("list[email.message.Message]", part.get_payload())
    raw = str(inner["Content-Disposition"]).replace("\r\n", "").replace("\n", "")
    return raw, judged(written).attachments[0].filename


def test_f51_a_name_in_french_is_read_back() -> None:
    assert named("une pièce jointe.pdf")[1] == "une pièce jointe.pdf"


@pytest.mark.parametrize("name", ["Ɣ------" * 7, "ü" + "x" * 80 + "ü.txt"])
def test_f52_each_piece_of_a_long_name_has_the_star(name: str) -> None:
    raw, found = named(name)
    assert found == name
    pieces = raw.split("; ")[1:]
    assert len(pieces) > 1
    for number, piece in enumerate(pieces):
        assert piece.startswith(f"filename*{number}*=")


@pytest.mark.parametrize("name", ["a\tb", "a\r\nb", "a\x7fb", 'a"b', "a\\", 'a\\"', "a\r\n\tX: y"])
def test_f53_a_name_with_specials_is_one_parameter_with_its_quotes_closed(name: str) -> None:
    raw, found = named(name)
    assert raw.isprintable()
    assert raw.count("filename") == 1
    assert raw.endswith('"')
    assert found
    assert found.isprintable()


def test_f54_surrogates_in_a_name_make_no_second_parameter() -> None:
    raw, found = named("a\ud800;filename\udc00=evil.exe")
    assert found == "a_;filename_=evil.exe"
    assert raw == 'attachment; filename="a_;filename_=evil.exe"'


# What no fact names, and belongs to the same list of what others learned the hard way


def test_an_attached_path_is_opened_by_attach_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("root: secret")
    written = message(body=str(path))
    written.attach(str(path), data=str(path))
    assert b"root: secret" not in written.as_bytes()
    written.attach_file(path)
    assert b"root: secret" in written.as_bytes()


def test_composing_says_nothing_of_a_message_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "amail"):
        compose(message(subject="canary", body="canary", html="canary"))
    assert "canary" not in caplog.text
