"""Token hashing, encryption at rest, and access keys."""

from chargegate.keys.access_keys import (
    ANONYMOUS,
    ANONYMOUS_CLIENT,
    CLIENT_NAME_PATTERN,
    CLIENT_NAME_RULE,
    AccessKey,
    AccessKeys,
    Role,
    client_name_fault,
    new_access_key,
)
from chargegate.keys.key_file import KEY_FILE, KeyFileError, open_keyring
from chargegate.keys.keyring import SEALED_PREFIX, SHORT_HASH, CannotOpen, KeyMissing, Keyring
from chargegate.keys.sessions import Session, read_session, sign_session

__all__ = [
    "ANONYMOUS",
    "ANONYMOUS_CLIENT",
    "CLIENT_NAME_PATTERN",
    "CLIENT_NAME_RULE",
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
    "Session",
    "client_name_fault",
    "new_access_key",
    "open_keyring",
    "read_session",
    "sign_session",
]
