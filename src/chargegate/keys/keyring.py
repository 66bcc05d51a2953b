"""The service's own keys: they hash driver tokens, and encrypt what is stored."""

import hashlib
import hmac
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from chargegate.model import RandomPieces

SHORT_HASH: Final = 16
_VERSION: Final = b"\x02"
_RELEASED: Final = b"\x01"  # 0.1.0 bound what it sealed to the request id alone
_UNLIKE_TEXT: Final = b"\xff" + _VERSION  # no text in UTF-8 has this byte, so no request id of 0.1.0 is bound alike
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
SEALED_PREFIX: Final = 1 + _ID_BYTES

_nonces = RandomPieces(_NONCE_BYTES)  # 96 random bits each, none used twice (NIST SP 800-38D, 8.2.2)


_encode = msgspec.msgpack.Encoder().encode


class CannotOpen(Exception):
    """The data was not sealed by this service for this place, or it was damaged: no key opens it."""


class KeyMissing(CannotOpen):
    """The data was sealed with a key that is not configured. The message names the key's id."""


class Keyring:
    """The service's own keys: one that hashes driver tokens, and one or more that encrypt, newest first."""

    def __init__(self, encryption_keys: list[bytes], token_hash_key: bytes) -> None:
        self._hash_key = token_hash_key
        # A copy of this takes half the time of a new HMAC, and ``hmac.digest`` lets the interpreter's lock go.
        self._mac = HMAC(token_hash_key, SHA256())
        self._ciphers = {_key_id(key): AESGCM(key) for key in reversed(encryption_keys)}
        newest_id = _key_id(encryption_keys[0])
        self._newest = self._ciphers[newest_id]
        self._prefix = _VERSION + newest_id

    def token_hash(self, token: str) -> str:
        """HMAC-SHA256 (RFC 2104) of a token, in 64 hexadecimal digits. Audit rows show the first ``SHORT_HASH``."""
        mac = self._mac.copy()
        mac.update(token.encode())
        return mac.finalize().hex()

    def digest(self, *parts: str) -> str:
        """A keyed hash of several strings, for idempotency keys and bodies. It never equals the hash of a token."""
        mac = self._mac.copy()
        mac.update(b"\x00" + "\x00".join(parts).encode())
        return mac.finalize().hex()

    def derived(self, purpose: str) -> bytes:
        """A key of its own for another purpose, from which this one cannot be found (HKDF's expand, RFC 5869)."""
        return hmac.digest(self._hash_key, b"\x01derived\x00" + purpose.encode() + b"\x01", "sha256")

    def seal(self, plain: bytes, *bound_to: str) -> bytes:
        """Encrypt with the newest key (AES-256-GCM). ``open`` needs the same ``bound_to``: the request id, and whatever
        else stands beside the sealed data and must stay as it is."""
        nonce = _nonces.take()
        return self._prefix + nonce + self._newest.encrypt(nonce, plain, _UNLIKE_TEXT + _encode(bound_to))

    def open(self, sealed: bytes, *bound_to: str) -> bytes:
        """Decrypt what ``seal`` returned. What release 0.1.0 sealed is bound to the first of ``bound_to`` alone. Raises
        ``KeyMissing``, or another ``CannotOpen``."""
        version, key_id, rest = sealed[:1], sealed[1:SEALED_PREFIX], sealed[SEALED_PREFIX:]
        if version not in (_VERSION, _RELEASED) or len(rest) < _NONCE_BYTES + _TAG_BYTES:
            raise CannotOpen("not sealed by this service")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise KeyMissing(f"sealed with the key {key_id.hex()}, which is not among the encryption keys")
        try:
            bound = _UNLIKE_TEXT + _encode(bound_to) if version == _VERSION else bound_to[0].encode()
            return cipher.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):
            raise CannotOpen(
                f"sealed with the key {key_id.hex()}, but it, or what it is bound to, was changed"
            ) from None

    @staticmethod
    def knows_form(sealed_prefix: bytes) -> bool:
        """Whether this release, or an earlier one, seals data that begins so."""
        return sealed_prefix[:1] in (_VERSION, _RELEASED)

    def knows(self, sealed_prefix: bytes) -> bool:
        """Whether there is a key for sealed data. ``sealed_prefix`` is its first ``SEALED_PREFIX`` bytes."""
        return self.knows_form(sealed_prefix) and sealed_prefix[1:SEALED_PREFIX] in self._ciphers

    @property
    def hash_key_id(self) -> str:
        """The public name of the token hash key: processes with the same one hash tokens alike."""
        return _key_id(self._hash_key).hex()


def _key_id(key: bytes) -> bytes:
    """A key's short public name."""
    return hashlib.sha256(b"chargegate key id\x00" + key).digest()[:_ID_BYTES]
