"""`chargegate demo` as a user runs it, and proof that its checks can fail."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from chargegate.demo.cases import Case, Sent, new_requests
from chargegate.demo.checks import check_case, check_secrecy
from chargegate.demo.wire import Answer, Call
from chargegate.model import ACCEPTED_MESSAGE, RequestStatus, Status

Start = Callable[..., subprocess.Popen[str]]
pytestmark = pytest.mark.true_start  # the demo starts the service as anyone does, and so do these the demo


def services(folder: Path) -> list[str]:
    """The processes whose working directory is below this folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if folder in link.readlink().parents:
                found.append(link.parent.name)
        except OSError:
            continue
    return found


def test_everything_comes_out_right_and_nothing_stays(start: Start, folder: Path) -> None:
    process = start("demo", env=os.environ | {"TMPDIR": str(folder)})
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, ""), out + err
    assert "✗" not in out
    assert out.count("✓") == 11
    assert "checks passed" in out.splitlines()[-1]
    assert list(folder.iterdir()) == []
    assert services(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_in_the_middle_leaves_nothing(start: Start, folder: Path, number: signal.Signals) -> None:
    process = start("demo", env=os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}, stderr=subprocess.STDOUT)
    first = process.stdout.readline()
    running = services(folder)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert "http://127.0.0.1:" in first
    assert len(running) == 2
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert list(folder.iterdir()) == []
    assert services(folder) == []


REQUEST_ID = "018d5c1e-7f00-7000-8000-000000000001"


@pytest.fixture
def case() -> Case:
    """A case in which all is right except the signature."""
    case = Case("a case", "allowed", Status.ALLOWED, requests=new_requests())
    sent = case.requests[0]
    body = f'{{"status":"accepted","message":"{ACCEPTED_MESSAGE}","request_id":"{REQUEST_ID}","timestamp":1}}'
    sent.answers.append(Answer(202, body.encode(), 1))
    sent.update({"status": "COMPLETED", "decision": {"status": "allowed", "reason": ""}})
    payload = f'{{"station_id":"{sent.station_id}","driver_token":"{sent.driver_token}","status":"allowed"}}'
    headers = {"content-type": "application/json", "webhook-id": REQUEST_ID, "webhook-timestamp": "1"}
    sent.callbacks.append((Call(sent.path, headers, payload.encode()), 200))
    return case


def faults(case: Case, lines: list[dict[str, str]] | None = None) -> list[str]:
    sent = case.requests[0]
    right = [{"station_id": sent.station_id, "status": "allowed"}]
    found = check_case(case, {REQUEST_ID: right if lines is None else lines}, b"key").faults
    assert found[-1:] == ["a callback's signature was not right"] or lines is not None or not sent.callbacks
    return [fault for fault in found if "signature" not in fault]


def test_what_is_right_passes(case: Case) -> None:
    assert faults(case) == []


@pytest.mark.parametrize("lines", [[], [{"station_id": "x", "status": "allowed"}]])
def test_a_missing_or_wrong_audit_line_is_found(case: Case, lines: list[dict[str, str]]) -> None:
    assert len(faults(case, lines)) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sent: sent.answers.append(sent.answers[0]),
        lambda sent: sent.answers.__setitem__(0, Answer(202, b'{"request_id":"%s"}' % REQUEST_ID.encode(), 1)),
        lambda sent: setattr(sent, "decision", "not_allowed"),
        lambda sent: setattr(sent, "reason", "token_blocked"),
        lambda sent: setattr(sent, "status", RequestStatus.FAILED),
        lambda sent: sent.callbacks.clear(),
        lambda sent: sent.callbacks.append(sent.callbacks[0]),
        lambda sent: setattr(sent, "driver_token", "another"),
        lambda sent: sent.callbacks[0][0].headers.pop("webhook-id"),
        lambda sent: sent.callbacks[0][0].headers.pop("content-type"),
    ],
)
def test_a_fault_is_found(case: Case, spoil: Callable[[Sent], object]) -> None:
    spoil(case.requests[0])
    assert len(faults(case)) == 1


@pytest.mark.parametrize("part", ["driver_token", "path"])
def test_a_leak_is_found(case: Case, folder: Path, part: str) -> None:
    (folder / "deep").mkdir()
    leak = folder / "deep" / "service.log"
    leak.write_text("harmless")
    assert not check_secrecy(folder, [case], [b"metric 1"]).faults
    assert check_secrecy(folder, [case], [getattr(case.requests[0], part).encode()]).faults
    leak.write_text(f"this is {getattr(case.requests[0], part)}!")
    assert check_secrecy(folder, [case], []).faults == ["service.log holds one"]
