"""The audit's sinks: decisions a second and the service's processor time, with each of them and with all of them.

The ratio is that of the processor time to that with the CSV file alone, measured just before and just after, because
the speed of the machine may change. Each figure is a median.
"""

import statistics
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.table import Table

import load
from engines import measuring, running
from plan import Figures
from servers import influxdb  # type: ignore[import-not-found]  # engines.py makes it found

DATABASE: Final = "audit"
ALONE: Final = "one file"
ROUNDS: Final = 3


class Sinks:
    """One run. ``failed``: some figures are missing."""

    def __init__(self, seconds: float, console: Console) -> None:
        self.seconds = seconds
        self.console = console
        self.figures: dict[str, Figures] = {}
        self.failed = False

    def run(self) -> None:
        """Measure each set-up several times."""
        try:
            with running(influxdb.Influxdb) as server:
                influxdb.query(server.url, f"CREATE DATABASE {DATABASE}")
                self._measure(server.url)
        except load.Failed as error:
            self.failed = True
            self.console.print(f"sinks: {error}", style="red", markup=False)

    def _measure(self, url: str) -> None:
        influx = {"audit.influx_url": url, "audit.influx_database": DATABASE}
        setups: dict[str, dict[str, Any]] = {
            "ten shards": {"audit.csv_shards": 10},
            "InfluxDB": {"audit.csv_path": "", **influx},
            "one file and InfluxDB": influx,
            "ten shards and InfluxDB": {"audit.csv_shards": 10, **influx},
        }
        rounds: dict[str, list[Figures]] = {name: [] for name in (ALONE, *setups)}
        for _ in range(ROUNDS):
            rounds[ALONE].append(self._once({}))
            for name, settings in setups.items():
                measured = self._once(settings)
                rounds[ALONE].append(self._once({}))
                alone = statistics.mean(each["serve_us"] for each in rounds[ALONE][-2:])
                rounds[name].append({**measured, "ratio": measured["serve_us"] / alone})
        for name, measures in rounds.items():
            self.figures[name] = {key: statistics.median(each[key] for each in measures) for key in measures[0]}

    def _once(self, settings: dict[str, Any]) -> Figures:
        with measuring(["serve"], settings, self.seconds, {}) as measured:
            return uvloop.run(measured.only_throughput())

    def show(self) -> None:
        """Print the table."""
        if not self.figures:
            return
        table = Table("sinks", "decisions/s", "processor time", "of one file's", title="the audit's sinks")
        for name, figures in self.figures.items():
            rate, spent = f"{figures['requests_per_second']:,.0f}", f"{figures['serve_us']:.0f} µs"
            table.add_row(name, rate, spent, f"{figures.get('ratio', 1):.2f}")
        self.console.print(table)
