"""AppTemplates: the app's Jinja environment, as mail needs it.

Invariant: no link that ``url_for`` makes has a host that only the client of the request has named.
"""

from __future__ import annotations

import contextlib
import typing as t
from collections import ChainMap

from flask import current_app, has_app_context, has_request_context, request

from amail import ConfigError
from amail.templates import Templates
from amail_flask.message import Message

if t.TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from flask import Flask


class AppTemplates(Templates[Message]):
    """Templates of an app, with what its context processors add."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        environment = app.jinja_env.overlay()
        # Over the app's own, which may get further ones yet. A macro that is imported sees nothing
        # but these, so that the context would not do.
        names = ChainMap[str, t.Any]({"url_for": self._url_for}, app.jinja_env.globals)
        environment.globals = t.cast("dict[str, t.Any]", names)
        super().__init__(environment, message_class=Message)

    def render(
        self, name: str, /, *, strict: bool = False, inline_css: bool = False, **context: t.Any
    ) -> Message:
        """Render in an app context, a new one if there is none of this app."""
        with self._in_app():
            return super().render(name, strict=strict, inline_css=inline_css, **context)

    async def render_async(
        self, name: str, /, *, strict: bool = False, inline_css: bool = False, **context: t.Any
    ) -> Message:
        """Do as ``render`` does, for an app whose ``jinja_options`` have ``enable_async``."""
        with self._in_app():
            return await super().render_async(name, strict=strict, inline_css=inline_css, **context)

    def _completed(self, context: dict[str, t.Any]) -> dict[str, t.Any]:
        self._app.update_template_context(context)
        return context

    def _in_app(self) -> AbstractContextManager[object]:
        if has_app_context() and current_app == self._app:
            return contextlib.nullcontext()
        return self._app.app_context()

    def _url_for(self, endpoint: str, **values: t.Any) -> str:
        """Make a URL that is absolute unless it is told not to be: a mail has no host of its own.

        Raises ConfigError where the host would be the one in the request.
        """
        if values.get("_external") is None:
            values["_external"] = True
        if values["_external"] and not self._host_is_known():
            raise ConfigError(
                "SERVER_NAME: the config does not say which host is yours, and a link in a mail "
                "must not lead to the one that a request names, which may be any; set it, such as "
                "'www.example.com', with PREFERRED_URL_SCHEME = 'https', or set TRUSTED_HOSTS "
                "(from Flask 3.1, in views; with host_matching that alone counts)"
            )
        url_for = t.cast("t.Callable[..., str]", self._app.jinja_env.globals["url_for"])
        return url_for(endpoint, **values)

    def _host_is_known(self) -> bool:
        """Tell whether the config names the host, or those that the request's has to be among."""
        if has_request_context():
            if request.trusted_hosts:
                return bool(request.host)  # werkzeug looks: any other is a 400
            if self._app.url_map.host_matching:
                return False  # where the request's wins over SERVER_NAME
        return bool(self._app.config["SERVER_NAME"])
