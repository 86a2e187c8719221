"""The checks that stand outside the tidy rules fail when what they hold is broken: imports, stubs, locks."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.tidy.source import ROOT

TIMEOUT_S = 60

# For each contract of .importlinter: a module, and an import that it may not have.
BREACHES: dict[str, tuple[str, str]] = {
    "layers": ("orchestrator/ledger/breach.py", "import orchestrator.wire"),
    "programs": ("node_agent/breach.py", "import scheduler.intake"),
    "ground": ("orchestrator/spool/breach.py", "import node_agent.front"),
    "pure": ("orchestrator/placement/breach.py", "import time"),
    "law": ("orchestrator/policy/breach.py", "import msgspec"),
    "light": ("node_agent/front/breach.py", "import kubernetes"),
    "etcd": ("orchestrator/control/breach.py", "import etcd3aio"),
    "watch": ("node_agent/watch/breach.py", "import node_agent.front.app"),
    "engines": ("scheduler/intake/breach.py", "import torch"),
    "protos": ("orchestrator/files/breach.py", "from protos.tidegate.v1 import session_pb2"),
}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment to its end."""
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def copy_of(target: Path, *names: str) -> Path:
    """A copy of parts of this checkout."""
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


def contracts(root: Path) -> dict[str, str]:
    """The names of the contracts by their key."""
    parser = configparser.ConfigParser()
    parser.read(root / ".importlinter", encoding="utf-8")
    return {
        section.rpartition(":")[2]: parser[section]["name"]
        for section in parser.sections()
        if section.startswith("importlinter:contract:")
    }


def test_each_import_contract_fails_when_it_is_broken(tmp_path: Path) -> None:
    root = copy_of(tmp_path, ".importlinter", "orchestrator", "node_agent", "scheduler", "protos")
    names = contracts(root)
    assert BREACHES.keys() == names.keys()
    for path, line in BREACHES.values():
        assert not (root / path).exists(), f"{path} would be overwritten"
        (root / path).write_text(f"{line}\n", encoding="utf-8")
    linted = run("lint-imports", "--no-logo", "--no-cache", cwd=root)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    # The terminal's width breaks lines anywhere.
    told = " ".join(linted.stdout.split())
    kept = [key for key, name in names.items() if f"{name} BROKEN" not in told]
    assert not kept, f"nothing broke {kept}:\n{linted.stdout}{linted.stderr}"


def protos_check(root: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, ROOT / "tools" / "protos.py", "--check", "--root", root, cwd=root)


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    """A copy of the messages whose stubs fit."""
    root = copy_of(tmp_path, "protos")
    assert protos_check(root).returncode == 0
    return root


def test_a_changed_message_is_drift(protos: Path) -> None:
    proto = protos / "protos" / "tidegate" / "v1" / "usage.proto"
    proto.write_text(proto.read_text() + "\nmessage Drifted { string name = 1; }\n")
    checked = protos_check(protos)
    assert checked.returncode == 1
    assert "protos/tidegate/v1/usage_pb2.py differs" in checked.stdout
    assert "protos/tidegate/v1/usage_pb2.pyi differs" in checked.stdout


def test_a_lost_stub_and_a_stub_without_its_message_are_drift(protos: Path) -> None:
    folder = protos / "protos" / "tidegate" / "v1"
    (folder / "labels_pb2_grpc.py").unlink()
    (folder / "gone_pb2.py").write_text("")
    checked = protos_check(protos)
    assert checked.returncode == 1
    assert "protos/tidegate/v1/labels_pb2_grpc.py is missing" in checked.stdout
    assert "protos/tidegate/v1/gone_pb2.py has no .proto" in checked.stdout


def test_stubs_are_written_for_a_new_message(tmp_path: Path) -> None:
    folder = tmp_path / "protos" / "tidegate" / "v1"
    folder.mkdir(parents=True)
    text = 'syntax = "proto3";\npackage tidegate.v1;\nmessage Dummy { string name = 1; }\n'
    (folder / "dummy.proto").write_text(text)
    command = (sys.executable, ROOT / "tools" / "protos.py", "--root", tmp_path)
    assert run(*command, cwd=tmp_path).returncode == 0
    assert protos_check(tmp_path).returncode == 0
    names = {path.name for path in folder.iterdir()}
    assert {"__init__.py", "dummy_pb2.py", "dummy_pb2.pyi", "dummy_pb2_grpc.py", "dummy_pb2_grpc.pyi"} <= names


def test_a_message_that_does_not_parse_is_told(protos: Path) -> None:
    (protos / "protos" / "tidegate" / "v1" / "broken.proto").write_text("message {")
    checked = protos_check(protos)
    assert checked.returncode == 1
    assert "broken.proto" in checked.stderr


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    """A copy of the locks that fit."""
    root = copy_of(tmp_path, "requirements", "pyproject.toml", "tools/lock.py")
    assert locks_check(root).returncode == 0
    return root


def locks_check(root: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "tools/lock.py", "--check", cwd=root)


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("pyproject.toml", '"uvloop>=', '"newcomer", "uvloop>=', "newcomer: wanted by tidegate, in no lock"),
        ("pyproject.toml", '"uvloop>=0.22"', '"uvloop>=9"', "uvloop: tidegate wants >=9"),
        ("pyproject.toml", '    "rfc8785>=0.1.4",\n', "", "edge.txt is not the part"),
        ("requirements/edge.txt", "cryptography==", "cryptography==9", "edge.txt is not the part"),
        ("pyproject.toml", '"cryptography>=', '"etcd3aio", "cryptography>=', "edge.txt is not the part"),
        ("requirements/torch.txt", "torch==2", "torch==9", "torch: tidegate[pools] wants"),
    ],
)
def test_locks_that_do_not_fit_are_told(locks: Path, file: str, old: str, new: str, told: str) -> None:
    path = locks / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    checked = locks_check(locks)
    assert checked.returncode == 1
    assert told in checked.stdout


def test_a_pin_without_a_digest_is_told(locks: Path) -> None:
    path = locks / "requirements" / "lock.txt"
    path.write_text(path.read_text() + "unhashed==1.0\n")
    checked = locks_check(locks)
    assert checked.returncode == 1
    assert "lock.txt: unhashed has no digest" in checked.stdout


def test_no_lock_names_an_index_or_a_path() -> None:
    for lock in (ROOT / "requirements").iterdir():
        text = lock.read_text()
        assert "://" not in text, lock.name
        assert "--index" not in text, lock.name
        assert "--find-links" not in text, lock.name
        assert " /" not in text, lock.name


@pytest.mark.parametrize("heavy", ["ray", "torch", "transformers", "etcd3aio", "kubernetes", "numpy"])
def test_the_lock_of_the_edge_is_small(heavy: str) -> None:
    assert f"\n{heavy}==" not in (ROOT / "requirements" / "edge.txt").read_text()
