"""`tidegate replay`: a trace through the live placement code, under one setting or two."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from json import dumps
from pathlib import Path
from random import Random
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.cli.replay.compare import Side, Told, replay, told_to_json
from orchestrator.cli.replay.page import to_html
from orchestrator.cli.replay.render import render_replay
from orchestrator.cli.replay.scene import SceneError
from orchestrator.files.document import FileError, read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.replay_fleet import ReplayFleet, ReplayFleetDocument, replay_fleet_of
from orchestrator.files.settings import SettingsDocument, settings_of
from orchestrator.files.traces import TraceRow, read_trace

EXIT_BAD_INPUT = 2
SEEDS = 5
SPEED_MAX = 1_000


def replay_command(
    trace: Annotated[Path, typer.Option("--trace", help="Recorded by an edge, or Mooncake's, or Azure's.")],
    fleet: Annotated[Path, typer.Option("--fleet", help="Fleet of the replay (docs/placement.md).")],
    settings: Annotated[Path, typer.Option("--settings", help="Placement settings A.")],
    against: Annotated[Path | None, typer.Option("--against", help="Placement settings B.")] = None,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Folder or export whose law decides.")] = None,
    against_bundle: Annotated[Path | None, typer.Option("--against-bundle", help="Another law for B.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Runs for each setting.")] = SEEDS,
    seed: Annotated[int, typer.Option("--seed", help="First seed.")] = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take the first requests only.")] = None,
    speed: Annotated[float, typer.Option("--speed", min=0.001, max=SPEED_MAX, help="How much faster they come.")] = 1.0,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with plots here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a trace through the live placement code in a simulated fleet, and compare two settings."""
    if html is not None and not html.parent.is_dir():
        _fail(f"--html: {html}: expected a file in a folder that exists")
    try:
        world = read_as(read_document(fleet), ReplayFleetDocument, replay_fleet_of)
        rows = _faster(read_trace(trace, Random(seed).random, limit), speed)  # noqa: S311 - repeated by its seed
        sides = [_side("a", settings, _law(bundle, world))]
        if against is not None or against_bundle is not None:
            # One folder is one bundle: it is signed anew each time that it is read.
            law = sides[0].bundle if against_bundle is None else _law(against_bundle, world)
            sides.append(_side("b", against or settings, law))
        told = _run(world, rows, sides, range(seed, seed + seeds))
    except (FileError, SceneError) as error:
        _fail(str(error))
    about: dict[str, Any] = {
        "trace": str(trace),
        "fleet": str(fleet),
        "requests": len(rows),
        "speed": speed,
        "first_seed": seed,
        "seed_count": seeds,
    }
    value = told_to_json(told[0], told[1] if len(told) > 1 else None, about)
    if html is not None:
        try:
            html.write_text(to_html(value), encoding="utf-8")
        except OSError as error:
            _fail(f"--html: {html}: {error.strerror or 'cannot be written'}")
    if json:
        sys.stdout.write(dumps(value, indent=2) + "\n")
    else:
        render_replay(value, Console())


def _run(fleet: ReplayFleet, rows: list[TraceRow], sides: list[Side], seeds: range) -> list[Told]:
    """Run every side; a bar shows how far, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found: list[Told] = []
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for side in sides:
            task = progress.add_task(f"settings {side.name}", total=len(rows) * len(seeds))
            found.append(replay(fleet, rows, side, seeds, partial(_tick, progress, task)))
    return found


def _tick(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def _side(name: str, settings: Path, law: Bundle | None) -> Side:
    return Side(name, str(settings), read_as(read_document(settings), SettingsDocument, settings_of), law)


def _law(path: Path | None, fleet: ReplayFleet) -> Bundle | None:
    if path is None:
        return None
    book = read_lawbook(path, fleet.start_ms)
    if book.note:
        sys.stderr.write(f"{book.note}\n")
    return book.bundle


def _faster(rows: list[TraceRow], speed: float) -> list[TraceRow]:
    if speed == 1.0:
        return rows
    return [replace(row, at_us=int(row.at_us / speed)) for row in rows]


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    raise typer.Exit(EXIT_BAD_INPUT)
