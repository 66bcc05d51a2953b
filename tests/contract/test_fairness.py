"""One client, or one destination, does not stop the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import threading
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from tests.contract.conftest import Reply, Service, Site

LETTERS = "/api/v1/dead-letters"


class Silent:
    """Many destinations that accept connections and read. Each answers so many requests, and none after that."""

    def __init__(self, count: int, answers: int = 0) -> None:
        self._answers = answers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: set[Any] = set()
        self._servers: list[asyncio.Server] = []
        self.urls = asyncio.run_coroutine_threadsafe(self._start(count), self._loop).result(30)

    async def _start(self, count: int) -> list[str]:
        urls = []
        for number in range(count):
            address = f"127.0.{1 + number // 200}.{1 + number % 200}"
            server = await asyncio.start_server(self._handler(), address, 0)
            self._servers.append(server)
            urls.append(f"http://{address}:{server.sockets[0].getsockname()[1]}/")
        return urls

    def _handler(self) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
        left = [self._answers]

        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._tasks.add(asyncio.current_task())
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                while True:
                    await reader.readuntil(b"}")
                    if left[0]:
                        left[0] -= 1
                        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            writer.transport.abort()
            self._tasks.discard(asyncio.current_task())

        return connection

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def silent() -> Iterator[Callable[..., Silent]]:
    made: list[Silent] = []

    def make(count: int, answers: int = 0) -> Silent:
        made.append(Silent(count, answers))
        return made[-1]

    yield make
    for each in made:
        each.close()


def latencies(caller: Service, receiver: Site, count: int, eventually: Callable[..., Any]) -> list[float]:
    """How long it takes from a request to its callback, again and again."""
    found = []
    for _ in range(count):
        url = receiver.url()
        started = time.monotonic()
        caller.ask(url)
        eventually(lambda url=url: receiver.calls_to(url), 20, "a healthy destination's callback was held up")
        found.append(time.monotonic() - started)
    return found


def test_destinations_that_never_answer_do_not_hold_up_one_that_does(
    service: Callable[..., Service],
    site: Callable[..., Site],
    silent: Callable[..., Silent],
    eventually: Callable[..., Any],
) -> None:
    caller = service()
    healthy, deaf = site(), silent(400)
    before = latencies(caller, healthy, 30, eventually)
    for url in deaf.urls:
        caller.ask(url)
    # The worst time is when as many connections are in use as ever will be, and hundreds wait for one.
    eventually(lambda: caller.client.get("/health").json()["components"]["callbacks"]["details"]["parked"] > 200)
    during = latencies(caller, healthy, 60, eventually)
    assert median(during) < max(3 * median(before), 0.2)
    assert max(during) < max(3 * max(before), 1.0)
    assert caller.client.get(LETTERS).json()["items"] == [], "a callback was lost"


def test_connections_that_are_used_up_show_in_the_health(
    service: Callable[..., Service], silent: Callable[..., Silent], eventually: Callable[..., Any]
) -> None:
    caller = service(callback__max_connections=4)
    for url in silent(8).urls:
        caller.ask(url)
    found = eventually(
        lambda: (
            callbacks
            if (callbacks := caller.client.get("/health").json()["components"]["callbacks"])["status"] == "DEGRADED"
            else None
        )
    )
    assert "127.0" not in json.dumps(found)


def first_callbacks_start_at_once(caller: Service, site: Callable[..., Site], eventually: Callable[..., Any]) -> None:
    for _ in range(3):
        fresh = site()
        started = time.monotonic()
        asked = caller.ask(fresh.url())
        eventually(lambda fresh=fresh: fresh.calls, 5)
        assert time.monotonic() - started < 2
        assert caller.finished(asked)["status"] == "COMPLETED"


def test_another_clients_first_callback_starts_at_once(
    service: Callable[..., Service],
    site: Callable[..., Site],
    silent: Callable[..., Silent],
    eventually: Callable[..., Any],
    command: str,
) -> None:
    keys = [made_key(command, name) for name in ("first", "second")]
    caller = service(security__api_keys=[line for _, line in keys])
    caller.sign_in(keys[0][0])
    for url in silent(150).urls:
        caller.ask(url)
    eventually(lambda: "requests_in_flight 150.0" in caller.client.get("/metrics").text)
    caller.sign_in(keys[1][0])
    first_callbacks_start_at_once(caller, site, eventually)


def test_destinations_that_answered_once_and_then_hang_hold_up_no_other_client(
    service: Callable[..., Service],
    site: Callable[..., Site],
    silent: Callable[..., Silent],
    eventually: Callable[..., Any],
    command: str,
) -> None:
    keys = [made_key(command, name) for name in ("first", "second")]
    caller = service(security__api_keys=[line for _, line in keys])
    caller.sign_in(keys[0][0])
    turning = silent(110, answers=1).urls
    for each in [caller.ask(url) for url in turning]:
        assert caller.finished(each)["status"] == "COMPLETED"
    for url in turning:
        caller.ask(url)
    eventually(lambda: "requests_in_flight 110.0" in caller.client.get("/metrics").text)
    caller.sign_in(keys[1][0])
    first_callbacks_start_at_once(caller, site, eventually)


def test_a_few_destinations_that_begin_to_hang_hold_up_no_other(
    service: Callable[..., Service],
    site: Callable[..., Site],
    silent: Callable[..., Silent],
    eventually: Callable[..., Any],
) -> None:
    """Without keys all is one client's, and still one destination must not stop another."""
    caller = service()
    healthy, turning = site(), silent(6, answers=1).urls
    before = latencies(caller, healthy, 20, eventually)
    for each in [caller.ask(url) for url in turning]:
        assert caller.finished(each)["status"] == "COMPLETED"
    for url in turning * 30:
        caller.ask(url)
    eventually(lambda: caller.client.get("/health").json()["components"]["callbacks"]["details"]["parked"] > 60)
    during = latencies(caller, healthy, 20, eventually)
    assert max(during) < max(3 * max(before), 1.0)


def test_one_clients_flood_at_a_shared_host_does_not_keep_another_waiting(
    service: Callable[..., Service],
    site: Callable[..., Site],
    reply: type[Reply],
    eventually: Callable[..., Any],
    command: str,
) -> None:
    keys = [made_key(command, name) for name in ("first", "second")]
    caller = service(security__api_keys=[line for _, line in keys], callback__max_connections_per_destination=2)
    shared = site()
    shared.plan("/flood", reply(how="held"))
    caller.sign_in(keys[0][0])
    for _ in range(60):
        caller.ask(shared.url("/flood"))
    eventually(lambda: len(shared.calls) == 2)
    caller.sign_in(keys[1][0])
    asked = caller.ask(shared.url())
    # 60 are held or wait behind those that are held, and the other client's waits too: it is decided and recorded.
    eventually(lambda: caller.client.get("/health").json()["components"]["callbacks"]["details"]["parked"] == 59)
    shared.release("/flood")
    assert caller.finished(asked)["status"] == "COMPLETED"
    order = [call.path for call in list(shared.calls)]
    path = "/" + asked.callback_url.split("/", 3)[3]
    assert order.index(path) <= 6, "the flood went first"


def test_a_line_of_retries_stops_nobody_and_makes_the_room(
    service: Callable[..., Service], site: Callable[..., Site], reply: type[Reply]
) -> None:
    caller = service(callback__max_parked=20, callback__retry_delay_ms=600_000, callback__deadline_ms=700_000)
    failing, other = site(lambda _call: reply(500)), site()
    flood = [caller.ask(failing.url()) for _ in range(60)]
    few = [caller.ask(other.planned(reply(500))) for _ in range(3)]
    for _ in range(10):
        assert caller.finished(caller.ask(other.url()))["status"] == "COMPLETED"
    assert {caller.session(each.request_id)["status"] for each in few} == {"PROCESSING"}
    statuses = [caller.session(each.request_id)["status"] for each in flood]
    assert statuses.count("FAILED") >= 40
    assert "PROCESSING" in statuses
    letters = caller.client.get(LETTERS).json()["items"]
    assert {letter["last_error"] for letter in letters} == {"too_many_waiting"}


def test_what_was_given_up_for_room_was_the_longest_line(
    service: Callable[..., Service], site: Callable[..., Site], reply: type[Reply], eventually: Callable[..., Any]
) -> None:
    """A healthy destination with a few in line is not the one that pays for another's retries."""
    caller = service(
        callback__max_parked=30,
        callback__retry_delay_ms=600_000,
        callback__deadline_ms=700_000,
        callback__max_connections_per_destination=1,
    )
    failing, healthy = site(lambda _call: reply(500)), site()
    url = healthy.planned(reply(how="held"))
    mine = [caller.ask(url) for _ in range(6)]
    eventually(lambda: healthy.calls)
    flood = [caller.ask(failing.url()) for _ in range(80)]
    eventually(lambda: sum(caller.session(each.request_id)["status"] == "FAILED" for each in flood) >= 40)
    healthy.release(url)
    for each in mine:
        assert caller.finished(each)["status"] == "COMPLETED"


def made_key(command: str, name: str) -> tuple[str, str]:
    """An access key of a client, and its line for the settings."""
    arguments = [command, "keys", "create", "--role", "client", "--json"]
    named = subprocess.run([*arguments, "--name", name], capture_output=True, text=True, check=False)
    made = named if named.returncode == 0 else subprocess.run(arguments, capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)
    return found["key"], found["hash"]
