"""Templates: messages from Jinja templates, one file each for subject, text and html.

Needs the extra ``templates``. Context is what a template may say and never how it is said: no line
break of it gets into the subject, and none of it is html, whatever the environment escapes.
"""

from __future__ import annotations

import contextlib
import re
import typing as t

from amail.errors import ConfigError, InvalidHeader, MessageError, UsageError
from amail.message import Message
from amail.text import as_text, header_text

try:
    from jinja2 import (
        ChoiceLoader,
        DictLoader,
        Environment,
        FileSystemLoader,
        StrictUndefined,
        TemplateError,
        TemplateNotFound,
    )
    from jinja2.ext import Extension
    from jinja2.meta import find_referenced_templates
    from jinja2.nativetypes import NativeEnvironment
except ImportError as missing:
    raise ImportError('templates need Jinja: pip install "amail-asyncio[templates]"') from missing

if t.TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from jinja2 import Template

M = t.TypeVar("M", bound=Message)
Part = t.Literal["subject", "text", "html"]

_NAME = re.compile(r"[\w-]+(?:\.[\w-]+)*(?:/[\w-]+(?:\.[\w-]+)*)*")
_ENDINGS: Mapping[Part, str] = {"subject": ".subject.txt", "text": ".txt", "html": ".html"}


class _OneLine(Extension):
    """Takes what surrounds the text of a subject out of its file: empty lines and the last end.

    It is done to the file, not to what comes of it, where a line break may be one of the context.
    """

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return source.strip()


class Templates(t.Generic[M]):
    """Makes messages of the templates in ``folder`` of a Jinja environment.

    ``welcome`` is ``mail/welcome.subject.txt`` with ``mail/welcome.txt``, ``mail/welcome.html`` or
    both. The environment's filters, globals, extensions and translations are there as ever, and it
    stays as it is. All that goes into the html is escaped and nothing that goes into text or
    subject is, also in what is included, imported or extended, and whatever its ``autoescape``
    says; ``Markup`` and ``|safe`` are as they are.

    ``message_class`` is what ``render`` returns. Raises ConfigError for an environment that has no
    loader, or that makes Python objects (NativeEnvironment), which it does not escape.
    """

    @t.overload
    def __init__(
        self: Templates[Message], environment: Environment, *, folder: str = "mail"
    ) -> None: ...

    @t.overload
    def __init__(
        self, environment: Environment, *, folder: str = "mail", message_class: type[M]
    ) -> None: ...

    def __init__(
        self,
        environment: Environment,
        *,
        folder: str = "mail",
        message_class: type[t.Any] = Message,
    ) -> None:
        if environment.loader is None:
            raise ConfigError("environment: has no loader to find templates with; give it one")
        if isinstance(environment, NativeEnvironment):
            raise ConfigError(
                "environment: a NativeEnvironment does not escape html; give a jinja2.Environment"
            )
        self._environment = environment
        self._folder = folder.strip("/")
        self._message_class = message_class
        self._overlays: dict[tuple[Part, bool], Environment] = {}

    def render(
        self, name: str, /, *, strict: bool = False, inline_css: bool = False, **context: t.Any
    ) -> M:
        """Return the message that ``name`` says with this context. It has no recipients yet.

        With ``strict`` a variable that is not in the context is an error and not nothing. Where
        there is no text template, the text is made of the html. ``inline_css`` moves the rules in
        ``<style>`` into the elements, as some readers look at those only.

        Raises MessageError for templates that are not there, with the files looked for, for what
        Jinja refuses to render, and for a subject of more than one line; UsageError for an
        environment with ``enable_async``.
        """
        if self._environment.is_async:
            raise UsageError(
                "render: this environment has enable_async: write "
                "await templates.render_async(...), in amail_flask mail.templates.render_async"
            )
        found = self._find(name, strict=strict)
        context = self._completed(context)
        said: dict[Part, str] = {}
        for part, template in found.items():
            with _naming(template.name):
                said[part] = template.render(context)
        return self._message(found, said, inline_css=inline_css)

    async def render_async(
        self, name: str, /, *, strict: bool = False, inline_css: bool = False, **context: t.Any
    ) -> M:
        """Do as ``render`` does, for an environment with or without ``enable_async``."""
        if not self._environment.is_async:
            return self.render(name, strict=strict, inline_css=inline_css, **context)
        found = self._find(name, strict=strict)
        context = self._completed(context)
        said: dict[Part, str] = {}
        for part, template in found.items():
            with _naming(template.name):
                said[part] = await template.render_async(context)
        return self._message(found, said, inline_css=inline_css)

    def sources(self, name: str, /) -> dict[str, str]:
        """Return the text of each file that ``name`` is made of, those that they include too.

        As far as they name them: what ``{% include variable %}`` takes in only rendering tells.
        Raises MessageError as ``render`` does.
        """
        waiting = [str(template.name) for template in self._find(name, strict=False).values()]
        found: dict[str, str] = {}
        while waiting:
            file = waiting.pop()
            if file in found:
                continue
            with _naming(file), contextlib.suppress(TemplateNotFound):
                environment = self._environment
                found[file] = environment.loader.get_source(environment, file)[0]  # type: ignore[union-attr]
                named = find_referenced_templates(environment.parse(found[file]))
                waiting += filter(None, named)
        return found

    def _completed(self, context: dict[str, t.Any]) -> dict[str, t.Any]:
        """Return what the templates see; for adapters of frameworks that add to it."""
        return context

    def _find(self, name: str, *, strict: bool) -> dict[Part, Template]:
        """Return the templates there are: that of the subject, and one or two more."""
        name = as_text(name, "name of the template", MessageError)
        if not _NAME.fullmatch(name):
            raise MessageError(
                "name of the template: must be like 'welcome' or 'orders/shipped', without ending, "
                "and cannot lead out of its folder"
            )
        files: dict[Part, str] = {
            part: f"{self._folder}/{name}{ending}".lstrip("/") for part, ending in _ENDINGS.items()
        }
        found: dict[Part, Template] = {}
        for part, file in files.items():
            with _naming(file), contextlib.suppress(TemplateNotFound):
                found[part] = self._overlay(part, strict=strict).get_template(file)
        missing = [file for part, file in files.items() if part not in found]
        if "subject" not in found or len(found) == 1:
            raise MessageError(
                f"there is no template {' and no '.join(missing)}: a message is made of its "
                "subject and of text, html or both"
            )
        return found

    def _overlay(self, part: Part, *, strict: bool) -> Environment:
        """Return the environment as this part needs it.

        One for each, as whether to escape is compiled in, for the files that they share too; that
        is why no bytecode may be shared either.
        """
        overlay = self._overlays.get((part, strict))
        if overlay is None:
            overlay = self._environment.overlay(autoescape=part == "html", bytecode_cache=None)
            if part == "subject":
                overlay = overlay.overlay(trim_blocks=True, extensions=[_OneLine])
            if strict and not issubclass(overlay.undefined, StrictUndefined):
                overlay = overlay.overlay(undefined=StrictUndefined)
            overlay = self._overlays.setdefault((part, strict), overlay)
        return overlay

    def _message(
        self, found: Mapping[Part, Template], said: Mapping[Part, str], *, inline_css: bool
    ) -> M:
        subject = header_text(said["subject"], str(found["subject"].name), InvalidHeader)
        body, html = said.get("text"), said.get("html")
        if html is not None:
            if inline_css:
                from amail.inline_css import with_inlined_css  # noqa: PLC0415 - an extra

                html = with_inlined_css(html, str(found["html"].name))
            if body is None:
                from amail.html_text import text_of  # noqa: PLC0415 - what it needs is heavy

                body = text_of(html, str(found["html"].name)) or None
        message: M = self._message_class(subject, body=body, html=html)
        return message


@t.overload
def templates_of(
    texts: Mapping[Part, str], *, name: str, folders: Iterable[str | os.PathLike[str]] = ()
) -> Templates[Message]: ...


@t.overload
def templates_of(
    texts: Mapping[Part, str],
    *,
    name: str,
    folders: Iterable[str | os.PathLike[str]] = (),
    message_class: type[M],
) -> Templates[M]: ...


def templates_of(
    texts: Mapping[Part, str],
    *,
    name: str,
    folders: Iterable[str | os.PathLike[str]] = (),
    message_class: type[t.Any] = Message,
) -> Templates[t.Any]:
    """Make Templates of the texts of one, "subject" with "text", "html" or both.

    What they include, import or extend is looked for in ``folders``, once: a file that changes
    afterwards changes nothing.
    """
    files = {f"{name}{_ENDINGS[part]}": text for part, text in texts.items()}
    loader = ChoiceLoader([DictLoader(files), FileSystemLoader(list(folders))])
    environment = Environment(loader=loader, auto_reload=False)  # noqa: S701 - Templates escapes
    return Templates(environment, folder="", message_class=message_class)


@contextlib.contextmanager
def _naming(file: str | None) -> Iterator[None]:
    """Make what Jinja refuses a MessageError that names the file."""
    try:
        yield
    except TemplateError as error:
        raise MessageError(f"{file}: {type(error).__name__}: {error.message}") from error
