"""Configuration from the environment, and an html message from an async view.

export MAIL_SERVER=smtp.example.com MAIL_PORT=587 MAIL_USE_TLS=true
export MAIL_USERNAME=me MAIL_PASSWORD=secret MAIL_DEFAULT_SENDER=me@example.com
flask --app examples/send_html run
"""

import os

from flask import Flask

from amail_flask import Mail, Message

app = Flask(__name__)
app.config.update({key: value for key, value in os.environ.items() if key.startswith("MAIL_")})
mail = Mail(app)


@app.post("/welcome/<address>")
async def welcome(address: str) -> str:
    message = Message(
        "Welcome",
        recipients=[address],
        body="Hello Web",
        html="<b>Hello</b> <i>Web</i>",
    )
    receipt = await mail.send(message)
    return f"accepted: {receipt.message_id}"
