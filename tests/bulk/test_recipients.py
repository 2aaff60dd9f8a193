"""Lists of recipients: what is read, what is said of a bad row, what is an error of the file."""

from __future__ import annotations

import csv
import io
import tempfile
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amail.bulk import BadRow, Recipient, Recipients, RecipientsError
from amail.bulk.recipients import key_of
from tests.strategies import EXAMPLES, nasty_text

if t.TYPE_CHECKING:
    from pathlib import Path

    from amail.bulk.recipients import Row


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "list"


def read(file: Path, text: str | bytes, **options: t.Any) -> list[Row]:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(Recipients(file, **options))


def read_octets(octets: bytes) -> list[Row]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(octets)
        file.flush()
        return list(Recipients(file.name))


def fields(found: list[Row]) -> list[dict[str, t.Any]]:
    assert all(isinstance(row, Recipient) for row in found), found
    return [dict(row.fields) for row in found if isinstance(row, Recipient)]


def said(found: list[Row]) -> list[tuple[int, str]]:
    """The lines and errors of the rows that cannot be used."""
    return [(row.line, row.error) for row in found if isinstance(row, BadRow)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_csv_is_read_with_each_delimiter_mark_and_line_end(
    file: Path, delimiter: str, mark: str, end: str
) -> None:
    table = [["email", "first, last; name"], ["ada@example.org", "Ada"], ["bob@example.org", "贝"]]
    text = mark + "".join(f'{one}{delimiter}"{two}"{end}' for one, two in table)
    assert fields(read(file, text)) == [
        {"email": "ada@example.org", "first, last; name": "Ada"},
        {"email": "bob@example.org", "first, last; name": "贝"},
    ]


def test_lines_of_rows_are_those_of_the_file(file: Path) -> None:
    text = '\nemail,note\n\na@x.org,"two\nlines"\nb@x.org,one\n,none\n'
    found = read(file, text)
    assert [row.line for row in found] == [4, 6, 7]


def test_json_lines_are_read_with_their_values_as_they_are(file: Path) -> None:
    text = '\ufeff{"email": "a@x.org", "n": 3, "items": ["x", null]}\n\n{"email": "b@x.org"}'
    assert fields(read(file, text)) == [
        {"email": "a@x.org", "n": 3, "items": ["x", None]},
        {"email": "b@x.org"},
    ]


def test_json_lines_that_cannot_be_used_are_named_with_line_and_column(file: Path) -> None:
    lines = ['{"email": "a@x.org"}', '{"email": }', "[1]", '{"mail": "c"}', '{"email": 5}']
    bad = said(read(file, "\n".join([*lines, "[" * 99999])))
    assert [line for line, _ in bad] == [2, 3, 4, 5, 6]
    assert bad[0][1].startswith("is no JSON, column 11")
    assert bad[1][1] == "must be an object with names, not list"
    assert bad[2][1] == "has no 'email'"
    assert bad[3][1].startswith("column 'email': must be a str")


def test_rows_of_csv_that_cannot_be_used_are_named_with_line_and_column(file: Path) -> None:
    text = b"email,name\na@x.org\nb@x.org,Bj\xf6rn\nnobody,x\n,y\nc@x.org,fine\nd@x.org,a\x0bb\n"
    found = read(file, text)
    assert said(found)[:2] == [
        (2, "has 1 cells where there are 2 columns"),
        (3, "is not UTF-8: octet 0xF6 at character 11 of line 3"),
    ]
    assert [line for line, _ in said(found)] == [2, 3, 4, 5, 7]
    assert all("column 'email'" in error for _, error in said(found)[2:4])
    assert "column 'name'" in said(found)[4][1]


def test_the_name_becomes_the_display_name_whatever_it_looks_like(file: Path) -> None:
    text = 'email,name\na@x.org,"Ada, eve@x.org"\nBob <b@x.org>,Robert\nc@x.org,\n'
    found = [row for row in read(file, text) if isinstance(row, Recipient)]
    assert [(row.address.name, row.address.addr_spec) for row in found] == [
        ("Ada, eve@x.org", "a@x.org"),
        ("Bob", "b@x.org"),
        ("", "c@x.org"),
    ]


def test_other_columns_can_hold_address_and_name(file: Path) -> None:
    (row,) = read(file, "Mail;Who\na@x.org;Ada\n", column="Mail", name_column="Who")
    assert isinstance(row, Recipient)
    assert str(row.address) == "Ada <a@x.org>"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "list: is empty"),
        ("\n \n", "list: is empty"),
        ("e-mail,name\n", "line 1: must name the columns, and none is called 'email'; did you"),
        ("a@x.org\nb@x.org\n", "none is called 'email'; there are a@x.org"),
        ("email,name,email\n", "line 1: two columns are called 'email'"),
        ("email,,x\n", "line 1: column 2 has no name"),
        (b"\xff\xfee\0m\0a\0i\0l\0", "line 1: is not UTF-8: octet 0xFF at character 1"),
        ('email,n\na@x.org,x\nb@x.org,"y\nc@x.org,z\n', "line 3: unexpected end of data"),
        ('email,n\na@x.org,"x"y\n', "line 2: ',' expected after '\"'"),
        ("email\n" + "x" * 2**20, "line 2: is longer than 1048576 characters"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_line(
    file: Path, text: str | bytes, complaint: str
) -> None:
    with pytest.raises(RecipientsError) as caught:
        read(file, text)
    assert complaint in str(caught.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(RecipientsError, match="cannot be read"):
            Recipients(path).count()


def test_rows_are_counted_as_they_are_read(file: Path) -> None:
    read(file, 'email,n\na@x.org,"two\nlines"\nbad,row,here\n\nb@x.org,x\n')
    assert Recipients(file).count() == 3 == len(list(Recipients(file)))


def test_one_mailbox_is_one_key_however_its_domain_is_written(file: Path) -> None:
    domains = "ada@bücher.example\nada@BÜCHER.example\nada@xn--bcher-kva.example\n"
    text = f"email\n{domains}Ada@bücher.example\n"
    mailboxes = [row.mailbox for row in read(file, text) if isinstance(row, Recipient)]
    assert mailboxes[:3] == ["ada@xn--bcher-kva.example"] * 3
    assert len({key_of(mailbox) for mailbox in mailboxes}) == 2


# Half a character cannot be written in UTF-8.
cell = nasty_text.map(lambda text: text.encode("utf-8", "ignore").decode())


@EXAMPLES
@given(st.lists(st.tuples(st.just("ada@example.org"), cell, cell), max_size=5))
def test_what_a_csv_writer_wrote_is_read_back(table: list[tuple[str, str, str]]) -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows([("email", "one", "two"), *table])
    assert fields(read_octets(written.getvalue().encode())) == [
        {"email": email, "one": one, "two": two} for email, one, two in table
    ]


@EXAMPLES
@given(st.binary(max_size=300), st.sampled_from([b"", b"email,name\n", b'{"email": "a@x.org"}\n']))
def test_any_octets_are_rows_or_an_error(octets: bytes, first: bytes) -> None:
    try:
        found = read_octets(first + octets)
    except RecipientsError:
        return
    assert all(isinstance(row, Recipient | BadRow) for row in found)
