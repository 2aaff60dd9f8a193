"""What html says, as text. Needs the extra ``templates``.

Nothing here opens a file or a connection, whatever the html refers to.
"""

from __future__ import annotations

import re
import typing as t
from urllib.parse import quote

from amail.errors import MessageError

try:
    from inscriptis.css_profiles import STRICT_CSS_PROFILE
    from inscriptis.html_engine import Inscriptis
    from inscriptis.model.config import ParserConfig
    from lxml.etree import ParserError, SubElement
    from lxml.html import HTMLParser, document_fromstring
except ImportError as missing:
    raise ImportError(
        "text made of html needs inscriptis: write the text, or "
        'pip install "amail-asyncio[templates]"'
    ) from missing

_HIDDEN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
_TABLE = ("table", "thead", "tbody", "tfoot", "tr", "td", "th")
_FOR_LAYOUT = frozenset(("presentation", "none"))
_LEADS_SOMEWHERE = re.compile(r"(?:https?|mailto|tel):", re.IGNORECASE)
_NO_ADDRESS = re.compile(r"https?://|mailto:|tel:", re.IGNORECASE)
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\x9f<>\ufffe\uffff]")
_EMPTY_LINES = re.compile(r"\n{3,}")


def text_of(html: str, field: str = "html") -> str:
    """Return what html says as text, with lists and the alt texts of images.

    A link's target stands behind it in angle brackets (RFC 3986, appendix C), unless that is what
    the link says already. Tables that only lay out (``role="presentation"``, or with tables in
    them) become their cells one below the other, other tables columns. What the ``style`` of an
    element hides is left out.

    Raises MessageError, which names ``field``, for elements in more than 250 others.
    """
    # As octets, for a str that says how it is encoded is refused.
    octets = html.encode("utf-8", "replace")
    parser = HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        tree = document_fromstring(octets, parser=parser)
    except ParserError:  # there is no element in it
        return ""
    if parser.error_log.filter_from_fatals():  # the parser stopped, and what follows is lost
        raise MessageError(f"{field}: too deep or too long to make text of; write the text")
    _drop_styles(tree)
    _drop_layout(tree)
    for link in tree.iter("a"):
        _show_target(link)
    config = ParserConfig(css=STRICT_CSS_PROFILE, display_images=True)
    lines = Inscriptis(tree, config).get_text().split("\n")
    text = _EMPTY_LINES.sub("\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n")
    return text and f"{text}\n"


def _drop_styles(tree: t.Any) -> None:
    """Drop all styles but those that hide: margins would become blanks."""
    for element in tree.iter():
        if _HIDDEN.search(element.attrib.pop("style", "")):
            element.set("style", "display: none")


def _drop_layout(tree: t.Any) -> None:
    """Make blocks of the tables that only lay out."""
    layout = {
        table
        for table in tree.iter("table")
        if table.get("role", "").lower() in _FOR_LAYOUT or table.find(".//table") is not None
    }
    parts = [part for part in tree.iter(*_TABLE) if _table_of(part) in layout]
    for part in parts:
        part.tag = "div"


def _table_of(part: t.Any) -> t.Any:
    return part if part.tag == "table" else next(part.iterancestors("table"), None)


def _show_target(link: t.Any) -> None:
    target = _UNSAFE.sub(lambda found: quote(found[0]), link.get("href", "").strip())
    said = link.text_content().strip()
    if _LEADS_SOMEWHERE.match(target) and said not in {
        target,
        _NO_ADDRESS.sub("", target, count=1),
    }:
        # Not put behind the text that is there, which lxml may read and yet refuse to write.
        SubElement(link, "span").text = f" <{target}>"
