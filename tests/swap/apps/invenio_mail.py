"""Invenio-Mail: its Celery tasks, and its message of templates."""

from __future__ import annotations

import base64
import os

from celery import Celery
from flask import Flask
from invenio_mail import InvenioMail  # type: ignore[import-not-found]
from invenio_mail.api import TemplatedMessage  # type: ignore[import-not-found]
from invenio_mail.tasks import send_email, send_email_with_attachments  # type: ignore[import-not-found]
from jinja2 import DictLoader


def main() -> None:
    Celery("shop", set_as_current=True).conf.task_always_eager = True
    app = Flask("shop")
    app.config.update(MAIL_URL=os.environ["MAIL_URL"], MAIL_DEFAULT_SENDER="shop@example.com")
    app.jinja_loader = DictLoader({"body.txt": "Hi {{ name }}: {{ body }}"})
    InvenioMail(app)
    bob = {"subject": "Task", "body": "by a task", "recipients": ["bob@example.org"]}
    with app.app_context():
        send_email.delay(bob).get()
        data = base64.b64encode(b"the notes").decode()
        attached = {"base64": data, "disposition": "attachment", "filename": "notes.txt"}
        send_email_with_attachments({**bob, "subject": "Attached"}, [attached])
        message = TemplatedMessage(
            template_body="body.txt",
            ctx={"name": "Bob"},
            body="by a template",
            subject="Template",
            recipients=["bob@example.org"],
        )
        app.extensions["mail"].send_sync(message)
