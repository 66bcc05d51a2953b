"""What the chain of the audit costs: to write it, and to verify a million rows of it.

bench/chain.py [ROWS]
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from chargegate.audit.chain import START, Chain
from chargegate.audit.chaining import RowVerifier, mac_of
from chargegate.audit.csv_file import CsvFile
from chargegate.audit.life.compressing import opened
from chargegate.audit.life.verifying import Verifier
from chargegate.engines import EMBEDDED, Place
from chargegate.ledger.chain import RowLink
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision, Status, new_request_id

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


def verify(path: Path, chain: Chain) -> float:
    verifier = Verifier(chain, [])
    begun = time.perf_counter()
    with opened(path) as file:
        verifier.read(path.name, path.name, file)
    assert not verifier.result().problems
    return time.perf_counter() - begun


async def in_database(folder: Path, decisions: Sequence[Decision], chain: Chain) -> AsyncIterator[str]:
    database = await EMBEDDED.load().open_database("sqlite", Place(folder=folder, exclusive=True), None, needed=True)
    for start in range(0, len(decisions), PAGE):
        page = decisions[start : start + PAGE]
        await asyncio.gather(*(database.ledger.record(each, each.timestamp) for each in page))
    number, mac, after = 0, START, 0
    begun = time.process_time()
    while rows := await database.ledger.audit_after(after, PAGE):
        links = []
        for row in rows:
            number += 1
            mac = mac_of(chain, mac, number, row)
            links.append(RowLink(number, row.sequence, bytes.fromhex(mac)))
        await database.chain.add(links)
        after = rows[-1].sequence
    yield f"links of rows in SQLite: {(time.process_time() - begun) / len(decisions) * 1e6:.1f} µs a row"
    begun = time.perf_counter()
    verified = await RowVerifier(database.chain, database.chain.writer, chain, []).verify(lambda _: None)
    assert (verified.rows, verified.problems) == (len(decisions), [])
    yield f"verified {len(decisions)} rows in SQLite in {time.perf_counter() - begun:.1f} s"
    await database.close()


async def main(count: int) -> None:
    decisions = [decision(number) for number in range(count)]
    rows = [AuditRow(number, each) for number, each in enumerate(decisions, start=1)]
    chain = Chain(b"k" * 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, chained = write(folder / "plain.log", rows, None), write(folder / "chained.log", rows, chain)
        print(f"CSV: {plain:.1f} µs a row, with the chain {chained:.1f} µs: {chained - plain:+.1f} µs")
        print(f"verified {count} lines in {verify(folder / 'chained.log', chain):.1f} s")
        async for line in in_database(folder, decisions, chain):
            print(line)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
