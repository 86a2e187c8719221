"""A real edge of two processes: one port, one send for each key, and nothing left of it whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from node_agent.idempotency.rules import owner
from node_agent.idempotency.sealing import Sealer
from orchestrator.policy.ids import EdgeId, TenantId
from orchestrator.spool.records import RecordKind
from orchestrator.spool.store import Spool
from tests.bundles.sides import MODEL
from tests.idempotency.lone_edge import API_KEY, EDGE, ROOT, TIMEOUT_S, LoneEdge, free_port, lone_edge

SEALER = Sealer(bytes.fromhex("ab" * 32), EdgeId(EDGE))
CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Well?"}]}).encode()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for sockets, whatever the test is called."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def keys_of(index: int, count: int, start: int = 0) -> list[str]:
    """Keys for which process `index` of two answers."""
    names = (f"key-{number}" for number in range(start, start + 1_000))
    mine = (name for name in names if owner(SEALER.key(TenantId("acme"), CHAT, name), 2) == index)
    return [next(mine) for _ in range(count)]


async def until(holds: Callable[[], bool]) -> None:
    end_at = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < end_at
        await asyncio.sleep(0.02)


def processes_of(edge: LoneEdge) -> list[psutil.Process]:
    assert edge.process is not None
    return psutil.Process(edge.process.pid).children(recursive=True)


def process_of(edge: LoneEdge, index: int) -> psutil.Process:
    return next(one for one in processes_of(edge) if one.cmdline()[-1].endswith(f"/{index}.json"))


def listens(edge: LoneEdge, index: int) -> bool:
    return local(edge, index, "/healthz").startswith(b"HTTP/1.1 200")


def local(edge: LoneEdge, index: int, path: str) -> bytes:
    """What one process answers on its own socket."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(10)
        with contextlib.suppress(OSError):
            line.connect(str(edge.folder / "data" / "run" / f"{index}.sock"))
            line.sendall(f"GET {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n".encode())
            with line.makefile("rb") as reply:
                return reply.read()
    return b""


async def both(edge: LoneEdge) -> list[psutil.Process]:
    await until(lambda: all(listens(edge, index) for index in (0, 1)))
    found = [process_of(edge, index) for index in (0, 1)]
    assert len(processes_of(edge)) == 2
    return found


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=TIMEOUT_S)[1]


async def ask(edge: LoneEdge, key: str, *, stream: bool = False) -> bytes:
    """One request on a connection of its own. Which process it reaches is the system's choice."""
    url = f"http://127.0.0.1:{edge.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=API_KEY, max_retries=0, timeout=TIMEOUT_S) as asking:
        raw = await asking.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Well?"}],
            stream=stream,
            extra_headers={"Idempotency-Key": key},
        )
        return await raw.http_response.aread()


def connection_to(edge: LoneEdge, process: psutil.Process) -> socket.socket:
    """A connection that one process took."""
    for _ in range(200):
        line = socket.create_connection(("127.0.0.1", edge.port), timeout=TIMEOUT_S)
        line.sendall(b"GET /healthz HTTP/1.1\r\nhost: edge\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 200")
        own = line.getsockname()[1]
        if any(one.raddr and one.raddr.port == own for one in process.net_connections("tcp")):
            return line
        line.close()
    raise AssertionError("one process took every connection")


def post(line: socket.socket, key: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {API_KEY}\r\nidempotency-key: {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    line.sendall(head.encode() + BODY)


def usage_of(edge: LoneEdge) -> list[dict[str, Any]]:
    """What the spools of a stopped edge say was used."""
    found: list[dict[str, Any]] = []
    for place in (edge.folder / "data", edge.folder / "data" / "worker-1"):
        with Spool(place / "spool", capacity_bytes=1 << 30, segment_bytes=4 << 20) as spool:
            found += [json.loads(entry.data) for entry in spool.read_from() if entry.kind == RecordKind("usage")]
    return found


@pytest.mark.timeout(180)
async def test_a_key_is_sent_once_whichever_process_is_asked(folder: Path) -> None:
    with lone_edge(folder, "processes: 2\n") as edge:
        processes = await both(edge)
        engine = edge.engine
        keys = [*keys_of(0, 2), *keys_of(1, 2)]
        asking = [asyncio.create_task(ask(edge, key)) for key in keys * 10]
        await until(lambda: sum(one.done() for one in asking) == 36)
        await until(lambda: engine.asked == 4)
        engine.may_answer.set()
        told = await asyncio.gather(*asking, return_exceptions=True)
        refused = [one for one in told if isinstance(one, openai.ConflictError)]
        assert [one.code for one in refused] == ["idempotency_in_progress"] * 36
        whole = {key: next(one for one in told[at::4] if isinstance(one, bytes)) for at, key in enumerate(keys)}
        again = await asyncio.gather(*(ask(edge, key) for key in keys * 6))
        assert again == [whole[key] for key in keys] * 6
        assert engine.asked == 4
        streams = await asyncio.gather(*(ask(edge, f"stream-{number}", stream=True) for number in range(6)))
        assert await asyncio.gather(*(ask(edge, f"stream-{number}", stream=True) for number in range(6))) == streams
        assert engine.asked == 10
        # Both took connections, and each request was counted once.
        counts = [counted(local(edge, index, "/metrics")) for index in (0, 1)]
        assert min(counts) > 0
        assert sum(counts) == 40 + 24 + 12
        assert counted(page_of(edge)) == sum(counts)
        assert edge.stop(signal.SIGTERM) == 0
        assert gone(processes)
        assert not list((folder / "data" / "run").glob("*.sock"))
        usage = usage_of(edge)
        assert len(usage) == len({record["request"] for record in usage}) == 10


def page_of(edge: LoneEdge) -> bytes:
    """The metrics as a scraper has them, of whichever process it meets."""
    with urllib.request.urlopen(f"http://127.0.0.1:{edge.port}/metrics", timeout=TIMEOUT_S) as page:
        found: bytes = page.read()
    return found


def counted(metrics: bytes) -> int:
    return sum(int(float(found)) for found in re.findall(rb'\ntidegate_requests_total\{[^}]*\} (\S+)', metrics))


@pytest.mark.timeout(180)
async def test_a_process_that_is_killed_is_started_again_and_its_keys_stay_taken(folder: Path) -> None:
    with lone_edge(folder, "processes: 2\n") as edge:
        first, second = await both(edge)
        (key,) = keys_of(1, 1)
        with connection_to(edge, first) as line:
            post(line, key)
            await until(edge.engine.arrived.is_set)
            second.kill()
            # The process that was asked is well, and says that the one that answers for the key is gone.
            reply = line.recv(65536).decode()
            assert reply.startswith("HTTP/1.1 503")
            assert "idempotency_unavailable" in reply
            assert "x-should-retry: true" in reply
        # Connections that the dying process had not taken yet are reset. From then on they come to the other one.
        assert gone([second])
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", edge.port), timeout=TIMEOUT_S) as probe:
                probe.sendall(b"GET /readyz HTTP/1.1\r\nhost: edge\r\n\r\n")
                assert probe.recv(64).startswith(b"HTTP/1.1 200")
        edge.engine.may_answer.set()
        again = await both(edge)
        assert again[0] == first
        assert again[1] != second
        with socket.create_connection(("127.0.0.1", edge.port), timeout=TIMEOUT_S) as line:
            post(line, key)
            reply = line.recv(65536).decode()
        assert reply.startswith("HTTP/1.1 409")
        assert "may have been sent" in reply
        assert edge.engine.asked == 1
        for other in keys_of(1, 4, start=1_000):
            await ask(edge, other)
        assert edge.stop(signal.SIGTERM) == 0
        assert gone(again)


@pytest.mark.timeout(180)
async def test_who_hangs_up_at_one_process_is_gone_for_the_other(folder: Path) -> None:
    with lone_edge(folder, "processes: 2\n") as edge:
        first, second = await both(edge)
        (key,) = keys_of(1, 1)
        with connection_to(edge, first) as line:
            post(line, key)
            await until(edge.engine.arrived.is_set)
        # Asked of the owner itself: the first request is over, although its engine never answered.
        end_at = time.monotonic() + TIMEOUT_S
        with connection_to(edge, second) as line:
            while True:
                post(line, key)
                reply = line.recv(65536).decode()
                assert reply.startswith("HTTP/1.1 409")
                if "is over" in reply:
                    break
                assert time.monotonic() < end_at
                await asyncio.sleep(0.05)
        edge.engine.may_answer.set()
        assert edge.engine.asked == 1


@pytest.mark.timeout(180)
async def test_nothing_outlives_a_watch_that_is_killed(folder: Path) -> None:
    with lone_edge(folder, "processes: 2\n") as edge:
        processes = await both(edge)
        edge.stop(signal.SIGKILL)
        assert gone(processes)
        # What they left is in nobody's way.
        edge.start()
        assert await both(edge) != processes


@pytest.mark.timeout(180)
async def test_a_drain_cuts_what_is_passed_on_in_words(folder: Path) -> None:
    with lone_edge(folder, "processes: 2\n") as edge:
        processes = await both(edge)
        (key,) = keys_of(1, 1)
        with connection_to(edge, processes[0]) as line:
            post(line, key)
            await until(edge.engine.arrived.is_set)
            assert edge.process is not None
            edge.process.send_signal(signal.SIGTERM)
            reply = (await asyncio.to_thread(line.recv, 65536)).decode()
        assert reply.startswith("HTTP/1.1 502")
        assert '"code":"draining"' in reply
        assert edge.process.wait(TIMEOUT_S) == 0
        assert gone(processes)


@pytest.mark.timeout(240)
async def test_keys_are_known_after_the_number_of_processes_changed(folder: Path) -> None:
    names = [f"name-{number}" for number in range(8)]
    with lone_edge(folder) as edge:
        edge.engine.may_answer.set()
        one = edge.settings.read_text()
        whole = [await ask(edge, name) for name in names]
        for more in ("processes: 2\n", "processes: 3\n", ""):
            assert edge.stop(signal.SIGTERM) == 0
            edge.settings.write_text(one + more)
            edge.start()
            if more:
                await until(lambda: listens(edge, 0) and listens(edge, 1))
            assert await asyncio.gather(*(ask(edge, name) for name in names)) == whole
        assert edge.engine.asked == len(names)
        assert edge.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        ("processes: 2\nspool_bytes: 1\n", 2, "spool_bytes: expected at least 33554432"),
        ("processes: 65\n", 2, "processes: "),
        ("processes: 0\n", 2, "processes: "),
        ("processes: 2\nrequests_max: 1\n", 2, "requests_max: expected at least 2"),
        # What only a process itself can find ends the whole edge.
        ("processes: 2\nkeep_bundles_days: 1\n", 2, "edge.pem"),
    ],
)
@pytest.mark.timeout(120)
async def test_an_edge_that_cannot_start_says_so_and_ends(folder: Path, lines: str, status: int, said: str) -> None:
    with lone_edge(folder) as edge:
        edge.stop(signal.SIGTERM)
        (folder / "edge.pem").unlink()
        edge.settings.write_text(edge.settings.read_text() + lines)
        ended = run(edge)
        assert (ended.returncode, said in ended.stderr) == (status, True), ended.stderr


@pytest.mark.timeout(120)
async def test_one_that_is_stopped_while_it_starts_leaves_nothing(folder: Path) -> None:
    with lone_edge(folder) as edge:
        edge.stop(signal.SIGTERM)
        edge.settings.write_text(edge.settings.read_text() + "processes: 3\n")
        for wait_s in (0.0, 0.4, 0.8):
            begin(edge)
            await until(lambda: len(processes_of(edge)) == 3)
            await asyncio.sleep(wait_s)
            processes = processes_of(edge)
            assert edge.stop(signal.SIGTERM) == 0
            assert gone(processes)


@pytest.mark.timeout(120)
async def test_two_edges_do_not_share_a_folder_and_limits_may_be_as_small_as_can_be(folder: Path) -> None:
    least = "processes: 2\nrequests_max: 2\ntenant_requests_max: 2\nidempotency_keys_max: 2\nspool_bytes: 33554432\n"
    with lone_edge(folder, least) as edge:
        processes = await both(edge)
        whole, another = edge.settings.read_text(), free_port()
        edge.settings.write_text(whole.replace(f"port: {edge.port}", f"port: {another}"))
        ended = run(edge)
        assert (ended.returncode, "another program has the lock" in ended.stderr) == (1, True), ended.stderr
        # One that is alone does not move what the processes work with, either.
        edge.settings.write_text(whole.replace(f"port: {edge.port}", f"port: {another}").replace(least, ""))
        ended = run(edge)
        assert (ended.returncode, "cannot run" in ended.stderr) == (1, True), ended.stderr
        assert await both(edge) == processes


@pytest.mark.timeout(120)
async def test_a_port_is_shared_with_nobody_else(folder: Path) -> None:
    with lone_edge(folder) as edge:
        edge.stop(signal.SIGTERM)
        whole = edge.settings.read_text()
        edge.settings.write_text(whole + "processes: 2\n")
        with socket.create_server(("127.0.0.1", edge.port), reuse_port=True):
            ended = run(edge)
        assert (ended.returncode, "cannot run" in ended.stderr) == (1, True), ended.stderr
        edge.settings.write_text(whole.replace(f"port: {edge.port}", "port: 0") + "processes: 2\n")
        ended = run(edge)
        assert (ended.returncode, "port: expected a port of its own" in ended.stderr) == (2, True), ended.stderr


def command_of(edge: LoneEdge) -> list[str]:
    return [sys.executable, "-m", "node_agent", "--config", str(edge.settings)]


def begin(edge: LoneEdge) -> None:
    """Start an edge, and wait for nothing."""
    edge.process = subprocess.Popen(command_of(edge), cwd=ROOT, stdout=subprocess.DEVNULL)


def run(edge: LoneEdge) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command_of(edge),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
