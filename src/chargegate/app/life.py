"""Opens the life of the audit files: for the commands, and on a schedule in a process that serves."""

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from chargegate.app.auditing import audit_chain
from chargegate.app.opening import Opened, StartError, made_folder, open_keys
from chargegate.audit.chaining import RowChain, Statements
from chargegate.audit.life.address import parse_address
from chargegate.audit.life.archive import Archive
from chargegate.audit.life.files import LogFiles
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.origin import origin_of
from chargegate.audit.life.steps import Ages, Life
from chargegate.audit.verdicts import Verdicts
from chargegate.config import Settings
from chargegate.ledger.base import NamedValues
from chargegate.operations.audit_life import drop_chained_rows
from chargegate.operations.audit_schedule import Schedule

_LONGEST_S: Final = 60.0
_SHORTEST_S: Final = 1.0
_BY_SIZE_S: Final = 5.0


def audit_life(settings: Settings) -> Life:
    """The files of the settings, with their archive. Raises ``StartError``."""
    audit = settings.audit
    ages = Ages(
        audit.rotate_after_ms, audit.rotate_bytes, audit.compress_after_ms, audit.archive_after_ms, audit.retention_ms
    )
    if not audit.csv_path:
        raise StartError("audit.csv_path: is empty, and so there are no files")
    origin, archive = "", None
    if audit.archive_url:
        try:
            origin = origin_of(made_folder(settings))
            archive = Archive(parse_address(audit.archive_url))
        except ImportError as error:
            missing = error.name or "a module"
            raise StartError(
                f"audit.archive_url: needs `pip install 'chargegate[s3]'` ({missing} is missing)"
            ) from None
        except OSError as error:
            raise StartError(f"data_dir: {settings.data_path}: {error.strerror}") from None
        except ValueError as error:
            raise StartError(f"data_dir: {error}") from None
    heads = audit_heads(settings) if audit.chain else None
    return Life(LogFiles(Path(audit.csv_path)), ages, archive, origin, heads=heads)


def audit_heads(settings: Settings) -> Heads:
    """The signed statements about the chain, under the service's own keys. Raises ``StartError``."""
    return Heads(made_folder(settings), audit_chain(open_keys(settings)))


async def keep_audit(opened: Opened, stack: AsyncExitStack) -> Schedule:
    """Carry out what is due from now on, until the stack is closed. Of several processes on the same folder one does
    it. Raises ``StartError``."""
    settings, ledger, links = opened.settings, opened.database.ledger, opened.database.chain
    life = await asyncio.to_thread(audit_life, settings) if settings.audit.csv_path else None
    statements = Statements(audit_heads(settings), ledger)
    if settings.audit.chain:
        stack.push_async_callback(RowChain(ledger, links, statements).close)
    schedule = Schedule(
        life,
        partial(drop_chained_rows, ledger, links, statements, on_dropped=lambda _: None),
        opened.metrics,
        audit_verdicts(settings, ledger).intact if settings.audit.chain else _unknown,
        keep_ms=settings.audit.retention_ms,
        turn_s=_turn_s(settings),
    )
    schedule.start()
    stack.push_async_callback(schedule.close)
    return schedule


def audit_verdicts(settings: Settings, values: NamedValues) -> Verdicts:
    """What verifications found. Raises ``StartError``."""
    return Verdicts(made_folder(settings), audit_chain(open_keys(settings)), values)


async def _unknown() -> None:
    """Without chains there is nothing to verify."""


def _turn_s(settings: Settings) -> float:
    """How often it looks: well within the shortest time that the settings ask for."""
    audit = settings.audit
    times = [audit.rotate_after_ms, audit.compress_after_ms, audit.retention_ms]
    if audit.archive_url:
        times.append(audit.archive_after_ms)
    shortest_s = min((at for at in times if at), default=0) / 1000
    turn_s = min(_LONGEST_S, max(_SHORTEST_S, shortest_s / 4 if shortest_s else _LONGEST_S))
    return min(turn_s, _BY_SIZE_S) if audit.rotate_bytes else turn_s
