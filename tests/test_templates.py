"""Messages from Jinja templates, in any environment; rows B95 and B96 of the inputs."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import http.server
import subprocess
import sys
import threading
import typing as t
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import BytecodeCache, ChoiceLoader, DictLoader, Environment, FileSystemLoader
from jinja2.nativetypes import NativeEnvironment
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from amail import ConfigError, InvalidHeader, Message, MessageError, UsageError
from amail.html_text import text_of
from amail.templates import Templates
from tests.strategies import EXAMPLES, nasty_text

if t.TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jinja2.bccache import Bucket

WELCOME = {
    "mail/welcome.subject.txt": "Welcome, {{ name }}\n",
    "mail/welcome.txt": "Dear {{ name }},\nwelcome.\n",
    "mail/welcome.html": "<p>Dear {{ name }},</p>\n",
}


def templates(files: dict[str, str] = WELCOME, **options: t.Any) -> Templates[Message]:
    return Templates(Environment(loader=DictLoader(files), **options))


def only(subject: str = "Hello", **parts: str) -> dict[str, str]:
    """Return the files of one template ``x``."""
    return {"mail/x.subject.txt": subject} | {f"mail/x.{end}": parts[end] for end in parts}


def test_a_message_is_made_of_its_three_files() -> None:
    message = templates().render("welcome", name="Ada")
    assert message.subject == "Welcome, Ada"
    assert message.body == "Dear Ada,\nwelcome."
    assert message.html == "<p>Dear Ada,</p>"
    assert message.recipients == []


def test_it_is_of_the_class_that_was_asked_for_and_from_the_folder_that_was() -> None:
    class Letter(Message):
        pass

    files = {"letters/en/x.subject.txt": "Hello", "letters/en/x.txt": "..."}
    found = Templates(
        Environment(loader=DictLoader(files)), folder="letters/en/", message_class=Letter
    )
    assert type(found.render("x")) is Letter
    top = Templates(
        Environment(loader=DictLoader({"x.subject.txt": "Top", "x.txt": ""})), folder=""
    )
    assert top.render("x").subject == "Top"


def test_importing_amail_imports_no_jinja_and_templates_neither_css_nor_html_readers() -> None:
    code = (
        "import sys, amail; assert not {'jinja2', 'amail.templates'} & set(sys.modules); "
        "import amail.templates; assert not {'lxml', 'inscriptis', 'css_inline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("blocked", "code", "extra"),
    [
        ("jinja2", "import amail.templates", "templates"),
        ("inscriptis", "import amail.html_text", "templates"),
        ("css_inline", "import amail.inline_css", "css"),
    ],
)
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    blocked: str, code: str, extra: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{blocked!r}] = None; {code}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert f'pip install "amail-asyncio[{extra}]"' in done.stderr.splitlines()[-1]


# Which files


def test_the_error_for_missing_templates_names_the_files_looked_for() -> None:
    with pytest.raises(MessageError) as caught:
        templates({}).render("orders/shipped")
    for file in ("orders/shipped.subject.txt", "orders/shipped.txt", "orders/shipped.html"):
        assert f"mail/{file}" in str(caught.value)


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (("mail/x.subject.txt",), ("mail/x.txt", "mail/x.html")),
        (("mail/x.txt",), ("mail/x.subject.txt",)),
        (("mail/x.html", "mail/x.txt"), ("mail/x.subject.txt",)),
    ],
)
def test_a_subject_and_one_of_text_and_html_have_to_be_there(
    there: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    with pytest.raises(MessageError) as caught:
        templates(dict.fromkeys(there, "x")).render("x")
    assert all(
        f"no template {file}" in str(caught.value) or f"no {file}" in str(caught.value)
        for file in missing
    )
    assert not any(f"no {file} " in str(caught.value) for file in there)


@pytest.mark.parametrize("text", ['{% extends "base.html" %}', '{% include "base.html" %}'])
def test_a_file_that_a_template_wants_is_missing_and_not_the_template(text: str) -> None:
    with pytest.raises(MessageError, match=r"^mail/x\.html: TemplateNotFound: .*base\.html"):
        templates(only(html=text)).render("x")


def test_a_template_without_html_gives_text_alone() -> None:
    message = templates(only(txt="Hi")).render("x")
    assert (message.body, message.alts) == ("Hi", {})


# B95: what a context may do


def test_b95_a_missing_variable_is_nothing_or_with_strict_an_error_that_names_it() -> None:
    found = templates()
    assert found.render("welcome").subject == "Welcome, "
    with pytest.raises(MessageError, match=r"^mail/welcome\.subject\.txt: .*'name' is undefined"):
        found.render("welcome", strict=True)
    assert found.render("welcome", strict=True, name="Ada").subject == "Welcome, Ada"
    assert found.render("welcome").subject == "Welcome, "


def test_b95_an_attribute_of_what_is_missing_is_a_message_error() -> None:
    with pytest.raises(MessageError, match=r"^mail/x\.txt: UndefinedError: 'user' is undefined"):
        templates(only(txt="{{ user.name }}")).render("x")


@pytest.mark.parametrize("autoescape", [False, True, lambda name: bool(name and ".txt" in name)])
def test_b95_html_is_escaped_and_text_and_subject_are_not_whatever_the_environment_does(
    autoescape: t.Any,
) -> None:
    message = templates(autoescape=autoescape).render("welcome", name="<b>A & B</b>")
    assert message.subject == "Welcome, <b>A & B</b>"
    assert message.body is not None
    assert message.body.startswith("Dear <b>A & B</b>,")
    assert message.html == "<p>Dear &lt;b&gt;A &amp; B&lt;/b&gt;,</p>"


def test_b95_what_is_safe_already_is_not_escaped_again() -> None:
    message = templates(only(html="{{ a }}{{ b|safe }}{{ c|e }}")).render(
        "x", a=Markup("<i>"), b="<b>", c="&"
    )
    assert message.html == "<i><b>&amp;"


@pytest.mark.parametrize(
    "use",
    [
        '{% include "signature.jinja" %}',
        '{% from "signature.jinja" import by with context %}{{ by(name) }}',
        '{% from "signature.jinja" import by %}{{ by(name) }}',
        '{% extends "signature.jinja" %}',
    ],
)
def test_b95_a_file_that_both_use_is_escaped_for_html_only(use: str) -> None:
    shared = "{% macro by(name) %}{{ name }}{% endmacro %}{{ name }}"
    files = only(txt=use, html=use) | {"signature.jinja": shared}
    for _ in range(2):
        message = templates(files).render("x", name="A & B")
        assert (message.body, message.html) == ("A & B", "A &amp; B")


class Kept(BytecodeCache):
    """Keeps what was compiled, as memcached or a folder would."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self.kept:
            bucket.bytecode_from_string(self.kept[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self.kept[bucket.key] = bucket.bytecode_to_string()


def test_b95_what_the_app_compiled_without_escaping_is_not_taken_for_html() -> None:
    environment = Environment(loader=DictLoader(WELCOME), bytecode_cache=Kept())
    assert environment.get_template("mail/welcome.html").render(name="<") == "<p>Dear <,</p>"
    message = Templates(environment).render("welcome", name="<")
    assert message.html == "<p>Dear &lt;,</p>"
    assert environment.get_template("mail/welcome.html").render(name="<") == "<p>Dear <,</p>"


def test_b95_context_is_no_template() -> None:
    message = templates().render("welcome", name="{{ 7 * 7 }}{% raise %}")
    assert message.subject == "Welcome, {{ 7 * 7 }}{% raise %}"


def test_b95_templates_of_users_stay_in_the_sandbox_they_are_given() -> None:
    files = only(txt="{{ ''.__class__.__mro__ }}{{ name.format }}")
    sandbox = Templates(SandboxedEnvironment(loader=DictLoader(files)))
    with pytest.raises(MessageError, match=r"^mail/x\.txt: SecurityError: access to attribute"):
        sandbox.render("x", name="Ada")


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "a/../../secret", "/etc/passwd", "..", ".", "a//b", "a/", "a\\..\\b"),
        *("C:secret", "a\0b", "a\n", "", " ", ".hidden", "a/.b", "a..b", "a.", "%2e%2e/secret"),
    ],
)
def test_b95_a_name_cannot_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    for end in ("subject.txt", "txt", "html"):
        (tmp_path / f"secret.{end}").write_text("secret")
    everything = {
        f"{prefix}{name}.{end}": "secret"
        for end in ("subject.txt", "txt")
        for prefix in ("", "mail/")
    }
    loader = ChoiceLoader([DictLoader(everything), FileSystemLoader(tmp_path)])
    with pytest.raises(MessageError, match="cannot lead out of its folder"):
        Templates(Environment(loader=loader)).render(name)


@pytest.mark.parametrize("name", ["welcome", "orders/shipped-2", "de/reset.v2", "заказ"])
def test_names_may_have_folders_and_dots(name: str) -> None:
    files = {f"mail/{name}.subject.txt": "Hello", f"mail/{name}.txt": "..."}
    assert templates(files).render(name).subject == "Hello"


@pytest.mark.parametrize("name", [None, b"welcome", 1])
def test_a_name_is_a_str(name: t.Any) -> None:
    with pytest.raises(MessageError, match="must be a str"):
        templates().render(name)


def test_syntax_that_jinja_does_not_know_is_a_message_error_with_the_file() -> None:
    with pytest.raises(MessageError, match=r"^mail/x\.txt: TemplateSyntaxError: "):
        templates(only(txt="{% nothing %}")).render("x")


def test_an_error_of_ones_own_code_comes_through_as_it_is() -> None:
    def fail() -> t.NoReturn:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        templates(only(txt="{{ fail() }}")).render("x", fail=fail)


def test_the_names_of_arguments_may_be_names_in_the_context() -> None:
    message = templates(only(txt="{{ name }} {{ self }}")).render("x", name="Ada", self="me")
    assert message.body is not None
    assert message.body.startswith("Ada ")


# B95: the subject


@pytest.mark.parametrize(
    "file",
    [
        "Hello {{ name }}",
        "Hello {{ name }}\n",
        "Hello {{ name }}\r\n",
        "\n\nHello {{ name }}\n\n\n",
        "{% set greeting = 'Hello' %}\n{{ greeting }} {{ name }}\n",
        "{# for the welcome #}\nHello {{ name }}\n",
        "{% if name -%}\n  Hello {{ name }}\n{%- else -%}\n  Hello\n{%- endif %}\n",
        '{% extends "one.txt" %}\n{% block subject %}Hello {{ name }}{% endblock %}\n',
        '{% include "two.txt" %}\n',
    ],
)
@pytest.mark.parametrize("keep_trailing_newline", [False, True])
def test_b95_line_ends_that_are_the_files_own_are_not_the_subjects(
    file: str, keep_trailing_newline: bool
) -> None:
    further = {"one.txt": "{% block subject %}{% endblock %}\n", "two.txt": "Hello {{ name }}\n"}
    found = templates(only(file, txt="") | further, keep_trailing_newline=keep_trailing_newline)
    assert found.render("x", name="Ada").subject == "Hello Ada"
    for bad in ("Ada\n", "Ada\r\n", "\nAda", "Ada\r\nBcc: eve@example.net", "A\r\n da", "\r"):
        with pytest.raises(InvalidHeader, match=r"^mail/x\.subject\.txt: U\+000[AD] at position"):
            found.render("x", name=bad)


def test_b95_a_subject_whose_file_has_two_lines_is_refused() -> None:
    with pytest.raises(InvalidHeader, match=r"^mail/x\.subject\.txt: U\+000A at position 5"):
        templates(only("Hello\nBob\n", txt="")).render("x")


class Lazy:
    """A str that is made when it is needed, as those of gettext."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


values = st.one_of(
    nasty_text,
    nasty_text.map(Lazy),
    nasty_text.map(Markup),
    st.lists(nasty_text, max_size=2),
    st.dictionaries(nasty_text, nasty_text, max_size=2),
    st.one_of(st.none(), st.integers(), st.floats(), st.binary(max_size=8)),
)
ANY = templates(only("{{ a }} - {{ b }}\n", txt="{{ a }}", html="<p>{{ a }}</p>"))


@EXAMPLES
@given(values, values)
def test_b95_any_context_gives_a_message_error_or_a_subject_of_one_line(
    a: object, b: object
) -> None:
    try:
        message = ANY.render("x", a=a, b=b)
        assert len(message.subject.splitlines()) <= 1
        message.sender, message.recipients = "ada@example.com", ["bob@example.org"]
        content = message.as_bytes()
    except MessageError:
        return
    read = email.message_from_bytes(content, policy=email.policy.default)
    names = sorted(name.lower() for name in read if not name.lower().startswith("content-"))
    assert names == ["date", "from", "message-id", "mime-version", "subject", "to"]


class Elements(HTMLParser):
    """What a reader sees of html: its elements and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: t.Any) -> None:
        self.found.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@EXAMPLES
@given(nasty_text)
def test_b95_any_text_is_said_in_html_and_adds_no_element(text: str) -> None:
    message = templates(only(txt="[{{ a }}]", html="<p>{{ a }}</p>")).render("x", a=text)
    assert message.body == f"[{text}]"
    assert message.html is not None
    seen = Elements(message.html)
    assert seen.found == ["p"]
    assert seen.text == text


# Text made of html


def test_text_is_made_of_the_html_where_there_is_no_text_template() -> None:
    html = (
        "<html><head><title>T</title><style>p { color: red }</style></head><body>"
        "<h1>Hello {{ name }}</h1>"
        "<p>Please <a href='https://x.org/r?a=1&amp;b=2'>reset\n it</a>.</p>"
        "<ul><li>tea<li>cake</ul><table><tr><td>Tea<td>1<tr><td>Cake<td>22</table>"
        "<img src='cid:1' alt='Logo'><script>x()</script></body></html>"
    )
    message = templates(only(html=html)).render("x", name="A & <B>")
    assert message.body == (
        "Hello A & <B>\n\n"
        "Please reset it <https://x.org/r?a=1&b=2>.\n\n"
        "  * tea\n  * cake\nTea   1\nCake  22\n\n[Logo]\n"
    )


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ('<a href="https://x.org/">https://x.org/</a>', "https://x.org/\n"),
        ('<a href="mailto:a@x.org">a@x.org</a>', "a@x.org\n"),
        ('<a href="mailto:a@x.org">Ada</a>', "Ada <mailto:a@x.org>\n"),
        ('<a href="https://x.org/"><b>x</b> </a>y', "x <https://x.org/>y\n"),
        ('<a href="https://x.org/"><img src="y" alt="Shop"></a>', "[Shop] <https://x.org/>\n"),
        ('<a href="https://x.org/a b>c">x</a>', "x <https://x.org/a%20b%3Ec>\n"),
        (
            '<a href="#top">x</a><a href="javascript:y">y</a><a name="z">z</a><a href="/q">q</a>',
            "xyzq\n",
        ),
        ('<?xml version="1.0" encoding="latin-1"?><p>é', "é\n"),
        ('<meta charset="latin-1"><p>é', "é\n"),
        ("<!-- nothing -->", ""),
        (" \n ", ""),
        ("<p>&nbsp;</p>", ""),
        ("<p>a<!-- b -->c<?xml:namespace prefix=o /> d</p>", "ac d\n"),
        ("a<br><br><br><br>b", "a\n\nb\n"),
        ("plain", "plain\n"),
        ("a<span style='margin: 9px'>b</span>c", "abc\n"),
        ("<p>a</p><p style='color: red; display:NONE'>b</p>c", "a\n\nc\n"),
        ("<p style='visibility: hidden'>b</p>c", "c\n"),
        ('<a href="https://x.org/\x01">x</a>', "x <https://x.org/%01>\n"),
        (
            '<table role="presentation"><tr><td>Dear Bob<td>welcome</table>',
            "Dear Bob\nwelcome\n",
        ),
        (
            "<table><tr><td><h1>Shop</h1><table><tr><th>Tea<td>1</table></table>",
            "Shop\n\nTea  1\n",
        ),
    ],
)
def test_text_shows_where_links_lead_unless_they_say_it(html: str, text: str) -> None:
    assert text_of(html) == text


def test_a_control_character_in_a_link_does_not_lose_its_target() -> None:
    assert text_of('<a href="https://x.org/">x\x02</a>').endswith(" <https://x.org/>\n")


def test_html_that_is_too_deep_is_refused_and_not_cut() -> None:
    assert text_of(f"{'<b>' * 250}x") == "x\n"
    with pytest.raises(MessageError, match=r"^mail/x\.html: too deep"):
        templates(only(html=f"{'<b>' * 300}x")).render("x")


def test_html_that_says_nothing_gives_no_text_part() -> None:
    message = templates(only(html="<img src='https://x.org/y.png'>")).render("x")
    assert message.body is None


@EXAMPLES
@given(
    st.lists(
        st.one_of(
            nasty_text,
            st.sampled_from(
                [
                    "<a href='https://x.org'>",
                    "</a>",
                    "<table>",
                    "<td>",
                    "</table>",
                    "<ul>",
                    "<li>",
                    "<!--",
                    "-->",
                    "<![CDATA[",
                    "<pre>",
                    "<a href=",
                    "<style>",
                    "</p>",
                    "&#0;",
                    "&#xd800;",
                    "<svg>",
                ]
            ),
        ),
        max_size=8,
    ).map("".join)
)
def test_text_can_be_made_of_any_html(html: str) -> None:
    assert isinstance(text_of(html), str)


# CSS

STYLED = (
    "<html><head><style>p { color: red } a:hover { color: blue }"
    " @media (max-width: 9em) { p { margin: 0 } }</style></head>"
    "<body><p>{{ name }}</p></body></html>"
)


def test_css_is_inlined_on_request_and_what_cannot_be_stays_in_style() -> None:
    found = templates(only(html=STYLED, txt=""))
    message = found.render("x", inline_css=True, name="<A>")
    assert message.html is not None
    assert '<p style="color: red;">&lt;A&gt;</p>' in message.html
    assert "p { color" not in message.html
    assert "a:hover" in message.html
    assert "@media (max-width: 9em)" in message.html
    assert found.render("x", name="A").html == STYLED.replace("{{ name }}", "A")


def test_text_is_made_of_what_is_shown_once_css_is_inlined() -> None:
    html = "<style>.preview { display: none }</style><p class='preview'>Psst</p><p>Hello</p>"
    message = templates(only(html=html)).render("x", inline_css=True)
    assert message.body == "Hello\n"


@contextlib.contextmanager
def web_server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args: t.Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_no_stylesheet_image_or_import_is_loaded_from_the_network_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.css").write_text("p { color: green }")
    with web_server() as (url, asked):
        links = "".join(
            f'<link rel="stylesheet" href="{href}"><img src="{href}">'
            f'<style>@import url("{href}"); p {{ background: url("{href}") }}</style>'
            for href in (
                f"{url}/a.css",
                f"file://{tmp_path}/secret.css",
                f"{tmp_path}/secret.css",
                "secret.css",
            )
        )
        html = f"<html><head>{links}</head><body><p>Hello</p></body></html>"
        message = templates(only(html=html)).render("x", inline_css=True)
        assert asked == []
    assert message.html is not None
    assert "green" not in message.html
    assert message.html.count("<link") == 4
    assert message.body == "Hello\n"


@EXAMPLES
@given(nasty_text)
def test_any_html_is_inlined_or_a_message_error(text: str) -> None:
    found = templates(only(html="<style>{{ a|safe }}</style><p style='{{ a }}'>{{ a }}</p>"))
    with contextlib.suppress(MessageError):
        assert found.render("x", inline_css=True, a=text).html


def test_half_a_character_in_html_to_inline_is_a_message_error_with_the_file() -> None:
    with pytest.raises(MessageError, match=r"^mail/x\.html: U\+D800 at position 3 is half"):
        templates(only(html="<p>{{ a }}", txt="")).render("x", inline_css=True, a="\ud800")


# Environments


def test_what_the_environment_has_is_there_also_what_it_gets_later() -> None:
    environment = Environment(loader=DictLoader(only(txt="{{ shop }} {{ name|shout }}")))
    found = Templates(environment)
    environment.filters["shout"] = str.upper
    environment.globals["shop"] = "Shop"
    assert found.render("x", name="Ada").body == "Shop ADA"
    environment.globals["shop"] = "Other shop"
    assert found.render("x", name="Ada").body == "Other shop ADA"


def test_the_environment_stays_as_it_was() -> None:
    environment = Environment(loader=DictLoader(WELCOME), keep_trailing_newline=True)
    Templates(environment).render("welcome", strict=True, name="&")
    assert environment.get_template("mail/welcome.subject.txt").render() == "Welcome, \n"
    assert environment.get_template("mail/welcome.html").render(name="&") == "<p>Dear &,</p>\n"


async def test_an_environment_with_enable_async_is_awaited() -> None:
    async def fetch() -> str:
        await asyncio.sleep(0)
        return "<Ada>"

    files = only("Hello {{ fetch() }}\n", txt="{{ fetch() }}", html="{{ fetch() }}")
    found = templates(files, enable_async=True)
    message = await found.render_async("x", fetch=fetch)
    assert (message.subject, message.body, message.html) == ("Hello <Ada>", "<Ada>", "&lt;Ada&gt;")
    with pytest.raises(MessageError, match="'fetch' is undefined"):
        await found.render_async("x")
    with pytest.raises(UsageError, match=r"await templates\.render_async"):
        found.render("x", fetch=fetch)


async def test_render_async_works_without_enable_async_too() -> None:
    message = await templates().render_async("welcome", name="Ada")
    assert message.subject == "Welcome, Ada"


def test_an_environment_that_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="has no loader"):
        Templates(Environment())
    with pytest.raises(ConfigError, match="NativeEnvironment does not escape"):
        Templates(NativeEnvironment(loader=DictLoader(WELCOME)))


def test_translations_of_an_environment_are_used_in_each_part() -> None:
    files = only(
        "{% trans %}Welcome, {{ name }}{% endtrans %}\n",
        txt="{{ _('Dear %(name)s', name=name) }}",
        html="{% trans %}Dear <b>{{ name }}</b>{% endtrans %}",
    )
    german = {
        "Welcome, %(name)s": "Willkommen, %(name)s",
        "Dear %(name)s": "Hallo %(name)s",
        "Dear <b>%(name)s</b>": "Hallo <b>%(name)s</b>",
    }
    for newstyle in (False, True):
        environment = Environment(loader=DictLoader(files), extensions=["jinja2.ext.i18n"])
        environment.install_gettext_callables(  # type: ignore[attr-defined]
            german.__getitem__, lambda one, more, number: one, newstyle=newstyle
        )
        if not newstyle:
            environment.globals["_"] = lambda text, **said: german[text] % said
        message = Templates(environment).render("x", name="A & B")
        assert message.subject == "Willkommen, A & B"
        assert message.body == "Hallo A & B"
        assert message.html == "Hallo <b>A &amp; B</b>"
