import itertools
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargegate.delivering.guard import BLOCKED_V4, AddressGuard
from chargegate.http1 import AddressBlocked
from chargegate.model import IPAddress, parse_callback_url

# Written out again, so that a network missing from the guard is missed here.
V4 = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"""
V6 = """::/96 ::1/128 64:ff9b:1::/48 100::/64 ::ffff:0:0:0/96 2001::/23 2001::/32 2001:db8::/32 3fff::/20 4000::/2
5f00::/16 8000::/1 fc00::/7 fe80::/10 fec0::/10 ff00::/8"""
BLOCKED = [IPv4Network(text) for text in V4.split()] + [IPv6Network(text) for text in V6.split()]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001:80b::200e", "168.63.129.15", "172.32.0.1"]

guard = AddressGuard([])


def blocked(address: IPAddress, by: AddressGuard = guard) -> bool:
    """Asked twice, because the second answer is a remembered one."""
    answers = []
    for _ in range(2):
        try:
            by.check(address)
            answers.append("passes")
        except AddressBlocked as error:
            answers.append(error.reason)
    assert answers in (["passes"] * 2, ["address_blocked"] * 2)
    return answers[0] != "passes"


def within(network: IPv4Network | IPv6Network) -> st.SearchStrategy[IPAddress]:
    return st.integers(int(network[0]), int(network[-1])).map(type(network[0]))


def wrappings(address: IPv4Address, low: int = 0) -> list[IPv6Address]:
    value = int(address)
    return [
        IPv6Address((0xFFFF << 32) | value),
        IPv6Address((0x64FF9B << 96) | value),
        IPv6Address((0x2002 << 112) | (value << 80) | low),
    ]


blocked_v4 = st.sampled_from([network for network in BLOCKED if isinstance(network, IPv4Network)]).flatmap(within)


@given(st.sampled_from(BLOCKED).flatmap(within))
def test_every_address_of_a_blocked_network_is_blocked(address: IPAddress) -> None:
    assert blocked(address)


@pytest.mark.parametrize("network", BLOCKED, ids=str)
def test_a_blocked_network_is_blocked_to_its_edges(network: IPv4Network | IPv6Network) -> None:
    assert blocked(network[0])
    assert blocked(network[-1])


@given(blocked_v4, st.integers(0, 2**80 - 1))
def test_wrapping_a_blocked_address_does_not_open_it(address: IPAddress, low: int) -> None:
    assert isinstance(address, IPv4Address)
    assert all(blocked(wrapped) for wrapped in wrappings(address, low))
    assert blocked(IPv6Address(int(address)))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_pass(text: str) -> None:
    assert not blocked(ip_address(text))


@given(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**80 - 1))
def test_the_embedded_address_decides(address: IPv4Address, low: int) -> None:
    expected = any(address in network for network in BLOCKED_V4)
    assert [blocked(address), *map(blocked, wrappings(address, low))] == [expected] * 4


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_compatible_address_is_blocked(value: int) -> None:
    assert blocked(IPv6Address(value))


def test_networks_can_be_opened() -> None:
    opened = AddressGuard(["127.0.0.0/8", "10.1.2.3", "fd00::/8"])
    for text in ("127.0.0.1", "127.9.9.9", "10.1.2.3", "fd12::1", "8.8.8.8"):
        assert not blocked(ip_address(text), opened)
    for text in ("10.1.2.4", "fe80::1", "169.254.169.254", "::1", "::127.0.0.1"):
        assert blocked(ip_address(text), opened)
    for address in wrappings(IPv4Address("127.0.0.1")):
        assert not blocked(address, opened)
    for address in wrappings(IPv4Address("10.1.2.4")):
        assert blocked(address, opened)


def isatap(address: IPv4Address, prefix: int) -> list[IPv6Address]:
    """The forms that RFC 5214 gives an address, for one that is public and for one that is not."""
    return [IPv6Address((prefix << 64) | (form << 32) | int(address)) for form in (0x00005EFE, 0x02005EFE)]


public_prefixes = st.integers(0x2A00 << 48, (0x2A01 << 48) - 1)


@given(blocked_v4, public_prefixes)
def test_isatap_does_not_open_a_blocked_address(address: IPAddress, prefix: int) -> None:
    assert isinstance(address, IPv4Address)
    assert all(blocked(wrapped) for wrapped in isatap(address, prefix))


def test_isatap_of_a_public_address_needs_a_public_prefix() -> None:
    public, private = IPv4Address("8.8.8.8"), int(IPv4Address("10.0.0.1"))
    assert not any(map(blocked, isatap(public, 0x2A00 << 48)))
    assert all(map(blocked, isatap(public, 0xFE80 << 48)))
    assert all(map(blocked, isatap(public, (0x2002 << 48) | (private << 16))))


@given(st.integers(0, 2**32 - 1).map(IPv4Address), public_prefixes, st.integers(0, 2**80 - 1))
def test_a_network_that_was_blocked_is_blocked_in_every_wrapping(address: IPv4Address, prefix: int, low: int) -> None:
    """Whatever else is allowed."""
    closed = AddressGuard(["0.0.0.0/0", "::/0"], [f"{address}/32"])
    value = int(address)
    teredo = 0x20010000 << 96
    others = [
        IPv6Address(value),
        IPv6Address((0xFFFF << 48) | value),
        IPv6Address((0x64FF9B0001 << 80) | value),
        IPv6Address(teredo | (value << 64) | (low & 0xFFFFFFFF)),
        IPv6Address(teredo | (low & (2**64 - 1)) << 32 | (~value & 0xFFFFFFFF)),
    ]
    for wrapped in (address, *wrappings(address, low), *isatap(address, prefix), *others):
        assert blocked(wrapped, closed)
    assert not blocked(IPv4Address(value ^ 1), closed)


def test_what_is_allowed_and_blocked_is_blocked() -> None:
    guarded = AddressGuard(["127.0.0.0/8", "fd00::/8"], ["127.9.0.0/16", "fd09::/16", "8.8.8.0/24"])
    for text in ("127.9.0.1", "fd09::1", "8.8.8.8", "10.0.0.1"):
        assert blocked(ip_address(text), guarded)
    for text in ("127.8.0.1", "fd08::1", "8.8.9.8"):
        assert not blocked(ip_address(text), guarded)


def test_a_network_of_mapped_addresses_blocks_what_they_stand_for() -> None:
    guarded = AddressGuard([], ["::ffff:8.8.8.0/120"])
    for text in ("8.8.8.8", "::ffff:8.8.8.8", "2002:808:808::1"):
        assert blocked(ip_address(text), guarded)
    assert not blocked(ip_address("8.8.9.8"), guarded)


def test_an_ipv6_network_opens_what_lies_in_it() -> None:
    opened = AddressGuard(["::ffff:127.0.0.0/104"])
    assert not blocked(ip_address("::ffff:127.0.0.1"), opened)
    assert blocked(ip_address("127.0.0.1"), opened)


def test_what_is_not_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="host bits"):
        AddressGuard(["127.0.0.1/8"])


def test_what_is_remembered_is_bounded() -> None:
    fresh = AddressGuard([])
    for value in itertools.islice(itertools.count(int(IPv4Address("8.0.0.0"))), 10_000):
        fresh.check(IPv4Address(value))
    assert len(fresh._verdicts) <= 4096
    assert blocked(IPv4Address("10.0.0.1"), fresh)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "0",
        "0xa9fea9fe",
        "169.254.43518",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::169.254.169.254]",
        "[2002:7f00:1::]",
        "[2002:a9fe:a9fe::1]",
        "[fe80::1]",
        "[fd00:ec2::254]",
    ],
)
def test_every_spelling_of_a_blocked_address_is_blocked(host: str) -> None:
    literal = parse_callback_url(f"http://{host}/hook").literal
    assert literal is not None
    assert blocked(literal)


def test_a_spelling_of_a_public_address_passes() -> None:
    literal = parse_callback_url("http://0x08.010.2056/").literal
    assert literal == IPv4Address("8.8.8.8")
    assert not blocked(literal)
