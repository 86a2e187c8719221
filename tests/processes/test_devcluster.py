"""Two sites' Ray clusters stand side by side on one machine, each its own, and leave nothing when they end."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scheduler.pools.devcluster import (
    LONGEST_DIRECT_DIR_BYTES,
    DevCluster,
    DevClusterError,
    DevClusterSettings,
    check_token_file,
    main,
    parse_label,
    short_base,
)
from scheduler.pools.environment import ray_environment
from tests.processes.marks import ROOT, Marked, holds_within

DRIVER = """
import json, sys
import ray

ray.init(address=sys.argv[1], namespace="tidegate", log_to_driver=False, logging_level="ERROR", configure_logging=False)

@ray.remote
class Where:
    def labels(self):
        return ray.get_runtime_context().get_node_labels()

def placed(region, wait_s):
    actor = Where.options(num_cpus=0, label_selector={"region": region}).remote()
    try:
        return ray.get(actor.labels.remote(), timeout=wait_s)
    except ray.exceptions.GetTimeoutError:
        return None

nodes = [{"cpus": node["Resources"].get("CPU", 0), "labels": node["Labels"]} for node in ray.nodes()]
print(json.dumps({"nodes": nodes, "here": placed(sys.argv[2], 20), "elsewhere": placed(sys.argv[3], 1)}))
ray.shutdown()
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


@pytest.mark.parametrize(
    "text", ["region=cn-guizhou", "jurisdiction=CN", "model=smollm2-135m-instruct", "tidegate.io/pool=a_b.c", "a=1"]
)
def test_labels_in_kubernetes_syntax_are_taken(text: str) -> None:
    assert "=".join(parse_label(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("region", "=x", "region=", "region=-a", "region=a-", "region=a b", "region=a=b", "region=a/b", "réf=x"),
        *("region=!cn", "region=in(a)", "ray.io/node-id=x", "/x=y", "UP.io/x=y", "a..b/x=y", "x=" + "y" * 64, "a\n=b"),
    ],
)
def test_other_labels_are_refused(text: str) -> None:
    with pytest.raises(DevClusterError):
        parse_label(text)


def test_a_token_file_must_be_there_filled_and_private(token: Path, tmp_path: Path) -> None:
    check_token_file(token)
    empty = tmp_path / "empty"
    empty.touch(mode=0o600)
    open_to_all = tmp_path / "open"
    open_to_all.write_text("secret")
    open_to_all.chmod(0o644)
    for path in (empty, open_to_all, tmp_path / "missing", tmp_path):
        with pytest.raises(DevClusterError):
            check_token_file(path)


def test_wrong_arguments_end_with_status_2(token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--temp", str(tmp_path / "t"), "--token-file", str(token), "--address-file", str(tmp_path / "a")]
    for wrong in (["--label", "ray.io/x=y"], ["--label", "a=1", "--label", "a=2"], ["--cpus", "0"]):
        assert main([*base, *wrong]) == 2
        assert "devcluster: " in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


class LeavesSomething:
    """Ray's cluster of two nodes of which something is left when they are removed, as its `remove_node` says it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.head_node = self
        self.nodes = ["head", "worker"]
        self.added = 0

    def get_session_dir_path(self) -> str:
        return str(self._folder)

    def live_processes(self) -> list[object]:
        return []

    def list_all_nodes(self) -> list[object]:
        return [self for _ in self.nodes]

    def add_node(self, **_: object) -> str:
        self.added += 1
        return "another"

    def remove_node(self, _: object, *, allow_graceful: bool) -> None:
        assert not allow_graceful
        self.nodes.pop()
        raise AssertionError("There are zombie processes left over after killing.")


def test_what_is_left_of_a_node_ends_nothing_else(
    token: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "session"
    folder.mkdir()
    settings = DevClusterSettings(tmp_path, token, tmp_path / "address", {}, 1, 0.0)
    cluster = DevCluster(settings, tmp_path)
    ray = cluster._cluster = LeavesSomething(folder)
    cluster._worker = "worker"
    cluster.add_worker()
    assert (ray.added, ray.nodes) == (1, ["head"])
    ray.nodes.append("another")
    cluster.end()
    assert ray.nodes == []
    assert not folder.exists()
    assert capsys.readouterr().out.splitlines() == ["something is left of a node that was ended"] * 3


def test_a_long_folder_gets_a_short_private_name_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20)
    with short_base(folder) as base:
        assert len(os.fsencode(base)) <= LONGEST_DIRECT_DIR_BYTES
        assert base.resolve() == folder.resolve()
        assert base.parent.stat().st_mode & 0o077 == 0
    assert folder.is_dir()
    assert not base.parent.exists()


class Site:
    """One devcluster under a warden."""

    def __init__(self, folder: Path, token: Path, marked: Marked, *options: str) -> None:
        self.address_file = folder / "address"
        self.warden = subprocess.Popen(
            [
                *(sys.executable, "-m", "orchestrator.cli.warden", "--"),
                *(sys.executable, "-m", "scheduler.pools.devcluster", "--temp", str(folder / "site")),
                *("--token-file", str(token), "--address-file", str(self.address_file), *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **marked.environment},
        )

    def ready(self) -> bool:
        assert self.warden.poll() is None, "the devcluster ended before it was ready"
        return self.address_file.exists()

    def said(self, line: bytes) -> bool:
        """Reads what it says up to this line; False when it ended without."""
        assert self.warden.stdout is not None
        return any(said == line + b"\n" for said in iter(self.warden.stdout.readline, b""))

    def named(self, name: str) -> list[psutil.Process]:
        """Its processes of this name, the oldest first."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.warden.pid).children(recursive=True)

    def close(self) -> None:
        """Ends it as the death of its parent would, when it is not ended yet."""
        assert self.warden.stdin is not None
        assert self.warden.stdout is not None
        self.warden.stdin.close()
        self.warden.wait(20)
        self.warden.stdout.close()


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def listening_addresses(processes: list[psutil.Process]) -> set[str]:
    addresses = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    addresses.add(connection.laddr.ip.removeprefix("::ffff:"))
    return addresses


def ask_driver(site: Site, token: Path, marked: Marked, folder: Path, here: str, elsewhere: str) -> dict[str, object]:
    address = site.address_file.read_text().strip()
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, address, here, elsewhere],
        env={**os.environ, **marked.environment, **ray_environment(token, folder)},
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    answer: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return answer


@pytest.mark.e2e
def test_two_sites_side_by_side_are_apart_and_leave_nothing(marked: Marked, token: Path, tmp_path: Path) -> None:
    links_before = set(Path("/tmp").glob("tgr-*"))
    folders = {region: tmp_path / region for region in ("cn-guizhou", "cn-beijing")}
    for folder in folders.values():
        folder.mkdir()
    sites = {
        region: Site(folder, token, marked, f"--label=region={region}", "--label=jurisdiction=CN")
        for region, folder in folders.items()
    }
    try:
        for site in sites.values():
            assert holds_within(60, site.ready)
        assert len({site.address_file.read_text() for site in sites.values()}) == 2
        everything = [process for site in sites.values() for process in site.processes()]
        assert listening_addresses(everything) == {"127.0.0.1"}
        assert not [process for process in everything if "dashboard.py" in " ".join(process.cmdline()[:3])]

        answer = ask_driver(sites["cn-beijing"], token, marked, tmp_path, "cn-beijing", "cn-guizhou")
        assert answer["elsewhere"] is None, "a selector that no node of this site matches places nothing"
        assert isinstance(answer["here"], dict)
        assert answer["here"]["region"] == "cn-beijing"
        assert isinstance(answer["nodes"], list)
        assert sorted((node["cpus"], node["labels"].get("region")) for node in answer["nodes"]) == [
            (0, None),
            (1.0, "cn-beijing"),
        ]

        everything = [process for site in sites.values() for process in site.processes()]
        asked = time.monotonic()
        sites["cn-guizhou"].warden.send_signal(signal.SIGTERM)
        sites["cn-beijing"].close()
        assert sites["cn-guizhou"].warden.wait(20) == 0
        assert time.monotonic() - asked < 10
        assert not still_running(everything)
        assert not sites["cn-guizhou"].address_file.exists()
        assert not sites["cn-beijing"].address_file.exists()
        assert set(Path("/tmp").glob("tgr-*")) == links_before
    finally:
        for site in sites.values():
            site.close()


@pytest.mark.e2e
def test_a_lost_labelled_node_is_replaced_and_a_lost_head_is_followed_while_its_replicas_serve_on(
    marked: Marked, token: Path, tmp_path: Path
) -> None:
    site = Site(tmp_path, token, marked, "--label=region=cn-guizhou", "--linger-s=12")
    try:
        assert holds_within(60, site.ready)
        head, node = site.named("raylet")
        node.kill()
        assert site.said(b"the labelled node is back")
        assert site.named("raylet")[0] == head
        replacement = site.named("raylet")[1]
        assert replacement != node

        address = site.address_file.read_text()
        before = site.processes()[1:]  # but the devcluster itself
        site.named("gcs_server")[0].kill()
        assert site.said(b"the head is gone")
        assert holds_within(60, lambda: site.address_file.read_text() != address)
        assert replacement.is_running(), "replicas serve on beside the fresh cluster"
        answer = ask_driver(site, token, marked, tmp_path, "cn-guizhou", "cn-beijing")
        assert isinstance(answer["here"], dict)
        assert answer["here"]["region"] == "cn-guizhou"
        assert site.said(b"the cluster before is ended")
        assert holds_within(10, lambda: not still_running(before))
        assert len(site.named("gcs_server")) == 1
        assert len(site.named("raylet")) == 2
    finally:
        site.close()


@pytest.mark.e2e
def test_a_lost_head_without_a_linger_ends_the_site(marked: Marked, token: Path, tmp_path: Path) -> None:
    site = Site(tmp_path, token, marked, "--label=region=cn-guizhou")
    try:
        assert holds_within(60, site.ready)
        processes = site.processes()
        site.named("gcs_server")[0].kill()
        assert site.warden.wait(20) == 3
        assert not still_running(processes)
        assert not site.address_file.exists()
    finally:
        site.close()
