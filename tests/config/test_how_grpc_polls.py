"""gRPC polls its sockets in one thread of an edge and a scheduler, unless an operator says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from orchestrator.config.program import POLLING, program

NAME, VALUE = POLLING


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Those of no program."""

    name: str


@pytest.mark.parametrize(("given", "holds"), [(None, VALUE), ("", ""), ("of_theirs", "of_theirs")])
def test_it_is_said_before_the_program_runs_and_never_over_an_operators_word(
    given: str | None, holds: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "program.yaml"
    config.write_text("name: one\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["program", "--config", str(config)])
    monkeypatch.setenv(NAME, "to be put back")
    if given is None:
        monkeypatch.delenv(NAME)
    else:
        monkeypatch.setenv(NAME, given)
    found = []

    def run(_: Settings, __: Path) -> int:
        found.append(os.environ[NAME])
        return 0

    assert program("program", Settings, "PROGRAM_", run) == 0
    assert found == [holds]


@pytest.mark.parametrize("module", ["node_agent.__main__", "scheduler.__main__"])
def test_grpc_which_reads_it_once_is_not_imported_by_then(module: str) -> None:
    told = f"import sys, {module}; print(sum(name.partition('.')[0] == 'grpc' for name in sys.modules))"
    told = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.split() == ["0"]
