"""How settings are read from a file and from the environment, and how they are shown without their secrets."""

import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, cast, get_args, get_origin
from urllib.parse import unquote_plus

import msgspec

from chargegate.keys.regular_file import read_regular
from chargegate.model import one_line

S = TypeVar("S", bound=msgspec.Struct)

# It ends with the last @, because a password that is not percent-encoded may hold others.
_USER_INFORMATION: Final = re.compile(r"(?<=://).*@")
SECRET_WORDS: Final = (
    "password",
    "passphrase",
    "secret",
    "token",
    "credential",
    "apikey",
    "api_key",
    "pem",
    "_url",
    "oauthbearer_config",
)
"""A parameter in a URL's query is a secret if its name, in lower case and with ``_`` for dots, holds one of these."""

_OPTION: Final = re.compile(r"(?<=[?&])([^=&#]*)=[^&#]*")

_SEPARATOR: Final = re.compile(r"[,\r\n]")
# Line breaks separate the items of a list.
_UNUSABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]").search


class ConfigError(Exception):
    """A setting is wrong. The message is one line and names the key and the rule."""


def read_file(path: Path) -> dict[str, Any]:
    """The values in a TOML file. Raises ``ConfigError``."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {one_line(str(error))}") from None
    _check_text(values, "")
    return cast("dict[str, Any]", _stripped(values))


def _stripped(value: Any) -> Any:
    """The value without white space around any text in it."""
    if isinstance(value, dict):
        return {key: _stripped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_stripped(each) for each in value]
    return value.strip() if isinstance(value, str) else value


def _check_text(value: Any, name: str) -> None:
    """Raises ``ConfigError`` for text that no setting can have: nothing could be done with it but to fail later."""
    if isinstance(value, dict):
        for key, each in value.items():
            _check_text(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for each in value:
            _check_text(each, name)
    elif isinstance(value, str) and _UNUSABLE(value.strip()):
        raise ConfigError(f"{one_line(name)}: must be UTF-8 without control characters")


def apply_environment(
    values: dict[str, Any],
    settings: type[msgspec.Struct],
    environ: Mapping[str, str],
    prefix: str,
    secret_keys: Collection[str],
) -> None:
    """Put every variable ``PREFIX_SECTION__KEY`` in the place of its key. Others that begin with the prefix belong to
    somebody else, such as those that Kubernetes makes for a service of our name, except for a key without a section.

    A secret may be in a file, which ``PREFIX_SECTION__KEY_FILE`` names. Raises ``ConfigError``.
    """
    whole = {field.name for field in msgspec.structs.fields(settings) if not _is_section(field.type)}
    set_by: dict[str, str] = {}
    for name, text in sorted(environ.items()):
        rest = name.removeprefix(prefix).lower()
        if not name.startswith(prefix) or ("__" not in rest and rest not in whole):
            continue
        keys = rest.split("__")
        secret = ".".join(keys).removesuffix("_file")
        if rest.endswith("_file") and secret in secret_keys:
            keys, given = secret.split("."), _secret(name, text)
        else:
            given = text
        key = ".".join(keys)
        if key in set_by:
            raise ConfigError(f"{name}: {set_by[key]} sets the same key")
        set_by[key] = name
        _check_text(given, name)
        set_from_environment(values, settings, name, keys, given)


def _secret(name: str, path: str) -> str:
    """What is in the file that a variable names. Raises ``ConfigError``."""
    path = path.strip()
    _check_text(path, name)
    if not path:
        raise ConfigError(f"{name}: names no file")
    try:
        text = read_regular(Path(path))[0].decode("utf-8-sig").strip()
    except OSError as error:
        raise ConfigError(f"{name}: {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: {path}: is not UTF-8") from None
    if not text:
        raise ConfigError(f"{name}: {path}: is empty")
    return text


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
    """A variable's text as the type of its key: lists are JSON, or separated by commas or line breaks."""
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    text = text.strip()
    try:
        if get_origin(base) is list:
            if text.startswith("["):
                decoded = msgspec.json.decode(text, type=base)
                _check_text(decoded, name)
                return _stripped(decoded)
            return msgspec.convert(
                [part.strip() for part in _SEPARATOR.split(text) if part.strip()], base, strict=False
            )
        if base is str or get_origin(base) is Literal:
            return text
        return msgspec.convert(text.lower(), base, strict=False)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, RecursionError) as error:
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
            values[key] = _USER_INFORMATION.sub("***@", _OPTION.sub(_without_secret, value))
    return values


def _without_secret(option: re.Match[str]) -> str:
    name = unquote_plus(option[1]).lower().replace(".", "_")  # a client library decodes the name too
    return f"{option[1]}=***" if any(word in name for word in SECRET_WORDS) else option[0]
