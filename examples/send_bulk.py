"""Many messages, one after another, over one session.

MAIL_URL=smtp://localhost:1025 flask --app examples/send_bulk run
"""

import os

from flask import Flask

from amail_flask import Mail, Message

app = Flask(__name__)
app.config.update(MAIL_URL=os.environ["MAIL_URL"], MAIL_DEFAULT_SENDER="me@example.com")
mail = Mail(app)

USERS = [(f"Reader {number}", f"reader{number}@example.org") for number in range(1, 21)]


@app.post("/news")
async def news() -> str:
    async with mail.connect() as connection:
        for name, address in USERS:
            message = Message(f"hello, {name}", recipients=[(name, address)], body="...")
            await connection.send(message)
    return f"{len(USERS)} sent"
