"""What `tidegate up` tells at the end can be pasted where it was started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.cli.samples import Caller
from orchestrator.cli.up import examples


def test_the_examples_name_the_house_and_the_interpreter_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Caller("singapore", "http://127.0.0.1:8301/v1", "tg_key", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "bin" / "python"))
    beside = examples(caller, tmp_path / "house" / "demo.env")
    assert "The house stands. Keys and URLs are in house/demo.env. Try:" in beside
    assert "  'my env/bin/python' - <<'PY'" in beside
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    away = "\n".join(examples(caller, tmp_path / "house" / "demo.env"))
    assert f"Keys and URLs are in {tmp_path}/house/demo.env." in away
    assert f"'{tmp_path}/my env/bin/python' - " in away
