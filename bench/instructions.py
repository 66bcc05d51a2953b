"""The guard: instructions that one delivered callback takes, compared with the figure that is committed.

Usage: instructions.py [--write]. Exits with 1 if a request takes over a tenth more than ``instructions.json`` says;
``--write`` writes that file anew.

The service runs under valgrind's callgrind, which counts the instructions of the whole process in user mode. This is
some fifty times slower than the service is, but hardly depends on what else the machine does. What is compared is the
ratio to the bare application (``bare.py``), counted in the same way, because builds of the interpreter differ. Where
there is no valgrind, it is the processor time beside the floor (``cost.py``). A figure that is too high is measured
once more, and the committed one is the median of three.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console
from rich.table import Table

import cost
import load
from plan import Figures, Plan
from processes import DRIVERS, ENVIRONMENT, configure, new_folder, ready_port

HERE: Final = Path(__file__).parent
COMMITTED: Final = HERE / "instructions.json"
TOLERANCE: Final = 0.1
WRITTEN_OF: Final = 3
REQUESTS: Final = 1_000
WARM: Final = 300
CONNECTIONS: Final = 16
AHEAD: Final = 64
LIMIT_S: Final = 120
STEADY: Final = {**ENVIRONMENT, "PYTHONHASHSEED": "0"}


def missing() -> str:
    """What this machine lacks to count instructions; empty if it lacks nothing."""
    return "" if shutil.which("valgrind") and shutil.which("callgrind_control") else "valgrind is not installed"


@contextmanager
def counted(arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python under callgrind, which does not count yet. Its output goes to ``log`` in the folder."""
    command = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/count"]
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(
            [*command, sys.executable, *arguments],
            cwd=folder,
            env=STEADY,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        process.kill()  # There is nothing to keep, and an orderly end is slow here.
        process.wait()


def control(process: subprocess.Popen[bytes], option: str) -> None:
    """Tell callgrind something, and wait until it is done."""
    words = ["callgrind_control", *option.split(), str(process.pid)]
    subprocess.run(words, check=True, capture_output=True, timeout=LIMIT_S)


async def count(process: subprocess.Popen[bytes], port: int, folder: Path, requests: int, *, delivered: bool) -> float:
    """Instructions for a request. ``delivered``: up to its callback."""
    url = await load.sink()
    source = load.bodies(url, load.tokens(DRIVERS))

    async def send(number: int) -> None:
        await load.exactly(port, source, number, CONNECTIONS, AHEAD if delivered else None)

    await send(WARM)
    control(process, "-i on")
    await send(WARM // 3)
    control(process, "-z")
    await send(requests)
    control(process, "-d")
    return total(folder) / requests


def total(folder: Path) -> int:
    """The number of instructions in callgrind's only dump."""
    [dump] = [path.read_text() for path in folder.glob("count.*")]
    line = next((line for line in dump.splitlines() if line.startswith("totals:")), "")
    if not line:
        raise load.Failed("callgrind wrote no total")
    return int(line.split()[1])


def bare(requests: int) -> float:
    """Instructions of the bare application for a request."""
    with new_folder() as folder, counted([str(HERE.resolve() / "bare.py"), "protocol"], folder) as process:

        async def run() -> float:
            log = folder / "log"
            await load.until(lambda: log.read_text().endswith("\n"), LIMIT_S, "bare.py did not start")
            return await count(process, int(log.read_text()), folder, requests, delivered=False)

        return uvloop.run(run())


def service(requests: int) -> float:
    """Instructions of the embedded default, with everything on, for a delivered callback."""
    with new_folder() as folder:
        configure(folder, {"server.port": 0, "logging.format": "json"})
        with counted(["-m", "chargegate", "serve"], folder) as process:
            port = ready_port("serve", process, folder / "log")
            return uvloop.run(count(process, port, folder, requests, delivered=True))


def measure(plan: Plan) -> Figures:
    """Instructions of both, and their ratio."""
    if reason := missing():
        raise load.Failed(f"{reason}; `make check-speed` compares processor time beside the floor instead")
    requests = REQUESTS // 2 if plan.quick else REQUESTS
    figures = {"service": service(requests), "bare": bare(requests)}
    figures["of_bare"] = figures["service"] / figures["bare"]
    table = Table("instructions", "", title="instructions in user mode", show_header=False)
    table.add_row("a delivered callback", f"{figures['service']:,.0f}")
    table.add_row("a request to the bare application", f"{figures['bare']:,.0f}")
    table.add_row("times", f"{figures['of_bare']:.1f}")
    plan.console.print(table)
    return figures


def verdict(measured: float, committed: float) -> tuple[bool, str]:
    """Whether this figure may stand beside the committed one, and a sentence about it. More is worse."""
    ratio = measured / committed
    line = f"{measured:.1f}, committed {committed:.1f}: {ratio:.3f} of it"
    if ratio > 1 + TOLERANCE:
        return False, f"{line}, over a tenth more"
    if ratio < 1 - TOLERANCE:
        return True, f"{line}, over a tenth less: make it the committed figure with --write"
    return True, line


def main(options: argparse.Namespace) -> bool:
    """Measure and compare, or write. Returns whether the figure may stand."""
    console = Console(stderr=True, width=120)
    plan = Plan(seconds=2, quick=True, engines=[], console=console)
    name = "times the floor's processor time" if missing() else "times the bare application's instructions"

    def found() -> float:
        return float(1 / cost.measure(plan)["of_floor"] if missing() else measure(plan)["of_bare"])

    committed = json.loads(COMMITTED.read_text())
    if options.write:
        value = statistics.median(found() for _ in range(WRITTEN_OF))
        COMMITTED.write_text(json.dumps(committed | {name: round(value, 2)}, indent=1) + "\n")
        return True
    if name not in committed:
        raise load.Failed(f"{COMMITTED.name} has no figure of this kind; --write writes it")
    good, line = verdict(found(), committed[name])
    if not good:  # A very busy machine makes batches smaller, and so a request dearer: never cheaper.
        console.print(f"{line}; measured once more", markup=False, style="dim")
        good, line = verdict(found(), committed[name])
    console.print(f"{name}: {line}", markup=False, style="green" if good else "red")
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the committed figure anew")
    try:
        sys.exit(not main(parser.parse_args()))
    except load.Failed as error:
        sys.exit(str(error))
