"""Many messages behind a bar: send_many yields what came of each, and rich shows it.

MAIL_URL says where to; needs rich, which pip install "amail-asyncio[cli]" brings.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from amail import Mailer, Message

COUNT = 200
COLUMNS = (
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("[green]{task.fields[accepted]} accepted[/] [red]{task.fields[others]} others[/]"),
    TimeRemainingColumn(),
)


def messages() -> Iterator[Message]:
    for number in range(COUNT):
        yield Message("News", recipients=[f"reader{number}@example.org"], body="...")


async def main() -> None:
    outcomes: Counter[str] = Counter()
    with Progress(*COLUMNS) as progress:
        bar = progress.add_task("", total=COUNT, accepted=0, others=0)
        async with Mailer.from_env("MAIL_URL", default_sender="ada@example.com") as mailer:
            async for result in mailer.send_many(messages()):
                outcomes[result.outcome] += 1
                accepted = outcomes["accepted"]
                others = outcomes.total() - accepted
                progress.update(bar, advance=1, accepted=accepted, others=others)
    print(dict(outcomes))


if __name__ == "__main__":
    asyncio.run(main())
