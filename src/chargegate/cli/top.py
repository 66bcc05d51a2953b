"""``chargegate top``: how a running service is, in a terminal."""

import os
import sys
import time
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.live import Live

from chargegate import config
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import write_object
from chargegate.operations.views import shown
from chargegate.top import Figures, Reader, Reading, figures_of, view

_VARIABLE: Final = "CHARGEGATE_KEY"
_WINDOW: Final = 5  # readings that a rate goes back


@click.command()
@click.option("--url", metavar="URL", help="The service's base URL.  [default: that of the settings, on this machine]")
@click.option(
    "--key-file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"A file with an access key, where the service wants one.  [default: the variable {_VARIABLE}]",
)
@click.option(
    "--ca-file", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Authorities for HTTPS, in PEM."
)
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(0.2, 60),
    default=2.0,
    show_default="2",
    help="Time between readings, 0.2 to 60.",
)
@click.option("--once", is_flag=True, help="Two readings, one result; exit 1 where the service is DOWN or away.")
@as_json
@config_file
def top(
    *,
    url: str | None,
    key_file: Path | None,
    ca_file: str | None,
    every: float,
    once: bool,
    as_json: bool,
    config_file: str | None,
) -> int:
    """Show how a running service is: what is wrong, rates, times, queue, circuits, dead letters.

    What is wrong is what the dashboard's overview says, of all processes. Where the service has access keys, that needs
    an administrator's; the key comes from a file or the environment, so that no history of commands holds it. The
    figures are those that one process measures (/health, /metrics). Ends with Ctrl-C.

    \b
    Examples:
      chargegate top
      chargegate top --url https://gate.example --key-file key.txt
      chargegate top --once --json
    """
    reader = _reader(url or _url_of(config.load(config_file)), key_file, ca_file)
    if once:
        figures = _read_twice(reader, every)
        _print(figures, as_json=as_json)
        return 1 if figures.status in ("DOWN", "AWAY") else 0
    if as_json or not sys.stdout.isatty():
        _follow_in_lines(reader, every, as_json=as_json)
    else:
        _follow_on_screen(reader, every)
    return 0


def _reader(url: str, key_file: Path | None, ca_file: str | None) -> Reader:
    try:
        key = (os.environ.get(_VARIABLE, "") if key_file is None else key_file.read_text(errors="replace")).strip()
        if not key.isascii() or not key.isprintable():
            raise click.ClickException(f"{key_file or _VARIABLE}: holds no access key")
        return Reader(url, key, ca_file)
    except ValueError as error:
        raise click.UsageError(f"--url: {error}") from None
    except OSError as error:
        raise click.ClickException(f"{error.filename or ca_file}: {error.strerror or 'cannot be read'}") from None


def _url_of(settings: config.Settings) -> str:
    """Where the service of these settings answers; one that listens everywhere is asked here."""
    server = settings.server
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host, server.host)  # noqa: S104 - it is replaced
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{'https' if server.tls_certificate else 'http'}://{host}:{server.port}"


def _read_twice(reader: Reader, every: float) -> Figures:
    before = reader.read()
    if before.health is None:
        return figures_of(reader.url, None, before)
    time.sleep(every)
    return figures_of(reader.url, before, reader.read())


def _follow_in_lines(reader: Reader, every: float, *, as_json: bool) -> None:
    before: Reading | None = None
    while True:
        now = reader.read()
        _print(figures_of(reader.url, before, now), as_json=as_json)
        sys.stdout.flush()
        before = now
        time.sleep(every)


def _follow_on_screen(reader: Reader, every: float) -> None:
    readings: list[Reading] = []
    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            readings = [*readings[-_WINDOW:], reader.read()]
            before = readings[0] if len(readings) > 1 else None
            live.update(view(figures_of(reader.url, before, readings[-1])), refresh=True)
            time.sleep(every)


def _print(figures: Figures, *, as_json: bool) -> None:
    if as_json:
        write_object(shown(figures))
    else:
        Console(highlight=False).print(view(figures))
