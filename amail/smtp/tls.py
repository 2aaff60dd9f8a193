"""From settings to the SSLContext of a session. Slow (it reads files), so once a transport."""

from __future__ import annotations

import logging
import ssl
import typing as t

from amail.errors import ConfigError

if t.TYPE_CHECKING:
    from amail.smtp.settings import SMTPSettings

_logger = logging.getLogger("amail.smtp")


def client_context(settings: SMTPSettings) -> ssl.SSLContext:
    """Make the context that every session of these settings shares.

    TLS 1.2 at least, certificate and name verified unless ``tls_verify`` is off. Raises ConfigError
    for files that cannot be used.
    """
    if settings.ssl_context is not None:
        if settings.ssl_context.verify_mode == ssl.CERT_NONE:
            _logger.warning("ssl_context verifies nobody: anybody can pose as %s", settings.relay)
        return settings.ssl_context
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(cafile=settings.ca_file)
        except OSError as error:
            raise _unusable("ca_file", "certificates in PEM form", error) from error
    if settings.client_cert is not None:
        try:
            context.load_cert_chain(
                settings.client_cert, settings.client_key, password=_no_password
            )
        except (OSError, ValueError) as error:
            what = "a certificate and its key (client_key) in PEM form, without a password"
            raise _unusable("client_cert", what, error) from error
    if not settings.tls_verify:
        _logger.warning("tls_verify is off: anybody can pose as %s", settings.relay)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    """Keep OpenSSL from asking on the terminal."""
    raise ValueError("the key is protected by a password")


def _unusable(name: str, wanted: str, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else None
    return ConfigError(f"{name}: cannot be used ({reason or type(error).__name__}); needs {wanted}")
