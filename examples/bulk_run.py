"""A letter to everybody in a list, once, however often this is run. MAIL_URL says where to.

The same from a shell: amail bulk readers.csv --subject "News for {{ name }}" --text news.txt
--from ada@example.com
"""

import asyncio
import tempfile
from pathlib import Path

from amail import Mailer
from amail.bulk import Letter, Report, run

READERS = "email,name\n" + "".join(f"r{n}@example.org,Reader {n}\n" for n in range(1, 51))
NEWS = Letter(
    "News for {{ name }}",
    text="Dear {{ name }},\n\nthere is news.\n",
    sender="Ada <ada@example.com>",
    unsubscribe="https://example.com/leave?who={{ email|urlencode }}",
)


async def send(folder: Path) -> Report:
    async with Mailer.from_env("MAIL_URL") as mailer:
        return await run(mailer, NEWS, folder / "readers.csv", journal=folder / "news.journal")


async def main(folder: Path) -> None:
    (folder / "readers.csv").write_text(READERS)
    report = await send(folder)
    print(report.progress.accepted, "accepted")
    with (folder / "readers.csv").open("a") as file:
        file.write("late@example.org,Latecomer\n")
    report = await send(folder)  # goes on where it was
    print(report.progress.accepted, "accepted")
    report.write_html(folder / "report.html")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        asyncio.run(main(Path(where)))
