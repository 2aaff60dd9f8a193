"""The fields of lists and bulk mail, which machines act upon (RFC 2369, RFC 2919, RFC 8058).

Invariant: every client reads the same URLs out of a field that was let through here, each of them
whole and with a scheme that is harmless to open.
"""

from __future__ import annotations

import re
import typing as t
from urllib.parse import quote

from amail.address import Address
from amail.errors import InvalidHeader
from amail.mime.headers import HeaderWriter
from amail.text import as_text, place

if t.TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from amail.address import Person

_URL_FIELDS = frozenset(
    (
        *("list-help", "list-unsubscribe", "list-subscribe", "list-post", "list-owner"),
        "list-archive",
    )
)
_WEB = ("https", "http")
_SCHEMES = (*_WEB, "mailto", "ftp", "news", "nntp")
_ONE_CLICK = "List-Unsubscribe=One-Click"

_NOT_IN_URL = re.compile(r"[^!#-;=?-~]|[\\^`{|}]")  # RFC 3986: everything else is percent-encoded
# A comment that holds no bracket of its own cannot hide a URL, nor be taken for one.
_COMMENTS = r'[ ]*(?:\([^()<>\\"]*\)[ ]*)*'
_BRACKETED = re.compile(rf"{_COMMENTS}<([^<>]*)>{_COMMENTS}")
_NO_POSTING = re.compile(rf"NO{_COMMENTS}")
_LABEL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++"
_LABELS = rf"{_LABEL}(?:\.{_LABEL})*+"
_LIST_ID = re.compile(rf'([^<>"]*|"(?:[^"\\<>]|\\.)*"[ ]*)<({_LABELS})>')


def check_list_fields(given: Mapping[str, tuple[str, str]]) -> None:
    """Check the List-* fields among extra_headers, lower-case name -> (name, text).

    Raises InvalidHeader for a field whose URLs a client would misread or must not open, and for a
    one-click promise without the https URL it is about (RFC 8058, section 3.1).
    """
    for lower, (name, text) in given.items():
        if lower == "list-id":
            list_id(text, name)
        elif lower == "list-post" and _NO_POSTING.fullmatch(text.strip(" ")):
            continue
        elif lower in _URL_FIELDS:
            _urls(text, f"extra_headers: {name}")
    if "list-unsubscribe-post" in given:
        name, text = given["list-unsubscribe-post"]
        if text.strip(" ") != _ONE_CLICK:
            raise InvalidHeader(f'extra_headers: {name}: must be "{_ONE_CLICK}" (RFC 8058)')
        _, urls = given.get("list-unsubscribe", ("", ""))
        schemes = [_scheme(url) for url in _urls(urls, "List-Unsubscribe")] if urls else []
        if schemes.count("https") != 1 or "http" in schemes:
            raise InvalidHeader(
                f"extra_headers: {name}: one-click needs exactly one https URL in "
                "List-Unsubscribe (RFC 8058); add_unsubscribe writes both fields"
            )


def unsubscribe_fields(url: str | None, mailto: Person | None) -> dict[str, str]:
    """Return List-Unsubscribe, and List-Unsubscribe-Post where ``url`` is https.

    Raises InvalidHeader, and InvalidAddress for a ``mailto`` that is no address.
    """
    uris = []
    if url is not None:
        field = "List-Unsubscribe: url"
        uris.append(_url(as_text(url, field, InvalidHeader).strip(" "), field, _WEB))
    if mailto is not None:
        uris.append(_mailto(mailto, "List-Unsubscribe: mailto"))
    if not uris:
        raise InvalidHeader("List-Unsubscribe: give add_unsubscribe a url, a mailto or both")
    fields = {"List-Unsubscribe": ", ".join([f"<{uri}>" for uri in uris])}
    if _scheme(uris[0]) == "https":
        fields["List-Unsubscribe-Post"] = _ONE_CLICK
    HeaderWriter().structured("List-Unsubscribe", fields["List-Unsubscribe"])
    return fields


def list_id(text: str, name: str) -> tuple[str, str]:
    """Take a List-ID apart: a phrase, which may be "", and the id (RFC 2919, section 2)."""
    match = _LIST_ID.fullmatch(text.strip(" "))
    if match is None or "=?" in match[2]:
        raise InvalidHeader(
            f"extra_headers: {name}: write <news.example.com> or News <news.example.com>; a "
            "List-ID is a name and no URL (RFC 2919)"
        )
    phrase = match[1].strip(" ")
    if phrase.startswith('"'):
        phrase = re.sub(r"\\(.)", r"\1", phrase[1:-1])
    return phrase, match[2]


def _urls(text: str, field: str) -> list[str]:
    """Return the URLs of ``<url>, <url> (comment)``, or raise InvalidHeader."""
    urls = []
    position = 0
    while True:
        match = _BRACKETED.match(text, position)
        if match is None or text[match.end() : match.end() + 1] not in {",", ""}:
            raise InvalidHeader(
                f"{field}: write <https://...> or <mailto:...>, several with commas between them "
                "(RFC 2369); percent-encode what is not plain ASCII"
            )
        urls.append(_url(match[1], field, _SCHEMES))
        position = match.end() + 1
        if position > len(text):
            return urls


def _url(url: str, field: str, schemes: Collection[str]) -> str:
    """Return an absolute URL with one of these schemes, or raise InvalidHeader."""
    found = _NOT_IN_URL.search(url)
    if found or "=?" in url:
        where = place(url, found.start()) if found else '"=?"'
        raise InvalidHeader(f"{field}: {where} cannot stand in a URL; percent-encode it (RFC 3986)")
    scheme = _scheme(url)
    if scheme not in schemes:
        raise InvalidHeader(f"{field}: the URL must begin with one of {', '.join(schemes)}")
    rest = url[len(scheme) + 1 :]
    if scheme in _WEB and not re.match(r"//[^/?#]", rest):
        raise InvalidHeader(f"{field}: the URL names no host: write {scheme}://host/path")
    if scheme == "mailto" and not re.match(r"[^@?]+@[^@?]+(?:\?|$)", rest):
        raise InvalidHeader(f"{field}: write mailto:name@domain or mailto:name@domain?subject=...")
    return url


def _mailto(person: Person, field: str) -> str:
    """Return the mailto: URL of a person, or the one that was given (RFC 6068)."""
    if isinstance(person, str) and person.strip(" ")[:7].lower() == "mailto:":
        return _url(person.strip(" "), field, ("mailto",))
    address = Address.of(person, field=field)
    local_part = quote(address.local_part, safe="!$&'*+-.")
    return _url(f"mailto:{local_part}@{address.ascii_domain}", field, ("mailto",))


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()
