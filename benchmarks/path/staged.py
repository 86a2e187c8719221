"""Processor time by stage: the same load on a stand whose edge and intake run with a clock round their stages.

What the process spends beyond its stages is the rest. One connection, where every request pays for all by itself, and
32, where those of one turn of a loop share signatures, batches and writes. The same load on the stand without the clock
is beside it, to show what the clock leaves of itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from benchmarks.path.ask import TOKENS
from benchmarks.path.rounds import MANY, ONE, Load, Sample, right_bytes, sample
from benchmarks.path.stages import EDGE, INTAKE, LAW, LAW_AIM_US, Row, law_us, rows
from benchmarks.path.systems import GENERAL, System, engine_pid, of_stand
from benchmarks.stand import Scale, Stand

STREAM_ONE = Load("stream-one", "1 connection, 100 tokens streamed", 1, TOKENS, stream=True)
LOADS = (ONE, MANY, STREAM_ONE)
MODULES = {EDGE: "node_agent", INTAKE: "scheduler"}
WARM_S = 1


@dataclass(frozen=True, slots=True)
class Staged:
    """The stages of one load."""

    load: Load
    tables: Mapping[str, list[Row]]
    """By program."""
    unclocked_us: Mapping[str, float]
    """By program, a request on the stand without the clock."""
    clock: str
    missing: tuple[str, ...]
    """Functions that a stage names and that are gone."""

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "load": self.load.title,
            "clock": self.clock,
            "missing": list(self.missing),
            "law_us": law_us(self.tables),
            "unclocked_us": dict(self.unclocked_us),
            "stages": {
                program: [{"stage": row.title, "us": row.us, "calls": row.calls, "kind": row.kind} for row in table]
                for program, table in self.tables.items()
            },
        }


async def whole_us(stand: Stand, folder: Path, seconds: int) -> dict[str, dict[str, float]]:
    """Return by load and program the processor time of a request on a stand without the clock."""
    system = general(stand)
    found = {}
    for load in LOADS:
        one = await _loaded(system, stand, load, folder, seconds)
        found[load.name] = {program: one.cpu_us[program] / one.run.requests for program in MODULES}
    return found


async def staged(
    folder: Path, wholes: Mapping[str, Mapping[str, float]], seconds: int, scale: Scale
) -> list[Staged]:
    """Start a stand with the clock, load it, and return the stages of each load."""
    sockets = {program: folder / f"{program}.sock" for program in MODULES}
    through = {
        module: ("-m", "benchmarks.path.traced", str(sockets[program]), program) for program, module in MODULES.items()
    }
    stand = Stand(folder / "traced", None, replace(scale, through=through))
    found = []
    try:
        await stand.start()
        system = general(stand)
        for load in LOADS:
            await _loaded(system, stand, load, folder, WARM_S)
            before = {program: await _look(path) for program, path in sockets.items()}
            one = await _loaded(system, stand, load, folder, seconds)
            after = {program: await _look(path) for program, path in sockets.items()}
            tables = {
                program: rows(program, before[program], after[program], one.run.requests) for program in MODULES
            }
            missing = tuple(str(name) for look in after.values() for name in _list(look["missing"]))
            found.append(Staged(load, tables, wholes[load.name], str(after[EDGE]["clock"]), missing))
    finally:
        await stand.stop()
    return found


def general(stand: Stand) -> System:
    """Return Tidegate for the tenant with general data."""
    return next(one for one in of_stand(stand) if one.name == GENERAL)


def stage_table(one: Staged) -> Table:
    """Return the stages of a load, with sums that add up to the whole. Pure."""
    table = Table(title=f"microseconds of processor time per request by stage: {one.load.title} ({one.clock})")
    for column in ("program", "stage", "us", "calls"):
        table.add_column(column, justify="left" if column in ("program", "stage") else "right")
    for program, found in one.tables.items():
        for row in found:
            mark = " *" if row.kind == LAW else ""
            table.add_row(program, row.title + mark, f"{row.us:,.1f}", f"{row.calls:,.1f}" if row.calls else "")
        table.add_row(program, "in all", f"{sum(row.us for row in found):,.1f}", "", style="bold")
        table.add_row(program, "without the clock", f"{one.unclocked_us[program]:,.1f}", "", end_section=True)
    law = law_us(one.tables)
    table.add_row("both", "* permits, placement, evidence", f"{law:,.1f}", f"aim {LAW_AIM_US:.0f}", style="bold")
    for name in one.missing:
        table.add_row("", f"gone, counted in the rest: {name}", "", "")
    return table


async def _loaded(system: System, stand: Stand, load: Load, folder: Path, seconds: int) -> Sample:
    size = await right_bytes(system, load)
    return await sample(system, load, 0, engine_pid(stand), folder, seconds, size)


async def _look(path: Path) -> dict[str, object]:
    """Return what a program's clock says now."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        found: dict[str, object] = json.loads(await reader.read(-1))
    finally:
        writer.close()
    return found


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
