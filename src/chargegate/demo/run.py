"""Runs the demo: every kind of request, and a crash."""

import asyncio
import base64
import http.client
import json
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from chargegate.demo.cases import Case, new_requests
from chargegate.demo.checks import Check, check_case, check_secrecy, read_audit
from chargegate.demo.instance import DemoError, Instance
from chargegate.demo.screen import Screen
from chargegate.demo.wire import Call, Server, send
from chargegate.model import Reason, RequestStatus, Status

_TIME_LIMIT_MS = 2000
_AT_ONCE = 4
_REQUESTS = 12
_CASE_LIMIT_S = 20
_WHOLE_LIMIT_S = 55


async def run() -> bool:
    """Run the demo. Returns whether every check passed. Raises ``DemoError`` if the demo cannot end."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os.kill, os.getpid(), signal.SIGINT)
    try:
        async with asyncio.timeout(_WHOLE_LIMIT_S):
            return await _Demo(Console(highlight=False)).run()
    except TimeoutError:
        raise DemoError(f"the demo was not over after {_WHOLE_LIMIT_S} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise DemoError(f"the service does not answer ({type(error).__name__})") from None


class _Demo:
    """One run. Its processes and files are gone when ``run`` ends, also after an error."""

    def __init__(self, console: Console) -> None:
        self._unanswered = Case(
            "silent authorizer",
            f"unknown, after {_TIME_LIMIT_MS} ms (the default would be 30000)",
            Status.UNKNOWN,
            Reason.TIMEOUT,
            RequestStatus.TIMEOUT,
            external=True,
        )
        self._crash = Case(
            f"kill -9, {_REQUESTS} accepted",
            "each decided once and called back",
            Status.ALLOWED,
            requests=new_requests(_REQUESTS),
        )
        self._cases = [
            Case("listed driver", "allowed", Status.ALLOWED),
            Case("unlisted driver", "not_allowed", Status.NOT_ALLOWED, Reason.NOT_IN_ACL, listed=False),
            Case("callback fails twice", "delivered at the third attempt", Status.ALLOWED, fail_first=2),
            Case("sent twice, one key", "one request, one decision, one callback", Status.ALLOWED, times_sent=2),
            Case("authorizer says invalid", "passed on as invalid", Status.INVALID, None, external=True),
            self._unanswered,
            self._crash,
        ]
        self._by_path = {sent.path: (case, sent) for case in self._cases for sent in case.requests}
        self._screen = Screen(console, self._cases)
        self._answer_callbacks = True
        self._never = threading.Event()
        self._stray_calls = 0

    async def run(self) -> bool:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chargegate-demo-")))
            receiver = stack.enter_context(Server(self._receive))
            authorizer = stack.enter_context(Server(self._authorize))
            signing_key = secrets.token_bytes(32)
            callback = (
                'callback.allowed_networks = ["127.0.0.0/8"]\n'
                f'callback.signing_secrets = ["whsec_{base64.b64encode(signing_key).decode()}"]\n'
            )
            self._embedded = Instance(folder / "embedded", f"{callback}queue.consumer_concurrency = {_AT_ONCE}\n")
            self._external = Instance(
                folder / "external",
                f'{callback}authorization = {{ backend = "http", url = "{authorizer.url}",'
                f" timeout_ms = {_TIME_LIMIT_MS} }}\n",
            )
            for service in (self._embedded, self._external):
                stack.push_async_callback(service.end, signal.SIGKILL)
            with self._screen.live():
                await self._run_cases(receiver.url)
                crash = await self._run_crash(receiver.url)
            checks = await self._check(folder, signing_key, crash)
            self._screen.verdict(checks)
            return not any(check.faults for check in checks)

    async def _run_cases(self, receiver: str) -> None:
        say = self._screen.say
        await asyncio.gather(self._embedded.start(), self._external.start())
        say(f"{self._embedded.url}  chargegate on SQLite, {_AT_ONCE} at a time")
        say(f"{self._external.url}  chargegate, asking an authorizer")
        say(f"{receiver}  receiver of callbacks")
        cases = [case for case in self._cases if case is not self._crash]
        await asyncio.gather(*(self._send(case, receiver) for case in cases))
        await self._until(lambda: all(case.done for case in cases))

    async def _run_crash(self, receiver: str) -> Check:
        """Kill the service while callbacks are unanswered and requests are waiting, and start it again."""
        requests = self._crash.requests
        self._answer_callbacks = False
        await self._send(self._crash, receiver)
        await self._until(lambda: sum(len(sent.callbacks) for sent in requests) >= _AT_ONCE)
        await self._look()
        await self._embedded.end(signal.SIGKILL)
        decided = sum(bool(sent.decision) for sent in requests)
        waiting = _REQUESTS - decided
        self._screen.say(f"kill -9: {decided} decided and being called back, {waiting} waiting")
        self._answer_callbacks = True
        await self._embedded.start()
        self._screen.say("started again on the same files")
        await self._until(lambda: self._crash.done)
        return Check(
            f"kill -9 hit {decided} callbacks under way and {waiting} requests not decided yet",
            [] if decided and waiting else ["it should have found some of both"],
        )

    async def _check(self, folder: Path, signing_key: bytes, crash: Check) -> list[Check]:
        services = (self._embedded, self._external)
        metrics = [(await send(service.url, "GET", "/metrics")).body for service in services]
        codes = [await service.end(signal.SIGTERM) for service in services]
        audit = read_audit([service.audit_log for service in services])
        stray = [f"{self._stray_calls} went elsewhere"] if self._stray_calls else []
        return [
            *(check_case(case, audit, signing_key) for case in self._cases),
            crash,
            Check("every callback went where it was asked to", stray),
            Check("SIGTERM ended both services with exit code 0", [f"exit codes {codes}"] if any(codes) else []),
            check_secrecy(folder, self._cases, metrics),
        ]

    async def _send(self, case: Case, receiver: str) -> None:
        service = self._service(case)
        if case.listed and not case.external:
            entry = {"driver_token": case.requests[0].driver_token, "note": case.title}
            answer = await send(service.url, "PUT", "/api/v1/acl", entry)
            if answer.status // 100 != 2:
                raise DemoError(f"the access list answered {answer.status} to a new entry")
        for sent in case.requests:
            body = {
                "station_id": sent.station_id,
                "driver_token": sent.driver_token,
                "callback_url": receiver + sent.path,
            }
            headers = {"idempotency-key": secrets.token_hex(8)}
            for _ in range(case.times_sent):
                sent.answers.append(await send(service.url, "POST", "/api/v1/charging-session", body, headers))
        self._screen.update()

    def _service(self, case: Case) -> Instance:
        return self._external if case.external else self._embedded

    async def _until(self, over: Callable[[], bool]) -> None:
        """Watch all requests until it is over, or for ``_CASE_LIMIT_S``: the checks then find what is missing."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + _CASE_LIMIT_S
        while True:
            await self._look()
            if over() or clock() > deadline:
                return
            await asyncio.sleep(0.05)

    async def _look(self) -> None:
        """Ask the service about every request that is not done."""
        for case, sent in self._by_path.values():
            if sent.request_id and not sent.done:
                path = f"/api/v1/charging-session/{sent.request_id}"
                answer = await send(self._service(case).url, "GET", path)
                if answer.status == 200:
                    sent.update(answer.json())
        self._screen.update()

    def _receive(self, call: Call) -> tuple[int, bytes]:
        if call.path not in self._by_path:
            self._stray_calls += 1
            return 404, b""
        case, sent = self._by_path[call.path]
        number = len(sent.callbacks)
        sent.callbacks.append((call, None))
        if not self._answer_callbacks:
            self._never.wait()
        status = 500 if number < case.fail_first else 200
        sent.callbacks[number] = call, status
        return status, b""

    def _authorize(self, call: Call) -> tuple[int, bytes]:
        """The external authorizer. It leaves one driver unanswered, and knows no other driver."""
        if json.loads(call.body)["driver_token"] == self._unanswered.requests[0].driver_token:
            self._never.wait()
        return 200, json.dumps({"status": Status.INVALID}).encode()
