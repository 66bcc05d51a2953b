"""The TLS context of the HTTP interface, from the files that the settings name."""

import datetime as dt
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chargegate.app.opening import StartError
from chargegate.config import Server


def server_context(settings: Server) -> ssl.SSLContext | None:
    """None where no certificate is configured. Raises ``StartError`` that names the key."""
    if not settings.tls_certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    with _naming("server.tls_certificate", settings.tls_certificate, "no certificate in PEM is in it"):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(settings.tls_certificate)
    with _naming("server.tls_key", settings.tls_key, "no key without a password that fits server.tls_certificate"):
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=_no_password)
    if settings.tls_client_ca:
        with _naming("server.tls_client_ca", settings.tls_client_ca, "no certificate in PEM is in it"):
            context.load_verify_locations(settings.tls_client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def certificate_end(settings: Server) -> dt.datetime | None:
    """When the server's own certificate expires, which is the first in its file. None where there is none, or where it
    is of a form that OpenSSL takes and ``cryptography`` does not."""
    if not settings.tls_certificate:
        return None
    from cryptography import x509  # noqa: PLC0415 - takes as long to import as click does, and few have a certificate

    try:
        return x509.load_pem_x509_certificate(Path(settings.tls_certificate).read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return None


def _no_password() -> str:
    """Without it a terminal would be asked."""
    return ""


@contextmanager
def _naming(key: str, file: str, otherwise: str) -> Iterator[None]:
    try:
        if Path(file).is_fifo():  # which would hold up the process until somebody writes into it
            raise StartError(f"{key}: {file}: Not a regular file")
        with Path(file).open("rb"):  # only to see that it can be read
            pass
        yield
    except ssl.SSLError:
        raise StartError(f"{key}: {file}: {otherwise}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "cannot be read"
        raise StartError(f"{key}: {file}: {reason}") from None
