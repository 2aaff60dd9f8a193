"""A standalone asyncio program. MAIL_URL says where to: smtp://user:password@host:port"""

import asyncio

from amail import Mailer, Message


async def main() -> None:
    async with Mailer.from_env("MAIL_URL", default_sender="Ada <ada@example.com>") as mailer:
        receipt = await mailer.send(Message("Hello", recipients=["bob@example.org"], body="Hi Bob"))
        print("accepted by", receipt.relay, "as", receipt.queue_id)


if __name__ == "__main__":
    asyncio.run(main())
