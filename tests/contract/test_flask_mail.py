"""What a user of Flask-Mail 0.10 has, is here too: names, arguments, config keys, defaults.

What is knowingly not the same stands in docs/migrating.md; a name that is missing has to be there.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import typing as t
from pathlib import Path

import pytest
from flask import Flask

import amail_flask
from amail import SMTPSettings
from amail_flask.config import KEYS, MailConfig
from amail_flask.mailers import relays_of

flask_mail = pytest.importorskip("flask_mail", reason="Flask-Mail is not installed")

PAGE = (Path(__file__).parent.parent.parent / "docs" / "migrating.md").read_text("utf-8")
CLASSES = ("Attachment", "Connection", "Mail", "Message")


def names_of(thing: t.Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def own_names() -> set[str]:
    """The names that Flask-Mail's module defines, and not those it imports."""
    defined = {
        name
        for name, each in vars(flask_mail).items()
        if getattr(each, "__module__", None) == "flask_mail"
    }
    return {name for name in defined | {"email_dispatched", "signals"} if not name.startswith("_")}


def parameters_of(callable_: t.Any) -> list[tuple[str, object, object]]:
    return [
        (each.name, each.kind, each.default)
        for each in inspect.signature(callable_).parameters.values()
    ]


def methods() -> list[tuple[str, str]]:
    return [
        (of, name)
        for of in CLASSES
        for name, each in inspect.getmembers(getattr(flask_mail, of), inspect.isfunction)
        if name == "__init__" or not name.startswith("_")
    ]


def is_left_out(name: str) -> bool:
    return f"`{name}" in PAGE


@pytest.mark.parametrize("name", sorted(own_names()))
def test_every_name_of_the_module_is_here_or_in_the_page(name: str) -> None:
    assert name in amail_flask.__all__ or is_left_out(name)


@pytest.mark.parametrize(("of", "name"), methods())
def test_every_method_takes_the_same_arguments_in_the_same_order(of: str, name: str) -> None:
    ours = getattr(getattr(amail_flask, of), name, None)
    if ours is None:
        assert is_left_out(f"{of}.{name}")
        return
    theirs = parameters_of(getattr(getattr(flask_mail, of), name))
    mine = parameters_of(ours)
    assert mine[: len(theirs)] == theirs
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for _, kind, _ in mine[len(theirs) :])


@pytest.mark.parametrize("name", ["sanitize_address", "sanitize_addresses"])
def test_the_functions_take_the_same_arguments(name: str) -> None:
    assert parameters_of(getattr(amail_flask, name)) == parameters_of(getattr(flask_mail, name))


async def test_what_talks_to_a_server_is_awaited() -> None:
    app = Flask(__name__)
    app.testing = True
    mail = amail_flask.Mail(app)
    message = amail_flask.Message("Hi", ["a@x.org"], "Hi", sender="b@x.org")
    async with mail.connect() as connection:
        for sending in (
            mail.send(message),
            mail.send_message("Hi", ["a@x.org"], "Hi", sender="b@x.org"),
            connection.send(message),
            connection.send(message, envelope_from="c@x.org"),
            connection.send_message("Hi", ["a@x.org"], "Hi", sender="b@x.org"),
            message.send(connection),
        ):
            assert asyncio.iscoroutine(sending)
            assert (await sending).relay == "suppressed"


def fields_of(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_a_message_an_attachment_and_a_state_have_the_same_attributes() -> None:
    app = Flask(__name__)
    flask_mail.Mail(app)
    with app.app_context():
        theirs = flask_mail.Message("Hi", sender="b@x.org")
        ours = amail_flask.Message("Hi", sender="b@x.org")
        for name in fields_of(theirs) | names_of(flask_mail.Message):
            assert hasattr(ours, name), name
    attachment = flask_mail.Attachment(data=b"x")
    for name in fields_of(attachment):
        assert hasattr(amail_flask.Attachment(data=b"x"), name)
        mine, other = (
            amail_flask.Attachment("a.txt", data="x"),
            flask_mail.Attachment("a.txt", data="x"),
        )
        assert getattr(mine, name) == getattr(other, name)


@pytest.mark.parametrize("name", sorted(fields_of(flask_mail.Mail().init_mail({}))))
def test_the_state_has_flask_mails_names(name: str) -> None:
    app = Flask(__name__)
    mail = amail_flask.Mail(app)
    assert hasattr(mail.state, name)
    assert hasattr(mail, name)


def test_the_state_can_do_what_flask_mails_can() -> None:
    """Extensions take it from ``app.extensions["mail"]``, and send with it."""
    app = Flask(__name__)
    app.testing = True
    state = amail_flask.Mail(app).state
    assert names_of(flask_mail._Mail) <= names_of(state) | {"suppress"}
    assert state is app.extensions["mail"]
    with state.record_messages() as outbox:
        state.send_sync(amail_flask.Message("Hi", ["a@x.org"], "Hi", sender="b@x.org"))
    assert [message.subject for message in outbox] == ["Hi"]


def test_every_key_that_flask_mail_reads_is_in_our_table() -> None:
    source = inspect.getsource(flask_mail.Mail.init_mail)
    theirs = set(re.findall(r"MAIL_[A-Z_]+", source))
    assert len(theirs) == 11
    assert theirs <= KEYS.keys()


def test_the_defaults_lead_to_the_same_server_in_the_same_way() -> None:
    theirs = flask_mail.Mail().init_mail({})
    (ours,) = relays_of(MailConfig.read({}))
    assert isinstance(ours, SMTPSettings)
    assert (ours.host, ours.effective_port) == (theirs.server, theirs.port)
    assert (theirs.use_tls, theirs.use_ssl, ours.effective_tls) == (False, False, "none")
    assert (ours.username, ours.password) == (theirs.username, theirs.password)
    app = Flask(__name__)
    mail, other = amail_flask.Mail(app), flask_mail.Mail(Flask(__name__))
    for name in ("default_sender", "suppress", "ascii_attachments"):
        assert getattr(mail, name) == getattr(other, name)


@pytest.mark.parametrize(
    "key", ["MAIL_USE_TLS", "MAIL_USE_SSL", "MAIL_DEBUG", "MAIL_SUPPRESS_SEND"]
)
def test_a_key_set_to_false_means_what_it_means_there(key: str) -> None:
    assert MailConfig.read({key: False})[key] is False
