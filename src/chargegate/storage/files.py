"""SQL and Lua, read from the files that lie beside an engine's code."""

import re
from importlib.resources import files

_NAMED = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def read_text(package: str, *path: str) -> str:
    """A file of a package, such as ``read_text("chargegate.engines.redis", "put.lua")``."""
    return files(package).joinpath(*path).read_text(encoding="utf-8")


def statements(package: str, name: str, **values: str) -> dict[str, str]:
    """The statements of an SQL file by their names. Each begins after a line ``-- name: …``.

    ``{columns}`` in a statement becomes the value that is given as ``columns``.
    """
    text = read_text(package, name)
    for key, value in values.items():
        text = text.replace("{" + key + "}", value)
    parts = _NAMED.split(text)[1:]
    return {key: statement.strip() for key, statement in zip(parts[::2], parts[1::2], strict=True)}


def migrations(package: str, component: str) -> tuple[str, ...]:
    """The scripts ``migrations/<component>_0001.sql``, ``…_0002.sql`` and so on, in their order.

    A script that was released never changes; a later release adds one.
    """
    folder = files(package).joinpath("migrations")
    named = re.compile(rf"{re.escape(component)}_(\d{{4}})\.sql").fullmatch
    found = sorted(file.name for file in folder.iterdir() if named(file.name))
    return tuple(folder.joinpath(name).read_text(encoding="utf-8") for name in found)
