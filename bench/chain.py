"""What the chains of the audit cost: to write them, and to verify a million lines and rows.

bench/chain.py [ROWS]
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

import decisions
import load
from chargegate.audit.chain import START, Chain
from chargegate.audit.chaining import RowVerifier, links_of
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.life.compressing import opened
from chargegate.audit.life.one_file import Verifier
from chargegate.ledger.chain import RowLink
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision, Status, new_request_id
from chargegate.observe import configure_logging

STATION = "123e4567-e89b-12d3-a456-426614174000"
BATCH = 50  # about what one commit holds under load
PAGE = 1000


def decision(number: int) -> Decision:
    return Decision(new_request_id(), STATION, "0123456789abcdef", Status.ALLOWED, "", 12, 1_767_225_600_000 + number)


def write(path: Path, rows: list[AuditRow], chain: Chain | None) -> float:
    """Microseconds a row."""
    sink = CsvFile(path, path.with_suffix(".notes"), chain)
    begun = time.process_time()
    for start in range(0, len(rows), BATCH):
        sink.write(rows[start : start + BATCH])
    took = time.process_time() - begun
    sink.close()
    return took / len(rows) * 1e6


def verify(path: Path, chain: Chain) -> dict[str, float]:
    verifier = Verifier(chain, [])
    begun, spent = time.perf_counter(), time.process_time()
    with opened(path) as file:
        assert not verifier.read(path.name, path.name, file).problems
    return {"verified_s": time.perf_counter() - begun, "verified_cpu_s": time.process_time() - spent}


async def in_database(kind: str, url: str, folder: Path, count: int, chain: Chain) -> dict[str, float]:
    """Give each row of a filled database its link, as the service does, and verify all."""
    database = await decisions.opened(await decisions.fill(kind, count, folder, url, counted=False))
    last = RowLink(0, 0, bytes.fromhex(START))
    begun = time.process_time()
    while rows := await database.ledger.audit_after(last.sequence, PAGE):
        links = links_of(chain, rows, last)
        await database.chain.add(links)
        last = links[-1]
    link_us = (time.process_time() - begun) / count * 1e6
    begun, spent = time.perf_counter(), time.process_time()
    verified = await RowVerifier(database.chain, database.chain.writer, chain, []).verify(lambda _: None)
    taken = {"verified_s": time.perf_counter() - begun, "verified_cpu_s": time.process_time() - spent}
    await database.close()
    if (verified.rows, verified.problems) != (count, []):
        raise load.Failed(f"{kind}: {verified.rows} rows, {verified.problems[:3]}")
    return {"link_us": link_us, **taken}


def in_files(count: int, chain: Chain) -> dict[str, float]:
    """Write the lines without and with the chain, and verify all."""
    rows = [AuditRow(number, decision(number)) for number in range(1, count + 1)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, chained = write(folder / "plain.log", rows, None), write(folder / "chained.log", rows, chain)
        taken = verify(folder / "chained.log", chain)
    return {"line_us": plain, "link_us": chained - plain, **taken}


class Chains:
    """One run. ``failed``: some figures are missing."""

    def __init__(self, count: int, console: Console) -> None:
        self.count = count
        self.console = console
        self.figures: dict[str, dict[str, float]] = {}
        self.failed = False

    def run(self, kinds: Sequence[str]) -> None:
        """Measure files and databases, and print."""
        chain = Chain(b"k" * 32)
        self.figures["files"] = in_files(self.count, chain)
        for kind in kinds:
            try:
                with decisions.empty(kind) as (folder, url):
                    self.figures[kind] = uvloop.run(in_database(kind, url, folder, self.count, chain))
            except (load.Failed, OSError, RuntimeError) as error:
                self.failed = True
                self.console.print(f"chain, {kind}: {error}", style="red", markup=False)
        table = Table("", "a link", f"{self.count:,} verified", "processor time", title="the audit's chains")
        for name, each in self.figures.items():
            table.add_row(
                name, f"{each['link_us']:.1f} µs", f"{each['verified_s']:.1f} s", f"{each['verified_cpu_s']:.1f} s"
            )
        self.console.print(table)


if __name__ == "__main__":
    configure_logging("error")
    chains = Chains(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, Console(stderr=True))
    chains.run(decisions.KINDS)
    print(json.dumps(chains.figures))
