"""The service's own keys: they hash driver tokens, and encrypt what is stored."""

import hashlib
import hmac
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SHORT_HASH: Final = 16
_VERSION: Final = b"\x01"
_KEY_ID: Final = 4
_NONCE: Final = 12
_TAG: Final = 16
SEALED_PREFIX: Final = 1 + _KEY_ID


class CannotOpen(Exception):
    """Not sealed by this service, or damaged since: no key will open it."""


class KeyMissing(CannotOpen):
    """Sealed with a key that is not configured. The message names the key's id."""


class Keyring:
    """The service's own keys: one to hash driver tokens with, one or more to encrypt with, newest first."""

    def __init__(self, encryption_keys: list[bytes], token_hash_key: bytes) -> None:
        self._hash_key = token_hash_key
        self._mac = hmac.new(token_hash_key, digestmod="sha256")  # copied per token: half the cost of keying anew
        self._ciphers = {key_id(key): AESGCM(key) for key in reversed(encryption_keys)}
        self._newest_id = key_id(encryption_keys[0])
        self._newest = self._ciphers[self._newest_id]
        self._prefix = _VERSION + self._newest_id

    def token_hash(self, token: str) -> str:
        """HMAC-SHA256 of a token in 64 hexadecimal digits. Audit rows show the first ``SHORT_HASH`` of them."""
        mac = self._mac.copy()
        mac.update(token.encode())
        return mac.hexdigest()

    def digest(self, *parts: str) -> str:
        """A keyed hash of several strings, apart from that of tokens: for idempotency keys and bodies."""
        return hmac.digest(self._hash_key, b"\x00" + "\x00".join(parts).encode(), "sha256").hex()

    def seal(self, plain: bytes, bound_to: str) -> bytes:
        """Encrypt with the newest key (AES-256-GCM), bound to a request id that must be given again to open it."""
        nonce = os.urandom(_NONCE)
        return self._prefix + nonce + self._newest.encrypt(nonce, plain, bound_to.encode())

    def open(self, sealed: bytes, bound_to: str) -> bytes:
        """Decrypt what ``seal`` gave. Raises ``KeyMissing``, or another ``CannotOpen``."""
        start = 1 + _KEY_ID
        cipher = self._ciphers.get(sealed[1:start])
        if sealed[:1] != _VERSION or len(sealed) < start + _NONCE + _TAG:
            raise CannotOpen("not sealed by this service")
        if cipher is None:
            raise KeyMissing(f"sealed with the key {sealed[1:start].hex()}, which is not among the encryption keys")
        try:
            return cipher.decrypt(sealed[start : start + _NONCE], sealed[start + _NONCE :], bound_to.encode())
        except (InvalidTag, ValueError):
            raise CannotOpen(f"sealed with the key {sealed[1:start].hex()}, but damaged") from None

    def knows(self, sealed_prefix: bytes) -> bool:
        """Whether data that starts with these bytes can be opened. See ``SEALED_PREFIX``."""
        return sealed_prefix[:1] == _VERSION and sealed_prefix[1 : 1 + _KEY_ID] in self._ciphers

    @property
    def hash_key_id(self) -> str:
        """Tells whether two processes hash tokens alike, and says nothing of the key."""
        return key_id(self._hash_key).hex()


def key_id(key: bytes) -> bytes:
    """A key's short public name."""
    return hashlib.sha256(b"chargegate key id\x00" + key).digest()[:_KEY_ID]
