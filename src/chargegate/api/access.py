"""Who may call what, and how often."""

import time
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, IPv6Network
from math import ceil
from typing import Any, Final

from chargegate.api.errors import Refused
from chargegate.keys import ANONYMOUS, AccessKey, AccessKeys, Role

_MAX_BUCKETS: Final = 10_000
_ONE_TOKEN: Final = 1 - 1e-7  # rounding must not make the wait that Retry-After promised too short


class Guard:
    """Checks access keys. With none configured every caller is anonymous and may do everything."""

    def __init__(self, keys: AccessKeys) -> None:
        self._keys = keys

    def admit(self, headers: Mapping[bytes, bytes], role: Role) -> AccessKey:
        """The caller's key; ``ANONYMOUS`` where none are configured. Raises ``Refused``: 401, 403."""
        if not self._keys:
            return ANONYMOUS
        presented = _presented(headers)
        key = None if presented is None else self._keys.find(presented)
        if key is None:
            raise Refused(
                401,
                "unauthorized",
                "A valid access key is required, as Authorization: Bearer or X-API-Key.",
                headers={"www-authenticate": "Bearer"},
            )
        require_role(key, role)
        return key


def require_role(key: AccessKey, role: Role) -> None:
    """Raises ``Refused`` (403) where the key is not enough."""
    if role == "admin" and key.role != "admin":
        raise Refused(403, "forbidden", "This access key is not enough: an admin key is required.")


def _presented(headers: Mapping[bytes, bytes]) -> str | None:
    """The key that was sent; in which of the two headers does not matter, and ``Origins`` sees that it is only one."""
    if b"authorization" in headers:
        scheme, _, credentials = headers[b"authorization"].partition(b" ")
        return credentials.strip().decode("latin-1") if scheme.lower() == b"bearer" else None
    given = headers.get(b"x-api-key")
    return None if given is None else given.decode("latin-1")


class RateLimit:
    """A token bucket for each caller: ``burst`` requests at once, ``per_second`` in the long run. 0 a second is no
    limit; a burst of 0 is as many as one second allows. Of more than 10,000 callers, those seen longest ago are
    forgotten."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._burst = float(burst or max(1, ceil(per_second)))
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, client: Any) -> None:
        """Count one request of a named client, or of an anonymous one at an address (ASGI's ``client``).

        Raises ``Refused`` (429) that says when the next one will do.
        """
        if not self._rate:
            return
        caller = name or network_of(client)
        now = self._clock()
        left, seen = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._rate)
        allowed = left >= _ONE_TOKEN
        if len(self._buckets) >= _MAX_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[caller] = (left - 1 if allowed else left, now)
        if not allowed:
            wait = max(1, ceil((1 - left) / self._rate))
            headers = {"retry-after": str(wait)}
            raise Refused(429, "rate_limited", "Too many requests; see Retry-After.", headers=headers)


def network_of(client: Any) -> str:
    """The address. Of IPv6 it is the /64 network: a client that has one address there has all of them."""
    address = str(client[0]) if client else ""
    if ":" not in address:
        return address
    ip = IPv6Address(address.partition("%")[0])
    return str(ip.ipv4_mapped or IPv6Network((ip, 64), strict=False))
