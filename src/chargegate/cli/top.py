"""``chargegate top``: the overview of a running service in a terminal."""

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chargegate import config
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import write_object

_EVERY_S: Final = 2.0
_TIMEOUT_S: Final = 10.0
_BARS: Final = " ▁▂▃▄▅▆▇█"
_STYLES: Final = {"UP": "green", "DEGRADED": "yellow", "DOWN": "red", "critical": "bold red", "warning": "yellow"}
_PATH: Final = "/api/v1/overview"

_Overview = Mapping[str, Any]


class TopError(Exception):
    """There is no overview. The message is one line."""


@click.command()
@click.option("--url", metavar="URL", help="Where the service answers.  [default: as the settings say]")
@click.option("--key-file", type=click.File("rb"), help="A file with an admin's access key; - is standard input.")
@click.option("--once", is_flag=True, help="Show it once, and end.")
@as_json
@config_file
def top(url: str | None, key_file: BinaryIO | None, once: bool, as_json: bool, config_file: str | None) -> None:
    """Show how a running service is doing: what is wrong, rates, what waits. Ctrl-C ends it.

    \b
    Examples:
      chargegate top
      chargegate top --once --json
      chargegate top --url https://gate.example --key-file admin.key
    """
    where = url or _own_url(config.load(config_file))
    key = key_file.read(1000).decode("utf-8", "replace").strip() if key_file else ""
    if as_json:
        while True:
            write_object(_read(where, key))
            if once:
                return
            time.sleep(_EVERY_S)
    console = Console()
    if once:
        console.print(_screen(_read(where, key)))
        return
    with Live(_screen(_read(where, key)), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY_S)
            try:
                shown = _screen(_read(where, key))
            except TopError as error:
                shown = Text(str(error), style="bold red")
            live.update(shown, refresh=True)


def _own_url(settings: config.Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.server.host, settings.server.host)  # noqa: S104 - compared
    scheme = "https" if settings.server.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.server.port}"


def _read(url: str, key: str) -> dict[str, Any]:
    """The overview of the service at a URL. Raises ``TopError``."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise TopError("--url: must be an http or https URL")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=ssl.create_default_context())
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request(
            "GET", parts.path.rstrip("/") + _PATH, headers={"authorization": f"Bearer {key}"} if key else {}
        )
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TopError(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}: {_why(error)}") from None
    finally:
        connection.close()
    if response.status != 200 or not isinstance(answer, dict):
        message = answer.get("message", "") if isinstance(answer, dict) else ""
        raise TopError(f"the service answered {response.status}: {message}".rstrip(": "))
    return answer


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return "what answers there is no such service"


def _screen(seen: _Overview) -> RenderableType:
    problems = [Text(f"● {each['text']}", style=_STYLES[each["severity"]]) for each in seen["problems"]]
    return Group(
        *(problems or [Text("● Everything works.", style="green")]), Text(), _numbers(seen), Text(), _components(seen)
    )


def _numbers(seen: _Overview) -> Table:
    table = Table.grid(padding=(0, 3))
    now, rate, minutes = seen["now"], seen["per_second"], seen["hour"]["points"]
    decided = sum(rate[status] for status in ("allowed", "not_allowed", "unknown", "invalid"))
    rows = (
        ("accepted a second", f"{rate['accepted']:g}", "accepted"),
        ("decided a second", f"{decided:g}", ""),
        ("  allowed", f"{rate['allowed']:g}", "allowed"),
        ("  not allowed", f"{rate['not_allowed']:g}", "not_allowed"),
        ("  unknown", f"{rate['unknown']:g}", "unknown"),
        ("  invalid", f"{rate['invalid']:g}", "invalid"),
        ("delivered within, p50", _ms(now["p50_ms"]), "p50_ms"),
        ("  p95", _ms(now["p95_ms"]), "p95_ms"),
        ("  p99", _ms(now["p99_ms"]), "p99_ms"),
        ("waiting", _number(now["waiting"]), "waiting"),
        ("  the oldest for", _ms(now["oldest_age_ms"]), "oldest_age_ms"),
        ("under way", _number(seen["in_flight"]), ""),
        ("dead letters", _number(now["dead_letters"]), "dead_letters"),
        ("anomalies", _number(seen["anomalies"]), ""),
    )
    for name, value, series in rows:
        table.add_row(
            name,
            Text(value, style="bold", justify="right"),
            _bars([each[series] for each in minutes]) if series else "",
        )
    table.caption = "the bars are the last hour, minute by minute"
    return table


def _components(seen: _Overview) -> Table:
    table = Table.grid(padding=(0, 3))
    for name, component in seen["components"].items():
        details = ", ".join(f"{key}: {value}" for key, value in component["details"].items())
        table.add_row(name, Text(component["status"], style=_STYLES[component["status"]]), Text(details, style="dim"))
    for circuit in seen["circuits"]:
        table.add_row(f"circuit {circuit['name']}", Text(circuit["state"]))
    for sink in seen["sinks"]:
        table.add_row(f"sink {sink['sink']}", Text(f"{sink['seconds']:g} s behind"))
    return table


def _bars(values: list[int | None]) -> str:
    most = max((value for value in values if value), default=0)
    return "".join(_BARS[-(-(value or 0) * 8 // most)] if most else " " for value in values)


def _ms(value: int | None) -> str:
    return "-" if value is None else f"{value} ms" if value < 10_000 else f"{value / 1000:.0f} s"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
