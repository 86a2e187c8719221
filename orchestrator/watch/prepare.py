"""What is made ready before the processes of a program start: folders, what a new one begins with, their settings.

Every call here may block and raise OSError. Nothing of the program runs meanwhile.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from orchestrator.bundles.clock import NS_PER_MS, HighestTime
from orchestrator.watch.places import folder_of, folders_in, private_folder, run_folder, settings_file_of

HIGHEST_TIME = "highest-time"
BUNDLES = "bundles"


def prepare(data_dir: Path, settings: Sequence[msgspec.Struct]) -> list[Path]:
    """Make ready what the processes start from; `settings` are those of each. Returns their files. Raises OSError.

    The files are written by the watch, so that a process that is started again has the settings of the others,
    whatever has become of the program's own file in the meantime.
    """
    run_dir = run_folder(data_dir)
    private_folder(run_dir)
    for index in range(len(settings)):
        folder_of(data_dir, index).mkdir(parents=True, exist_ok=True)
    _spread_highest_time(data_dir)
    files = []
    for index, own in enumerate(settings):
        folder, file = folder_of(data_dir, index), settings_file_of(run_dir, index)
        _begin_with_bundles(data_dir / BUNDLES, folder / BUNDLES)
        _write_private(file, msgspec.json.encode(own))
        files.append(file)
    return files


def _spread_highest_time(data_dir: Path) -> None:
    """No process believes in an earlier time than another has seen: what expired for one has for all."""
    clocks = [HighestTime(folder / HIGHEST_TIME, wall_ns=lambda: 0) for _, folder in folders_in(data_dir)]
    highest_ms = max(clock.now_ms() for clock in clocks)
    for _, folder in folders_in(data_dir):
        clock = HighestTime(folder / HIGHEST_TIME, wall_ns=lambda: highest_ms * NS_PER_MS)
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
