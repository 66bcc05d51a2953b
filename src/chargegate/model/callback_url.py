"""The rule for callback URLs, as a parser and as a pattern for JSON Schema."""

import ipaddress
import re
import socket
from functools import lru_cache
from typing import Final

import msgspec

MAX_CALLBACK_URL: Final = 2048

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_DEFAULT_PORT: Final = {"http": 80, "https": 443}
_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
_NAME: Final = rf"({_LABEL}\.){{0,126}}{_LABEL}\.?"
_PATH: Final = r"([/?][!-\x22$-\x5b\x5d-~]*)?"  # printable ASCII without # and backslash
_PORT: Final = (
    "(0{0,4}[1-9]|0{0,3}[1-9][0-9]|0{0,2}[1-9][0-9]{2}|0?[1-9][0-9]{3}|[1-5][0-9]{4}"
    "|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_url = re.compile(
    r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    rf"(?P<path>{_PATH})"
).fullmatch
_name = re.compile(_NAME).fullmatch
_allowed_characters = re.compile(r"[!-\x5b\x5d-~]+").fullmatch
_numeric_host = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9a-fA-F]*)").fullmatch


def callback_url_pattern(*, require_https: bool) -> str:
    """The regular expression (ECMA-262) of a callback URL, for JSON Schema.

    It does not hold the limits on the length of the URL and of the host's name, nor the rules for IP addresses.
    """
    scheme = "[Hh][Tt][Tt][Pp][Ss]" + ("" if require_https else "?")
    return rf"^{scheme}://({_NAME}|\[[0-9A-Fa-f:.]{{2,45}}\])(:{_PORT})?{_PATH}$"


class CallbackTarget(msgspec.Struct, frozen=True):
    """The parts of a callback URL.

    ``host`` is in lower case and without brackets. ``literal`` is the address where the host is one. ``authority`` is
    the ``Host`` header: with brackets around IPv6, without a default port. ``destination`` is scheme, host and port:
    limits and circuit breakers are counted by it.
    """

    scheme: str
    host: str
    port: int
    path: str
    literal: IPAddress | None
    authority: str
    destination: str


def parse_callback_url(value: object) -> CallbackTarget:
    """The parts of a callback URL. Raises ``ValueError`` with the rule that the URL breaks.

    An IPv4 address in decimal, octal or hexadecimal spelling becomes the address that a resolver would make of it.
    """
    if not isinstance(value, str) or not value:
        raise ValueError("must be an absolute http or https URL")
    return _parse(value)


@lru_cache(maxsize=2048)
def _parse(value: str) -> CallbackTarget:
    if len(value) > MAX_CALLBACK_URL:
        raise ValueError(f"must be at most {MAX_CALLBACK_URL} characters")
    match = _url(value)
    if match is None:
        raise ValueError(_fault(value))
    scheme = match["scheme"].lower()
    port = int(match["port"]) if match["port"] else _DEFAULT_PORT[scheme]
    if not 0 < port < 65536:
        raise ValueError("has a port outside 1 to 65535")
    path = match["path"]
    if not path.startswith("/"):
        path = "/" + path
    if match["v6"] is not None:
        try:
            v6 = ipaddress.IPv6Address(match["v6"])
        except ValueError:
            raise ValueError("has a host that is not a valid IPv6 address") from None
        return _target(scheme, str(v6), port, path, v6)
    host, literal = _named_host(match["name"].lower())
    return _target(scheme, host, port, path, literal)


def _named_host(host: str) -> tuple[str, IPAddress | None]:
    bare = host.removesuffix(".")
    if len(bare) > 253 or not _name(host):
        raise ValueError("has a host that is not a valid name")
    if not _numeric_host(bare):
        return host, None
    try:
        literal = ipaddress.IPv4Address(socket.inet_aton(bare))
    except OSError:
        raise ValueError("has a host that is not a valid IPv4 address") from None
    return str(literal), literal


def _target(scheme: str, host: str, port: int, path: str, literal: IPAddress | None) -> CallbackTarget:
    bracketed = f"[{host}]" if ":" in host else host
    authority = bracketed if port == _DEFAULT_PORT[scheme] else f"{bracketed}:{port}"
    return CallbackTarget(scheme, host, port, path, literal, authority, f"{scheme}://{bracketed}:{port}")


def _fault(value: str) -> str:
    if not _allowed_characters(value):
        return "must have no spaces, control characters, backslashes or non-ASCII characters (percent-encode them)"
    scheme, separator, rest = value.partition("://")
    if not separator or scheme.lower() not in _DEFAULT_PORT:
        return "must be an absolute http or https URL"
    if "#" in rest:
        return "must have no fragment"
    if "@" in re.split(r"[/?]", rest, maxsplit=1)[0]:
        return "must have no user information"
    return "must have a valid host, and a port, if any, of digits"
