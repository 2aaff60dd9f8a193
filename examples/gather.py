"""Any number of messages at once: max_connections bounds how many are under way, the rest wait."""

import asyncio

from amail import Mailer, Message, SendError


async def main() -> None:
    readers = [f"reader{number}@example.org" for number in range(200)]
    async with Mailer.from_env("MAIL_URL", default_sender="ada@example.com") as mailer:
        results = await asyncio.gather(
            *(mailer.send(Message("News", recipients=[reader], body="...")) for reader in readers),
            return_exceptions=True,
        )
    for reader, result in zip(readers, results, strict=True):
        if isinstance(result, SendError):
            print(reader, result.outcome, result)
    print(sum(not isinstance(result, BaseException) for result in results), "accepted")


if __name__ == "__main__":
    asyncio.run(main())
