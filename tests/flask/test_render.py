"""mail.render: messages from the app's templates, and where their links lead; rows B95 and B96."""

from __future__ import annotations

import typing as t

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from flask import Blueprint, Flask, current_app, g
from flask_babel import Babel, force_locale, lazy_gettext
from jinja2 import DictLoader

from amail import ConfigError, InvalidHeader, MessageError, UsageError
from amail_flask import Mail, Message

if t.TYPE_CHECKING:
    from pathlib import Path

WELCOME = {
    "mail/welcome.subject.txt": "Welcome, {{ name }}\n",
    "mail/welcome.txt": "Dear {{ name }},\n",
    "mail/welcome.html": "<p>Dear {{ name }},</p>\n",
}
RESET = {
    "mail/reset.subject.txt": "Reset\n",
    "mail/reset.txt": "{{ url_for('reset', token='a b') }}\n",
}
MACRO = {
    "mail/reset.subject.txt": "Reset\n",
    "mail/reset.txt": "{% from 'links.txt' import link %}{{ link() }}\n",
    "links.txt": "{% macro link() %}{{ url_for('reset', token='a b') }}{% endmacro %}",
}
SPOOFED = {"Host": "evil.example.net"}


def app_with(files: dict[str, str], **config: t.Any) -> tuple[Flask, Mail]:
    app = Flask("shop")
    app.config.update(
        MAIL_URL="memory://", MAIL_DEFAULT_SENDER="shop@example.com", TESTING=True, **config
    )
    app.jinja_loader = DictLoader(files)
    app.add_url_rule("/reset/<token>", "reset", lambda token: token)
    return app, Mail(app)


def test_a_message_is_made_of_the_apps_templates_and_can_be_sent() -> None:
    app, mail = app_with(WELCOME)

    @app.post("/")
    async def welcome() -> str:
        message = mail.render("welcome", name="Ada & Bob")
        message.recipients = ["ada@example.org"]
        return (await mail.send(message)).message_id

    with mail.record_messages() as outbox:
        assert app.test_client().post("/").status_code == 200
    (message,) = outbox
    assert type(message) is Message
    assert message.subject == "Welcome, Ada & Bob"
    assert message.body == "Dear Ada & Bob,"
    assert message.html == "<p>Dear Ada &amp; Bob,</p>"


def test_b95_a_line_break_from_a_form_is_refused_in_the_view() -> None:
    app, mail = app_with(WELCOME)
    with app.test_request_context(), pytest.raises(InvalidHeader, match=r"welcome\.subject\.txt"):
        mail.render("welcome", name="Ada\r\nBcc: eve@example.net")


def test_b95_strict_names_the_variable_that_is_missing() -> None:
    app, mail = app_with(WELCOME)
    with app.app_context():
        assert mail.render("welcome").subject == "Welcome, "
        with pytest.raises(MessageError, match="'name' is undefined"):
            mail.render("welcome", strict=True)


def test_css_is_inlined_on_request() -> None:
    styled = "<style>p { color: red }</style><p>x</p>"
    app, mail = app_with(WELCOME | {"mail/welcome.html": styled})
    with app.app_context():
        html = mail.render("welcome", inline_css=True).html
    assert html is not None
    assert '<p style="color: red;">x</p>' in html


def test_missing_templates_are_named() -> None:
    app, mail = app_with({})
    with app.app_context(), pytest.raises(MessageError, match=r"mail/welcome\.subject\.txt and no"):
        mail.render("welcome")


def test_templates_of_a_blueprint_are_found(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    for file, text in WELCOME.items():
        (tmp_path / file).write_text(text)
    app = Flask("shop")
    app.register_blueprint(Blueprint("accounts", "shop", template_folder=str(tmp_path)))
    mail = Mail(app)
    with app.app_context():
        assert mail.render("welcome", name="Ada").subject == "Welcome, Ada"


def test_context_processors_add_to_the_context_and_what_is_given_wins() -> None:
    files = WELCOME | {"mail/welcome.txt": "{{ name }} {{ shop }} {{ g.user }} {{ config.LOCAL }}"}
    app, mail = app_with(files, LOCAL="here")
    app.context_processor(lambda: {"name": "nobody", "shop": "Shop"})
    with app.app_context():
        g.user = "ada"
        assert mail.render("welcome", name="Ada").body == "Ada Shop ada here"


def test_an_app_that_the_extension_was_made_for_needs_no_context() -> None:
    _, mail = app_with(WELCOME)
    assert mail.render("welcome", name="Ada").subject == "Welcome, Ada"
    with pytest.raises(UsageError, match="there is no app here"):
        Mail().render("welcome")


def test_in_the_context_of_an_app_without_mail_ones_own_is_the_current_one() -> None:
    app, mail = app_with(WELCOME | {"mail/welcome.txt": "{{ current }}"})
    app.context_processor(lambda: {"current": current_app.name})
    with Flask("other").app_context():
        assert mail.render("welcome").body == "shop"
        assert current_app.name == "other"


def test_two_apps_have_their_own_templates_also_inside_one_another() -> None:
    one, _ = app_with(WELCOME | {"mail/welcome.subject.txt": "{{ config.SHOP }}"}, SHOP="One")
    two, _ = app_with(WELCOME | {"mail/welcome.subject.txt": "{{ config.SHOP }}!"}, SHOP="Two")
    mail = Mail()
    mail.init_app(one)
    mail.init_app(two)
    with one.app_context():
        assert mail.render("welcome").subject == "One"
        with two.app_context():
            assert mail.render("welcome").subject == "Two!"
        assert mail.render("welcome").subject == "One"


def test_what_the_app_renders_itself_stays_as_it_was() -> None:
    files = WELCOME | {"page.html": "{{ url_for('reset', token=1) }}"}
    app, mail = app_with(files, SERVER_NAME="shop.example.com")
    with app.test_request_context("/"):
        mail.render("welcome")
        assert app.jinja_env.get_template("page.html").render() == "/reset/1"


async def test_an_app_with_enable_async_is_awaited() -> None:
    app = Flask("shop")
    app.jinja_options = {"enable_async": True}
    app.jinja_loader = DictLoader(WELCOME)
    mail = Mail(app)
    with app.app_context(), pytest.raises(UsageError, match=r"mail\.templates\.render_async"):
        mail.render("welcome", name="Ada")
    message = await mail.templates.render_async("welcome", name="Ada")
    assert type(message) is Message
    assert message.subject == "Welcome, Ada"


# B96: links


@pytest.mark.parametrize("files", [RESET, MACRO])
def test_b96_a_link_takes_no_host_from_a_request_where_nothing_names_ones_own(
    files: dict[str, str],
) -> None:
    app, mail = app_with(files)
    for context in (app.test_request_context("/", headers=SPOOFED), app.app_context()):
        with context, pytest.raises(ConfigError, match="SERVER_NAME: the config does not say"):
            mail.render("reset")


@pytest.mark.filterwarnings("ignore:Current server name:UserWarning")
@pytest.mark.parametrize("files", [RESET, MACRO])
@pytest.mark.parametrize("subdomain_matching", [False, True])
def test_b96_with_server_name_a_link_has_that_host_whatever_the_request_says(
    files: dict[str, str], subdomain_matching: bool
) -> None:
    app, mail = app_with(files, SERVER_NAME="shop.example.com", PREFERRED_URL_SCHEME="https")
    app.subdomain_matching = subdomain_matching
    with app.test_request_context("/", headers=SPOOFED):
        assert mail.render("reset").body == "https://shop.example.com/reset/a%20b"
    with app.app_context():
        assert mail.render("reset").body == "https://shop.example.com/reset/a%20b"


def test_b96_with_trusted_hosts_a_link_has_the_requests_host_if_it_is_among_them() -> None:
    app, mail = app_with(RESET, TRUSTED_HOSTS=["shop.example.com", ".example.org"])
    bodies = []

    @app.get("/")
    def view() -> str:
        bodies.append(mail.render("reset").body)
        return ""

    client = app.test_client()
    assert client.get("/", headers={"Host": "a.example.org"}).status_code == 200
    assert client.get("/", headers=SPOOFED).status_code == 400
    assert bodies == ["http://a.example.org/reset/a%20b"]


def test_b96_with_host_matching_the_requests_host_wins_and_is_refused() -> None:
    app = Flask("shop", host_matching=True, static_host="shop.example.com")
    app.config.update(SERVER_NAME="shop.example.com")
    app.jinja_loader = DictLoader(RESET)
    app.add_url_rule("/reset/<token>", "reset", lambda token: token, host="shop.example.com")
    mail = Mail(app)
    spoofed = app.test_request_context("/", headers=SPOOFED)
    with spoofed, pytest.raises(ConfigError, match="with host_matching that alone counts"):
        mail.render("reset")


def test_b96_a_link_that_is_asked_to_be_relative_needs_no_host() -> None:
    files = RESET | {"mail/reset.txt": "{{ url_for('reset', token=1, _external=False) }}"}
    app, mail = app_with(files)
    with app.test_request_context("/", headers=SPOOFED):
        assert mail.render("reset").body == "/reset/1"


def test_b96_a_link_has_its_scheme_and_anchor_and_an_apps_own_url_for_is_asked() -> None:
    text = "{{ url_for('reset', token=1, _scheme='https', _anchor='top') }}"
    app, mail = app_with(RESET | {"mail/reset.txt": text}, SERVER_NAME="shop.example.com")
    with app.app_context():
        assert mail.render("reset").body == "https://shop.example.com/reset/1#top"
        app.jinja_env.globals["url_for"] = lambda endpoint, **values: f"{endpoint}: {values}"
        assert mail.render("reset").body == (
            "reset: {'token': 1, '_scheme': 'https', '_anchor': 'top', '_external': True}"
        )


# Translations


@pytest.fixture
def translated(tmp_path: Path) -> tuple[Flask, Mail]:
    catalog = Catalog(locale="de")
    catalog.add("Welcome, %(name)s", "Willkommen, %(name)s", flags=["python-format"])
    catalog.add("Dear %(name)s", "Hallo %(name)s", flags=["python-format"])
    catalog.add("Shop", "Laden")
    (tmp_path / "de" / "LC_MESSAGES").mkdir(parents=True)
    with (tmp_path / "de" / "LC_MESSAGES" / "messages.mo").open("wb") as file:
        write_mo(file, catalog)
    files = {
        "mail/welcome.subject.txt": "{% trans %}Welcome, {{ name }}{% endtrans %}\n",
        "mail/welcome.txt": "{{ _('Dear %(name)s', name=name) }}\n{{ _('Shop') }} {{ lazy }}\n",
        "mail/welcome.html": "<p>{{ _('Dear %(name)s', name=name) }}</p>\n{{ half|percentformat }}",
    }
    app, mail = app_with(files, BABEL_TRANSLATION_DIRECTORIES=str(tmp_path))
    Babel(app)
    return app, mail


def test_flask_babel_translates_each_part_for_the_locale_that_is_forced(
    translated: tuple[Flask, Mail],
) -> None:
    app, mail = translated
    context = {"name": "A & B", "lazy": lazy_gettext("Shop"), "half": 0.5}
    with app.app_context():
        english = mail.render("welcome", **context)
        with force_locale("de"):
            german = mail.render("welcome", **context)
        again = mail.render("welcome", **context)
    assert english.subject == again.subject == "Welcome, A & B"
    assert english.body == again.body == "Dear A & B\nShop Shop"
    assert german.subject == "Willkommen, A & B"
    assert german.body == "Hallo A & B\nLaden Laden"
    assert german.html == "<p>Hallo A &amp; B</p>\n50\xa0%"


def test_b95_a_line_break_that_comes_through_a_translation_is_refused(
    translated: tuple[Flask, Mail],
) -> None:
    app, mail = translated
    with app.app_context(), force_locale("de"), pytest.raises(InvalidHeader):
        mail.render("welcome", name="Ada\nBcc: eve@example.net", half=0.5)
