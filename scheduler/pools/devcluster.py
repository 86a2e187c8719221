"""One Ray cluster for one site on one machine: a head that holds no replica and one labelled node.

``python -m scheduler.pools.devcluster`` is for development. In production KubeRay starts the cluster, and the driver
joins either by address. Every listener is on loopback and asks for the token; nothing is shared with another Ray
cluster on the same machine.

When both nodes are up, the address (``127.0.0.1:port``) is in the address file and on standard output in one line
``ready 127.0.0.1:port``. SIGTERM or SIGINT ends it: no process stays, the address file is removed, exit status 0.

A head that is lost does not come back: what it knew is gone. A fresh cluster is started beside the old one and its
address put into the file; the old labelled node goes on for ``--linger-s`` from then on, so that live replicas serve
until fresh ones do. Without a linger the loss of the head ends everything.

Exit statuses: 0 stopped on request, 1 could not start (or stopped while starting), 2 wrong arguments, 3 the head is
gone and nothing took its place.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from scheduler.pools.environment import ray_environment

EXIT_STOPPED = 0
EXIT_USAGE = 2
EXIT_HEAD_LOST = 3

OBJECT_STORE_BYTES = 80 << 20
"""Just above the least that Ray accepts: nothing of Tidegate travels through the object store."""

WATCH_PERIOD_S = 0.2
REAP_PERIOD_S = 2.0
START_S_MAX = 180
"""How long a fresh cluster may take to start while the one before serves on."""
STOP_GRACE_S = 1.0
"""How long Ray's processes may take to end by themselves; the whole stop is bounded by about twice this."""

LONGEST_DIRECT_DIR_BYTES = 30
"""Ray puts up to 72 bytes of socket path below its folder, and AF_UNIX allows 107."""

PR_SET_CHILD_SUBREAPER = 36

RESERVED_LABEL_PREFIX = "ray.io/"
_LABEL_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


class DevClusterError(Exception):
    """The cluster cannot be started as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class DevClusterSettings:
    """What one site's cluster is made of.

    ``linger_s`` is how long the labelled node of a lost head is kept once there is a fresh cluster, so that live
    replicas go on serving until fresh ones do; 0 ends everything at once when the head is lost.
    """

    temp_dir: Path
    token_file: Path
    address_file: Path
    labels: Mapping[str, str]
    cpus: int
    linger_s: float


def parse_label(text: str) -> tuple[str, str]:
    """Splits ``key=value`` and holds it to the syntax that Ray and Kubernetes share.

    A key is a name of at most 63 letters, digits, ``-``, ``_`` or ``.``, optionally after a DNS prefix and ``/``;
    ``ray.io/`` is Ray's own. A value is such a name, never empty here: an empty value can match by accident.

    Raises:
        DevClusterError: the label breaks these rules.
    """
    key, separator, value = text.partition("=")
    prefix, slash, name = key.rpartition("/")
    prefix_is_valid = not slash or (len(prefix) <= 253 and _LABEL_PREFIX.fullmatch(prefix) is not None)
    if not separator or not prefix_is_valid or not _LABEL_NAME.fullmatch(name) or not _LABEL_NAME.fullmatch(value):
        raise DevClusterError(f"label {text!r} is not key=value in Kubernetes label syntax")
    if key.startswith(RESERVED_LABEL_PREFIX):
        raise DevClusterError(f"label key {key!r} is reserved by Ray")
    return key, value


def check_token_file(path: Path) -> None:
    """Holds the token file to what Ray's token authentication needs.

    Raises:
        DevClusterError: it is missing, empty, or open to other users.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DevClusterError(f"token file {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        raise DevClusterError(f"token file {path} is empty or not a file")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise DevClusterError(f"token file {path} is open to other users: chmod 600")


@contextlib.contextmanager
def short_base(temp_dir: Path) -> Iterator[Path]:
    """Yields a path to ``temp_dir`` that is short enough for Ray's sockets: itself, or a private link below /tmp."""
    temp_dir.mkdir(parents=True, exist_ok=True)
    direct = temp_dir.absolute()
    if len(os.fsencode(direct)) <= LONGEST_DIRECT_DIR_BYTES:
        yield direct
        return
    link_dir = Path(tempfile.mkdtemp(prefix="tgr-", dir="/tmp"))  # private and unpredictable
    link = link_dir / "t"
    try:
        link.symlink_to(direct, target_is_directory=True)
        yield link
    finally:
        link.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            link_dir.rmdir()


def prepare_base(base: Path) -> Path:
    """Returns Ray's own folder below ``base``, made, and cleared of what earlier runs left."""
    ray_dir = base / "ray"
    if ray_dir.exists():
        shutil.rmtree(ray_dir)
    ray_dir.mkdir(mode=0o700)
    return ray_dir


def publish_address(path: Path, address: str) -> None:
    """Puts ``address`` into the file at ``path``; a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(address + "\n", encoding="ascii")
    partial.replace(path)


class StopRequest:
    """Whether SIGTERM or SIGINT has asked for the end."""

    def __init__(self) -> None:
        self._asked = False

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._asked

    def install(self) -> None:
        """Takes both signals. Needed again after each node: Ray takes SIGTERM for itself whenever it starts one."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True


class DevCluster:
    """The two nodes of one site. Made and used in the main thread: Ray ties its processes' lives to that thread."""

    def __init__(self, settings: DevClusterSettings, ray_dir: Path) -> None:
        """In ``ray_dir``, which is there, each cluster has a folder of its own."""
        self._settings = settings
        self._ray_dir = ray_dir
        self._cluster: Any = None
        self._worker: Any = None

    @property
    def address(self) -> str:
        """``127.0.0.1:port`` of the head."""
        return str(self._cluster.address)

    def start(self) -> None:
        """Starts the head, then the labelled node, and returns when both are registered.

        Raises:
            RuntimeError, TimeoutError, ValueError: from Ray, when a node does not come up.
        """
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                **self._common_node_arguments(),
                "num_cpus": 0,
                "include_dashboard": False,
                "dashboard_port": 0,
                "no_monitor": True,
                "temp_dir": str(self._ray_dir),
                "_system_config": {
                    # Ray lets nodes outlive a lost head for this long before they end themselves.
                    "gcs_rpc_server_reconnect_timeout_s": START_S_MAX + int(self._settings.linger_s),
                    # Five failed probes make a node dead. A dead process fails at once, so a short period finds it
                    # in 5 s instead of 15; the long time limit keeps a merely slow machine from looking dead.
                    "health_check_initial_delay_ms": 1000,
                    "health_check_period_ms": 1000,
                    "health_check_timeout_ms": 10_000,
                    "health_check_failure_threshold": 5,
                },
            },
        )
        self.add_worker()
        # Ray starts this process even when told not to include it; it has done its part once the nodes are up.
        self._cluster.head_node.kill_dashboard(check_alive=False)

    def add_worker(self) -> None:
        """Adds the labelled node; in place of the one before, when that is dead."""
        if self._worker is not None:
            self._remove(self._worker)
            self._worker = None
        self._worker = self._cluster.add_node(
            **self._common_node_arguments(),
            num_cpus=self._settings.cpus,
            labels=dict(self._settings.labels),
        )

    def head_is_alive(self) -> bool:
        """Whether the head's own processes all run."""
        return not self._cluster.head_node.dead_processes()

    def worker_is_alive(self) -> bool:
        """Whether the labelled node's own processes all run."""
        return not self._worker.dead_processes()

    def pids(self) -> set[int]:
        """The processes that Ray started itself, and collects itself."""
        return {process.pid for node in self._nodes() for _, process in node.live_processes()}

    def end(self) -> None:
        """Ends what is left of both nodes, and removes their folder. Replicas end with their node."""
        import psutil

        folder = self._cluster.head_node.get_session_dir_path()
        below = []
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                below += psutil.Process(pid).children(recursive=True)
        for node in self._nodes():
            self._remove(node)
        for process in below:
            # Ray's agents outlive their node.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, node: Any) -> None:
        try:
            self._cluster.remove_node(node, allow_graceful=False)
        except AssertionError:
            # By then Ray has forgotten the node. What is left of it ends with this process: nothing else ends for it.
            say("something is left of a node that was ended")

    def _nodes(self) -> list[Any]:
        return list(self._cluster.list_all_nodes())

    def _common_node_arguments(self) -> dict[str, Any]:
        return {
            "num_gpus": 0,
            "node_ip_address": "127.0.0.1",
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_log_monitor": False,
            "dashboard_agent_listen_port": 0,
        }


def collect(pid: int) -> None:
    """Takes the exit status of an ended child, so that it does not stay as a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def sweep(grace_s: float) -> int:
    """Ends every process below this one: SIGTERM, then after ``grace_s`` SIGKILL. Returns how many are left.

    Ray's agents change session and outlive their node, so the process tree is walked and no process group trusted.
    """
    import psutil

    me = psutil.Process()
    start = time.monotonic()
    asked: set[int] = set()
    while time.monotonic() < start + 2 * grace_s:
        remaining = me.children(recursive=True)
        if not remaining:
            return 0
        kill = time.monotonic() >= start + grace_s
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_ZOMBIE:
                    collect(process.pid)
                elif kill:
                    process.kill()
                elif process.pid not in asked:
                    asked.add(process.pid)
                    process.terminate()
        time.sleep(0.05)
    return len(me.children(recursive=True))


class Succession:
    """The cluster of one site, and those before it whose heads are lost and whose replicas serve on for a while."""

    def __init__(self, settings: DevClusterSettings, ray_dir: Path, stop: StopRequest) -> None:
        self._settings = settings
        self._ray_dir = ray_dir
        self._stop = stop
        self._before: list[tuple[float, DevCluster]] = []  # bounded: each ends after the linger
        """With when each is ended."""
        self.current: DevCluster

    def start(self) -> None:
        """Starts a cluster, in place of the one before, and tells its address.

        Raises:
            RuntimeError, TimeoutError, ValueError, OSError: it cannot be started.
        """
        self.current = DevCluster(self._settings, self._ray_dir)
        self.current.start()
        self._stop.install()
        if not self._stop.asked():
            publish_address(self._settings.address_file, self.current.address)
            say(f"ready {self.current.address}")

    def succeed(self) -> bool:
        """The head is gone: starts a fresh cluster beside what it left. Returns whether there is one."""
        say("the head is gone")
        if not self._settings.linger_s:
            return False
        old = self.current
        give_up_s = time.monotonic() + START_S_MAX
        while not self._started():
            if self._stop.asked() or time.monotonic() >= give_up_s:
                return False
        self._before.append((time.monotonic() + self._settings.linger_s, old))
        return True

    def _started(self) -> bool:
        """Starts a cluster. Returns whether it stands; what is left of one that does not ends with this process."""
        try:
            self.start()
        except (RuntimeError, TimeoutError, ValueError, OSError) as failure:
            self._stop.install()
            say(f"no fresh cluster could be started: {type(failure).__name__}")
            return False
        return True

    def end_old(self) -> None:
        """Ends those that have served on for long enough."""
        while self._before and time.monotonic() >= self._before[0][0]:
            self._before.pop(0)[1].end()
            say("the cluster before is ended")

    def reap(self) -> None:
        """Collects ended processes that this process adopted; those that Ray started itself it collects itself."""
        import psutil

        own = set[int]().union(*(one.pids() for one in (self.current, *(before for _, before in self._before))))
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
                    collect(child.pid)


def watch(site: Succession, stop: StopRequest) -> int:
    """Keeps the site whole until asked to stop, and returns the exit status. What is dead is replaced."""
    next_reap = time.monotonic() + REAP_PERIOD_S
    while not stop.asked():
        time.sleep(WATCH_PERIOD_S)
        if not site.current.head_is_alive():
            if not site.succeed():
                return EXIT_STOPPED if stop.asked() else EXIT_HEAD_LOST
        elif not site.current.worker_is_alive():
            say("the labelled node is gone; adding it again")
            site.current.add_worker()
            stop.install()
            say("the labelled node is back")
        site.end_old()
        if time.monotonic() >= next_reap:
            site.reap()
            next_reap = time.monotonic() + REAP_PERIOD_S
    return EXIT_STOPPED


def say(line: str) -> None:
    """Writes one line to standard output at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(settings: DevClusterSettings) -> int:
    """Runs one site until SIGTERM, SIGINT or the loss of a head that nothing follows; returns the exit status."""
    stop = StopRequest()
    stop.install()
    settings.address_file.unlink(missing_ok=True)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with short_base(settings.temp_dir) as base:
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.update(ray_environment(settings.token_file, base))
        site = Succession(settings, prepare_base(base), stop)
        try:
            site.start()
            return watch(site, stop)
        finally:
            settings.address_file.unlink(missing_ok=True)
            left = sweep(STOP_GRACE_S)
            if left:
                say(f"{left} processes could not be ended")


def parse_arguments(arguments: Sequence[str]) -> DevClusterSettings:
    """Reads the command line.

    Raises:
        DevClusterError: a label or the token file is not acceptable.
        SystemExit: with status 2, when an argument is missing or unknown.
    """
    parser = argparse.ArgumentParser(prog="scheduler.pools.devcluster", description="One site's Ray cluster.")
    parser.add_argument("--temp", type=Path, required=True, help="folder for Ray's session, its logs included")
    parser.add_argument("--token-file", type=Path, required=True, help="Ray's token, mode 0600")
    parser.add_argument("--address-file", type=Path, required=True, help="where the address is put when ready")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="label of the worker node")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs that the labelled node offers")
    parser.add_argument("--linger-s", type=float, default=0.0, help="how long old replicas serve beside fresh ones")
    parsed = parser.parse_args(arguments)
    pairs = [parse_label(text) for text in parsed.label]
    labels = dict(pairs)
    if len(labels) != len(pairs):
        raise DevClusterError("a label key is given twice")
    if parsed.cpus < 1 or not 0 <= parsed.linger_s <= 3600:
        raise DevClusterError("--cpus is at least 1, --linger-s between 0 and 3600")
    check_token_file(parsed.token_file)
    return DevClusterSettings(
        temp_dir=parsed.temp,
        token_file=parsed.token_file,
        address_file=parsed.address_file,
        labels=labels,
        cpus=parsed.cpus,
        linger_s=parsed.linger_s,
    )


def main(arguments: Sequence[str]) -> int:
    """The program; returns its exit status."""
    try:
        settings = parse_arguments(arguments)
    except DevClusterError as error:
        sys.stderr.write(f"devcluster: {error}\n")
        return EXIT_USAGE
    return run(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
