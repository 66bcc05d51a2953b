"""The access keys of clients and administrators."""

import hashlib
import hmac
import re
import secrets
from typing import Literal, get_args

import msgspec

Role = Literal["client", "admin"]

_digest = re.compile(r"[0-9a-fA-F]{64}").fullmatch


class AccessKey(msgspec.Struct, frozen=True):
    """A configured access key: its role, and the SHA-256 of the key. A key has 256 random bits, so that a fast hash
    is safe."""

    role: Role
    digest: bytes

    @property
    def name(self) -> str:
        """A short public name for logs and limits."""
        return self.digest[:4].hex()


class AccessKeys:
    """The configured access keys. If there are none, every caller is anonymous and may do everything."""

    def __init__(self, configured: list[str]) -> None:
        """Each is ``role:sha256:hex``, as ``new_access_key`` makes it. Raises ``ValueError`` with the broken rule."""
        self._keys = [_parse_access_key(text) for text in configured]

    def replace(self, configured: list[str]) -> None:
        """From now on these are the keys, all at once. Raises ``ValueError`` as when they are made, and keeps those
        that it has."""
        vars(self).update(vars(AccessKeys(configured)))

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, presented: str) -> AccessKey | None:
        """The configured key that a caller presented, or None. The time that this takes does not depend on the keys."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def new_access_key(role: Role) -> tuple[str, str]:
    """A new key for a client or an administrator: the key, and its line for ``security.api_keys``."""
    key = f"cg_{role}_{secrets.token_urlsafe(32)}"
    return key, f"{role}:sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _parse_access_key(text: str) -> AccessKey:
    role, _, rest = text.partition(":")
    algorithm, _, digest = rest.partition(":")
    if role not in get_args(Role) or algorithm != "sha256" or not _digest(digest):
        raise ValueError("each must be a line that `chargegate keys create` printed, such as client:sha256:…")
    return AccessKey(role, bytes.fromhex(digest))  # type: ignore[arg-type]  # checked one line above
