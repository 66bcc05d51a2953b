"""The table of the benchmark: one function measures each entry, prints its table and returns its figures."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import cost
import engines
import growth
import instructions
import isolation
import latency
import peers
import sinks
from load import Failed
from plan import Figures, Plan


class Entry(NamedTuple):
    """``quick``: whether ``--quick`` measures it. ``minutes``: about how long it takes in a whole run."""

    measure: Callable[[Plan], Figures]
    minutes: float
    quick: bool = False


def measure_sinks(plan: Plan) -> Figures:
    """The audit's sinks, one by one and together."""
    audit = sinks.Sinks(plan.seconds, plan.console)
    audit.run()
    audit.show()
    if audit.failed:
        raise Failed("not all of the audit's sinks could be measured")
    return dict(audit.figures)


def measure_audit(plan: Plan) -> Figures:
    """The audit's queries with few and with very many decisions, in a process of their own."""
    largest = "1000000" if plan.quick else "10000000"
    command = [sys.executable, str(Path(__file__).with_name("audit.py")), "--rows", "10000", largest]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=AUDIT_LIMIT_S, check=False)
    if done.returncode:
        raise Failed("audit.py failed; its error is above")
    return dict(json.loads(done.stdout))


AUDIT_LIMIT_S: Final = 1_800

ENTRIES: Final = {
    "cost": Entry(cost.measure, 1, quick=True),
    "latency": Entry(latency.measure, 4, quick=True),
    "growth": Entry(growth.measure, 3),
    "isolation": Entry(isolation.measure, 1, quick=True),
    "instructions": Entry(instructions.measure, 1, quick=True),
    "peer": Entry(peers.measure, 1, quick=True),
    "engines": Entry(engines.measure_engines, 5),
    "workers": Entry(engines.measure_workers, 2),
    "sinks": Entry(measure_sinks, 3),
    "audit": Entry(measure_audit, 10),
}
