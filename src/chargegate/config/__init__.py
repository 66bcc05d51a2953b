"""The settings: read from a file and the environment, checked, and shown without their secrets.

``sections`` has every key, default, unit and range; ``rules`` what joins several keys.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from chargegate.config.rules import check, check_lease, check_url, scheme
from chargegate.config.sections import SECRET_KEYS, URL_KEYS, Audit, Callback, Server, Settings
from chargegate.config.text import SECRET_WORDS, ConfigError, apply_environment, converted, read_file, without_secrets

__all__ = [
    "DEFAULT_FILE",
    "FILE_VARIABLE",
    "MOVE_FROM",
    "MOVE_TO",
    "PREFIX",
    "SECRET_KEYS",
    "SECRET_WORDS",
    "URL_KEYS",
    "Audit",
    "Callback",
    "ConfigError",
    "Server",
    "Settings",
    "check_lease",
    "check_url",
    "load",
    "scheme",
    "shown",
]

PREFIX = "CHARGEGATE_"
FILE_VARIABLE = PREFIX + "CONFIG"
MOVE_FROM, MOVE_TO = PREFIX + "MOVE_FROM", PREFIX + "MOVE_TO"
DEFAULT_FILE = Path("chargegate.toml")


def load(file: str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file (default: ``./chargegate.toml`` if there is one), then ``CHARGEGATE_SECTION__KEY`` over it, or
    ``CHARGEGATE_SECTION__KEY_FILE`` for a secret.

    Raises ``ConfigError`` for a file that cannot be read, an unknown key, a wrong type or a value out of range.
    """
    file = file.strip() if file is not None else None
    values = {} if file is None and not DEFAULT_FILE.exists() else read_file(Path(file) if file else DEFAULT_FILE)
    apply_environment(values, Settings, environ, PREFIX, SECRET_KEYS | URL_KEYS)
    settings = converted(values, Settings)
    check(settings)
    return settings


def shown(settings: Settings) -> dict[str, Any]:
    """The settings as plain data with every secret replaced by ``"***"``, for people to read."""
    return without_secrets(msgspec.to_builtins(settings), SECRET_KEYS, URL_KEYS)
