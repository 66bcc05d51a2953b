"""The table of the benchmark: one function measures each entry, prints its table and returns its figures."""

from collections.abc import Callable
from typing import Final, NamedTuple

import audit
import chain
import cost
import dashboard
import decisions
import engines
import growth
import instructions
import isolation
import latency
import peers
import sinks
from chargegate.observe import configure_logging
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


def measure_decisions(plan: Plan) -> Figures:
    """The dashboard and the audit's queries with few and with very many decisions, in the same databases."""
    sizes = [10_000, 1_000_000 if plan.quick else 10_000_000]
    pages = dashboard.Dashboard(plan.seconds, sizes, plan.console)
    queries = audit.Audit(list(decisions.KINDS), sizes, plan.console)
    configure_logging("error")
    with decisions.databases(decisions.KINDS, sizes, None, plan.console) as filled:
        pages.run(list(decisions.KINDS), filled)
        queries.run(filled, drop=True)
    if pages.failed:
        raise Failed("not all of the dashboard could be measured")
    return {"dashboard": pages.figures, "audit": queries.figures}


def measure_chains(plan: Plan) -> Figures:
    """The audit's hash chains."""
    chains = chain.Chains(100_000 if plan.quick else 1_000_000, plan.console)
    chains.run(decisions.KINDS)
    if chains.failed:
        raise Failed("not all of the chains could be measured")
    return dict(chains.figures)


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
    "chain": Entry(measure_chains, 3),
    "decisions": Entry(measure_decisions, 20),
}
