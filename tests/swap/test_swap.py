"""Projects from PyPI that use Flask-Mail send their mail on amail_flask.

Each is installed in a folder of its own, its lines are changed by the diff of its name, which
docs/migrating.md shows, and what it really does to send mail is done in a process of its own, in
which Flask-Mail cannot be imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import typing as t
from dataclasses import dataclass
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from amail.testing import FaultServer

if t.TYPE_CHECKING:
    from email.message import EmailMessage

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "migrating.md"


@dataclass(frozen=True)
class Project:
    """A project, what is installed for it, and the subjects of the mail that its app sends."""

    name: str
    requirements: tuple[str, ...]
    subjects: tuple[str, ...]

    @property
    def diff(self) -> Path:
        return HERE / f"{self.name}.diff"


PROJECTS = (
    Project(
        "flask-security-too",
        ("Flask-Security-Too[fsqla]==5.9.2", "Flask-SQLAlchemy>=3.1"),
        ("Password reset instructions",),
    ),
    Project("flask-appbuilder", ("Flask-AppBuilder==5.3.0",), ("Account activation",)),
    Project("invenio-mail", ("invenio-mail==2.3.1", "celery>=5"), ("Task", "Attached", "Template")),
    Project("boilersaas", ("boilersaas==0.7.1",), ("Welcome!",)),
    Project("flask-send-mail-util", ("flask-send-mail-util==0.1.0",), ("Hello",)),
)
EACH = pytest.mark.parametrize("project", PROJECTS, ids=[each.name for each in PROJECTS])


def run(*command: str | Path, **options: t.Any) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, **options
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def install(project: Project, folder: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--target", folder, *project.requirements)
    shutil.rmtree(folder / "flask_mail", ignore_errors=True)


def received(server: FaultServer) -> list[EmailMessage]:
    contents = [stored.content for stored in server.messages]
    return [message_from_bytes(content, policy=policy.default) for content in contents]


@pytest.mark.servers
@pytest.mark.timeout(300)
@EACH
def test_a_project_sends_its_mail_after_its_diff(project: Project, tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed, which applies the diff")
    folder = tmp_path / "packages"
    install(project, folder)
    run("git", "apply", "--unidiff-zero", "-p1", project.diff, cwd=folder)
    with FaultServer.serve_in_thread() as server:
        paths = os.pathsep.join(map(str, (folder, ROOT)))
        environ = {**os.environ, "PYTHONPATH": paths, "MAIL_URL": server.url}
        app = project.name.replace("-", "_")
        run(sys.executable, "-m", "tests.swap.apps", app, cwd=tmp_path, env=environ)
        assert not server.violations
    messages = received(server)
    assert [message["Subject"] for message in messages] == list(project.subjects)
    assert {stored.forward_paths for stored in server.messages} == {("bob@example.org",)}


@EACH
def test_the_page_shows_the_diff_and_it_is_short(project: Project) -> None:
    diff = project.diff.read_text("utf-8")
    assert f"```diff\n{diff}```\n" in PAGE.read_text("utf-8")
    assert len(diff.splitlines()) < 30
