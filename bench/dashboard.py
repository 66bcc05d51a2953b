"""The dashboard's data with very many decisions, while requests come in, and what an open dashboard costs a request.

The service runs on a database with few decisions and on one with many, in turns, under the same steady load. Its
routes are asked one after the other, as the pages ask them. The cost is the service's processor time for a delivered
callback while the overview is asked every two seconds, as a page that is open does, in proportion to the same service's
in the seconds before and after.
"""

import http.client
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

import load
from chargegate.ledger.counts import DAY_MS
from chargegate.model import Reason, to_iso
from decisions import BUSY, DAYS, RARE_CLIENT, SECRETS, Filled
from processes import ENVIRONMENT, configure, new_folder, ready_port, stop

HERE: Final = Path(__file__).resolve().parent
RATES: Final = {"sqlite": 1_000, "postgres": 300}
"""Requests a second. With PostgreSQL the server shares the machine with the service and the load."""

WARM_S: Final = 3.0
WINDOW_S: Final = 4.0
EVERY_S: Final = 2.0
LIMIT_MS: Final = 100

Figures = dict[str, Any]


def routes(filled: Filled) -> dict[str, Iterator[str]]:
    """What each page asks for. The stations' totals are remembered for a while, so that each asks for other hours."""
    middle = to_iso(filled.end - DAYS // 2 * DAY_MS)
    decisions = "/api/v1/decisions?limit=50&"
    fixed = {
        "overview": "/api/v1/overview",
        "requests, newest": decisions,
        "requests until a time": f"{decisions}to={middle}",
        "requests of a station": f"{decisions}station_id={BUSY}",
        "requests of a station with a status": f"{decisions}station_id={BUSY}&status=unknown",
        "requests with a status": f"{decisions}status=unknown",
        "requests with a rare reason": f"{decisions}reason={Reason.CIRCUIT_OPEN}",
        "requests of a client with few": f"{decisions}client={RARE_CLIENT}",
        "requests of a client with many, with a reason": f"{decisions}client=usual&reason={Reason.TIMEOUT}",
        "anomalies": "/api/v1/anomalies?limit=50",
        "dead letters": "/api/v1/dead-letters?limit=50",
    }
    top = "/api/v1/statistics/busiest-stations?limit=20&by"
    return {
        **{name: itertools.repeat(path) for name, path in fixed.items()},
        "stations, about a day": (f"{top}=total&hours={hours}" for hours in itertools.cycle(range(20, 29))),
        "stations, about a week": (f"{top}=error_rate&hours={hours}" for hours in itertools.cycle(range(160, 169))),
    }


class Asking:
    """One connection, as a browser keeps it."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, path: str) -> Any:
        """The answer, parsed. Raises ``Failed``."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise load.Failed(f"{path}: {answer.status} {body[:300]!r}")
        return json.loads(body)

    def close(self) -> None:
        self._connection.close()


class Loaded:
    """A service on a filled database, with requests that come in at a steady rate."""

    def __init__(self, service: subprocess.Popen[bytes], port: int, rate: int) -> None:
        self._service = service
        self.asking = Asking(port)
        self._load = subprocess.Popen(
            [sys.executable, str(HERE / "pair.py"), "--load", str(port), str(rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def delivered(self) -> int:
        """Callbacks until now."""
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        self._load.stdin.write("\n")
        self._load.stdin.flush()
        line = self._load.stdout.readline()
        if not line:
            raise load.Failed("the load ended")
        return int(line)

    def spent(self) -> float:
        """Seconds of the service's processor time until now."""
        tasks = Path(f"/proc/{self._service.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def window(self, *, watched: bool) -> tuple[float, float]:
        """Processor time for a callback (µs) in a few seconds, and callbacks a second; ``watched``: with the overview
        open."""
        spent, done, started = self.spent(), self.delivered(), time.perf_counter()
        looked = started
        while (left := started + WINDOW_S - time.perf_counter()) > 0:
            if watched and time.perf_counter() >= looked:
                self.asking.ask("/api/v1/overview")
                looked += EVERY_S
            time.sleep(min(left, 0.05))
        count = self.delivered() - done
        if not count:
            raise load.Failed("no callback comes")
        return (self.spent() - spent) / count * 1e6, count / (time.perf_counter() - started)

    def close(self) -> None:
        """End the load first, so that the service has nothing to drain."""
        self.asking.close()
        self._load.kill()
        self._load.wait()
        stop(self._service)


@contextmanager
def loaded(filled: Filled, rate: int) -> Iterator[Loaded]:
    """The service runs on the database itself, which gets the new requests too."""
    with new_folder() as folder:
        settings: dict[str, Any] = {
            "server.port": 0,
            "logging.format": "json",
            "server.shutdown_grace_ms": 2000,
            **SECRETS,
        }
        if filled.kind == "sqlite":
            settings["data_dir"] = str(filled.folder)
        else:
            settings |= {"queue.url": filled.url, "database.url": filled.url}
        configure(folder, settings)
        with (folder / "log").open("wb") as out:
            service = subprocess.Popen(
                [sys.executable, "-m", "chargegate", "serve"],
                cwd=folder,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            running = Loaded(service, ready_port("serve", service, folder / "log"), rate)
        except BaseException:
            stop(service)
            raise
        try:
            time.sleep(WARM_S)
            yield running
        except load.Failed as error:
            log = (folder / "log").read_text(errors="replace")
            raise load.Failed(f"{error}\n{log[-1500:]}") from None
        finally:
            running.close()


def measure_routes(filled: Filled, rate: int, seconds: float) -> dict[str, list[float]]:
    """How long each route took (ms), asked in turns."""
    times: dict[str, list[float]] = {}
    with loaded(filled, rate) as running:
        paths = routes(filled)
        one = running.asking.ask(f"/api/v1/decisions?limit=1&to={to_iso(filled.end - DAY_MS)}")["items"][0]
        paths["one request"] = itertools.repeat(f"/api/v1/charging-session/{one['request_id']}")
        for path in paths.values():  # the first answers only fill caches
            running.asking.ask(next(path))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for name, path in paths.items():
                started = time.perf_counter()
                running.asking.ask(next(path))
                times.setdefault(name, []).append((time.perf_counter() - started) * 1e3)
                time.sleep(0.02)
            time.sleep(1)  # an overview is kept for a second
    return times


def measure_cost(filled: Filled, rate: int, windows: int) -> Figures:
    """The cost of a request with the overview open and closed, in windows that take turns."""
    ratios, closed, rates = [], [], []
    with loaded(filled, rate) as running:
        before, _ = running.window(watched=False)
        for _ in range(windows):
            watched, per_second = running.window(watched=True)
            after, _ = running.window(watched=False)
            ratios.append(watched / ((before + after) / 2))
            closed.append(after)
            rates.append(per_second)
            before = after
    return {
        "us": statistics.median(closed),
        "requests_per_second": statistics.median(rates),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


class Dashboard:
    """One run. ``failed``: some figures are missing."""

    def __init__(self, seconds: float, sizes: list[int], console: Console) -> None:
        self.seconds = seconds
        self.sizes = sizes
        self.console = console
        self.figures: dict[str, Figures] = {}
        self.failed = False

    def run(self, kinds: list[str], filled: Mapping[tuple[str, int], Filled]) -> None:
        """Measure on each kind of database."""
        for kind in kinds:
            try:
                self._measure(kind, [filled[kind, rows] for rows in self.sizes])
            except (load.Failed, OSError, http.client.HTTPException) as error:
                self.failed = True
                self.console.print(f"dashboard, {kind}: {error}", style="red", markup=False)

    def _measure(self, kind: str, pair: list[Filled]) -> None:
        rate = RATES[kind]
        times: list[dict[str, list[float]]] = [{}, {}]
        for turn in (0, 1, 1, 0):
            for name, found in measure_routes(pair[turn], rate, self.seconds).items():
                times[turn].setdefault(name, []).extend(found)
        self.figures[kind] = {
            name: {
                "small_ms": statistics.median(small),
                "large_ms": statistics.median(large),
                "large_p95_ms": sorted(large)[len(large) * 95 // 100],
                "ratio": statistics.median(large) / statistics.median(small),
            }
            for name, small, large in ((name, times[0][name], times[1][name]) for name in times[0])
        }
        cost = measure_cost(pair[1], rate, max(3, int(self.seconds)))
        self._show(kind, rate, cost)
        self.figures[kind]["cost of a request"] = cost

    def _show(self, kind: str, rate: int, cost: Figures) -> None:
        small, large = (f"{rows:,}" for rows in self.sizes)
        title = f"{kind}: the dashboard's data, with {rate:,} requests a second coming in"
        table = Table("route, ms", small, large, f"p95, {large}", "ratio", title=title)
        for name, each in self.figures[kind].items():
            cells = (f"{each[key]:.1f}" for key in ("small_ms", "large_ms", "large_p95_ms"))
            table.add_row(name, *cells, f"{each['ratio']:.2f}")
        table.caption = (
            f"A request costs {cost['us']:.0f} µs, with the overview open {cost['ratio']:.3f} times as much"
            f" ({cost['lowest']:.3f} to {cost['highest']:.3f}), at {cost['requests_per_second']:.0f} a second."
        )
        self.console.print(table)
