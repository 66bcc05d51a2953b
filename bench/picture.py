"""Draws the picture of the benchmark as SVG, for light and for dark pages: what a request costs on each path, and
latency over load."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, NamedTuple

from plan import Figures

WIDTH: Final = 880
MARGIN: Final = 20
LABELS: Final = 285
ROW: Final = 26
BAR: Final = 16
CURVE_HEIGHT: Final = 190
FONT: Final = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


class Colours(NamedTuple):
    """Of one kind of page. The background stays the page's."""

    text: str
    faint: str
    grid: str
    own: str
    servers: str
    other: str


LIGHT: Final = Colours("#1f2328", "#59636e", "#d1d9e0", "#0969da", "#8ec5ff", "#bc4c00")
DARK: Final = Colours("#f0f6fc", "#9198a1", "#3d444d", "#4493f8", "#1f4b85", "#f0883e")
NAMES: Final = {
    "redis": "Redis + PostgreSQL",
    "postgresql": "PostgreSQL",
    "kafka": "Kafka + PostgreSQL",
    "rabbitmq": "RabbitMQ + PostgreSQL",
}


class Bar(NamedTuple):
    """``own`` and ``servers`` are processor times in µs."""

    label: str
    own: float
    servers: float = 0
    ours: bool = True


def bars(entries: Figures) -> list[Bar]:
    """What was measured of the cost of a request, from the floor to the peer."""
    found = []
    if headline := entries.get("cost"):
        found.append(Bar("floor: bare accept and bare post", headline["floor_us"], ours=False))
        found.append(Bar("chargegate, one process", headline["serve_us"]))
    for name, title in NAMES.items():
        if figures := entries.get("engines", {}).get(name):
            found.append(Bar(f"chargegate, {title}", figures["api_us"] + figures["worker_us"], servers_us(figures)))
    if peer := entries.get("peer"):
        found.append(Bar("FastAPI, Celery, Redis + PostgreSQL", peer["peer_us"], peer["peer_servers_us"], ours=False))
    return found


def servers_us(figures: Figures) -> float:
    """Processor time of the servers of an engine for a request."""
    return float(figures.get("queue_us", 0) + figures["database_us"])


def text(
    x: float, y: float, words: str, colour: str, *, anchor: str = "start", size: int = 13, bold: bool = False
) -> str:
    """A line of text that ends, begins or is centred at this point."""
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}" font-size="{size}"{weight}>{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, colour: str) -> str:
    """A part of a bar."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{BAR}" fill="{colour}"/>'


def line(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    """A line through these points."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'


def costs(entries: Figures, top: float, colours: Colours) -> tuple[list[str], float]:
    """The bars, and where they end."""
    rows = bars(entries)
    if not rows:
        return [], top
    parts = [
        text(MARGIN, top + 16, "Processor time for one delivered callback, in µs", colours.text, size=15, bold=True)
    ]
    legend = top + 38
    parts += [
        rectangle(MARGIN, legend - 12, BAR, colours.own),
        text(MARGIN + 24, legend, "its own processes", colours.faint),
        rectangle(MARGIN + 160, legend - 12, BAR, colours.servers),
        text(MARGIN + 184, legend, "its servers", colours.faint),
    ]
    room = WIDTH - 2 * MARGIN - LABELS - 100
    scale = room / max(bar.own + bar.servers for bar in rows)
    y = top + 54
    for bar in rows:
        x = float(MARGIN + LABELS)
        parts.append(text(MARGIN, y + 13, bar.label, colours.text, bold=bar.ours))
        parts.append(rectangle(x, y, bar.own * scale, colours.own if bar.ours else colours.other))
        x += max(bar.own * scale, 1)
        if bar.servers:
            parts.append(rectangle(x, y, bar.servers * scale, colours.servers))
            x += bar.servers * scale
        words = f"{bar.own:,.0f}" + (f" + {bar.servers:,.0f}" if bar.servers else "")
        parts.append(text(x + 8, y + 13, words, colours.text))
        y += ROW
    return parts, y


def nice(most: float) -> float:
    """A round number that is not less."""
    size = 10.0 ** (len(f"{int(most)}") - 1)
    return next(step * size for step in (1, 2, 5, 10) if step * size >= most)


def curve(latency: Figures, top: float, colours: Colours) -> tuple[list[str], float]:
    """Latency over load, and where it ends."""
    if not latency:
        return [], top
    parts = [
        text(
            MARGIN,
            top + 16,
            "From when a request is due to its 202, in ms, over the load",
            colours.text,
            size=15,
            bold=True,
        )
    ]
    left, right = MARGIN + 46.0, WIDTH - MARGIN - 170.0
    high, low = top + 36, top + 36 + CURVE_HEIGHT
    most = nice(max(figures["answered_p99_ms"] for figures in latency.values()))
    levels = {name: left + (right - left) * int(name) / 100 for name in latency}
    for share in (0, 0.5, 1):
        y = low - (low - high) * share
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{colours.grid}"/>')
        parts.append(text(left - 8, y + 4, f"{most * share:g}", colours.faint, anchor="end"))
    for name, x in levels.items():
        parts.append(text(x, low + 18, f"{name} %", colours.faint, anchor="middle"))
    ends: list[float] = []
    for title, key, colour, dashed in (
        ("chargegate, p99", "answered_p99_ms", colours.own, False),
        ("chargegate, p50", "answered_p50_ms", colours.own, True),
        ("bare application, p99", "bare_p99_ms", colours.other, False),
    ):
        points = [(x, low - (low - high) * min(1, latency[name][key] / most)) for name, x in levels.items()]
        parts.append(line(points, colour, dashed=dashed))
        y = apart(points[-1][1], ends)
        ends.append(y)
        parts.append(text(points[-1][0] + 8, y + 4, title, colour))
    return parts, low + 30


def apart(y: float, others: Iterable[float]) -> float:
    """A place near ``y`` for a label, above the others where they would overlap."""
    for other in sorted(others, reverse=True):
        if abs(y - other) < 15:
            y = other - 15
    return y


def draw(entries: Figures, colours: Colours) -> str:
    """The picture."""
    first, y = costs(entries, MARGIN / 2, colours)
    second, y = curve(entries.get("latency", {}), y + 20, colours)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}"'
        f' font-family="{FONT}" role="img" aria-label="What a request costs, and latency over load">'
    )
    return "\n".join([head, *first, *second, "</svg>", ""])
