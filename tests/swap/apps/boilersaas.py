"""boilersaas: its function that sends mail made of templates."""

from __future__ import annotations

import os

from boilersaas.utils.mail import send_email  # type: ignore[import-not-found]
from flask import Flask
from jinja2 import DictLoader


def main() -> None:
    app = Flask("shop")
    app.config.update(MAIL_URL=os.environ["MAIL_URL"], MAIL_DEFAULT_SENDER="shop@example.com")
    app.jinja_loader = DictLoader(
        {"email/welcome.txt": "Hi {{ username }}", "email/welcome.html": "<p>Hi {{ username }}</p>"}
    )
    with app.app_context():
        send_email("bob@example.org", "Welcome!", "email/welcome", username="Bob")
