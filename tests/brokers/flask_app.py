"""A Flask app with its Celery app, as Flask's own page has it: in the environment is where.

celery -A tests.brokers.flask_app worker
"""

from __future__ import annotations

import json
import logging
import os
import typing as t

from celery import Celery, Task
from flask import Flask, current_app

from amail_flask import Mail, email_failed

if t.TYPE_CHECKING:
    from amail import MailError

mail = Mail()


def create_app(broker: str, smtp: str, settings: dict[str, t.Any]) -> Flask:
    app = Flask("shop")
    app.config.from_mapping(
        MAIL_QUEUE="celery",
        MAIL_URL=smtp,
        MAIL_MAX_CONNECTIONS=1,
        CELERY={"broker_url": broker, **settings},
    )
    mail.init_app(app)
    celery_init_app(app)
    email_failed.connect(say, app)
    return app


def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask, set_as_current=False)
    celery_app.config_from_object(app.config["CELERY"])
    app.extensions["celery"] = celery_app
    return celery_app


def say(sender: Flask, error: MailError, **_: object) -> None:
    logging.getLogger("shop").warning(
        "%s heard that %s came to %s",
        current_app.name,
        getattr(error, "message_id", None),
        type(error).__name__,
    )


if "TEST_BROKER" in os.environ:
    flask_app = create_app(
        os.environ["TEST_BROKER"],
        os.environ["TEST_SMTP"],
        json.loads(os.environ["TEST_SETTINGS"]),
    )
    celery_app = flask_app.extensions["celery"]
