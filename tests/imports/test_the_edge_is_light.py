"""The edge starts without Ray, torch, transformers, Kubernetes or etcd: all that it needs is in its own lock."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.imports.alone import ROOT, modules_of

TIMEOUT_S = 60


def run(*names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.imports.edge_only", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def test_every_module_of_the_edge_imports_on_its_own_lock() -> None:
    ended = run()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{len(list(modules_of('node_agent')))} imported\n"


@pytest.mark.parametrize(
    "name",
    ["ray", "torch", "transformers", "kubernetes", "etcd3aio", "numpy", "scheduler.intake", "orchestrator.control"],
)
def test_what_an_edge_has_not_is_truly_out_of_reach(name: str) -> None:
    ended = run(name)
    assert ended.returncode == 1
    assert re.search(rf"ModuleNotFoundError: {name}\S* is not installed beside an edge", ended.stderr), ended.stderr
