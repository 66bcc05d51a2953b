"""Opens the life of the audit files: for the commands, and on a schedule in a process that serves."""

import asyncio
import contextlib
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from chargegate.app.auditing import audit_chain
from chargegate.app.opening import Opened, StartError, made_folder, open_keys
from chargegate.audit.chaining import RowChain
from chargegate.audit.kept_heads import KeptHeads
from chargegate.audit.life.address import parse_address
from chargegate.audit.life.archive import Archive
from chargegate.audit.life.exporting import Exporter
from chargegate.audit.life.files import ExportFiles, LogFiles, NoFiles
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.origin import has_origin, origin_of
from chargegate.audit.life.steps import Ages, Life
from chargegate.audit.row_statements import Statements
from chargegate.audit.verdicts import Verdicts
from chargegate.config import Settings
from chargegate.engines import engine_of
from chargegate.ledger.base import AuditHistory, LedgerUnavailable, NamedValues
from chargegate.ledger.exports import AuditExports
from chargegate.operations.audit_life import Watcher, drop_chained_rows, export_days, sign_heads
from chargegate.operations.audit_schedule import Schedule

_LONGEST_S: Final = 60.0
_SHORTEST_S: Final = 1.0
_BY_SIZE_S: Final = 5.0


class Exported(Protocol):
    """The parts of a database that are needed to export its rows."""

    @property
    def ledger(self) -> AuditHistory: ...

    @property
    def exports(self) -> AuditExports: ...


def audit_life(settings: Settings, *, exports: bool = False, changing: bool = True) -> Life:
    """The files of the log, or the daily exports, with their archive; where the settings name none, what the archive
    has of them. Without ``changing`` it is for reading and for dry runs, and no folder, key or name is made. Raises
    ``StartError`` also where there is neither."""
    audit = settings.audit
    ages = Ages(
        audit.rotate_after_ms, audit.rotate_bytes, audit.compress_after_ms, audit.archive_after_ms, audit.retention_ms
    )
    path = audit.export_dir if exports else audit.csv_path
    if not path and not audit.archive_url:
        raise StartError(f"audit.{'export_dir' if exports else 'csv_path'}: is empty, and so there are no files")
    origin, archive = "", None
    if audit.archive_url:
        try:
            origin = audit_origin(settings, make=changing)
            archive = Archive(parse_address(audit.archive_url))
        except ImportError as error:
            missing = error.name or "a module"
            raise StartError(
                f"audit.archive_url: needs `pip install 'chargegate[s3]'` ({missing} is missing)"
            ) from None
    heads = audit_heads(settings) if changing else None  # there may be files from when the chain was on
    files: LogFiles
    if not path:
        files = NoFiles(made_folder(settings) if changing else settings.data_path, exports=exports)
    else:
        files = export_files(settings, make=changing) if exports else LogFiles(Path(path))
    return Life(files, ages, archive, origin, heads=heads, chain=audit.chain)


def audit_lives(settings: Settings, *, changing: bool = True) -> list[Life]:
    """That of the log, and that of the daily exports, as far as there are some, here or in an archive; see
    ``audit_life``. Raises ``StartError`` where there is none of them."""
    audit = settings.audit
    if not has_files(settings):
        raise StartError("audit.csv_path: is empty, and so is audit.export_dir, and so there are no files")
    wanted = [(audit.csv_path, False), (audit.export_dir, True)]
    return [
        audit_life(settings, exports=exports, changing=changing)
        for path, exports in wanted
        if path or audit.archive_url
    ]


def has_files(settings: Settings) -> bool:
    """Whether there is a log, or a folder of daily exports, or an archive that may have some."""
    return bool(settings.audit.csv_path or settings.audit.export_dir or settings.audit.archive_url)


def export_files(settings: Settings, *, make: bool = True) -> ExportFiles:
    """The folder of the daily exports; with ``make`` it is made where it is missing. Raises ``StartError``."""
    folder = Path(settings.audit.export_dir)
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"audit.export_dir: {folder}: {error.strerror}") from None
    return ExportFiles(folder)


def audit_exporter(settings: Settings, database: Exported, *, changing: bool = True) -> Exporter:
    """What makes the daily exports; see ``audit_life`` for ``changing``. Raises ``StartError``."""
    if not settings.audit.export_dir:
        raise StartError("audit.export_dir: is empty, and so nothing is exported")
    return Exporter(
        database.ledger,
        database.exports,
        export_files(settings, make=changing),
        audit_origin(settings, make=changing),
        after_ms=settings.audit.export_after_ms,
        heads=audit_heads(settings) if settings.audit.chain else None,
        turns=audit_heads(settings),
    )


def audit_origin(settings: Settings, *, make: bool = True) -> str:
    """What this service is called in an archive, and in a database that several share. Without ``make`` it is empty
    where there is none: then nothing is archived under it. Raises ``StartError``."""
    try:
        if not make and not has_origin(settings.data_path):
            return ""
        return origin_of(made_folder(settings))
    except OSError as error:
        raise StartError(f"data_dir: {settings.data_path}: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"data_dir: {error}") from None


def audit_heads(settings: Settings) -> Heads:
    """The signed statements about the chain, under the service's own keys. Raises ``StartError``."""
    return Heads(made_folder(settings), audit_chain(open_keys(settings)))


async def keep_audit(opened: Opened, stack: AsyncExitStack) -> Schedule:
    """Carry out what is due from now on, until the stack is closed. Of several processes on the same folder one does
    it. Raises ``StartError``."""
    settings, ledger, links = opened.settings, opened.database.ledger, opened.database.chain
    audit, exports = settings.audit, opened.database.exports
    lives = await asyncio.to_thread(audit_lives, settings) if has_files(settings) else []
    exporter = await asyncio.to_thread(audit_exporter, settings, opened.database) if audit.export_dir else None
    statements = Statements(audit_heads(settings), ledger)
    kept = kept_heads(settings, ledger)
    verdicts = audit_verdicts(settings, ledger)

    async def intact() -> bool | None:
        return False if await kept.lost() or await statements.lost() else await verdicts.intact()

    if settings.audit.chain:
        stack.push_async_callback(RowChain(ledger, links, statements).close)
    schedule = Schedule(
        lives,
        None if exporter is None else partial(_export, exporter, exports),
        partial(
            drop_chained_rows,
            ledger,
            links,
            statements,
            on_dropped=lambda _: None,
            exports=exports if audit.export_dir else None,
        ),
        opened.metrics,
        intact if settings.audit.chain else None,
        sign=partial(sign_heads, lives, kept),
        keep_ms=settings.audit.retention_ms,
        turn_s=_turn_s(settings),
    )
    with contextlib.suppress(LedgerUnavailable):  # it is tried again in each turn
        await kept.restore()
        await kept.keep()
    schedule.start()
    stack.push_async_callback(schedule.close)
    if exporter is not None:
        stack.callback(exporter.stop)
    return schedule


async def _export(exporter: Exporter, exports: AuditExports, now: int, watcher: Watcher, for_s: float) -> bool:
    return await export_days(exporter, exports, now, watcher, for_s=for_s)


def kept_heads(settings: Settings, values: NamedValues) -> KeptHeads:
    """The signed statements about files, with their copy in the database. Raises ``StartError``."""
    service = "embedded" if engine_of(settings.database.url).in_folder else audit_origin(settings)
    return KeptHeads(audit_heads(settings), values, service)


def audit_verdicts(settings: Settings, values: NamedValues) -> Verdicts:
    """What verifications found. Raises ``StartError``."""
    return Verdicts(made_folder(settings), audit_chain(open_keys(settings)), values)


def _turn_s(settings: Settings) -> float:
    """How often it looks: well within the shortest time that the settings ask for."""
    audit = settings.audit
    times = [audit.rotate_after_ms, audit.compress_after_ms, audit.retention_ms]
    if audit.export_dir:
        times.append(audit.export_after_ms)
    if audit.archive_url:
        times.append(audit.archive_after_ms)
    shortest_s = min((at for at in times if at), default=0) / 1000
    turn_s = min(_LONGEST_S, max(_SHORTEST_S, shortest_s / 4 if shortest_s else _LONGEST_S))
    return min(turn_s, _BY_SIZE_S) if audit.rotate_bytes else turn_s
