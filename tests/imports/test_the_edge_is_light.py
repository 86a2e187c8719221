"""The edge starts without Ray, torch, transformers, Kubernetes or etcd: all that it needs is in its own lock."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.bundles.roots import SigningKey
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
    ["ray", "torch", "transformers", "kubernetes", "etcd3aio", "numpy", "scheduler", "orchestrator.control"],
)
def test_what_an_edge_has_not_is_truly_out_of_reach(name: str) -> None:
    ended = run(name)
    assert ended.returncode == 1
    assert re.search(rf"ModuleNotFoundError: {name}\S* is not installed beside an edge", ended.stderr), ended.stderr


def test_the_edge_starts_and_answers_with_nothing_else_installed(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = SigningKey.generate()
    key.write(tmp_path / "edge.pem")
    commitment = tmp_path / "edge.commitment"
    commitment.write_text("ab" * 32)
    commitment.chmod(0o600)
    settings = tmp_path / "edge.yaml"
    settings.write_text(
        f"id: edge-test\nside: overseas\nhost: 127.0.0.1\nport: {port}\ncontrol: 127.0.0.1:9\n"
        f"data_dir: {tmp_path}/data\nsigning_key_file: {tmp_path}/edge.pem\n"
        f"commitment_key_file: {commitment}\nroots:\n"
        f"  - {{side: overseas, public_key: {base64.b64encode(key.public_key).decode()}, jurisdictions: [SG]}}\n"
    )
    edge = subprocess.Popen([sys.executable, "-m", "tests.imports.edge_only", "--start", str(settings)], cwd=ROOT)
    try:
        assert wait_for(port, "/healthz") == 200
        # Without a bundle it is alive, and says that it cannot serve.
        assert wait_for(port, "/readyz") == 503
        edge.send_signal(signal.SIGTERM)
        assert edge.wait(timeout=TIMEOUT_S) == 0
    finally:
        edge.kill()
        edge.wait(timeout=TIMEOUT_S)


def wait_for(port: int, path: str) -> int:
    """The status of the first answer."""
    end_at = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
            try:
                connection.request("GET", path)
                reply = connection.getresponse()
                reply.read()
                return reply.status
            except OSError:
                assert time.monotonic() < end_at
                time.sleep(0.05)
