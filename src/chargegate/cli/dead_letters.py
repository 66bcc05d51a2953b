"""``chargegate dead-letters``: callbacks that were given up."""

import click

from chargegate.app.commands import Offline
from chargegate.cli.options import as_json, client, config_file, paging, time_range
from chargegate.cli.output import write_listing, write_object
from chargegate.cli.progress import counting
from chargegate.cli.store import in_store
from chargegate.model import is_uuid
from chargegate.operations import dead_letters as operations
from chargegate.queues.base import QueueFull, QueueUnavailable

_NO_LETTER = "no dead letter has this request id"


@click.group("dead-letters", no_args_is_help=False)
def dead_letters() -> None:
    """Callbacks that were given up: send them again, or discard them.

    \b
    Examples:
      chargegate dead-letters list
      chargegate dead-letters replay --from 2026-01-31T08:00 --to 2026-01-31T09:00
    """


@dead_letters.command("list")
@client
@time_range
@paging
@as_json
@config_file
def list_dead_letters(
    *,
    client: str | None,
    since: int | None,
    until: int | None,
    limit: int | None,
    as_json: bool,
    config_file: str | None,
) -> None:
    """List dead letters, the last given up first.

    \b
    Example:
      chargegate dead-letters list --all --json
    """

    async def write(store: Offline) -> None:
        await write_listing(operations.dead_letters(store.ledger, since, until, client), limit=limit, as_json=as_json)

    in_store(config_file, write)


@dead_letters.command()
@click.argument("request_id", required=False)
@client
@time_range
@as_json
@config_file
def replay(
    *,
    request_id: str | None,
    client: str | None,
    since: int | None,
    until: int | None,
    as_json: bool,
    config_file: str | None,
) -> None:
    """Send decisions again: one request's, or all that were given up in a range of time, or a client's.

    The decision stays as it was made. The running service delivers; if none runs, the next one does.

    \b
    Examples:
      chargegate dead-letters replay 018d5c1e-7f00-7000-8000-000000000001
      chargegate dead-letters replay --from 2026-01-31
    """
    _check_which(request_id, client, since, until)

    async def put_back(store: Offline) -> int:
        if request_id is None:
            return await _replay_range(store, client, since, until)
        letter = await store.ledger.dead_letter(request_id.lower())
        if letter is None:
            raise click.ClickException(_NO_LETTER)
        await operations.replay(await store.open_queue(), store.keyring, letter)
        return 1

    _report("replayed", in_store(config_file, put_back), as_json=as_json)


@dead_letters.command()
@click.argument("request_id", required=False)
@client
@time_range
@as_json
@config_file
def discard(
    *,
    request_id: str | None,
    client: str | None,
    since: int | None,
    until: int | None,
    as_json: bool,
    config_file: str | None,
) -> None:
    """Forget dead letters for good: one request's, or all that were given up in a range of time, or a client's.

    The encrypted token and URL are dropped. The requests stay FAILED, and are listed and replayed no more.

    \b
    Examples:
      chargegate dead-letters discard 018d5c1e-7f00-7000-8000-000000000001
      chargegate dead-letters discard --to 2026-01-31
    """
    _check_which(request_id, client, since, until)

    async def forget(store: Offline) -> int:
        if request_id is None:
            return await operations.discard_range(store.ledger, since, until, client)
        discarded = await store.ledger.discard([request_id.lower()])
        if not discarded:
            raise click.ClickException(_NO_LETTER)
        return discarded

    _report("discarded", in_store(config_file, forget), as_json=as_json)


def _report(done: str, count: int, *, as_json: bool) -> None:
    if as_json:
        write_object({done: count})
    else:
        click.echo(f"{done} {count} dead letter{'' if count == 1 else 's'}")


def _check_which(request_id: str | None, client: str | None, since: int | None, until: int | None) -> None:
    in_range = any(part is not None for part in (client, since, until))
    if (request_id is None) != in_range:
        raise click.UsageError("give a REQUEST_ID, or --from, --to and --client")
    if request_id is not None and not is_uuid(request_id):
        raise click.UsageError("REQUEST_ID: must be a UUID")


async def _replay_range(store: Offline, client: str | None, since: int | None, until: int | None) -> int:
    queue = await store.open_queue()
    replayed = 0
    with counting("replaying") as show:

        def on_replayed(so_far: int) -> None:
            nonlocal replayed
            replayed = so_far
            show(replayed)

        try:
            return await operations.replay_range(
                store.ledger, queue, store.keyring, since=since, until=until, client=client, on_replayed=on_replayed
            )
        except (QueueFull, QueueUnavailable) as error:
            raise click.ClickException(f"{error} (replayed {replayed} before that)") from None
