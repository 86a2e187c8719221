"""A program with a bad configuration says one clear sentence and exits with status 2, before it opens anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ["node_agent", "scheduler", "orchestrator"]
CASES = [
    ("", "expected"),
    ("id: [unclosed", "expected"),
    ("surprise: 1\n", "surprise"),
    ("side: overseas\nside: domestic\n", "side"),
    ("listen: 12\n", "listen"),
]


def run(program: str, config: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", program, "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), **env},
    )


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("text", "named"), CASES)
def test_a_bad_file_is_one_sentence_and_status_2(tmp_path: Path, program: str, text: str, named: str) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    ended = run(program, config)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert str(config) in ended.stderr
    assert named in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_file_is_one_sentence_and_status_2(tmp_path: Path, program: str) -> None:
    ended = run(program, tmp_path / "absent.yaml")
    assert ended.returncode == 2
    assert "absent.yaml" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_an_unknown_variable_is_refused_by_name(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("id: x\n")
    ended = run("node_agent", config, TIDEGATE_EDGE_POTR="8101")
    assert ended.returncode == 2
    assert "TIDEGATE_EDGE_POTR" in ended.stderr
