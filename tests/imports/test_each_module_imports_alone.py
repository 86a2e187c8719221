"""Each module imports alone, in any order, and importing it does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import alone

TIMEOUT_S = 180


def run(package: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.imports.alone", package],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize("package", sorted(alone.OURS))
def test_each_module_imports_alone_and_does_nothing(package: str) -> None:
    ended = run(package, alone.ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_what_is_wrong_with_an_import_is_told(tmp_path: Path) -> None:
    tests = tmp_path / "tests" / "imports"
    tests.mkdir(parents=True)
    (tests / "alone.py").write_text(Path(alone.__file__).read_text())
    package = tmp_path / "scheduler"
    package.mkdir()
    faulty = {
        "__init__": "",
        "fine": "import json",
        "needy": "import scheduler.fine\nscheduler.other",
        "missing": "import nobody_has_this",
        "chatty": "print('hello')",
        "busy": "import threading, time\nthreading.Thread(target=time.sleep, args=(5,), daemon=True).start()",
        "setting": "import os\nos.environ['CHANGED'] = '1'",
        "pathy": "import sys\nsys.path.insert(0, '/nowhere')",
        "leaving": "raise SystemExit(0)",
    }
    for name, text in faulty.items():
        (package / f"{name}.py").write_text(text)
    ended = run("scheduler", tmp_path)
    assert ended.returncode == 1, ended.stderr
    for told in (
        "scheduler.needy does not import alone",
        "scheduler.missing does not import alone",
        "scheduler.chatty prints on import",
        "scheduler.busy changes on import: threads",
        "scheduler.setting changes on import: environment",
        "scheduler.pathy changes on import: search path",
        "scheduler.leaving does not import alone",
    ):
        assert told in ended.stdout
    assert "scheduler.fine" not in ended.stdout.replace("import scheduler.fine", "")
