"""What keeps the service from starting, and what a process is called."""

import fcntl
import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Literal

Role = Literal["serve", "api", "worker"]


class StartError(Exception):
    """The service cannot start, or a command cannot do its work. The message is one line and says what to change."""


@contextmanager
def extra(key: str, name: str) -> Iterator[None]:
    """Imports of what a key's URL asks for."""
    try:
        yield
    except ImportError as error:
        missing = error.name or "a module"
        raise StartError(f"{key}: needs `pip install 'chargegate[{name}]'` ({missing} is missing)") from None


@contextmanager
def process_name(folder: Path, role: Role) -> Iterator[str]:
    """A name that no other process has, and that a process of the same folder and role gets again after a restart, so
    that it goes on with what it held."""
    for number in itertools.count(1):
        with (folder / f"{role}-{number}.name").open("a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            file.seek(0)
            name = file.read()
            if not name:
                name = f"{socket.gethostname()}-{role}-{token_hex(4)}"
                file.write(name)
                file.flush()
            yield name
            return
