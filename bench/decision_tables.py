"""The tables of docs/audit.md and docs/dashboard.md about databases with very many decisions."""

from collections.abc import Mapping
from typing import Any, Final

DATABASES: Final = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
SIZES: Final = ("10⁴", "10⁷")

Figures = Mapping[str, Any]
Rows = list[list[str]]


def heads(first: str, *columns: str) -> list[str]:
    """A head of a table with the same columns for each database."""
    return [first, *[f"{title} {column}" for title in DATABASES.values() for column in columns]]


def query_rows(found: Figures) -> Rows:
    """The audit's queries: their medians in ms in the small and in the large database, and the ratio. In brackets: how
    many rows were found, where the small database has fewer."""
    rows = []
    for name in found["sqlite"]:
        each = [found[kind][name] for kind in DATABASES]
        if "large" not in each[0]:
            continue
        few, many = each[0]["found"]
        row = [name if few == many else f"{name} ({few} and {many} found)"]
        for figures in each:
            row += [f"{figures['small']:.2f}", f"{figures['large']:.2f}", f"{figures['ratio']:.2f}"]
        rows.append(row)
    return rows


def grown_most(found: Figures) -> float:
    """The largest ratio of a query that finds as many rows in both databases."""
    return max(
        float(query["ratio"])
        for queries in found.values()
        for query in queries.values()
        if "large" in query and len(set(query["found"])) == 1
    )


def dropping_rows(found: Figures) -> Rows:
    """How long recording a decision took before old months were dropped, and meanwhile."""
    rows = []
    for kind, title in DATABASES.items():
        figures = found[kind]["dropping old months"]
        calm, beside = (
            [f"{figures[f'{when}_{which}_ms']:.1f}" for which in ("p50", "p99", "longest")]
            for when in ("calm", "dropping")
        )
        dropped = f"{figures['rows']:,} rows" if figures["rows"] else "all"
        rows.append([title, " / ".join(calm), " / ".join(beside), f"{dropped} in {figures['seconds']:.1f} s"])
    return rows


def page_rows(found: Figures) -> Rows:
    """What the dashboard's pages ask for: medians in ms, in brackets the 95th percentile with many decisions."""
    rows = []
    for name in found["sqlite"]:
        row = [name]
        for figures in (found[kind][name] for kind in DATABASES):
            if "large_ms" not in figures:
                break
            large = f"{figures['large_ms']:.1f} ({figures['large_p95_ms']:.0f})"
            row += [f"{figures['small_ms']:.1f}", large, f"{figures['ratio']:.2f}"]
        else:
            rows.append(row)
    cost = [
        f"{each['ratio']:.2f} ({each['lowest']:.2f} to {each['highest']:.2f})"
        for each in (found[kind]["cost of a request"] for kind in DATABASES)
    ]
    return [*rows, ["cost of a request with the overview open", "", "", cost[0], "", "", cost[1]]]
