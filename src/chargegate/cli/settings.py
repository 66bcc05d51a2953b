"""``chargegate config``: what the settings are, and whether they are right."""

import json
from collections.abc import Iterator
from typing import Any

import click

from chargegate import config
from chargegate.app.authorization import check_acl_file
from chargegate.cli.options import as_json, config_file
from chargegate.cli.output import write_object
from chargegate.model import one_line, printable_json


@click.group("config", no_args_is_help=False)
def show_settings() -> None:
    """The settings: file and environment together.

    \b
    Examples:
      chargegate config check --config chargegate.toml
      CHARGEGATE_SERVER__PORT=9000 chargegate config show
    """


@show_settings.command()
@as_json
@config_file
def show(as_json: bool, config_file: str | None) -> None:
    """Print the settings in effect, secrets hidden.

    \b
    Example:
      chargegate config show --json
    """
    values = config.shown(config.load(config_file))
    if as_json:
        write_object(values)
    else:
        click.echo("\n".join(_toml(values)))


@show_settings.command()
@as_json
@config_file
def check(as_json: bool, config_file: str | None) -> None:
    """Check the settings without starting: every key, type and range, and the access list file.

    \b
    Example:
      chargegate config check --config /etc/chargegate.toml
    """
    check_acl_file(config.load(config_file))
    file = config_file or (str(config.DEFAULT_FILE) if config.DEFAULT_FILE.exists() else None)
    if as_json:
        write_object({"status": "ok", "file": file})
    else:
        click.echo(one_line(f"ok: {file or 'no file, the defaults'}"))


def _toml(values: dict[str, Any], section: str = "") -> Iterator[str]:
    """Keys before sections, as TOML wants them. Its strings, lists, numbers and booleans are written as JSON's are."""
    for key, value in values.items():
        if not isinstance(value, dict):
            yield f"{key} = {printable_json(json.dumps(value))}"
    for key, value in values.items():
        if isinstance(value, dict):
            name = f"{section}.{key}" if section else key
            yield from ("", f"[{name}]", *_toml(value, name))
