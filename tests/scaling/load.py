"""Clients that make requests, and checks of what the service did with them."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NamedTuple, Self

import httpx

from outside import PLAIN, Call, Reply, Site, eventually
from scaling.cluster import PATH

if TYPE_CHECKING:
    from collections.abc import Collection

    from scaling.cluster import Cluster

SECRET = "SecretPart.1"  # the start of every token; its length is a multiple of three, as ``leaks`` demands
MESSAGE = "Request is being processed asynchronously. The result will be sent to the provided callback URL."


class Accepted(NamedTuple):
    """A request that was answered with 202. ``at`` is the time of sending, in seconds of the monotonic clock."""

    at: float
    api: str
    body: dict[str, str]

    @property
    def flaky(self) -> bool:
        return "/flaky/" in self.body["callback_url"]


class Refused(NamedTuple):
    at: float
    api: str
    status: int
    code: str


def new_receiver() -> Site:
    """Answers callbacks with 200, and the first one at a path with ``flaky`` in it with 500."""
    seen: set[str] = set()

    def received(call: Call) -> Reply:
        again = call.path in seen
        seen.add(call.path)
        return Reply(200 if again or "/flaky/" not in call.path else 500)

    return Site(received)


class Load:
    """Clients that use all ``apis`` in turn, at a steady rate. Used by ``with``, which stops them at its end.

    The rate is low, because it goes on while a test waits for processes or servers, and slows down their start.
    A client without an answer does not know what became of its request, and does not send it again.
    """

    def __init__(self, cluster: Cluster, receiver: Site, *, per_second: float = 40, flaky: float = 0.1) -> None:
        self.accepted: dict[str, Accepted] = {}
        self.refused: list[Refused] = []
        self.broken = 0
        self.slowest_s = 0.0
        self._cluster = cluster
        self._receiver = receiver
        self._base = f"/{uuid.uuid4().hex}"
        self._flaky = flaky
        self._clients = 4
        self._pause_s = self._clients / per_second
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._faults: list[BaseException] = []
        self._told: dict[str, list[Call]] = defaultdict(list)
        self._read = 0

    def __enter__(self) -> Self:
        self._ended.clear()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self._clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        assert not self._faults, self._faults

    def _client(self, turn: int) -> None:
        try:
            with httpx.Client(verify=PLAIN, trust_env=False, timeout=15) as client:
                while not self._ended.wait(self._pause_s):
                    turn += 1
                    apis = self._cluster.apis
                    self.ask(client, apis[turn % len(apis)].url)
        except BaseException as fault:  # noqa: BLE001 - __exit__ reports it
            self._faults.append(fault)

    def new_body(self) -> dict[str, str]:
        kind = "flaky" if random.random() < self._flaky else "good"
        return {
            "station_id": str(uuid.uuid4()),
            "driver_token": f"{SECRET}-{uuid.uuid4().hex}",
            "callback_url": self._receiver.url(f"{self._base}/{kind}/{SECRET}/{uuid.uuid4().hex}"),
        }

    def ask(self, client: httpx.Client, api: str) -> str:
        """Make one request. Returns its id, or nothing if it was not accepted."""
        body = self.new_body()
        at = time.monotonic()
        try:
            answer = client.post(api + PATH, json=body)
        except httpx.TransportError:
            self.broken += 1
            return ""
        self.slowest_s = max(self.slowest_s, time.monotonic() - at)
        said = answer.json()
        if answer.status_code != 202:
            self.refused.append(Refused(at, api, answer.status_code, said["status"]))
            return ""
        assert (said["status"], said["message"]) == ("accepted", MESSAGE)
        self.accepted[said["request_id"]] = Accepted(at, api, body)
        return str(said["request_id"])

    def told(self) -> dict[str, list[Call]]:
        """The callbacks so far, by request id."""
        calls = self._receiver.calls
        while self._read < len(calls):
            call = calls[self._read]
            self._read += 1
            if call.path.startswith(self._base + "/"):
                self._told[call.headers["webhook-id"]].append(call)
        return self._told

    def delivered(self, request_id: str) -> bool:
        """Whether a callback was received and answered with 200."""
        asked = self.accepted[request_id]
        return len(self.told().get(request_id, ())) > asked.flaky

    def accepted_since(self, at: float) -> dict[str, str]:
        """The ids of the accepted requests that were sent since then, each with the address of its API."""
        return {request_id: asked.api for request_id, asked in list(self.accepted.items()) if asked.at >= at}

    def refused_since(self, at: float) -> list[Refused]:
        return [refused for refused in self.refused[:] if refused.at >= at]

    def more(self, number: int, limit_s: float = 30) -> None:
        """Wait until so many more requests are accepted."""
        enough = len(self.accepted) + number
        eventually(
            lambda: len(self.accepted) >= enough,
            limit_s,
            lambda: f"too few were accepted; refused: {self._refusals()}\n{self._cluster.tails()}",
        )

    def _refusals(self) -> Counter[tuple[int, str]]:
        return Counter((refused.status, refused.code) for refused in self.refused)

    def await_delivered(self, required: Collection[str], limit_s: float) -> None:
        left = set(required)

        def all_told() -> bool:
            left.difference_update([request_id for request_id in left if self.delivered(request_id)])
            return not left

        eventually(all_told, limit_s, lambda: self._lost(left))

    def _lost(self, left: Collection[str]) -> str:
        states = Counter(self._cluster.status(request_id) or "unknown" for request_id in list(left)[:50])
        some = ", ".join(list(left)[:3])
        return f"{len(left)} of {len(self.accepted)} have no callback ({some}): {states}\n{self._cluster.tails()}"

    def check(self, required: Collection[str] | None = None, limit_s: float = 30) -> Counter[str]:
        """Verify that each accepted request (or each of ``required``) ends, with one decision in all its callbacks.

        Returns how often each status was decided.
        """
        required = list(self.accepted) if required is None else required
        assert required, "nothing was accepted"
        self.await_delivered(required, limit_s)
        left = set(required)

        def all_ended() -> bool:
            left.difference_update([each for each in left if self._cluster.status(each) == "COMPLETED"])
            return not left

        eventually(all_ended, limit_s, lambda: "a delivered request came to no end\n" + self._cluster.tails())
        rows = list(self._cluster.decisions())
        decided = {row["request_id"]: row["status"] for row in rows}
        twice = [request_id for request_id, number in Counter(row["request_id"] for row in rows).items() if number > 1]
        assert not twice, f"decided twice: {twice[:3]}"
        undecided = [request_id for request_id in required if request_id not in decided]
        assert not undecided, f"{len(undecided)} without a decision: {undecided[:3]}"
        for request_id, calls in self.told().items():
            assert len({call.json["status"] for call in calls}) == 1, f"{request_id} was called back with two decisions"
            asked = self.accepted.get(request_id)
            if asked is not None and request_id in decided:
                body = {"station_id": asked.body["station_id"], "driver_token": asked.body["driver_token"]}
                said = json.dumps(body | {"status": decided[request_id]}, separators=(",", ":")).encode()
                assert {call.body for call in calls} == {said}, "a callback said something else"
                assert {self._receiver.url(call.path) for call in calls} == {asked.body["callback_url"]}
        return Counter(decided[request_id] for request_id in required)

    def repeats(self) -> tuple[int, int]:
        """How many callbacks repeated one that was answered with 200, and for how many requests callbacks came."""
        told = self.told()
        known = [
            (calls, self.accepted[request_id]) for request_id, calls in told.items() if request_id in self.accepted
        ]
        return sum(max(0, len(calls) - 1 - asked.flaky) for calls, asked in known), len(known)
