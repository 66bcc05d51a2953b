"""SIGHUP in ``chargegate api`` and ``chargegate worker``: each takes up what it uses, and neither ends."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from outside import eventually
from scaling.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from outside import Site
    from scaling.cluster import Cluster, Process
    from scaling.engines import Engine

pytestmark = pytest.mark.servers

SECRET = "whsec_" + base64.b64encode(bytes(24)).decode()
KEY = "a-key-of-an-administrator-0123456789"
LINE = f"admin:sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
TOKEN = "listed-driver.0123456789"


def reloads(process: Process) -> list[dict[str, Any]]:
    lines = (process.folder / "log").read_text().splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    return [event for event in told if event["event"].startswith(("reloaded", "not reloaded"))]


def reload(process: Process) -> dict[str, Any]:
    before = len(reloads(process))
    process.signal(signal.SIGHUP)
    eventually(lambda: len(reloads(process)) > before, 20, process.tail)
    assert process.running, process.tail()
    return reloads(process)[before]


def add_setting(process: Process, line: str) -> None:
    file = process.folder / "chargegate.toml"
    file.write_text(f"{line}\n{file.read_text()}")


def test_each_role_takes_up_what_it_uses(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], receiver: Site
) -> None:
    with clusters(new_engine("redis").new_queue()) as cluster:
        api, worker = cluster.add("api"), cluster.add("worker")
        cluster.start()
        (worker.folder / "acl.csv").write_text(f"driver_token\n{TOKEN}\n")
        add_setting(worker, f'callback.signing_secrets = ["{SECRET}"]')
        add_setting(worker, 'authorization.acl_file = "acl.csv"')
        assert set(reload(worker)["changed"]) == {"callback.signing_secrets", "authorization.acl_file"}
        with Load(cluster, receiver, flaky=0) as load:
            load.more(20)
        load.check()
        assert all("webhook-signature" in call.headers for call in receiver.calls[-5:])
        assert api.get("/api/v1/acl").json()["items"]
        add_setting(api, f'security.api_keys = ["{LINE}"]')
        assert reload(api)["changed"] == ["security.api_keys"]
        assert api.get("/api/v1/decisions").status_code == 401
        for process in (api, worker):
            process.terminate()
            process.ended()


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_broken_file_ends_no_role(
    clusters: Callable[..., Cluster], new_engine: Callable[[str], Engine], role: str
) -> None:
    with clusters(new_engine("redis").new_queue()) as cluster:
        process = cluster.add(role)  # type: ignore[arg-type]  # pytest knows no literals
        cluster.start()
        add_setting(process, "[server")
        for _ in range(3):
            assert reload(process)["event"].startswith("not reloaded")
        assert process.ready() == 200
        process.terminate()
        process.ended()
