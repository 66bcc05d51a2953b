"""Names, asked of a real name server on this machine."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from chargegate.http1 import CallFailed, ConnectFailed, NotSent
from chargegate.http1.names import MAX_ADDRESSES, Resolver
from nameserver import NameServer, name_server
from scenario import run

LIMIT_S = 20


@pytest.fixture
def server() -> Iterator[NameServer]:
    with name_server() as made:
        yield made


def resolving(server: NameServer, scenario: Callable[[Resolver], Awaitable[None]]) -> None:
    async def main() -> None:
        resolver = Resolver([server.address])
        try:
            await scenario(resolver)
        finally:
            resolver.close()

    run(main(), LIMIT_S)


async def failure(resolver: Resolver, host: str) -> CallFailed:
    with pytest.raises(CallFailed) as raised:
        await resolver.resolve(host)
    return raised.value


def test_both_families(server: NameServer) -> None:
    server.names["two.example"] = ["192.0.2.1", "2001:db8::1"]

    async def scenario(resolver: Resolver) -> None:
        assert set(await resolver.resolve("two.example")) == {ip_address("192.0.2.1"), ip_address("2001:db8::1")}
        assert set(await resolver.resolve("Two.Example.")) == {ip_address("192.0.2.1"), ip_address("2001:db8::1")}

    resolving(server, scenario)


def test_one_look_up_serves_all_that_ask_meanwhile_and_for_a_while(server: NameServer) -> None:
    server.names["one.example"] = ["192.0.2.1"]

    async def scenario(resolver: Resolver) -> None:
        found = await asyncio.gather(*(resolver.resolve("one.example") for _ in range(50)))
        assert found == [[ip_address("192.0.2.1")]] * 50
        await resolver.resolve("one.example")
        assert server.asked.count("one.example") <= 2  # one for each family

    resolving(server, scenario)


@pytest.mark.parametrize("ttl", [0, 3600])
def test_an_answer_is_kept_for_a_second_at_least_and_not_for_ever(
    server: NameServer, monkeypatch: pytest.MonkeyPatch, ttl: int
) -> None:
    server.names["kept.example"] = ["192.0.2.1"]
    server.ttl = ttl

    async def scenario(resolver: Resolver) -> None:
        await resolver.resolve("kept.example")
        asked = len(server.asked)
        server.names["kept.example"] = ["192.0.2.2"]
        assert await resolver.resolve("kept.example") == [ip_address("192.0.2.1")]
        assert len(server.asked) == asked
        passed = {0: 1.1, 3600: 61.0}[ttl]
        now = asyncio.get_running_loop().time
        monkeypatch.setattr(resolver, "_now", lambda: now() + passed)
        assert await resolver.resolve("kept.example") == [ip_address("192.0.2.2")]

    resolving(server, scenario)


def test_a_name_that_does_not_exist_is_the_receivers_fault(server: NameServer) -> None:
    async def scenario(resolver: Resolver) -> None:
        for host in ("nowhere.example", "a..b", "x" * 64 + ".example", "nowhere.invalid"):
            fault = await failure(resolver, host)
            assert (type(fault), fault.reason) == (ConnectFailed, "name_not_resolved")

    resolving(server, scenario)


@pytest.mark.parametrize("kind", ["silent", "failing"])
def test_a_server_that_does_not_say_is_nobodys_fault(server: NameServer, kind: str) -> None:
    server.names["known.example"] = ["192.0.2.1"]
    getattr(server, kind).add("odd.example")

    async def scenario(resolver: Resolver) -> None:
        many = asyncio.gather(*(failure(resolver, "odd.example") for _ in range(60)))
        assert await resolver.resolve("known.example") == [ip_address("192.0.2.1")]  # and waits for none of them
        assert not many.done() or kind == "failing"
        assert {(type(fault), fault.reason) for fault in await many} == {(NotSent, "name_not_resolved")}

    resolving(server, scenario)


def test_a_failure_is_kept_for_a_second_whatever_its_zone_says(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.negative_ttl = 3600

    async def scenario(resolver: Resolver) -> None:
        await failure(resolver, "soon.example")
        server.names["soon.example"] = ["192.0.2.1"]
        asked = len(server.asked)
        await failure(resolver, "soon.example")
        assert len(server.asked) == asked
        now = asyncio.get_running_loop().time
        monkeypatch.setattr(resolver, "_now", lambda: now() + 1.1)
        assert await resolver.resolve("soon.example") == [ip_address("192.0.2.1")]

    resolving(server, scenario)


def test_a_family_that_nobody_answers_for_is_not_waited_for_to_the_end(server: NameServer) -> None:
    server.names["half.example"] = ["192.0.2.1", "2001:db8::1"]
    server.silent_families = {6}

    async def scenario(resolver: Resolver) -> None:
        async with asyncio.timeout(3):  # all tries take more than seven seconds
            assert await resolver.resolve("half.example") == [ip_address("192.0.2.1")]

    resolving(server, scenario)


def test_thousands_of_silent_names_hold_up_no_other(server: NameServer) -> None:
    server.names["known.example"] = ["192.0.2.1"]
    server.ttl = 0
    server.silent |= {f"silent-{number}.example" for number in range(2000)}

    async def scenario(resolver: Resolver) -> None:
        silent = [asyncio.create_task(failure(resolver, host)) for host in server.silent]
        loop = asyncio.get_running_loop()
        for _ in range(3):
            assert await resolver.resolve("known.example") == [ip_address("192.0.2.1")]
            later = loop.time() + 1.1  # by then the answer is not kept any more
            while loop.time() < later:
                await asyncio.sleep(0.05)
        assert not any(task.done() for task in silent)
        resolver.close()
        assert {type(fault) for fault in await asyncio.gather(*silent)} == {NotSent}

    resolving(server, scenario)


def test_whoever_stops_waiting_leaves_the_answer_to_the_others(server: NameServer) -> None:
    server.silent.add("slow.example")
    server.names["slow.example"] = ["192.0.2.1"]

    async def scenario(resolver: Resolver) -> None:
        hasty, patient = (asyncio.create_task(resolver.resolve("slow.example")) for _ in range(2))
        while not server.asked:
            await asyncio.sleep(0.01)
        hasty.cancel()
        server.silent.clear()
        assert await patient == [ip_address("192.0.2.1")]
        assert hasty.cancelled()

    resolving(server, scenario)


def test_search_domains(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDOMAIN", "corp.example")
    server.names["short.corp.example"] = ["192.0.2.1"]

    async def scenario(resolver: Resolver) -> None:
        assert await resolver.resolve("short") == [ip_address("192.0.2.1")]
        assert isinstance(await failure(resolver, "short."), ConnectFailed)  # a dot at the end keeps them away

    resolving(server, scenario)


def test_a_name_with_very_many_addresses(server: NameServer) -> None:
    server.names["many.example"] = [f"192.0.2.{last}" for last in range(25)]

    async def scenario(resolver: Resolver) -> None:
        assert len(await resolver.resolve("many.example")) == MAX_ADDRESSES

    resolving(server, scenario)


def test_nothing_can_be_asked_once_it_is_closed(server: NameServer) -> None:
    async def scenario(resolver: Resolver) -> None:
        resolver.close()
        assert isinstance(await failure(resolver, "late.example"), NotSent)
        assert not server.asked

    resolving(server, scenario)


def test_closing_ends_every_look_up(server: NameServer) -> None:
    server.silent.add("silent.example")

    async def scenario(resolver: Resolver) -> None:
        waiting = asyncio.create_task(failure(resolver, "silent.example"))
        while not server.asked:
            await asyncio.sleep(0.01)
        resolver.close()
        assert isinstance(await waiting, NotSent)

    resolving(server, scenario)


def test_the_hosts_file_is_read(server: NameServer) -> None:
    listed = {
        tuple(line.split()[:2])
        for line in Path("/etc/hosts").read_text(encoding="utf-8").splitlines()
        if len(line.split()) >= 2 and not line.startswith("#")
    }
    address, name = next((address, name) for address, name in listed if name == "localhost")

    async def scenario(resolver: Resolver) -> None:
        assert ip_address(address) in await resolver.resolve(name)
        assert not server.asked

    resolving(server, scenario)
