"""What is made ready before the processes of an edge start: their folders, what a new one begins with, their settings.

Every call here may block and raise OSError. Nothing of the edge runs meanwhile.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from node_agent.settings import EdgeSettings
from node_agent.watch.places import folder_of, folders_in, private_folder, run_folder, settings_file_of
from node_agent.watch.shares import settings_of
from orchestrator.bundles.clock import HighestTime

HIGHEST_TIME = "highest-time"
BUNDLES = "bundles"


def prepare(settings: EdgeSettings, parent_pid: int) -> list[Path]:
    """Make ready what the processes start from. Returns the file with the settings of each. Raises OSError.

    The files are written by the edge, so that a process that is started again has the settings of the others, whatever
    has become of the edge's own file in the meantime.
    """
    data_dir = Path(settings.data_dir)
    run_dir = run_folder(data_dir)
    private_folder(run_dir)
    for index in range(settings.processes):
        folder_of(data_dir, index).mkdir(parents=True, exist_ok=True)
    _spread_highest_time(data_dir)
    files = []
    for index in range(settings.processes):
        folder, file = folder_of(data_dir, index), settings_file_of(run_dir, index)
        _begin_with_bundles(data_dir / BUNDLES, folder / BUNDLES)
        _write_private(file, msgspec.json.encode(settings_of(settings, index, parent_pid)))
        files.append(file)
    return files


def _spread_highest_time(data_dir: Path) -> None:
    """No process believes in an earlier time than another has seen: what expired for one has for all."""
    clocks = [HighestTime(folder / HIGHEST_TIME, wall_ms=lambda: 0) for _, folder in folders_in(data_dir)]
    highest_ms = max(clock.now_ms() for clock in clocks)
    for _, folder in folders_in(data_dir):
        clock = HighestTime(folder / HIGHEST_TIME, wall_ms=lambda: highest_ms)
        clock.now_ms()
        clock.save()


def _begin_with_bundles(first: Path, own: Path) -> None:
    """Give a process that is new the bundles of the first, so that it can serve while control is away.

    Not those that are kept to explain what was decided by them: it has decided nothing.
    """
    if own.exists() or not first.exists():
        return
    beside = own.with_name(f".{own.name}")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(first, beside, ignore=shutil.ignore_patterns("archive"))
    beside.rename(own)


def _write_private(path: Path, data: bytes) -> None:
    """Addresses of engines can hold a password: the file is its owner's alone."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
