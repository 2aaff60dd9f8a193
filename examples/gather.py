"""Any number of messages at once: max_connections bounds how many are under way, the rest wait."""

import asyncio

from amail import Mailer, Message, MessageError, SendError


async def main() -> None:
    readers = [f"reader{number}@example.org" for number in range(200)]
    async with Mailer.from_env("MAIL_URL", default_sender="ada@example.com") as mailer:

        async def send(reader: str) -> bool:
            # A function of its own, so that one bad address does not keep the others from going.
            try:
                await mailer.send(Message("News", recipients=[reader], body="..."))
            except (MessageError, SendError) as error:
                print(reader, getattr(error, "outcome", "not sent"), error)
                return False
            return True

        results = await asyncio.gather(*map(send, readers))
    print(sum(results), "accepted")


if __name__ == "__main__":
    asyncio.run(main())
