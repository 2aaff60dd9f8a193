"""What root does in the folder of another user stays that user's."""

from __future__ import annotations

import os
import typing as t

import pytest
from click.testing import CliRunner

from amail.cli.commands import amail
from amail.queues.folder import FolderQueue
from tests.queues.test_folder import a_job

if t.TYPE_CHECKING:
    from pathlib import Path

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def test_what_root_retries_can_be_read_by_whose_folder_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    queue = FolderQueue(folder)
    name = queue.put(a_job())
    [claimed] = queue.claim(1)
    claimed.mark()
    queue.park(claimed)
    queue.close()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for path in (folder / "journal").iterdir():
        path.unlink()  # as after midnight

    arguments = ["queue", str(folder), "retry", name]
    assert "waits to be sent" in CliRunner().invoke(amail, arguments).output
    FolderQueue(folder).claim(0)  # and is killed
    owners = {path.stat().st_uid for path in folder.rglob("*")}
    assert owners == {NOBODY}
    assert any((folder / "journal").iterdir())
