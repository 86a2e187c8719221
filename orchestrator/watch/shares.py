"""What each process of a program is told of itself, its name, and what is asked of the settings of all. Pure."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orchestrator.config.secret import SettingsError
from orchestrator.policy.ids import is_name
from orchestrator.watch.places import SOCKET_PATH_BYTES_MAX, run_folder, socket_of

PROCESSES_MAX = 64
SPOOL_BYTES_MIN = 16 << 20
"""The least that a spool works with: four segments."""


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of several processes of one program a process is. A watch writes this for its own, and nobody else does."""

    index: int
    """From 0, below `processes`."""
    parent_pid: int
    """Of the watch that started it."""
    run_dir: str
    """Folder of the local sockets."""


def member_name(program: str, index: int) -> str:
    """Return under which name a process reports to control.

    Control keeps one report for each name: under one name the processes would overwrite each other's sessions and
    alarms every second. The first has the program's own, so that it is seen wherever its id is looked for.
    """
    return program if index == 0 else f"{program}.w{index}"


def check_shared(file: str, processes: int, id_: str, data_dir: str, spool_bytes: int) -> None:
    """Refuse settings of `file` with which no program can be `processes` processes.

    Raises SettingsError, which names the field.
    """
    if spool_bytes < processes * SPOOL_BYTES_MIN:
        least = processes * SPOOL_BYTES_MIN
        raise SettingsError(file, "spool_bytes", f"expected at least {least}: {SPOOL_BYTES_MIN} for each process")
    last = socket_of(run_folder(Path(data_dir)), processes - 1)
    if len(str(last).encode()) > SOCKET_PATH_BYTES_MAX:
        sentence = f"expected a shorter path: with {last.relative_to(data_dir)} it is a socket's name"
        raise SettingsError(file, "data_dir", f"{sentence}, which has at most {SOCKET_PATH_BYTES_MAX} bytes")
    if not is_name(member_name(id_, processes - 1)):
        raise SettingsError(file, "id", "expected a shorter id: with several processes, `.w<index>` is put after it")
