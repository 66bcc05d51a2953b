"""Writes what ``values.schema.json`` says about ``config`` and ``secrets.keys``, from the service's own settings.

Run it by ``make chart``, after a setting was added or changed. With ``--check`` it fails where the file is not current.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec

from chargegate.config import SECRET_KEYS, SECRET_WORDS, URL_KEYS, Settings

FILE = Path(__file__).parent / "chargegate" / "values.schema.json"
SET_BY_THE_CHART = frozenset(
    {
        "data_dir",
        "worker",
        "server.host",
        "server.port",
        "server.tls_certificate",
        "server.tls_key",
        "server.tls_client_ca",
    }
)
NOT_TAKEN = ("title", "description", "default")


def config() -> dict[str, Any]:
    """The settings that values may set: their names, types and ranges."""
    schema = msgspec.json.schema(Settings)
    return _section(schema["$defs"]["Settings"], schema["$defs"], "")


def _section(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> dict[str, Any]:
    keys = {name: _key(key, definitions, prefix + name) for name, key in section["properties"].items()}
    return {"type": "object", "additionalProperties": False, "properties": keys}


def _key(key: dict[str, Any], definitions: dict[str, Any], name: str) -> Any:
    if name in SET_BY_THE_CHART or name in SECRET_KEYS:
        return False
    if name in URL_KEYS:
        return {"$ref": "#/$defs/clearUrl"}
    if "$ref" in key:
        return _section(definitions[key["$ref"].rpartition("/")[2]], definitions, name + ".")
    return {rule: value for rule, value in key.items() if rule not in NOT_TAKEN}


def clear_url() -> dict[str, Any]:
    """A URL without a user or a password, in its query neither, where a name that is percent-encoded may be that of a
    password."""
    words = "|".join("".join(_any_case(letter) for letter in word) for word in SECRET_WORDS)
    patterns = ["@|%40", f"[?&][^=&]*({words})[^=&]*=", "[?&][^=&]*%[^=&]*="]
    return {
        "$comment": "A URL with a user or a password belongs into the Secret.",
        "type": "string",
        "not": {"anyOf": [{"pattern": pattern} for pattern in patterns]},
    }


def _any_case(letter: str) -> str:
    if letter.isalpha():
        return f"[{letter.upper()}{letter}]"
    return "[._]" if letter == "_" else letter


def written() -> str:
    """The whole file."""
    schema = json.loads(FILE.read_text())
    schema["properties"]["config"] = config()
    schema["properties"]["secrets"]["properties"]["keys"]["propertyNames"] = {"enum": sorted(SECRET_KEYS | URL_KEYS)}
    schema["$defs"] = {"clearUrl": clear_url()}
    return json.dumps(schema, indent=2) + "\n"


def main() -> None:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    text = written()
    if parser.parse_args().check:
        if FILE.read_text() != text:
            raise SystemExit(f"{FILE.name} is not current; run `make chart`")
    else:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
