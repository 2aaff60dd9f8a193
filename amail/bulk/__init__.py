"""A letter to many: a list, templates, and a journal that makes each get it once.

report = await bulk.run(mailer, Letter("Hi {{ name }}", text="..."), "list.csv", journal="j.jsonl")

Needs the extra ``templates``. ``amail bulk`` is the same from a shell.
"""

from amail.bulk.journal import JournalError
from amail.bulk.letter import Letter
from amail.bulk.recipients import BadRow, Recipient, Recipients, RecipientsError
from amail.bulk.rehearsal import Rehearsal, rehearse
from amail.bulk.report import Report
from amail.bulk.run import Progress, run

__all__ = [
    "BadRow",
    "JournalError",
    "Letter",
    "Progress",
    "Recipient",
    "Recipients",
    "RecipientsError",
    "Rehearsal",
    "Report",
    "rehearse",
    "run",
]
