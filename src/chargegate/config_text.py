"""How settings are read from a file and from the environment, and how they are shown without their secrets."""

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec

from chargegate.model import one_line

S = TypeVar("S", bound=msgspec.Struct)

# It ends with the last @, because a password that is not percent-encoded may hold others.
_USER_INFORMATION: Final = re.compile(r"(?<=://).*@")
_SECRET_OPTION: Final = re.compile(
    r"(?i)(?<=[?&])([^=&#]*(?:password|passphrase|secret|token|pem|_url|oauthbearer.config)[^=&#]*)=[^&#]*"
)


class ConfigError(Exception):
    """A setting is wrong. The message is one line and names the key and the rule."""


def read_file(path: Path) -> dict[str, Any]:
    """The values in a TOML file. Raises ``ConfigError``."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def set_from_environment(
    values: dict[str, Any], settings: type[msgspec.Struct], name: str, keys: list[str], text: str
) -> None:
    """Put a variable's text in the place of its key, with the type that the key has. Raises ``ConfigError``."""
    kind: Any = settings
    for position, key in enumerate(keys):
        fields = {f.name: f.type for f in msgspec.structs.fields(kind)} if _is_section(kind) else {}
        if key not in fields:
            raise ConfigError(f"{name}: unknown key {'.'.join(keys[: position + 1])!r}")
        kind = fields[key]
    if _is_section(kind):
        raise ConfigError(f"{name}: {'.'.join(keys)!r} is a section, not a key")
    section = values
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{'.'.join(keys[:-1])}: expected a section")
    section[keys[-1]] = _typed(name, kind, text)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _typed(name: str, kind: Any, text: str) -> Any:
    """A variable's text as the type of its key: lists are JSON or separated by commas."""
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    try:
        if get_origin(base) is list:
            if text.lstrip().startswith("["):
                return msgspec.json.decode(text, type=base)
            return msgspec.convert([part.strip() for part in text.split(",") if part.strip()], base, strict=False)
        if base is str or get_origin(base) is Literal:
            return text
        return msgspec.convert(text.strip().lower(), base, strict=False)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ConfigError(f"{name}: {_in_words(str(error))}") from None


def _in_words(error: str) -> str:
    """msgspec's ``rule - at `$.section.key` `` as ``section.key: rule``."""
    rule, _, place = one_line(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    unknown = rule.removeprefix("Object contains unknown field `")
    if unknown != rule:
        return f"unknown key '{place + '.' if place else ''}{unknown.rstrip('`')}'"
    return f"{place}: {rule[:1].lower()}{rule[1:]}" if place else rule


def converted(values: dict[str, Any], settings: type[S]) -> S:
    """The values as settings. Raises ``ConfigError`` that names the key and the rule."""
    try:
        return msgspec.convert(values, settings)
    except msgspec.ValidationError as error:
        raise ConfigError(_in_words(str(error))) from None


def without_secrets(
    values: dict[str, Any], secret_keys: Collection[str], url_keys: Collection[str], prefix: str = ""
) -> dict[str, Any]:
    """The same values, in which each of the secrets and what is secret in each of the URLs is ``"***"``."""
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict):
            without_secrets(value, secret_keys, url_keys, name + ".")
        elif name in secret_keys and value:
            values[key] = ["***"] * len(value) if isinstance(value, list) else "***"
        elif name in url_keys:
            values[key] = _USER_INFORMATION.sub("***@", _SECRET_OPTION.sub(r"\1=***", value))
    return values
