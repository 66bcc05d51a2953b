"""Small files that hold secrets, read without ever waiting for somebody who writes into a pipe."""

import errno
import os
import stat
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 1_048_576


def read_regular(path: Path) -> tuple[bytes, os.stat_result]:
    """A file's content, and whose it is. Raises ``OSError``, also where it is not a regular file or is too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"Larger than {MOST_BYTES} bytes")
    return content, status
