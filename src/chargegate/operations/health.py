"""What each component says of itself."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from chargegate.audit.base import Feed
from chargegate.authorizers.base import AuthorizationError, Authorizer, CircuitOpen
from chargegate.ledger.base import Ledger, LedgerUnavailable
from chargegate.model import to_iso
from chargegate.observe import log
from chargegate.queues.base import Queue, QueueUnavailable
from chargegate.storage.budget import ANSWER_S

ComponentStatus = Literal["UP", "DEGRADED", "DOWN"]

SLOW_MS: Final = 3000
"""A request that waits longer for a worker, or for the authorizer, is worth a sentence."""

LONGEST_LAG_S: Final = 15.0
"""How far an audit sink may be behind before somebody should look."""


class Component(msgspec.Struct, frozen=True):
    """How one part of the service is. ``details`` are for people and hold no secret."""

    status: ComponentStatus
    details: dict[str, Any] = {}


Check = Callable[[], Awaitable[Component]]

_FAILING: Final = 5  # requests in a row without a verdict
_WORST_FIRST: Final[tuple[ComponentStatus, ...]] = ("DOWN", "DEGRADED", "UP")


async def check_all(components: Mapping[str, Check]) -> tuple[ComponentStatus, dict[str, Component]]:
    """Each component, and the status of the worst of them, which is the service's."""
    checked = await asyncio.gather(*(check(name, part) for name, part in components.items()))
    found = dict(zip(components, checked, strict=True))
    return status_of(found), found


def status_of(components: Mapping[str, Component]) -> ComponentStatus:
    """The status of the worst of them."""
    statuses: list[ComponentStatus] = ["UP", *(component.status for component in components.values())]
    return min(statuses, key=_WORST_FIRST.index)


def worse(one: Component, other: Component) -> Component:
    """The component that is worse; the first one where both are the same."""
    return min((one, other), key=lambda component: _WORST_FIRST.index(component.status))


async def check(name: str, part: Check) -> Component:
    """One component; DOWN where its check does not answer, or breaks."""
    try:
        async with asyncio.timeout(ANSWER_S):
            return await part()
    except TimeoutError:
        return Component("DOWN", {"error": f"no answer within {ANSWER_S:g} s"})
    except Exception as error:  # noqa: BLE001 - one component's defect must not hide how the others are
        log.warning("health check failed", component=name, error=type(error).__name__)
        return Component("DOWN", {"error": "the check failed"})


class WorkerState(Protocol):
    """What a worker says of itself.

    ``stuck``: requests that it could not open or handle. ``parked``: callbacks that wait. ``open_circuits``:
    destinations that are not being called because they cannot be reached. ``overdue``: callbacks that have waited for
    long because all connections that they may have are in use.
    """

    @property
    def stuck(self) -> int: ...

    @property
    def parked(self) -> int: ...

    @property
    def open_circuits(self) -> int: ...

    @property
    def overdue(self) -> int: ...


async def queue(queue: Queue, worker: WorkerState | None, max_size: int) -> Component:
    """DOWN while it would refuse a request, also because it is full. ``worker`` is None where none is in this
    process."""
    try:
        _, depth = await asyncio.gather(queue.check(), queue.depth())
    except QueueUnavailable as error:
        return Component("DOWN", {"error": str(error)})
    details: dict[str, object] = {
        "waiting": depth.waiting,
        "max_size": max_size,
        "oldest_age_ms": depth.oldest_age_ms,
        "durable": queue.capabilities.durable,
    }
    stuck = 0
    if worker is not None:
        stuck = details["stuck"] = worker.stuck
    return Component("DOWN" if depth.waiting >= max_size else "DEGRADED" if stuck else "UP", details)


class Questions(Protocol):
    """What was asked of an authorizer: for how long it owes an answer, 0 where it owes none, and how many requests had
    no verdict since the last one that had."""

    @property
    def oldest_question_ms(self) -> int: ...

    @property
    def failures_in_a_row(self) -> int: ...


async def authorization(authorizer: Authorizer, backend: str, questions: Questions) -> Component:
    """DEGRADED while decisions end in ``unknown``, or will if the authorizer is as it was when it was last asked: while
    its circuit is not closed, while it owes an answer for long, and after some failures in a row until a verdict.
    Requests are still answered."""
    details: dict[str, object] = {"backend": backend}
    try:
        await authorizer.check()
    except CircuitOpen as refused:
        return Component("DEGRADED", details | {"circuit": refused.state, "since": to_iso(refused.since)})
    except AuthorizationError as error:
        return Component("DEGRADED", details | {"error": str(error)})
    unanswered, failures = questions.oldest_question_ms, questions.failures_in_a_row
    # The access list is checked above.
    if failures >= _FAILING and backend != "acl":
        return Component("DEGRADED", details | {"failures_in_a_row": failures})
    if unanswered >= SLOW_MS:
        return Component("DEGRADED", details | {"unanswered_ms": unanswered})
    return Component("UP", details)


async def callbacks(worker: WorkerState) -> Component:
    """DEGRADED while a destination that is asked for cannot be reached, or callbacks wait long for a connection."""
    details: dict[str, object] = {
        "parked": worker.parked,
        "open_circuits": worker.open_circuits,
        "waiting_for_connection": worker.overdue,
    }
    return Component("DEGRADED" if worker.open_circuits or worker.overdue else "UP", details)


async def needing_files(part: Callable[[], Awaitable[Component]], no_file: Callable[[], bool]) -> Component:
    """DEGRADED at least, while this process cannot open the connections that a part needs."""
    lacking = no_file()
    component = await part()
    if not lacking:
        return component
    status: ComponentStatus = "DEGRADED" if component.status == "UP" else component.status
    return Component(status, {"error": "too many open files", **component.details})


class AuditState(Protocol):
    """``failure``: why files that are old cannot be rotated, compressed, archived or deleted, or None. ``intact``:
    whether all was as it was written when its chains were last verified; None where they never were, or are off."""

    @property
    def failure(self) -> str | None: ...

    @property
    def intact(self) -> bool | None: ...


async def audit(feeds: Sequence[Feed], state: AuditState) -> Component:
    """DEGRADED while a sink takes no rows, or is far behind; they wait in the database. And while old files cannot be
    dealt with, and from when a verification found the chain broken until one finds it intact."""
    details = {"csv": "off"}
    degraded = False
    if state.intact is False:
        details["chain"], degraded = "broken", True
    if failure := state.failure:
        details["life"], degraded = failure, True
    for feed in feeds:
        lag_s = feed.lag_s
        late = lag_s > LONGEST_LAG_S
        degraded = degraded or late or feed.failure is not None
        said = [feed.failure] if feed.failure else []
        details[feed.name] = "; ".join([*said, f"behind by {lag_s:.0f} s"] if late else said) or "on"
    return Component("DEGRADED" if degraded else "UP", details)


async def database(ledger: Ledger, backend: str, *, needed: bool) -> Component:
    """DOWN while it cannot be written, or DEGRADED where requests are taken without it."""
    try:
        await ledger.check()
    except LedgerUnavailable as error:
        return Component("DOWN" if needed else "DEGRADED", {"error": str(error)})
    return Component("UP", {"backend": backend})


class ClockState(Protocol):
    """How much this machine's clock is ahead of a server's, as measured last, and whether that is too much."""

    @property
    def ahead_ms(self) -> int | None: ...

    @property
    def compared_with(self) -> str: ...

    @property
    def differs(self) -> bool: ...


async def clock(state: ClockState) -> Component:
    """DEGRADED while the difference is too large, although it is made up for."""
    details: dict[str, object] = {"ahead_ms": state.ahead_ms, "compared_with": state.compared_with}
    return Component("DEGRADED" if state.differs else "UP", details)


class Failing(Protocol):
    """Something that can be done without, and says why it does not work: ``failure`` is None while it does."""

    @property
    def failure(self) -> str | None: ...

    async def check(self) -> None: ...


async def cache(shared: Failing, backend: str) -> Component:
    """DEGRADED while decisions are not shared and keys are looked up in the ledger."""
    await shared.check()
    if shared.failure is not None:
        return Component("DEGRADED", {"error": shared.failure})
    return Component("UP", {"backend": backend})
