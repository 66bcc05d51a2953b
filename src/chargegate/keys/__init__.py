"""Token hashing, encryption at rest, and access keys."""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SHORT_HASH: Final = 16
KEY_FILE: Final = "secrets.json"
_VERSION: Final = b"\x01"
_KEY_ID: Final = 4
_NONCE: Final = 12
_TAG: Final = 16

Role = Literal["client", "admin"]


class KeyFileError(Exception):
    """The key file cannot be used. The message is one line and names the file."""


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


SEALED_PREFIX: Final = 1 + _KEY_ID


def key_id(key: bytes) -> bytes:
    """A key's short public name."""
    return hashlib.sha256(b"chargegate key id\x00" + key).digest()[:_KEY_ID]


def open_keyring(data_dir: Path, encryption_keys: list[str], token_hash_key: str) -> Keyring:
    """The configured keys (base64); what is not configured is read from the key file, which is made on first start.

    Raises ``KeyFileError`` if the file is unreadable, damaged, or open to other users.
    """
    if encryption_keys and token_hash_key:
        return Keyring([base64.b64decode(key) for key in encryption_keys], base64.b64decode(token_hash_key))
    stored_keys, stored_hash_key = _key_file(data_dir / KEY_FILE)
    configured = [base64.b64decode(key) for key in encryption_keys]
    # What was sealed before keys were configured stays readable.
    return Keyring(configured + stored_keys, base64.b64decode(token_hash_key) if token_hash_key else stored_hash_key)


def _key_file(path: Path) -> tuple[list[bytes], bytes]:
    try:
        if not path.exists():
            _make_key_file(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyFileError(f"{path}: other users may read it; run: chmod 600 {path}")
        stored = json.loads(path.read_text(encoding="utf-8"))
        keys = [base64.b64decode(key, validate=True) for key in stored["encryption_keys"]]
        hash_key = base64.b64decode(stored["token_hash_key"], validate=True)
        if not keys or any(len(key) != 32 for key in keys) or len(hash_key) < 32:
            raise ValueError("a key has the wrong length")
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise KeyFileError(f"{path}: not a key file of this service ({type(error).__name__})") from None
    return keys, hash_key


def _make_key_file(path: Path) -> None:
    """Written beside its place, synced, and then linked there, so that a crash or a race leaves one whole file."""
    content = {
        "encryption_keys": [base64.b64encode(secrets.token_bytes(32)).decode()],
        "token_hash_key": base64.b64encode(secrets.token_bytes(32)).decode(),
    }
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        draft.unlink()


class AccessKey(msgspec.Struct, frozen=True):
    """A configured access key: whose it may be, and its SHA-256. The key itself has 256 random bits, so that no
    slower hash is needed."""

    role: Role
    digest: bytes

    @property
    def name(self) -> str:
        """Tells keys apart in logs and limits, and says nothing of them."""
        return self.digest[:4].hex()


class AccessKeys:
    """The configured access keys. With none, every caller is anonymous and may do everything."""

    def __init__(self, configured: list[str]) -> None:
        """Each is ``role:sha256:hex``, as ``new_access_key`` gives it. Raises ``ValueError`` that says the rule."""
        self._keys = [_parse_access_key(text) for text in configured]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, presented: str) -> AccessKey | None:
        """The configured key that this is. The time that it takes does not depend on which, or on how much fits."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def new_access_key(role: Role) -> tuple[str, str]:
    """A new key for a client or an administrator: the key itself, and the line for ``security.api_keys``."""
    key = f"cg_{role}_{secrets.token_urlsafe(32)}"
    return key, f"{role}:sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _parse_access_key(text: str) -> AccessKey:
    role, _, rest = text.partition(":")
    algorithm, _, digest = rest.partition(":")
    if role not in get_args(Role) or algorithm != "sha256" or not _digest(digest):
        raise ValueError("each must be a line that `chargegate keys create` printed, such as client:sha256:…")
    return AccessKey(role, bytes.fromhex(digest))  # type: ignore[arg-type]  # checked one line above


_digest = re.compile(r"[0-9a-fA-F]{64}").fullmatch
