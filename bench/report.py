"""Writes what was measured into the documents: tables between marks in README.md and in docs/, and pictures.

The figures stand in docs/bench.json, and the tables are made from nothing else, so that ``make bench ARGS=--publish``
renews them all. Usage: report.py, to write them again from that file.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import decision_tables
import picture
from engines import LOW_RATE
from plan import Figures

ROOT: Final = Path(__file__).resolve().parent.parent
FIGURES: Final = ROOT / "docs" / "bench.json"
DOCUMENTS: Final = (
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("capacity.md", "audit.md", "dashboard.md")),
)
PICTURES: Final = {
    ROOT / "docs" / "bench-light.svg": picture.LIGHT,
    ROOT / "docs" / "bench-dark.svg": picture.DARK,
}
MARKED: Final = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
QUEUES: Final = {
    "sqlite": "`sqlite`, one process",
    "redis": "`redis://`",
    "postgresql": "`postgresql://`",
    "kafka": "`kafka://`",
    "rabbitmq": "`amqp://`",
}

# The example of docs/capacity.md: the peak of a nation, in requests per second, and its inputs.
DRIVERS: Final = 10_000_000
STATIONS: Final = 500_000
A_DAY: Final = 5_000_000
PEAK: Final = 417
BUSY: Final = 0.5
SECONDS: Final = 0.3
PARTITIONS: Final = 12

Rows = list[list[str]]


def table(head: list[str], rows: Rows) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |".replace("  ", " ") + "\n" for cells in lines)


def pair(figures: Figures, name: str, digits: int = 1) -> str:
    """The median and the 99th percentile of a latency."""
    return f"{figures[f'{name}_p50_ms']:.{digits}f} / {figures[f'{name}_p99_ms']:.{digits}f} ms"


def own_us(figures: Figures) -> float:
    """Processor time of the service's own processes for a request on an engine, in one process or in two."""
    return float(figures["api_us"] + figures["worker_us"] if "api_us" in figures else figures["serve_us"])


def headline(entries: Figures) -> str:
    """The table of the README."""
    cost, peer, latency = entries["cost"], entries["peer"], entries["latency"]
    growth, isolation = entries["growth"], entries["isolation"]
    largest = list(growth)[-1]
    rows = [
        ["**processor time for one delivered callback**", f"**{cost['serve_us']:.0f} µs**"],
        ["the floor: accept and post by bare sockets", f"{cost['floor_us']:.0f} µs, {cost['of_floor']:.2f} of it"],
        [
            "the floor by a bare ASGI application and our HTTP client",
            f"{cost['second_floor_us']:.0f} µs, {cost['of_second_floor']:.2f} of it",
        ],
        ["FastAPI, Celery on Redis, `requests`, PostgreSQL", f"{peer['peer_us']:,.0f} µs, {peer['times']:.0f} times"],
        ["delivered a second, when the core is full", f"{cost['requests_per_second']:,.0f}"],
    ]
    rows += [
        [
            f"202 at {level} % of that, p50 / p99 (a bare application)",
            f"{pair(latency[level], 'answered')} ({pair(latency[level], 'bare')})",
        ]
        for level in ("50", "80")
    ]
    rows += [
        [f"processor time with {int(largest):,} waiting", f"{growth[largest]['ratio']:.2f} of that with 1,000"],
        [
            "p99 of healthy callbacks, half of the traffic to a black hole",
            f"{isolation['p99_ratio']:.2f} of that without",
        ],
    ]
    if "decisions" in entries:
        most = decision_tables.grown_most(entries["decisions"]["audit"])
        rows.append(["the query of the audit that grows most, 10⁷ decisions", f"{most:.1f} of that with 10⁴"])
    return table(["on one core, durable, with audit, signatures and log", ""], rows)


def engines(entries: Figures) -> str:
    """The README's table of the engines."""
    found = {name: entries["engines"][name] for name in QUEUES if name in entries["engines"]}
    rows = [
        ["own processor time for a callback", *[f"{own_us(each):.0f} µs" for each in found.values()]],
        ["its servers'", *[f"{servers_us(each):.0f} µs" if servers_us(each) else "" for each in found.values()]],
        ["delivered a second, all on two cores", *[f"{each['requests_per_second']:,.0f}" for each in found.values()]],
        ["202 at half of that, p50 / p99", *[pair(each, "accepted", 0) for each in found.values()]],
    ]
    return table(["", *[QUEUES[name] for name in found]], rows)


def servers_us(figures: Figures) -> float:
    """Processor time of an engine's servers for a request; 0 if it has none."""
    return picture.servers_us(figures) if "database_us" in figures else 0.0


def costs(entries: Figures) -> str:
    """Processor time on each path, at full load and at a low rate."""
    cost, peer = entries["cost"], entries["peer"]
    rows = [
        ["bare sockets: accept and post", f"{cost['floor_us']:.0f}", "", ""],
        ["a bare ASGI application, and our HTTP client", f"{cost['second_floor_us']:.0f}", "", ""],
        ["the embedded default, alone on a core", f"{cost['serve_us']:.0f}", "", f"{cost['low_serve_us']:.0f}"],
    ]
    for name, title in QUEUES.items():
        if (figures := entries["engines"].get(name)) and name != "sqlite":
            low = {key.removeprefix("low_"): value for key, value in figures.items() if key.startswith("low_")}
            parts = f"{figures['api_us']:.0f} + {figures['worker_us']:.0f}"
            low_parts = f"{low['api_us']:.0f} + {low['worker_us']:.0f} + {servers_us(low):.0f}" if low else ""
            rows.append([f"{title}, `api` + `worker`", parts, f"{servers_us(figures):.0f}", low_parts])
    rows.append(["FastAPI + Celery", f"{peer['peer_us']:,.0f}", f"{peer['peer_servers_us']:,.0f}", ""])
    return table(["µs for one delivered callback", "own processes", "servers", f"at {LOW_RATE}/s, with servers"], rows)


def sinks(entries: Figures) -> str:
    """What each of the audit's copies costs."""
    rows = [
        [
            name,
            f"{found['requests_per_second']:,.0f}",
            f"{found['serve_us']:.0f}",
            f"{found['ratio']:.2f}" if "ratio" in found else "",
        ]
        for name, found in entries["sinks"].items()
    ]
    return table(["copies", "decisions a second", "µs each", "ratio"], rows)


def runs(entries: Figures) -> str:
    """When and how each entry was measured."""
    kinds: dict[str, list[str]] = {}
    for name, run in entries["runs"].items():
        how = f"{run['measured']}, Python {run['python']}, {run['cores']} cores, {run['seconds']:g} s each"
        kinds.setdefault(how + (", `--quick`" if run["quick"] else ""), []).append(f"`{name}`")
    return table(["entries", "measured"], [[", ".join(names), how] for how, names in kinds.items()])


def curve(entries: Figures) -> str:
    """Latency over load."""
    rows = [
        [
            f"{level} %",
            f"{each['rate']:,.0f}",
            *[
                f"{each[f'{name}_p{share}_ms']:.1f}"
                for name in ("answered", "called_back")
                for share in ("50", "99", "999")
            ],
            f"{each['bare_p99_ms']:.1f}",
            f"{each['sent_p99_ms']:.1f}",
        ]
        for level, each in entries["latency"].items()
    ]
    head = ["load", "/s", "202: p50", "p99", "p99.9", "called back: p50", "p99", "p99.9", "bare: p99", "generator: p99"]
    return table(head, rows)


def growth(entries: Figures) -> str:
    """Processor time with more and more waiting."""
    rows = [
        [f"{int(count):,}", f"{each['us']:.0f} µs", f"{each['ratio']:.2f}", f"{each['peak_mib']:.0f} MiB"]
        for count, each in entries["growth"].items()
    ]
    return table(["waiting", "processor time", "of the smallest's", "peak memory"], rows)


def isolation(entries: Figures) -> str:
    """Healthy callbacks without and with a black hole."""
    found = entries["isolation"]
    rows = [
        ["healthy callbacks", pair(found, "alone"), pair(found, "with_hole"), f"{found['p99_ratio']:.2f}"],
        [
            "202",
            pair(found, "alone_answered"),
            pair(found, "with_hole_answered"),
            f"{found['answered_p99_ratio']:.2f}",
        ],
    ]
    return table([f"p50 / p99 at {found['rate']:,.0f}/s", "all healthy", "half to a black hole", "p99 ratio"], rows)


def paths(entries: Figures) -> str:
    """Rates and latencies on each engine."""
    rows = []
    for name, title in QUEUES.items():
        if each := entries["engines"].get(name):
            bare = f"{each['bare_per_second']:,.0f}" if "bare_per_second" in each else ""
            row = [title, f"{each['requests_per_second']:,.0f} /s", f"{each['of_embedded']:.2f}", bare]
            rows.append([*row, pair(each, "accepted"), pair(each, "called_back")])
    return table(["", "rate", "of the default's", "bare, /s", "202, p50 / p99", "called back, p50 / p99"], rows)


def workers(entries: Figures) -> str:
    """Requests per second with more workers."""
    found = entries["workers"]
    counts = list(next(iter(found.values())))
    rows = [
        [concurrency, *[f"{rates[count]:,.0f} ({rates[count] / rates['1']:.2f})" for count in counts]]
        for concurrency, rates in found.items()
    ]
    return table(["`consumer_concurrency`", *[f"{count} worker{'s' * (count != '1')}" for count in counts]], rows)


def nation(entries: Figures) -> str:
    """The sums of the example, by the measured costs."""
    found = {name: entries["engines"][name] for name in ("kafka", "redis")}

    def cores(key: str) -> list[str]:
        return [f"{PEAK * each[key] / BUSY / 1e6:.2f}" for each in found.values()]

    def sums(key: str) -> str:
        return "; ".join(f"{PEAK} · {each[key]:.0f} µs / {BUSY}" for each in found.values())

    flight = f"{PEAK * SECONDS:.0f}"
    rows = [
        ["cores for APIs", *cores("api_us"), sums("api_us")],
        ["cores for workers", *cores("worker_us"), sums("worker_us")],
        ["cores for the queue's server", *cores("queue_us"), sums("queue_us")],
        ["cores for the database's server", *cores("database_us"), sums("database_us")],
        ["requests in flight", flight, flight, f"{PEAK} · {SECONDS} s"],
        ["workers", "2", "2", "one is enough, and one is spare"],
        ["partitions", f"{PARTITIONS}", "", f"twice six workers; about {STATIONS // PARTITIONS:,} stations each"],
        [
            "backlog after an hour without workers",
            f"{PEAK * 3600:,}, 0.3 GB",
            "the same, in memory",
            f"{PEAK} · 3600 · 0.2 kB",
        ],
        [
            "the database grows by",
            "4.5 GB a day, 1.6 TB a year",
            "the same",
            f"{A_DAY:,} · 0.9 kB; the audit is 0.37 kB of that",
        ],
    ]
    return table(["", "`kafka://`", "`redis://`", "calculation"], rows)


def queries(entries: Figures) -> str:
    """The audit's queries with few and with very many decisions."""
    head = decision_tables.heads("ms", *decision_tables.SIZES, "ratio")
    return table(head, decision_tables.query_rows(entries["decisions"]["audit"]))


def dropping(entries: Figures) -> str:
    """What dropping old months costs those who write."""
    head = ["recording a decision, ms: p50 / p99 / longest", "before", "while old months are dropped", "dropped"]
    return table(head, decision_tables.dropping_rows(entries["decisions"]["audit"]))


def pages(entries: Figures) -> str:
    """What the dashboard's pages ask for, with few and with very many decisions."""
    head = decision_tables.heads("ms", *decision_tables.SIZES, "ratio")
    return table(head, decision_tables.page_rows(entries["decisions"]["dashboard"]))


BLOCKS: Final[Mapping[str, Callable[[Figures], str]]] = {
    each.__name__: each
    for each in (
        headline,
        engines,
        runs,
        costs,
        curve,
        growth,
        isolation,
        paths,
        workers,
        nation,
        sinks,
        queries,
        dropping,
        pages,
    )
}


def filled(document: str, entries: Figures) -> str:
    """The document with its tables made anew. A table whose entries were not measured yet stays as it is."""

    def block(match: re.Match[str]) -> str:
        try:
            return match[1] + BLOCKS[match[2]](entries) + match[3]
        except KeyError:
            if match[2] not in BLOCKS:
                raise
            return match[0]

    return MARKED.sub(block, document)


def shown(figures: Figures) -> Figures:
    """What the tables are made from: the entries' figures, and their runs."""
    return {**figures["entries"], "runs": figures["runs"]}


def publish(new: Mapping[str, Any]) -> None:
    """Keep these figures beside those of other entries, and write the documents and the pictures."""
    kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"runs": {}, "entries": {}}
    kept["runs"] |= new["runs"]
    kept["entries"] |= new["entries"]
    FIGURES.write_text(json.dumps(kept, indent=1) + "\n")
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(), shown(kept)))
    for path, colours in PICTURES.items():
        path.write_text(picture.draw(kept["entries"], colours))


if __name__ == "__main__":
    publish({"runs": {}, "entries": {}})
