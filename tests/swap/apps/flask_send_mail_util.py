"""flask-send-mail-util: its function that sends mail made of templates."""

from __future__ import annotations

import os

from flask import Flask
from flask_send_mail_util import send_mail  # type: ignore[import-not-found]
from jinja2 import DictLoader

from amail_flask import Mail


def main() -> None:
    app = Flask("shop")
    app.config.update(MAIL_URL=os.environ["MAIL_URL"], MAIL_DEFAULT_SENDER="shop@example.com")
    app.jinja_loader = DictLoader({"hi.txt": "Hi {{ name }}", "hi.html": "<p>Hi {{ name }}</p>"})
    Mail(app)
    with app.app_context():
        send_mail("Hello", "bob@example.org", "hi", name="Bob")
