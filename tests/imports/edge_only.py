"""Imports every module of the edge with nothing installed but what its lock holds.

    python -m tests.imports.edge_only        exit 0 when every module imports
    python -m tests.imports.edge_only NAME   import this instead
    python -m tests.imports.edge_only --start FILE   start the edge with these settings

Every other package, and the other programs of this project, are made unimportable first.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from types import ModuleType

from tests.imports.alone import ROOT, modules_of

ELSEWHERE = ("scheduler", "orchestrator.control", "orchestrator.cli")
"""What of this project is not installed beside an edge."""


def normal(name: str) -> str:
    """The name of a distribution as locks write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def importable() -> set[str]:
    """The top-level modules that an edge may import: its own, the standard library, and those of edge.txt."""
    lock = (ROOT / "requirements" / "edge.txt").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    found = {top for top, names in packages_distributions().items() if locked.intersection(map(normal, names))}
    return found | sys.stdlib_module_names | {"node_agent", "orchestrator", "protos"}


class Closed:
    """A finder that comes first and refuses whatever is not on the list."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuse a module, or leave it to the finders behind. Raises ModuleNotFoundError."""
        elsewhere = any(name == closed or name.startswith(f"{closed}.") for closed in ELSEWHERE)
        if elsewhere or name.partition(".")[0] not in self._names:
            raise ModuleNotFoundError(f"{name} is not installed beside an edge", name=name)
        return None


def ask_quietly(name: str, package: str | None = None) -> ModuleSpec | None:
    """What `importlib.util.find_spec` says of a module that is not there: nothing, where importing it raises."""
    try:
        return _find_spec(name, package)
    except ModuleNotFoundError:
        return None


_find_spec = importlib.util.find_spec


def main() -> int:
    """Import the modules of the edge, or the one on the command line, or start it."""
    names = sys.argv[1:] or list(modules_of("node_agent"))
    sys.meta_path.insert(0, Closed(importable()))
    importlib.util.find_spec = ask_quietly
    if names[0] == "--start":
        sys.argv = ["node_agent", "--config", names[1]]
        runpy.run_module("node_agent", run_name="__main__")
        return 0
    for name in names:
        importlib.import_module(name)
    sys.stdout.write(f"{len(names)} imported\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
