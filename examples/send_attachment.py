"""A file that lies beside the app, opened with app.open_resource.

MAIL_URL=smtp://localhost:1025 flask --app examples/send_attachment run
"""

import os

from flask import Flask

from amail_flask import Mail, Message

app = Flask(__name__)
app.config.update(MAIL_URL=os.environ["MAIL_URL"], MAIL_DEFAULT_SENDER="me@example.com")
mail = Mail(app)


@app.post("/picture/<address>")
async def picture(address: str) -> str:
    message = Message("A picture", recipients=[address], body="See the picture.")
    with app.open_resource("picture.png") as file:
        message.attach("picture.png", "image/png", file.read())
    await mail.send(message)
    return "sent"
