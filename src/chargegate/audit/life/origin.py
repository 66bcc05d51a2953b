"""What this service is called in an archive that several share."""

import os
import re
import socket
from pathlib import Path
from secrets import token_hex
from typing import Final

FILE: Final = "archive.name"
_ALLOWED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,100}").fullmatch


def has_origin(folder: Path) -> bool:
    """Whether the service has a name in archives. Raises ``OSError``."""
    return (folder / FILE).exists()


def origin_of(folder: Path) -> str:
    """The name in ``data_dir``, made at the first use: the host's, and something that no other has. It stays when the
    host is renamed. Raises ``OSError``, and ``ValueError`` for a file that holds no name."""
    path = folder / FILE
    if not path.exists():
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()).strip("-")[:60] or "host"
        draft = folder / f".{FILE}.{os.getpid()}.{token_hex(4)}"
        with draft.open("x", encoding="ascii") as file:
            file.write(f"{host}-{token_hex(4)}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    name = path.read_text(encoding="ascii", errors="replace").strip()
    if not _ALLOWED(name):
        raise ValueError(f"{path}: must hold a name of letters, digits, dots and hyphens")
    return name
