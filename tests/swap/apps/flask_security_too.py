"""Flask-Security-Too: a user who forgot the password asks for a new one."""

from __future__ import annotations

import os

from flask import Flask
from flask_security import Security, SQLAlchemyUserDatastore, hash_password  # type: ignore[import-not-found]
from flask_security.models import fsqla_v3  # type: ignore[import-not-found]
from flask_sqlalchemy import SQLAlchemy  # type: ignore[import-not-found]

from amail_flask import Mail


def main() -> None:
    app = Flask("shop")
    app.config.update(
        MAIL_URL=os.environ["MAIL_URL"],
        SECRET_KEY="a secret",
        SECURITY_EMAIL_VALIDATOR_ARGS={"check_deliverability": False},
        SECURITY_EMAIL_SENDER=("Shop", "shop@example.com"),
        SECURITY_PASSWORD_HASH="pbkdf2_sha512",
        SECURITY_PASSWORD_SALT="1",
        SECURITY_RECOVERABLE=True,
        SQLALCHEMY_DATABASE_URI="sqlite://",
        WTF_CSRF_ENABLED=False,
    )
    db = SQLAlchemy(app)
    fsqla_v3.FsModels.set_db_info(db)

    role = type("Role", (db.Model, fsqla_v3.FsRoleMixin), {})
    user = type("User", (db.Model, fsqla_v3.FsUserMixin), {})
    Mail(app)
    users = SQLAlchemyUserDatastore(db, user, role)
    Security(app, users)
    with app.app_context():
        db.create_all()
        users.create_user(email="bob@example.org", password=hash_password("password"))
        db.session.commit()
    app.test_client().post("/reset", data={"email": "bob@example.org"})
