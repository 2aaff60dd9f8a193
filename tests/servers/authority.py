"""Who signs the certificates of the tests' servers."""

from __future__ import annotations

import ssl
import typing as t

import trustme

if t.TYPE_CHECKING:
    from pathlib import Path


class Authority:
    """A certificate authority; ``file`` is its certificate as PEM, to be trusted."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def server_context(self, *names: str) -> ssl.SSLContext:
        """What a server needs to be trusted as any of these names, or as 127.0.0.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("127.0.0.1",))).configure_cert(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """What a client needs to trust those servers, and no others."""
        return ssl.create_default_context(cafile=self.file)
