"""Signatures by the Standard Webhooks specification, which its public libraries verify."""

import binascii
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

PREFIX: Final = "whsec_"


class Signer:
    """Makes the ``webhook-*`` headers. ``secrets`` are ``whsec_`` and base64, newest first; with none it signs nothing.

    Raises ``ValueError`` for a secret of another form.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        # Copies of a prepared HMAC are used, because ``hmac.digest`` lets the interpreter's lock go. The standard
        # library's take twice as long.
        self._macs = [_mac(secret) for secret in secrets]

    def replace(self, secrets: Sequence[str]) -> None:
        """From now on these are the secrets, all at once. Raises ``ValueError`` as when they are made, and keeps those
        that it has."""
        self._macs = [_mac(secret) for secret in secrets]

    def headers(self, message_id: str, timestamp_s: int, body: bytes) -> bytes:
        """Header lines that each end in CRLF. ``message_id`` stays the same on every attempt; ``timestamp_s`` is Unix
        seconds of this one. Every secret gives a signature, so that receivers can rotate."""
        named = f"webhook-id: {message_id}\r\nwebhook-timestamp: {timestamp_s}\r\n".encode()
        if not self._macs:
            return named
        signed = f"{message_id}.{timestamp_s}.".encode() + body
        signatures = b" ".join([_signature(mac.copy(), signed) for mac in self._macs])
        return named + b"webhook-signature: " + signatures + b"\r\n"


def _signature(mac: HMAC, signed: bytes) -> bytes:
    mac.update(signed)
    return b"v1," + binascii.b2a_base64(mac.finalize(), newline=False)


def _mac(secret: str) -> HMAC:
    try:
        key = binascii.a2b_base64(secret.removeprefix(PREFIX), strict_mode=True)
    except ValueError:
        key = b""
    if not key or not secret.startswith(PREFIX):
        raise ValueError("a signing secret must be 'whsec_' and base64")
    return HMAC(key, SHA256())
