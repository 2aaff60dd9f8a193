"""Every script in every place: subject, names, file names, bodies. Any server takes it.

MAIL_URL=smtp://localhost:1025 python examples/international.py
"""

import asyncio

from amail import Mailer, Message

# language: subject, person, text, file name
GREETINGS = {
    "zh": ("新年快乐 🎉", ("李雷", "li@example.org"), "祝你新年快乐\n", "贺卡.txt"),
    "ja": (
        "明けましておめでとう",
        ("山田花子", "hana@example.org"),
        "今年もよろしく\n",
        "年賀状.txt",
    ),
    "ar": ("سنة سعيدة", ("عمر", "omar@example.org"), "كل عام وأنتم بخير\n", "بطاقة.txt"),
    "en": ("🥳 👩‍👩‍👧 🎊", ("👩‍🚀 Ada", "ada@bücher.example"), "🎆🎇✨\n", "🎉🎊.txt"),
}


async def main() -> None:
    async with Mailer.from_env("MAIL_URL", default_sender="Zoë <zoe@example.com>") as mailer:
        for language, (subject, person, text, filename) in GREETINGS.items():
            message = Message(
                subject,
                recipients=[person],
                body=text,
                html=f'<p lang="{language}" dir="auto">{text}</p>',
            )
            message.attach(filename, data=text)
            receipt = await mailer.send(message)
            print(language, receipt.outcome)


if __name__ == "__main__":
    asyncio.run(main())
