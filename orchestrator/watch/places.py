"""Where the processes of one program keep what is theirs. Pure but for `private_folder`.

    <data_dir>/             of the first process, and of a program that is one: bundles, spool, keys, highest time
    <data_dir>/worker-1/    the same, of the second
    <data_dir>/run/0.sock   where the first listens for the others
    <data_dir>/run/0.json   the settings that it was started with
    <data_dir>/run/lock     held by the watch for as long as it runs
    <data_dir>/run/processes   how many the idempotency keys of an edge are spread over
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

SOCKET_PATH_BYTES_MAX = 107
"""The longest name of a local socket that Linux takes."""

_WORKER = re.compile(r"worker-([1-9][0-9]?)\Z")


def folder_of(data_dir: Path, index: int) -> Path:
    """Return the folder of one process. The first lives where the only one lived before there were several."""
    return data_dir if index == 0 else data_dir / f"worker-{index}"


def folders_in(data_dir: Path) -> Iterator[tuple[int, Path]]:
    """Yield every folder of a process that is there, of more processes than there are now perhaps, with its index."""
    yield 0, data_dir
    for path in sorted(data_dir.glob("worker-*")):
        found = _WORKER.match(path.name)
        if found is not None and path.is_dir():
            yield int(found[1]), path


def run_folder(data_dir: Path) -> Path:
    """Return the folder of what lasts no longer than the processes, and of how many they are."""
    return data_dir / "run"


def socket_of(run_dir: Path, index: int) -> Path:
    """Return where a process listens for the others."""
    return run_dir / f"{index}.sock"


def settings_file_of(run_dir: Path, index: int) -> Path:
    """Return the file with the settings of a process."""
    return run_dir / f"{index}.json"


def private_folder(path: Path) -> None:
    """Make a folder that is its owner's alone, also where it was there before. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(path, 0o700)
