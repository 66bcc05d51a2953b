"""How the figures look in a terminal."""

from collections.abc import Mapping
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from chargegate.model import one_line, to_iso
from chargegate.top.figures import Figures

_COLOURS: Final = {"UP": "green", "DEGRADED": "yellow", "DOWN": "red", "AWAY": "red"}
_SEVERITIES: Final = {"critical": "red", "warning": "yellow"}
_BAD: Final = frozenset({"unknown", "dead_letter", "unavailable", "internal_error"})


def view(figures: Figures) -> RenderableType:
    """The sentence on top, then a block for each part of a request's way."""
    colour = _COLOURS.get(figures.status, "")
    head = Text.assemble(
        (f" {figures.status} ", f"bold reverse {colour}"), " ", (_plain(figures.sentence), f"bold {_worst(figures)}")
    )
    where = Text(f"{_plain(figures.url)}  {to_iso(figures.at)}", "dim")
    if figures.status == "AWAY":
        return Group(head, where)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", min_width=9)
    table.add_column(overflow="fold")
    table.add_row("answered a second", _rates(figures.answered_per_second))
    table.add_row("decided a second", _rates(figures.decided_per_second))
    table.add_row("callbacks a second", _rates(figures.callbacks_per_second))
    table.add_row("end to end", _end_to_end(figures))
    table.add_row("queue", _queue(figures))
    table.add_row("circuits", _named({name: state.replace("_", " ") for name, state in figures.circuits.items()}))
    table.add_row("dead letters", _number(figures.dead_letters))
    if figures.anomalies:
        table.add_row("anomalies", _named({name: str(count) for name, count in figures.anomalies.items()}))
    if figures.sink_lag_ms:
        table.add_row("sinks behind", _named({name: _time(ms) for name, ms in figures.sink_lag_ms.items()}))
    others = [Text(f"  {_plain(each.text)}", _SEVERITIES[each.severity]) for each in figures.problems[1:]]
    limits = [Text(_plain(figures.not_known), "dim")] if figures.not_known else []
    return Group(head, *others, where, *limits, Text(), table)


def _worst(figures: Figures) -> str:
    """The colour of the worst of what is wrong."""
    return _SEVERITIES[figures.problems[0].severity] if figures.problems else _COLOURS.get(figures.status, "")


def _rates(rates: Mapping[str, float] | None) -> Text:
    if rates is None:
        return Text("-", "dim")
    parts = [Text(f"{sum(rates.values()):.1f}", "bold")]
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        if rate:
            parts.append(Text(f"{_plain(name).replace('_', ' ')} {rate:.1f}", "red" if name in _BAD else ""))
    return Text("  ").join(parts)


def _end_to_end(figures: Figures) -> Text:
    found = figures.end_to_end_ms
    if found is None:
        return Text("-", "dim")
    of = "since its start" if found.since_start else "just now"
    return Text.assemble(
        f"p50 {_time(found.p50)}  p95 {_time(found.p95)}  p99 {_time(found.p99)}",
        (f"  of {found.count} callback{'' if found.count == 1 else 's'} {of}", "dim"),
    )


def _queue(figures: Figures) -> Text:
    if figures.queue_depth is None:
        return Text("-", "dim")
    waiting = Text(f"{figures.queue_depth} waiting")
    if figures.queue_depth and figures.queue_oldest_age_ms is not None:
        waiting += Text(f", the oldest for {_time(figures.queue_oldest_age_ms)}")
    return waiting + Text(f", {_number(figures.in_flight)} in flight")


def _named(values: Mapping[str, str]) -> Text:
    parts = [Text(f"{_plain(name)} {value}", "red" if value == "open" else "") for name, value in values.items()]
    return Text("  ").join(parts) if parts else Text("-", "dim")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _time(ms: int) -> str:
    return f"{ms} ms" if ms < 10_000 else f"{ms / 1000:.0f} s"


def _plain(text: str) -> str:
    """What another machine said must not move the cursor."""
    return "".join(character if character.isprintable() else " " for character in one_line(text))
