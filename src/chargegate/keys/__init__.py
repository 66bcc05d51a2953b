"""Token hashing, encryption at rest, and access keys."""

from chargegate.keys.access_keys import ANONYMOUS_CLIENT, AccessKey, AccessKeys, Role, new_access_key
from chargegate.keys.key_file import KEY_FILE, KeyFileError, open_keyring
from chargegate.keys.keyring import SEALED_PREFIX, SHORT_HASH, CannotOpen, KeyMissing, Keyring

__all__ = [
    "ANONYMOUS_CLIENT",
    "KEY_FILE",
    "SEALED_PREFIX",
    "SHORT_HASH",
    "AccessKey",
    "AccessKeys",
    "CannotOpen",
    "KeyFileError",
    "KeyMissing",
    "Keyring",
    "Role",
    "new_access_key",
    "open_keyring",
]
