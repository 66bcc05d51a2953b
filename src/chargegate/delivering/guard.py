"""Which addresses a callback may reach: globally routable unicast and networks that were opened on purpose, without
networks that were blocked on purpose.

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
_MAPPED: Final = IPv6Network("::ffff:0:0/96")  # IPv4-mapped (RFC 4291, 2.5.5.2)
# Networks that carry an IPv4 address, and how many bits stand behind it. That address decides.
_EMBEDDING: Final = (
    (_MAPPED, 0),
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
)
# The same, in networks that are not public and can only be opened on purpose.
_EMBEDDING_TOO: Final = (
    (IPv6Network("::/96"), 0),  # IPv4-compatible (RFC 4291, 2.5.5.1)
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated (RFC 2765)
    (IPv6Network("64:ff9b:1::/48"), 0),  # NAT64 of one's own (RFC 8215), with a prefix of 96 bits
)
_TEREDO: Final = IPv6Network("2001::/32")  # RFC 4380: the server's address, and the client's with all bits inverted
_ISATAP: Final = 0x00005EFE  # in front of an IPv4 address at the end of any prefix (RFC 5214, 6.1)
_UNIVERSAL: Final = 0x02000000  # the bit that ISATAP sets where that IPv4 address is a public one
_32_BITS: Final = 0xFFFFFFFF
_REMEMBERED: Final = 4096


class AddressGuard:
    """Refuses addresses that are not public. ``allowed_networks`` opens networks such as ``10.0.0.0/8`` again, and
    ``blocked_networks`` closes more of them: what is in both is blocked.

    Raises ``ValueError`` for what is not a network.
    """

    def __init__(self, allowed_networks: Sequence[str], blocked_networks: Sequence[str] = ()) -> None:
        self._allowed = tuple(ip_network(network) for network in allowed_networks)
        self._blocked = tuple(_unmapped(ip_network(network)) for network in blocked_networks)
        # By numbers, because the hash of an address takes many times as long.
        self._verdicts: dict[tuple[type, int], bool] = {}

    def check(self, address: IPAddress) -> None:
        """Raises ``AddressBlocked``. What an IPv6 address embeds decides for it: IPv4-mapped, NAT64, 6to4; with ISATAP
        both must pass. An address is also blocked where any that it embeds lies in ``blocked_networks``."""
        key = (type(address), int(address))
        passes = self._verdicts.get(key)
        if passes is None:
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            passes = self._verdicts[key] = self._passes(address)
        if not passes:
            raise AddressBlocked("address_blocked")

    def _passes(self, address: IPAddress) -> bool:
        if any(each in network for each in (address, *_all_embedded(address)) for network in self._blocked):
            return False
        meant = _embedded(address) or address
        behind = _isatap(address)
        return self._open(address, meant) and (behind is None or self._open(address, behind))

    def _open(self, address: IPAddress, meant: IPAddress) -> bool:
        if any(address in network or meant in network for network in self._allowed):
            return True
        if isinstance(meant, IPv4Address):
            return not any(meant in network for network in BLOCKED_V4)
        return meant in GLOBAL_V6 and not any(meant in network for network in BLOCKED_V6)


def _embedded(address: IPAddress, networks: tuple[tuple[IPv6Network, int], ...] = _EMBEDDING) -> IPv4Address | None:
    for network, behind in networks:
        if address in network:
            return IPv4Address((int(address) >> behind) & _32_BITS)
    return None


def _isatap(address: IPAddress) -> IPv4Address | None:
    value = int(address)
    if address.version == 6 and (value >> 32) & _32_BITS & ~_UNIVERSAL == _ISATAP:
        return IPv4Address(value & _32_BITS)
    return None


def _all_embedded(address: IPAddress) -> list[IPv4Address]:
    """Every IPv4 address that an IPv6 address could lead to."""
    found = [_embedded(address), _embedded(address, _EMBEDDING_TOO), _isatap(address)]
    if address in _TEREDO:
        value = int(address)
        found += [IPv4Address((value >> 64) & _32_BITS), IPv4Address(~value & _32_BITS)]
    return [each for each in found if each is not None]


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """The IPv4 network that a network of IPv4-mapped addresses stands for."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & _32_BITS, network.prefixlen - _MAPPED.prefixlen))
    return network
