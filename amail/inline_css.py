"""CSS moved from ``<style>`` into the elements that it is for. Needs the extra ``css``.

Nothing here opens a file or a connection, whatever the html refers to.
"""

from __future__ import annotations

from amail.errors import MessageError
from amail.text import place

try:
    import css_inline
except ImportError as missing:
    raise ImportError('inline_css needs css-inline: pip install "amail-asyncio[css]"') from missing

_inliner = css_inline.CSSInliner(
    load_remote_stylesheets=False,  # nor local ones
    keep_link_tags=True,
    keep_style_tags=True,
    remove_inlined_selectors=True,
    keep_at_rules=True,  # css-inline 0.24 keeps them without, 0.19 does not
)


def with_inlined_css(html: str, field: str) -> str:
    """Return html whose rules stand in the ``style`` of the elements they are for.

    What cannot stand there stays in ``<style>``: ``@media``, ``:hover``. Stylesheets that
    ``<link>`` names are not loaded, from wherever; the links stay.

    Raises MessageError, which names ``field``.
    """
    try:
        return _inliner.inline(html)
    except UnicodeEncodeError as error:
        what = f"{place(html, error.start)} is half a character (a surrogate)"
    except css_inline.InlineError as error:
        what = f"its CSS cannot be inlined: {error}"
    raise MessageError(f"{field}: {what}")
