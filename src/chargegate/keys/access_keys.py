"""The access keys of clients and administrators. A key's name says whose it is: two keys of one name are one client."""

import hashlib
import hmac
import re
import secrets
from typing import Final, Literal, get_args

import msgspec

Role = Literal["client", "admin"]

ANONYMOUS_CLIENT: Final = "anonymous"
"""The one client that there is where no access keys are configured."""

CLIENT_NAME_PATTERN: Final = "^[A-Za-z0-9._-]{1,64}$"
CLIENT_NAME_RULE: Final = "must be 1 to 64 characters, each of A-Z a-z 0-9 . _ -"

_NAME_DIGITS: Final = 32  # of a line without a name: 128 bits, so that no two keys get the same name by chance
_NOTHING: Final = frozenset(hashlib.sha256(nothing).digest() for nothing in (b"", b"\n", b"\r\n"))
_FORM: Final = "each must be a line that `chargegate keys create` printed, such as depot-7:client:sha256:…"

_digest = re.compile(r"[0-9a-fA-F]{64}").fullmatch
_client_name = re.compile(CLIENT_NAME_PATTERN.strip("^$")).fullmatch


class AccessKey(msgspec.Struct, frozen=True):
    """A configured access key: whose it is, its role, and the SHA-256 of the key. A key has 256 random bits, so that a
    fast hash is safe."""

    name: str
    role: Role
    digest: bytes


ANONYMOUS: Final = AccessKey(ANONYMOUS_CLIENT, "admin", b"")
"""Every caller, where no access keys are configured."""


class AccessKeys:
    """The configured access keys. If there are none, every caller is anonymous and may do everything."""

    def __init__(self, configured: list[str]) -> None:
        """Each is ``name:role:sha256:hex``, as ``new_access_key`` makes it, or ``role:sha256:hex`` of an older release.
        Raises ``ValueError`` with the broken rule and the number of the line, but never the line."""
        self._keys = [_parse_access_key(number, text) for number, text in enumerate(configured, start=1)]
        _check_together(self._keys)
        self.clients: Final = frozenset(key.name for key in self._keys if key.role == "client")
        """The names of those that are no administrators."""

    def replace(self, configured: list[str]) -> None:
        """From now on these are the keys, all at once. Raises ``ValueError`` as when they are made, and keeps those
        that it has."""
        vars(self).update(vars(AccessKeys(configured)))

    def __bool__(self) -> bool:
        return bool(self._keys)

    def with_digest(self, digest: bytes) -> AccessKey | None:
        """The configured key whose SHA-256 this is, or None."""
        return next((key for key in self._keys if hmac.compare_digest(key.digest, digest)), None)

    def find(self, presented: str) -> AccessKey | None:
        """The configured key that a caller presented, or None. The time that this takes does not depend on the keys."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def client_name_fault(name: str) -> str | None:
    """The rule that a client's name breaks, or None."""
    return None if _client_name(name) else CLIENT_NAME_RULE


def new_access_key(role: Role, name: str = "") -> tuple[str, str]:
    """A new key for a client or an administrator: the key, and its line for ``security.api_keys``. Without a name, the
    first digits of its hash are its name."""
    key = f"cg_{role}_{secrets.token_urlsafe(32)}"
    line = f"{role}:sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    return key, f"{name}:{line}" if name else line


def _parse_access_key(number: int, text: str) -> AccessKey:
    name, *rest = text.split(":") if text.count(":") == 3 else ("", *text.split(":"))
    if len(rest) != 3 or rest[0] not in get_args(Role) or rest[1] != "sha256" or not _digest(rest[2]):
        raise ValueError(f"line {number}: {_FORM}")
    role, _, digest = rest
    if text.count(":") == 2:
        name = digest[:_NAME_DIGITS].lower()
    elif fault := client_name_fault(name):
        raise ValueError(f"line {number}: the name {fault}")
    if name.lower() == ANONYMOUS_CLIENT:
        raise ValueError(f"line {number}: the name {ANONYMOUS_CLIENT} is that of callers without a key")
    return AccessKey(name, role, bytes.fromhex(digest))  # type: ignore[arg-type]  # checked above


def _check_together(keys: list[AccessKey]) -> None:
    by_digest: dict[bytes, int] = {}
    first: dict[str, tuple[int, Role]] = {}
    for number, key in enumerate(keys, start=1):
        if key.digest in _NOTHING:
            raise ValueError(f"line {number} holds the hash of nothing instead of a key's")
        if (earlier := by_digest.setdefault(key.digest, number)) != number:
            raise ValueError(f"lines {earlier} and {number} hold the same key; each key has one line")
        earlier, role = first.setdefault(key.name, (number, key.role))
        if role != key.role:
            raise ValueError(f"lines {earlier} and {number} give one name to a client and to an admin")
