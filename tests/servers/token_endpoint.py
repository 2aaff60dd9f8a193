"""An OAuth 2.0 token endpoint on a loopback port: real HTTP, and what was asked of it."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import typing as t
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

if t.TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping


@dataclass
class Answer:
    """What the endpoint says once. ``body``: a JSON value, or octets as they are."""

    body: t.Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    waits: bool = False
    """Only after ``TokenEndpoint.go_on`` is set."""

    @property
    def octets(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class TokenEndpoint:
    """A running endpoint. ``answers`` are given one after another; the last one stays."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    forms: list[dict[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go_on: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def token_endpoint(
    *answers: Answer, context: ssl.SSLContext | None = None
) -> Iterator[TokenEndpoint]:
    """Serve until the end of the block; no thread is left then."""

    class Handler(_Handler):
        pass  # for an endpoint of its own

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # which are joined
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    endpoint = TokenEndpoint(f"{scheme}://127.0.0.1:{server.server_port}/token", list(answers))
    Handler.endpoint = endpoint
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    endpoint: TokenEndpoint

    def do_POST(self) -> None:
        endpoint = self.endpoint
        body = self.rfile.read(int(self.headers["Content-Length"]))
        endpoint.forms.append(dict(parse_qsl(body.decode(), strict_parsing=True)))
        endpoint.headers.append({"path": self.path, **self.headers})
        answers = endpoint.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        endpoint.asked.release()
        if answer.waits:
            endpoint.go_on.wait()
        octets = answer.octets
        with contextlib.suppress(OSError):  # the client has gone
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(octets)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(octets)

    def do_GET(self) -> None:
        """Be where a redirect leads to."""
        self.endpoint.headers.append({"path": self.path})
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing on stderr."""
