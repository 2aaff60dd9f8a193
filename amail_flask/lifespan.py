"""lifespan: drain the queue when an ASGI server shuts down."""

from __future__ import annotations

import typing as t

from amail.asgi import ending

if t.TYPE_CHECKING:
    from amail.asgi import ASGIApp
    from amail_flask.extension import Mail


def lifespan(app: ASGIApp, mail: Mail) -> ASGIApp:
    """Wrap an ASGI app: at shutdown what ``send_later`` was given is drained, as at a clean exit.

    asgi_app = lifespan(a2wsgi.WSGIMiddleware(app), mail)

    That takes up to ``MAIL_DRAIN_TIMEOUT`` seconds, after the app's own shutdown; then the sessions
    are ended, and what is lost is logged. The app may know the lifespan protocol or not.
    """
    return ending(app, mail._drain_and_close)
