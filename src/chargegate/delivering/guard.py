"""Which addresses a callback may reach: globally routable unicast, and networks that were opened on purpose.

The networks are those of the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890) and of the multicast
and reserved space around them. ``ipaddress.is_global`` is not asked: its answers differ between Python versions.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Final

from chargegate.http1 import AddressBlocked
from chargegate.model import IPAddress

BLOCKED_V4: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network (RFC 791)
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # shared, carrier-grade NAT (RFC 6598)
        "127.0.0.0/8",  # loopback (RFC 1122)
        "168.63.129.16/32",  # a cloud's host agent, on a public address
        "169.254.0.0/16",  # link-local (RFC 3927), cloud metadata
        "172.16.0.0/12",  # private (RFC 1918)
        "192.0.0.0/24",  # protocol assignments (RFC 6890)
        "192.0.2.0/24",  # documentation (RFC 5737)
        "192.88.99.0/24",  # 6to4 relay anycast (RFC 7526)
        "192.168.0.0/16",  # private (RFC 1918)
        "198.18.0.0/15",  # benchmarking (RFC 2544)
        "198.51.100.0/24",  # documentation (RFC 5737)
        "203.0.113.0/24",  # documentation (RFC 5737)
        "224.0.0.0/4",  # multicast (RFC 5771)
        "240.0.0.0/4",  # reserved (RFC 1112), broadcast
    )
)
GLOBAL_V6: Final = IPv6Network("2000::/3")  # the only unicast space handed out (RFC 4291, 2.4)
BLOCKED_V6: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments (RFC 2928), Teredo
        "2001:db8::/32",  # documentation (RFC 3849)
        "3fff::/20",  # documentation (RFC 9637)
    )
)
# Networks that carry an IPv4 address, and how many bits stand behind it.
_EMBEDDING: Final = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped (RFC 4291, 2.5.5.2)
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
)
_REMEMBERED: Final = 4096


class AddressGuard:
    """Refuses addresses that are not public. ``allowed_networks`` opens networks such as ``10.0.0.0/8`` again.

    Raises ``ValueError`` for what is not a network.
    """

    def __init__(self, allowed_networks: Sequence[str]) -> None:
        self._allowed = tuple(ip_network(network) for network in allowed_networks)
        self._verdicts: dict[IPAddress, bool] = {}

    def check(self, address: IPAddress) -> None:
        """Raises ``AddressBlocked``. What an IPv6 address embeds decides for it: IPv4-mapped, NAT64, 6to4."""
        passes = self._verdicts.get(address)
        if passes is None:
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            passes = self._verdicts[address] = self._passes(address)
        if not passes:
            raise AddressBlocked("address_blocked")

    def _passes(self, address: IPAddress) -> bool:
        meant = _embedded(address) or address
        if any(address in network or meant in network for network in self._allowed):
            return True
        if isinstance(meant, IPv4Address):
            return not any(meant in network for network in BLOCKED_V4)
        return meant in GLOBAL_V6 and not any(meant in network for network in BLOCKED_V6)


def _embedded(address: IPAddress) -> IPv4Address | None:
    for network, behind in _EMBEDDING:
        if address in network:
            return IPv4Address((int(address) >> behind) & 0xFFFFFFFF)
    return None
