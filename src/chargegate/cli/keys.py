"""``chargegate keys``: access keys for the HTTP API."""

from typing import get_args

import click

from chargegate import config
from chargegate.cli.options import as_json, config_file, name_of_key
from chargegate.cli.output import write_object
from chargegate.keys import Role, new_access_key
from chargegate.model import one_line


@click.group(no_args_is_help=False)
def keys() -> None:
    """Access keys for the HTTP API.

    \b
    Example:
      chargegate keys create --name depot-7 --role client
    """


@keys.command()
@click.option("--role", type=click.Choice(get_args(Role)), required=True, help="A client asks; an admin may do all.")
@click.option(
    "--name",
    metavar="NAME",
    callback=name_of_key,
    help="Whose key it is; keys of one name and role are one client.  [default: the first digits of its hash]",
)
@as_json
@config_file
def create(role: Role, name: str, as_json: bool, config_file: str | None) -> None:
    """Make an access key. It is shown once; only its hash belongs into the settings.

    \b
    Example:
      chargegate keys create --name depot-7 --role client
    """
    key, hashed = new_access_key(role, name)
    if as_json:
        write_object({"role": role, "key": key, "hash": hashed} | ({"name": name} if name else {}))
        return
    click.echo(f"The key, shown this once:\n\n  {key}\n")
    click.echo(
        f'The line for security.api_keys in {one_line(str(config_file or config.DEFAULT_FILE))}:\n\n  "{hashed}"\n'
    )
