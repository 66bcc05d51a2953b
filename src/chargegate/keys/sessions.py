"""A session of the dashboard, as text that only the service's own processes can have made.

Every process of a service has the key that signs it, so that none of them has to remember the sessions of the others.
"""

import hmac
import secrets
from typing import Final

import msgspec

from chargegate.keys.keyring import Keyring

_PURPOSE: Final = "session of the dashboard"  # no client can be called so: a name has no blanks
_MAX_TEXT: Final = 400
_OVER_TLS: Final = "tls"


class Session(msgspec.Struct, frozen=True):
    """Who signed in with which access key, and when. ``key_digest`` is the SHA-256 of the key. Times are Unix
    milliseconds. ``over_tls``: the browser spoke TLS as it signed in, to the service or to a proxy in front of it."""

    id: str
    key_digest: bytes
    opened_at: int
    seen_at: int
    over_tls: bool = False

    @classmethod
    def opened(cls, key_digest: bytes, at: int, *, over_tls: bool = False) -> "Session":
        return cls(secrets.token_urlsafe(16), key_digest, at, at, over_tls)


def sign_session(keyring: Keyring, session: Session) -> str:
    """The session as text for a cookie."""
    way = [_OVER_TLS] if session.over_tls else []
    body = ".".join([session.id, session.key_digest.hex(), str(session.opened_at), str(session.seen_at), *way])
    return f"{body}.{keyring.digest(_PURPOSE, body)}"


def read_session(keyring: Keyring, text: str) -> Session | None:
    """The session that ``sign_session`` made this text of; None for every other text."""
    body, _, signature = text.rpartition(".")
    if len(text) > _MAX_TEXT or not text.isascii():
        return None
    if not hmac.compare_digest(keyring.digest(_PURPOSE, body), signature):
        return None
    session_id, digest, opened_at, seen_at, *way = body.split(".")
    return Session(session_id, bytes.fromhex(digest), int(opened_at), int(seen_at), way == [_OVER_TLS])
