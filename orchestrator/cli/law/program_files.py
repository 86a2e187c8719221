"""What a program's settings file says of its folders and its roots: enough to read its evidence and its bundles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrator.bundles.roots import Roots, RootSetting, pinned
from orchestrator.files.document import FileError, read_document
from orchestrator.files.typed import Misfit, fit


class _RootsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    roots: tuple[RootSetting, ...]


@dataclass(frozen=True, slots=True)
class ProgramFiles:
    """Of one edge or scheduler."""

    side: str
    data_dir: Path
    roots: tuple[RootSetting, ...]

    def each(self) -> tuple[ProgramFiles, ...]:
        """Return the files of each process. An edge of several keeps those of all but the first in `worker-<index>`."""
        others = sorted(spool.parent for spool in self.data_dir.glob("worker-*/spool"))
        return (self, *(replace(self, data_dir=folder) for folder in others))


def read_program_files(config: Path) -> ProgramFiles:
    """Return what a settings file says. Raises FileError."""
    document = read_document(config)
    value = cast(dict[str, Any], document.value)
    for field in ("side", "data_dir", "roots"):
        if field not in value:
            raise FileError(str(config), 0, field, "expected this field, as an edge's settings have it")
    data_dir = Path(str(value["data_dir"]))
    if not data_dir.is_dir():
        raise FileError(str(config), 0, "data_dir", "expected the program's folder, on this machine")
    return ProgramFiles(str(value["side"]), data_dir, _roots(config, value["roots"]))


def read_roots(path: Path) -> Roots:
    """Return the pinned roots of a file: `roots:` as in the settings of a program. Raises FileError."""
    document = read_document(path)
    value = cast(dict[str, Any], document.value)
    if "roots" not in value:
        raise FileError(str(path), 0, "roots", "expected a list of roots")
    try:
        return pinned(_roots(path, value["roots"]))
    except ValueError as error:
        raise FileError(str(path), 0, "roots", str(error)) from None


def _roots(path: Path, value: object) -> tuple[RootSetting, ...]:
    try:
        return fit({"roots": value}, _RootsFile).roots
    except Misfit as misfit:
        raise FileError(str(path), 0, "", str(misfit)) from None
