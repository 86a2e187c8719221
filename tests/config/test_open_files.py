"""A program may have as many files open as the system allows it, whatever the shell that starts it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from pathlib import Path
import msgspec
from orchestrator.config.program import program

class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str

def run(settings, config):
    print("limits", *resource.getrlimit(resource.RLIMIT_NOFILE))
    return 0

resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
sys.argv = ["program", "--config", sys.argv[3]]
sys.exit(program("program", Settings, "PROGRAM_", run))
"""


@pytest.mark.parametrize(("soft", "hard"), [(128, 512), (512, 512)])
def test_the_soft_limit_is_raised_to_the_hard_one(soft: int, hard: int, tmp_path: Path) -> None:
    config = tmp_path / "program.yaml"
    config.write_text("name: one\n", encoding="utf-8")
    arguments = [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(config)]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.splitlines()[-1] == f"limits {hard} {hard}"
