"""Where the service's own keys come from: the settings, or a file that is made on the first start."""

import base64
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from chargegate.keys.keyring import Keyring
from chargegate.keys.regular_file import read_regular

KEY_FILE: Final = "secrets.json"


class KeyFileError(Exception):
    """The key file cannot be used. The message is one line that names the file."""


def open_keyring(data_dir: Path, encryption_keys: list[str], token_hash_key: str) -> Keyring:
    """The keys from the settings (base64). Those that the settings lack are in the key file, made on the first start.

    Raises ``KeyFileError`` if the file is unreadable, damaged, open to other users, or another user's.
    """
    if encryption_keys and token_hash_key:
        return Keyring([base64.b64decode(key) for key in encryption_keys], base64.b64decode(token_hash_key))
    stored_keys, stored_hash_key = _key_file(data_dir / KEY_FILE)
    configured = [base64.b64decode(key) for key in encryption_keys]
    # The stored key stays in use, so that data sealed before keys were configured can still be opened.
    return Keyring(configured + stored_keys, base64.b64decode(token_hash_key) if token_hash_key else stored_hash_key)


def _key_file(path: Path) -> tuple[list[bytes], bytes]:
    try:
        if not path.exists():
            _make_key_file(path)
        content, status = read_regular(path)
        if status.st_uid != os.geteuid():
            raise KeyFileError(f"{path}: belongs to another user, who may change it; run: chown {os.geteuid()} {path}")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise KeyFileError(f"{path}: other users may read it; run: chmod 600 {path}")
        stored = json.loads(content.decode())
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
    """Write a draft, sync it, and link it into place: after a crash or a race there is one whole file, or none."""
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
