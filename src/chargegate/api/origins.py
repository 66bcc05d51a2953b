"""From where a request may come: to which host name it was sent, and from which page a browser sent it.

Without access keys a listener on loopback trusts whoever reaches it, and a browser lets every page reach it: under a
name that the page's owner lets point to 127.0.0.1, or by a form. So the host must be this machine's own, and no other
page's request is answered, unless the settings say otherwise.
"""

import ipaddress
import socket
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from starlette.types import Scope

from chargegate.api.errors import Refused
from chargegate.keys import AccessKeys
from chargegate.model import IPAddress, broken

Fields = tuple[tuple[bytes, bytes], ...]

PREFLIGHT: Final = {
    "access-control-allow-headers": (
        "authorization, content-type, idempotency-key, traceparent, tracestate, x-api-key, x-request-id"
    ),
    "access-control-max-age": "600",
}
"""What a page may send, and for how many seconds its browser need not ask again."""

DASHBOARD: Final = "/dashboard"

_EXPOSED: Final = (b"access-control-expose-headers", b"x-request-id, retry-after")
_VARIES: Final = (b"vary", b"origin")
_OWN: Final = (b"same-origin", b"none")
_LOOKED_AT: Final = frozenset({b"origin", b"sec-fetch-site", b"x-api-key"})
_MAX_REMEMBERED: Final = 1000
_SINGLE: Final = {
    name.lower().encode(): name
    for name in ("Authorization", "X-API-Key", "Idempotency-Key", "Content-Type", "Origin", "Sec-Fetch-Site")
}


class Origins:
    """Refuses requests by their headers, before anything else looks at them."""

    def __init__(self, *, keys: AccessKeys, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        """Where there are access keys, the host says nothing."""
        self._keys = keys
        self._hosts = {"localhost", *(normal_host(host) for host in hosts)}
        self._origins = {origin.lower().rstrip("/").encode() for origin in origins}
        self._good: set[bytes] = set()

    def check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """``headers`` are the scope's. Raises ``Refused`` (403), and ``Invalid`` for headers that contradict each
        other."""
        if len(headers) != len(scope["headers"]):
            _refuse_repeated(scope["headers"])
        if b"authorization" in headers and b"x-api-key" in headers:
            raise broken(dict.fromkeys(("Authorization", "X-API-Key"), "an access key is sent in one way, not in two"))
        if not self._keys and headers.get(b"host", b"") not in self._good:
            self._check_host(scope, headers)
        if (b"origin" in headers or b"sec-fetch-site" in headers) and not _is_link_to_dashboard(scope, headers):
            self._check_page(scope, headers)

    def known_good(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether ``check`` would pass without a closer look, for headers that none repeats: no browser's page sent
        they hold no X-API-Key beside another one, and their host was found good before."""
        return _LOOKED_AT.isdisjoint(headers) and bool(self._keys or headers.get(b"host") in self._good)

    def shared_with(self, headers: Mapping[bytes, bytes]) -> Fields:
        """The header fields that let an allowed page read the answer (Fetch Standard, 3.3); none for all others."""
        origin = headers.get(b"origin", b"").strip()
        if origin.lower() not in self._origins:
            return ()
        return (b"access-control-allow-origin", origin), _EXPOSED, _VARIES

    def _check_host(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"host")
        if given is None:
            return  # HTTP/1.0, as some probes speak it; no browser does
        host = normal_host(given.decode("latin-1"))
        name, port = _without_port(host)
        if not (name in self._hosts or (port and host in self._hosts) or _is_here(name, scope["server"])):
            raise Refused(
                403, "forbidden", "This host name is not allowed: without access keys, server.allowed_hosts names all."
            )
        if len(self._good) < _MAX_REMEMBERED:
            self._good.add(given)

    def _check_page(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        origin = headers.get(b"origin", b"").strip().lower()
        if origin in self._origins:
            return
        own = not origin or _is_same(origin, headers.get(b"host", b"").lower(), scope["scheme"])
        if not own or headers.get(b"sec-fetch-site", b"none").strip().lower() not in _OWN:
            raise Refused(
                403, "forbidden", "A browser sent this for a page from elsewhere; see server.allowed_origins."
            )


def is_own_page(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser sent this for a page of the service itself, or for somebody who typed its address. What changes
    something must say that it comes from such a page."""
    origin = headers.get(b"origin", b"").strip().lower()
    if origin and not _is_same(origin, headers.get(b"host", b"").lower(), scope["scheme"]):
        return False
    site = headers.get(b"sec-fetch-site", b"").strip().lower()
    if scope["method"] in ("GET", "HEAD"):
        return site in (b"", *_OWN)
    return site == b"same-origin" or (not site and bool(origin))


def _is_link_to_dashboard(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether somebody follows a link to a page of the dashboard, from wherever. Such a page holds no data."""
    return (
        scope["method"] in ("GET", "HEAD")
        and (scope["path"] == DASHBOARD or scope["path"].startswith(DASHBOARD + "/"))
        and b"origin" not in headers
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


def normal_host(host: str) -> str:
    """A host, with or without a port, as it is compared: lower case, without the dot at the end of a full name, an
    address in its shortest form."""
    name, port = _without_port(host.strip().lower())
    ip = _address(name)
    if ip is None:
        return name.removesuffix(".") + port
    return (f"[{ip}]" if ip.version == 6 else str(ip)) + port


def _without_port(host: str) -> tuple[str, str]:
    """The name or address, and the port with its colon."""
    name, colon, port = host.rpartition(":")
    return (name, colon + port) if colon and not host.endswith("]") and (":" not in name or "]" in name) else (host, "")


def _is_here(name: str, local: tuple[str, int] | None) -> bool:
    """Whether it is an address of this machine: the one that the client reached, or any that can be bound to."""
    ip = _address(name)
    if ip is None:
        return False
    if ip.is_loopback or (local and str(ip) == local[0].partition("%")[0].removeprefix("::ffff:")):
        return True
    if ip.is_unspecified or ip.is_multicast:
        return False
    with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
            probe.connect((str(ip), 9))  # sends nothing; it fails for a broadcast address
        except OSError:
            return False
    return True


def _address(name: str) -> IPAddress | None:
    try:
        ip = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def _is_same(origin: bytes, host: bytes, scheme: str) -> bool:
    """Whether a page's origin is the host that it calls. In front of plain HTTP there may be a proxy that ends TLS."""
    expected = (b"https://" + host,) if scheme == "https" else (b"http://" + host, b"https://" + host)
    return origin in expected


def _refuse_repeated(headers: Collection[tuple[bytes, bytes]]) -> None:
    names = [name for name, _ in headers]
    if repeated := [shown for name, shown in _SINGLE.items() if names.count(name) > 1]:
        raise broken(dict.fromkeys(repeated, "was given more than once"))
