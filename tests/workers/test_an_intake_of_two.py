"""A real scheduler of two processes at one address, with a real control plane, edge and engines that count.

Every answer is whole once, or says why it is not, also when a process is killed; SIGTERM drains all, and leaves none.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from benchmarks.path.ask import Ask, body_of
from benchmarks.stand import EDGE, LOOPBACK, ROOT, SITE, TWO_HOP, Scale, Stand
from orchestrator.cli.evidence import records
from orchestrator.cli.processes import ProcessSpec
from orchestrator.cli.status import fetch_status
from orchestrator.config.secret import read_secret
from protos.tidegate.v1 import control_pb2 as pb
from tests.chaos.stand import identity
from tests.chaos.words import answer
from tests.intake.cutting_proxy import CuttingProxy
from tests.workers.soon_hung import SOON_HUNG

TIMEOUT_S = 60
TOKENS = 80
TOKEN_MS = 25
SLOTS = 16
NAMES = [SITE, f"{SITE}.w1"]


class Said(msgspec.Struct, frozen=True):
    """What a tenant was told."""

    status: int
    text: str
    done: bool
    error: str | None


@contextmanager
def words(folder: Path, port: int) -> Iterator[None]:
    """An engine that goes on with a partial last message."""
    own = ("--port", str(port), "--journal", str(folder / "journal"), "--slots", "64", "--token-ms", str(TOKEN_MS))
    engine = subprocess.Popen([sys.executable, "-m", "tests.chaos.engine", *own], cwd=ROOT)
    try:
        yield
    finally:
        engine.kill()
        engine.wait(TIMEOUT_S)


class CutStand(Stand):
    """A stand whose border is a proxy of the test."""

    def _border(self) -> list[ProcessSpec]:
        return []


@asynccontextmanager
async def standing(folder: Path) -> AsyncIterator[tuple[Stand, CuttingProxy]]:
    """A stand whose site is two processes before one engine of 16 slots, behind a border that can be cut."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    entry = {"name": "words", "base_url": f"http://{LOOPBACK}:{port}", "served_model": "words", "slots": SLOTS}
    entry |= {"model": f"instant-{TWO_HOP}", "resume": "text", "identity": identity()}
    pools = [{"id": "cn-instant", "engines": [entry]}]
    site = {"processes": 2, "pools": pools, "drain_grace_ms": 4_000}
    stand = CutStand(folder, None, Scale(site=site, border=("a proxy of the test",), through={"scheduler": SOON_HUNG}))
    proxy = CuttingProxy(stand._ports.intake)
    with words(folder, port):
        try:
            await proxy.start(stand._ports.border)
            await stand.start()
            await until(stand, both_have_a_session)
            yield stand, proxy
        finally:
            await stand.stop()
            await proxy.close()


async def members_of(stand: Stand) -> dict[str, pb.MemberReport]:
    (status,) = await fetch_status([(stand._control, read_secret(stand._file("operator.token")))])
    assert status.reply is not None
    return {one.report.member: one.report for one in status.reply.members}


async def until(stand: Stand, holds: Callable[[dict[str, pb.MemberReport]], bool]) -> dict[str, pb.MemberReport]:
    end_at = time.monotonic() + TIMEOUT_S
    while not holds(members := await members_of(stand)):
        assert time.monotonic() < end_at, members
        await asyncio.sleep(0.2)
    return members


def both_have_a_session(members: dict[str, pb.MemberReport]) -> bool:
    mine = [{one.session for one in members[name].sessions if one.state == "live"} for name in NAMES if name in members]
    seen = [pool.slots for pool in members[EDGE].pools if pool.pool == "cn-instant"] if EDGE in members else []
    return len(mine) == 2 and all(len(own) == 1 for own in mine) and seen == [SLOTS]


def processes_of(stand: Stand) -> list[psutil.Process]:
    found = stand.process("scheduler").children(recursive=True)
    return sorted(found, key=lambda one: one.cmdline()[-1])


async def ask(stand: Stand, number: int) -> Said:
    """One streamed answer, on a connection of its own."""
    headers = {"authorization": f"Bearer {stand.api_key}", "content-type": "application/json"}
    body = body_of(f"instant-{TWO_HOP}", stream=True, tokens=TOKENS, prompt=prompt_of(number))
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection(LOOPBACK, stand.edge_port)
        try:
            writer.write(Ask(LOOPBACK, stand.edge_port, headers, body).raw("close"))
            reply = await reader.read(-1)
        finally:
            writer.close()
    return said_of(reply)


def said_of(reply: bytes) -> Said:
    head, _, body = reply.partition(b"\r\n\r\n")
    status = int(head[9:12])
    if status != 200:
        return Said(status, "", False, json.loads(body)["error"]["code"])
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    chunks: list[dict[str, Any]] = [json.loads(event) for event in events if event.strip() != b"[DONE]"]
    errors = [chunk["error"]["code"] for chunk in chunks if "error" in chunk]
    text = "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices") or ()
    )
    return Said(status, text, events[-1].strip() == b"[DONE]", errors[0] if errors else None)


def prompt_of(number: int) -> str:
    return f"question {number}"


def whole(said: Said, number: int) -> bool:
    """Whether it is; what is not is a beginning without a gap or repeat, and has a reason. Raises AssertionError."""
    full = answer(prompt_of(number), TOKENS)
    if said.done:
        assert (said.text, said.error) == (full, None)
        return True
    assert full.startswith(said.text)
    assert said.error, said
    return False


@pytest.mark.e2e
@pytest.mark.timeout(240)
async def test_both_processes_work_and_no_answer_is_lost_or_doubled_when_one_is_killed() -> None:
    with tempfile.TemporaryDirectory() as made:
        async with standing(Path(made)) as (stand, _):
            members = await members_of(stand)
            assert [sum(pool.slots for pool in members[name].pools) for name in NAMES] == [SLOTS // 2] * 2
            assert {pool.replicas for pool in members[EDGE].pools if pool.pool == "cn-instant"} == {1}
            # Every slot at once: an edge of one process has both shares.
            told = await asyncio.gather(*(ask(stand, number) for number in range(SLOTS)))
            assert all(whole(said, number) for number, said in enumerate(told))
            first, second = processes_of(stand)
            asking = [asyncio.create_task(ask(stand, number)) for number in range(SLOTS)]
            await asyncio.sleep(TOKENS * TOKEN_MS / 1000 / 2)
            second.kill()
            told = await asyncio.gather(*asking)
            kept = [whole(said, number) for number, said in enumerate(told)]
            # Those of the process that lives notice nothing; of the others most go on there.
            assert sum(kept) > SLOTS // 2, told
            await until(stand, both_have_a_session)
            assert processes_of(stand)[0] == first
            told = await asyncio.gather(*(ask(stand, number) for number in range(SLOTS)))
            assert all(whole(said, number) for number, said in enumerate(told))
            running, watch = processes_of(stand), stand.process("scheduler")
            asking = [asyncio.create_task(ask(stand, number)) for number in range(SLOTS)]
            await asyncio.sleep(TOKENS * TOKEN_MS / 1000 / 2)
            watch.send_signal(signal.SIGTERM)
            told = await asyncio.gather(*asking)
            assert all(whole(said, number) for number, said in enumerate(told))
            assert not psutil.wait_procs([watch, *running], timeout=TIMEOUT_S)[1]
            spools = [stand.data("scheduler") / "spool", stand.data("scheduler") / "worker-1" / "spool"]
            assert all(sum(1 for _ in records(spool, "usage")) >= SLOTS for spool in spools)
            assert not list((stand.data("scheduler") / "run").glob("*.sock"))


@pytest.mark.e2e
@pytest.mark.timeout(240)
async def test_sessions_find_their_processes_again_when_connections_are_cut_or_one_hangs() -> None:
    with tempfile.TemporaryDirectory() as made:
        async with standing(Path(made)) as (stand, proxy):
            for start in (0, SLOTS, 2 * SLOTS):
                asking = [asyncio.create_task(ask(stand, start + number)) for number in range(SLOTS)]
                await asyncio.sleep(TOKENS * TOKEN_MS / 1000 / 2)
                proxy.cut()
                told = await asyncio.gather(*asking)
                assert all(whole(said, start + number) for number, said in enumerate(told))
            # A connection reaches its process one time in two, and is tried again and again for 750 ms.
            assert reattached(stand) > SLOTS
            await until(stand, both_have_a_session)
            running, watch = processes_of(stand), stand.process("scheduler")
            running[1].suspend()
            _, alive = await asyncio.to_thread(psutil.wait_procs, running[1:], TIMEOUT_S)
            assert not alive
            await until(stand, both_have_a_session)
            assert processes_of(stand)[0] == running[0]
            told = await asyncio.gather(*(ask(stand, number) for number in range(SLOTS)))
            assert all(whole(said, number) for number, said in enumerate(told))
            running = processes_of(stand)
            watch.kill()
            assert not psutil.wait_procs([watch, *running], timeout=TIMEOUT_S)[1]


def reattached(stand: Stand) -> int:
    """How many answers went on over a new connection, as the edge counts them."""
    with urllib.request.urlopen(f"http://{LOOPBACK}:{stand.edge_port}/metrics", timeout=TIMEOUT_S) as page:
        found = re.findall(rb'\ntidegate_streams_continued_total\{how="reattached"\} (\S+)', page.read())
    return sum(int(float(count)) for count in found)
