"""``chargegate dead-letters``: callbacks that were given up."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import click
import uvloop

from chargegate import app, config
from chargegate.cli.options import as_json, config_file, time_range
from chargegate.cli.output import Row, write_object, write_rows
from chargegate.cli.paging import pages, paging
from chargegate.cli.progress import counting
from chargegate.ledger.base import Ledger
from chargegate.ledger.records import DeadLetter
from chargegate.model import is_uuid, to_iso
from chargegate.operations.replaying import replay_dead_letter
from chargegate.queues.base import QueueFull, QueueUnavailable

_COLUMNS = (
    "failed_at",
    "request_id",
    "station_id",
    "driver_token_hash",
    "status",
    "reason",
    "created_at",
    "attempts",
    "last_status_code",
    "last_error",
)


_NONE = "no dead letter has this request id"


@click.group("dead-letters", no_args_is_help=False)
def dead_letters() -> None:
    """Callbacks that were given up: send them again, or discard them.

    \b
    Examples:
      chargegate dead-letters list
      chargegate dead-letters replay --from 2026-01-31T08:00 --to 2026-01-31T09:00
    """


@dead_letters.command("list")
@time_range
@paging
@as_json
@config_file
def list_dead_letters(
    *, since: int | None, until: int | None, limit: int, everything: bool, as_json: bool, config_file: str | None
) -> None:
    """List dead letters, the last given up first.

    \b
    Example:
      chargegate dead-letters list --all --json
    """

    async def run() -> None:
        async with app.opened_store(config.load(config_file)) as store:

            async def rows() -> AsyncIterator[list[Row]]:
                async for page in _found(store.ledger, since, until, None if everything else limit):
                    yield [_row(letter) for letter in page]

            await write_rows(rows(), _COLUMNS, as_json=as_json)

    uvloop.run(run())


@dead_letters.command()
@click.argument("request_id", required=False)
@time_range
@as_json
@config_file
def replay(
    request_id: str | None, since: int | None, until: int | None, as_json: bool, config_file: str | None
) -> None:
    """Send decisions again: one request's, or all that were given up in a range of time.

    The decision stays as it was made. The running service delivers; if none runs, the next one does.

    \b
    Examples:
      chargegate dead-letters replay 018d5c1e-7f00-7000-8000-000000000001
      chargegate dead-letters replay --from 2026-01-31
    """
    _check_which(request_id, since, until)

    async def run() -> int:
        async with app.opened_store(config.load(config_file)) as store:
            if request_id is None:
                return await _replay(store, _found(store.ledger, since, until, None))
            letter = await store.ledger.dead_letter(request_id.lower())
            if letter is None:
                raise click.ClickException(_NONE)
            await replay_dead_letter(await store.open_queue(), store.keyring, letter)
            return 1

    _tell("replayed", uvloop.run(run()), as_json=as_json)


@dead_letters.command()
@click.argument("request_id", required=False)
@time_range
@as_json
@config_file
def discard(
    request_id: str | None, since: int | None, until: int | None, as_json: bool, config_file: str | None
) -> None:
    """Forget dead letters for good: one request's, or all that were given up in a range of time.

    The encrypted token and URL are dropped. The requests stay FAILED, and are listed and replayed no more.

    \b
    Examples:
      chargegate dead-letters discard 018d5c1e-7f00-7000-8000-000000000001
      chargegate dead-letters discard --to 2026-01-31
    """
    _check_which(request_id, since, until)

    async def run() -> int:
        async with app.opened_store(config.load(config_file)) as store:
            if request_id is None:
                return sum(
                    [
                        await store.ledger.discard([letter.request_id for letter in page])
                        async for page in _found(store.ledger, since, until, None)
                    ]
                )
            discarded = await store.ledger.discard([request_id.lower()])
            if not discarded:
                raise click.ClickException(_NONE)
            return discarded

    _tell("discarded", uvloop.run(run()), as_json=as_json)


def _tell(done: str, count: int, *, as_json: bool) -> None:
    if as_json:
        write_object({done: count})
    else:
        click.echo(f"{done} {count} dead letter{'' if count == 1 else 's'}")


def _check_which(request_id: str | None, since: int | None, until: int | None) -> None:
    in_range = since is not None or until is not None
    if (request_id is None) != in_range:
        raise click.UsageError("give a REQUEST_ID, or --from and --to")
    if request_id is not None and not is_uuid(request_id):
        raise click.UsageError("REQUEST_ID: must be a UUID")


async def _replay(store: app.Offline, found: AsyncIterator[Sequence[DeadLetter]]) -> int:
    done = 0
    queue = await store.open_queue()
    with counting("replaying") as show:
        async for page in found:
            for letter in page:
                try:
                    await replay_dead_letter(queue, store.keyring, letter)
                except (QueueFull, QueueUnavailable) as error:
                    raise click.ClickException(f"{error} (replayed {done} before that)") from None
                done += 1
                show(done)
    return done


async def _found(
    ledger: Ledger, since: int | None, until: int | None, limit: int | None
) -> AsyncIterator[Sequence[DeadLetter]]:
    async def fetch(size: int, after: tuple[int, str] | None) -> Sequence[DeadLetter]:
        return await ledger.dead_letters(since, until, size, after)

    async for page in pages(fetch, lambda letter: (letter.failed_at, letter.request_id), limit):
        yield page


def _row(letter: DeadLetter) -> dict[str, Any]:
    values = {column: getattr(letter, column) for column in _COLUMNS}
    return values | {"failed_at": to_iso(letter.failed_at), "created_at": to_iso(letter.created_at)}
