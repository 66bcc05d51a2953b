"""The demo itself: every case of the main job, and a crash."""

import asyncio
import base64
import http.client
import json
import os
import secrets
import signal
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from chargegate.demo.checks import Check, check_scene, check_secrecy, read_audit
from chargegate.demo.instance import DemoError, Instance
from chargegate.demo.screen import Screen
from chargegate.demo.story import Scene, Sent, new_requests
from chargegate.demo.wire import Call, Server, send
from chargegate.model import Reason, RequestStatus, Status

_TIME_LIMIT_MS = 2000
_AT_ONCE = 4
_REQUESTS = 12
_PATIENCE_S = 20
_WHOLE_S = 55


async def run() -> bool:
    """Play and check; False if anything was not as promised. Raises ``DemoError`` if it cannot be played to its end."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os.kill, os.getpid(), signal.SIGINT)
    try:
        async with asyncio.timeout(_WHOLE_S):
            return await Play(Console(highlight=False)).run()
    except TimeoutError:
        raise DemoError(f"the demo was not over after {_WHOLE_S} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise DemoError(f"the service does not answer ({type(error).__name__})") from None


class Play:
    """One run. All that it starts and writes is gone when ``run`` ends, however it ends."""

    def __init__(self, console: Console) -> None:
        self._slow = Scene(
            "silent authorizer",
            f"unknown, after {_TIME_LIMIT_MS} ms (the default would be 30000)",
            Status.UNKNOWN,
            Reason.TIMEOUT,
            RequestStatus.TIMEOUT,
            external=True,
        )
        self._cases = [
            Scene("listed driver", "allowed", Status.ALLOWED),
            Scene("unlisted driver", "not_allowed", Status.NOT_ALLOWED, Reason.NOT_IN_ACL, listed=False),
            Scene("callback fails twice", "delivered at the third attempt", Status.ALLOWED, fail_first=2),
            Scene("sent twice, one key", "one request, one decision, one callback", Status.ALLOWED, times_sent=2),
            Scene("authorizer says invalid", "passed on as invalid", Status.INVALID, None, external=True),
            self._slow,
        ]
        self._crash = Scene(
            f"kill -9, {_REQUESTS} accepted",
            "each decided once and called back",
            Status.ALLOWED,
            requests=new_requests(_REQUESTS),
        )
        self._scenes = [*self._cases, self._crash]
        self._screen = Screen(console, self._scenes)
        self._by_path: dict[str, Sent] = {}
        self._fail_first: dict[str, int] = {}
        self._silent = False
        self._never = asyncio.Event()
        self._stray_calls = 0
        self._at_crash = (0, 0)

    async def run(self) -> bool:
        """Play, then check."""
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chargegate-demo-")))
            receiver = await stack.enter_async_context(Server(self._receive))
            authorizer = await stack.enter_async_context(Server(self._authorize))
            signing_key = secrets.token_bytes(32)
            callback = (
                'callback.allowed_networks = ["127.0.0.0/8"]\n'
                f'callback.signing_secrets = ["whsec_{base64.b64encode(signing_key).decode()}"]\n'
            )
            self._embedded = Instance(folder / "embedded", f"{callback}queue.consumer_concurrency = {_AT_ONCE}\n")
            self._asking = Instance(
                folder / "asking",
                f'{callback}authorization = {{ backend = "http", url = "{authorizer.url}",'
                f" timeout_ms = {_TIME_LIMIT_MS} }}\n",
            )
            for service in (self._embedded, self._asking):
                stack.push_async_callback(service.kill)
            with self._screen:
                await self._play_cases(receiver.url)
                await self._play_crash(receiver.url)
            checks = await self._check(folder, signing_key)
            self._screen.verdict(checks)
            return not any(check.faults for check in checks)

    async def _play_cases(self, receiver: str) -> None:
        say = self._screen.say
        await asyncio.gather(self._embedded.start(), self._asking.start())
        say(f"{self._embedded.url}  chargegate on SQLite, {_AT_ONCE} at a time")
        say(f"{self._asking.url}  chargegate, asking an authorizer")
        say(f"{receiver}  receiver of callbacks")
        await asyncio.gather(*(self._send(scene, receiver) for scene in self._cases))
        await self._until(lambda: all(scene.done for scene in self._cases))

    async def _play_crash(self, receiver: str) -> None:
        scene, say = self._crash, self._screen.say
        self._silent = True
        await self._send(scene, receiver)
        await self._until(lambda: sum(len(sent.callbacks) for sent in scene.requests) >= _AT_ONCE)
        await self._look()
        await self._embedded.kill()
        decided = sum(bool(sent.decision) for sent in scene.requests)
        self._at_crash = decided, _REQUESTS - decided
        say(f"kill -9: {decided} decided and being called back, {_REQUESTS - decided} waiting")
        self._silent = False
        await self._embedded.start()
        say("started again on the same files")
        await self._until(lambda: scene.done)

    async def _check(self, folder: Path, signing_key: bytes) -> list[Check]:
        services = (self._embedded, self._asking)
        metrics = [(await send(service.url, "GET", "/metrics")).body for service in services]
        codes = [await service.stop() for service in services]
        audit = read_audit([service.audit_log for service in services])
        decided, waiting = self._at_crash
        return [
            *(check_scene(scene, audit, signing_key) for scene in self._scenes),
            Check(
                f"kill -9 hit {decided} callbacks under way and {waiting} requests not decided yet",
                [] if decided and waiting else ["it should have found some of both"],
            ),
            Check(
                "every callback went where it was asked to",
                [f"{self._stray_calls} went elsewhere"] if self._stray_calls else [],
            ),
            Check("SIGTERM ended both services with exit code 0", [f"exit codes {codes}"] if any(codes) else []),
            check_secrecy(folder, self._scenes, metrics),
        ]

    async def _send(self, scene: Scene, receiver: str) -> None:
        service = self._asking if scene.external else self._embedded
        if scene.listed and not scene.external:
            entry = {"driver_token": scene.requests[0].driver_token, "note": scene.title}
            answer = await send(service.url, "PUT", "/api/v1/acl", entry)
            if answer.status // 100 != 2:
                raise DemoError(f"the access list answered {answer.status} to a new entry")
        for sent in scene.requests:
            self._by_path[sent.path] = sent
            self._fail_first[sent.path] = scene.fail_first
            body = {
                "station_id": sent.station_id,
                "driver_token": sent.driver_token,
                "callback_url": receiver + sent.path,
            }
            headers = {"idempotency-key": secrets.token_hex(8)}
            for _ in range(scene.times_sent):
                sent.answers.append(await send(service.url, "POST", "/api/v1/charging-session", body, headers))
        self._screen.update()

    async def _until(self, over: Callable[[], bool]) -> None:
        """Look at every request until it is over. What is missing after ``_PATIENCE_S`` is for the checks to name."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + _PATIENCE_S
        while True:
            await self._look()
            if over() or clock() > deadline:
                return
            await asyncio.sleep(0.05)

    async def _look(self) -> None:
        for scene in self._scenes:
            service = self._asking if scene.external else self._embedded
            for sent in scene.requests:
                if sent.request_id and not sent.done:
                    answer = await send(service.url, "GET", f"/api/v1/charging-session/{sent.request_id}")
                    if answer.status == 200:
                        sent.see(answer.json())
        self._screen.update()

    async def _receive(self, call: Call) -> tuple[int, bytes]:
        sent = self._by_path.get(call.path)
        if sent is None:
            self._stray_calls += 1
            return 404, b""
        number = len(sent.callbacks)
        sent.callbacks.append((call, None))
        if self._silent:
            await self._never.wait()
        status = 500 if number < self._fail_first[call.path] else 200
        sent.callbacks[number] = call, status
        return status, b""

    async def _authorize(self, call: Call) -> tuple[int, bytes]:
        """The external authorizer: it never answers about one driver, and knows no other."""
        if json.loads(call.body)["driver_token"] == self._slow.requests[0].driver_token:
            await self._never.wait()
        return 200, json.dumps({"status": Status.INVALID}).encode()
