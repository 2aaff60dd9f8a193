"""What the documentation shows is run as it stands: python blocks are executed, pycon compared.

The blocks of a page run in their order and in one namespace; ``await`` may stand at the top level.
A block that begins with "```python no-run" is only compiled.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
import textwrap
import typing as t
from pathlib import Path

import pytest

from amail import errors

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

named = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


class Block(t.NamedTuple):
    """A fenced block: its language, what follows that, its text, and the line it begins in."""

    language: str
    options: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    return [
        Block(match[1] or "", match[2].strip(), match[3], page.count("\n", 0, match.start()) + 2)
        for match in BLOCK.finditer(page)
    ]


def run_page(page: str, name: str) -> int:
    """Run the blocks of a page and return how many there were."""
    namespace: dict[str, t.Any] = {"__name__": name}
    ran = 0
    with asyncio.Runner() as runner:
        for block in blocks_of(page):
            if block.language == "python":
                run_python(block, name, namespace, runner)
            elif block.language == "pycon":
                run_pycon(block, name, namespace)
            else:
                continue
            ran += 1
    return ran


def run_python(
    block: Block, name: str, namespace: dict[str, t.Any], runner: asyncio.Runner
) -> None:
    text = "\n" * (block.line - 1) + block.text  # so that a traceback names the page's line
    code = compile(text, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if block.options == "no-run":
        return
    if code.co_flags & inspect.CO_COROUTINE:
        runner.run(eval(code, namespace))
    else:
        exec(code, namespace)


def run_pycon(block: Block, name: str, namespace: dict[str, t.Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, {}, name, name, block.line - 1)
    test.globs = namespace  # the parser would copy it
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)


@named
def test_every_block_of_a_page_runs_and_says_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that a page writes
    text = page.read_text("utf-8")
    languages = [block.language for block in blocks_of(text)]
    assert run_page(text, page.name) == languages.count("python") + languages.count("pycon")


@named
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


@named
def test_blocks_that_are_not_run_are_rare(page: Path) -> None:
    options = [block.options for block in blocks_of(page.read_text("utf-8")) if block.options]
    assert set(options) <= {"no-run"}
    assert len(options) <= 2


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nassert 1 == 2\n```\n", AssertionError),
        ("```python\nimport asyncio\nawait asyncio.sleep(0)\n1 / 0\n```\n", ZeroDivisionError),
        ("```python no-run\nthis is no python\n```\n", SyntaxError),
        ("```pycon\n>>> 1 + 1\n3\n```\n", AssertionError),
        ("```pycon\n>>> 1 / 0\n```\n", AssertionError),
        (
            "```pycon\n>>> int('x')\nTraceback (most recent call last):\nValueError: no\n```\n",
            AssertionError,
        ),
    ],
)
def test_a_page_that_is_wrong_fails(page: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_page(page, "page")


def test_the_blocks_of_a_page_share_one_namespace_and_other_blocks_are_left_alone() -> None:
    page = (
        "```python\nx = 1\n```\n\n```\nno code\n```\n\n```pycon\n>>> x += 1\n>>> x\n2\n```\n"
        "```python no-run\nraise SystemExit\n```\n```python\nassert x == 2\n```\n"
    )
    assert run_page(page, "page") == 4


def test_the_tree_of_exceptions_in_the_docs_is_that_of_the_code() -> None:
    drawn = inspect.getdoc(errors)
    assert drawn is not None
    tree = drawn[drawn.index("MailError\n") :]
    page = (ROOT / "docs" / "what-can-go-wrong.md").read_text()
    shown = textwrap.dedent(page[page.index("    MailError\n") : page.index("\n\nNothing else is")])
    assert shown.split("\n") == tree.split("\n")


def test_the_tree_of_exceptions_names_every_one() -> None:
    drawn = set(re.findall(r"\w+", inspect.getdoc(errors) or ""))
    classes = {name for name, each in vars(errors).items() if inspect.isclass(each)}
    exceptions = {name for name in classes if issubclass(getattr(errors, name), Exception)}
    assert exceptions - {"MailError"} <= drawn
    assert len(exceptions) > 20
