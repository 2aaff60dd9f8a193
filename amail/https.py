"""One POST of a form, answered with JSON: all of HTTP that is needed. In a daemon thread.

Invariant: the form goes to the host of the URL and to no other, over TLS unless the URL says http.
"""

from __future__ import annotations

import functools
import http.client
import json
import ssl
import typing as t
import urllib.error
import urllib.parse
import urllib.request

from amail.threads import in_daemon_thread

if t.TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_OCTETS = 1 << 16


async def post_form(
    url: str, form: Mapping[str, str], *, seconds: float, context: ssl.SSLContext | None
) -> dict[str, t.Any]:
    """Post a form and return the JSON object that comes back, also with a status of 4xx.

    ``seconds`` is the time for each step of the network. ``context`` is for TLS, None for the
    system's authorities. Raises OSError for what may be another time (no answer, a status of 429
    or 5xx), SSLCertVerificationError, and ValueError for an answer that is not what was asked for.
    Their texts hold nothing of the form.
    """
    post = functools.partial(_post, url, form, seconds, context)
    status, body = await in_daemon_thread(post, "amail-https")
    return _object_in(status, body)


def _post(
    url: str, form: Mapping[str, str], seconds: float, context: ssl.SSLContext | None
) -> tuple[int, bytes]:
    encrypted = url.lower().startswith("https:")
    request = urllib.request.Request(  # noqa: S310 - the scheme was checked
        url,
        urllib.parse.urlencode(form).encode(),
        {"Accept": "application/json", "User-Agent": "amail"},
    )
    # In the clear it goes to this machine only, never through a proxy.
    handlers: list[urllib.request.BaseHandler] = [
        _NoRedirects(),
        urllib.request.ProxyHandler(None if encrypted else {}),
    ]
    if encrypted:
        context = context or ssl.create_default_context()
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
            body = answer.read(_MOST_OCTETS + 1)
            if len(body) <= _MOST_OCTETS and answer.length:
                raise http.client.IncompleteRead(body, answer.length)
            return answer.status, body
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MOST_OCTETS + 1)
    except urllib.error.URLError as error:
        reason = error.reason
        raise (reason if isinstance(reason, OSError) else OSError(str(reason))) from None
    except http.client.HTTPException as error:
        raise OSError(f"the answer is no HTTP: {type(error).__name__}") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: t.Any, **kwargs: t.Any) -> None:
        """Follow none: the form holds secrets."""


def _object_in(status: int, body: bytes) -> dict[str, t.Any]:
    """Return the JSON object of an answer. Raises OSError and ValueError."""
    if status == 429 or status >= 500:
        raise OSError(f"HTTP status {status}")
    if 300 <= status < 400:
        raise ValueError(f"HTTP status {status}; redirects are not followed")
    if len(body) > _MOST_OCTETS:
        raise ValueError(f"the answer is larger than {_MOST_OCTETS} octets")
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise ValueError(f"HTTP status {status} and no JSON object")  # noqa: TRY004
    return read
