"""The scenario of a full disk."""

from __future__ import annotations

import asyncio
import sys
import time

from tests.chaos.client import Ending, Mode
from tests.chaos.declared import EDGES, PERSONAL
from tests.chaos.load import Lane
from tests.chaos.scenario import Run, Scenario, Step

EDGE = EDGES[0]
DISK_KIB = 2048
"""Half of it is kept for what closes; the rest has room for about 150 requests."""
FULL_S = 30.0
GOES_ON_S = 2.0
CODE = "evidence_unavailable"


async def shrink_the_disk(running: Run, edge: str = EDGE) -> None:
    """Start an edge anew with its spool on a small disk."""
    stand = running.stand
    keep = stand.folder / f"kept-{edge}-{time.monotonic_ns()}"
    running.spools.append(keep)
    told = ("--kib", str(DISK_KIB), "--at", str(stand.data(edge) / "spool"), "--keep", str(keep))
    wrap = (sys.executable, "-m", "tests.chaos.small_disk", *told, "--")
    running.load.leaves(edge)
    await stand.supervisor.stop(edge)
    await stand.restart(edge, wrap=wrap)


async def fill_the_disk(running: Run) -> None:
    """Shrink the disk, and wait until it is full."""
    await shrink_the_disk(running)

    def full() -> bool:
        return any(one.tries and one.last.why == CODE for one in running.load.asked)

    if not await running.load.until(full, FULL_S):
        running.fail("the disk was never full")
    await asyncio.sleep(GOES_ON_S)


async def enlarge_it(running: Run, edge: str = EDGE) -> None:
    """The edge on its own disk again."""
    running.load.leaves(edge)
    await running.stand.supervisor.stop(edge)
    await running.stand.restart(edge)


async def both_kinds_were_refused(running: Run) -> None:
    """With a full disk nothing leaves, whatever its kind, and the reason is said."""
    refused = [one.last for one in running.load.asked if one.last.ending is Ending.REFUSED and one.last.why == CODE]
    kinds = {told.plan.kind for told in refused}
    if len(kinds) < 2:
        running.fail(f"with a full disk only these kinds were refused: {sorted(kinds)}")
    if any(told.plan.edge != EDGE for told in refused):
        running.fail("the other edge, whose disk has room, refused as well")


DISK_FAULTS = (
    Scenario(
        "disk-full",
        "an edge whose spool is on a disk of 2 MiB, until nothing more fits, and 2 s beyond",
        (Step(0.0, fill_the_disk, fault=True), Step(0.1, enlarge_it)),
        lanes=(
            Lane(4, Mode.STREAM, tokens=8, quick=True),
            Lane(4, Mode.STREAM, tokens=8, quick=True, kind=PERSONAL, tenant="third"),
        ),
        check=both_kinds_were_refused,
    ),
)
