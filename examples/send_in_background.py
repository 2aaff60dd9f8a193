"""Answer first, send afterwards: no thread of one's own, no message lost at a clean exit.

MAIL_URL=smtp://localhost:1025 flask --app examples/send_in_background run
"""

import os

from flask import Flask

from amail_flask import Mail, Message

app = Flask(__name__)
app.config.update(MAIL_URL=os.environ["MAIL_URL"], MAIL_DEFAULT_SENDER="me@example.com")
mail = Mail(app)


@app.post("/order/<address>")
def order(address: str) -> tuple[str, int]:
    # Not awaited, so any view can do it. It is sent by a loop in the background of the process;
    # what cannot be sent is logged, and what is not sent yet is sent before the process ends.
    queued = mail.send_later(Message("Your order", recipients=[address], body="Thank you."))
    return f"it will be sent: {queued.message_id}", 202
