"""Flask-AppBuilder: somebody registers, and is sent a link."""

from __future__ import annotations

import os

from flask import Flask
from flask_appbuilder import AppBuilder  # type: ignore[import-not-found]
from flask_appbuilder.utils.legacy import get_sqla_class  # type: ignore[import-not-found]


def main() -> None:
    app = Flask("shop")
    app.config.update(
        AUTH_TYPE=1,
        AUTH_USER_REGISTRATION=True,
        AUTH_USER_REGISTRATION_ROLE="Public",
        MAIL_URL=os.environ["MAIL_URL"],
        MAIL_DEFAULT_SENDER="shop@example.com",
        RECAPTCHA_PUBLIC_KEY="none",
        SECRET_KEY="a secret",
        SQLALCHEMY_DATABASE_URI="sqlite://",
    )
    with app.app_context():
        db = get_sqla_class()(app)
        builder = AppBuilder(app, db.session)
        (view,) = (
            each for each in builder.baseviews if type(each).__name__ == "RegisterUserDBView"
        )
        with app.test_request_context("/register/form"):
            view.add_registration("bob", "Bob", "Builder", "bob@example.org", "password")
