"""What `tidegate replay` prints for people. Pure, apart from the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.cli.law.render import slim_grid
from orchestrator.cli.replay.figures import TALLIES, Unit, counted, rows_of, tally

STYLES = {"better": "green", "worse": "red"}


def render_replay(told: Mapping[str, Any], console: Console) -> None:
    """Print the figures of one setting, or of two with their difference, and what was counted by name."""
    a, b = told["a"], told.get("b")
    seeds = f"{told['seed_count']} seeds from {told['first_seed']}"
    speed = "" if told["speed"] == 1 else f", {told['speed']} times as fast"
    console.print(Text(f"{told['requests']} requests of {told['trace']}{speed}, on {told['fleet']}, {seeds}"))
    for name, side in (("A", a), ("B", b)):
        if side is not None:
            law = "the classes of the fleet file" if side["bundle"] is None else f"bundle {side['bundle']}"
            console.print(Text(f"{name}: settings {side['settings']}, law of {law}"))
    _figures(told, console)
    for key, title, unit in TALLIES:
        _tallies(a, b, key, title, unit, console)


def _figures(told: Mapping[str, Any], console: Console) -> None:
    two = told.get("b") is not None
    grid = slim_grid("means over seeds ± half of the 95 % interval")
    grid.add_column("figure", overflow="fold")
    grid.add_column("A", justify="right")
    if two:
        grid.caption = "B - A is paired by seed"
        grid.add_column("B", justify="right")
        grid.add_column("B - A", justify="right")
        grid.add_column("95 % interval", justify="right")
        grid.add_column("B is")
    for row in rows_of(told):
        verdict = Text(row.verdict, style=STYLES.get(row.verdict, ""))
        grid.add_row(row.title, *row.sides, *((row.change, row.interval, verdict) if two else ()))
    console.print(grid)
    if two and told["seed_count"] == 1:
        console.print(Text("One seed has no interval: give --seeds to tell a difference from chance.", style="yellow"))


def _tallies(
    a: Mapping[str, Any], b: Mapping[str, Any] | None, key: str, title: str, unit: Unit, console: Console
) -> None:
    sides = [tally(side, key) for side in (a, b) if side is not None]
    names = sorted({name for side in sides for name in side})
    if not names:
        return
    grid = slim_grid("")
    grid.title = None
    grid.add_column(f"{title}, means over seeds", overflow="fold")
    for head in ("A", "B")[: len(sides)]:
        grid.add_column(head, justify="right")
    for name in names:
        grid.add_row(Text(name), *(counted(side.get(name, 0), unit) for side in sides))
    console.print(grid)
