"""The load of the path benchmark: an engine that answers as asked, answers that are checked, and what wrk says."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from benchmarks.engine import Connection
from benchmarks.path import wrk
from benchmarks.path.ask import Ask, WrongAnswer, body_of, check, checked, text_of
from benchmarks.path.disk import fdatasync_us
from benchmarks.path.lossy import Plan, Way
from benchmarks.path.rivals import Command, Rival, installed, started
from benchmarks.path.streams import SlowReaders, figures, streamed
from benchmarks.path.systems import NotMeasured
from orchestrator.cli.processes import Supervisor

HOST = "127.0.0.1"
JSON = {"content-type": "application/json"}
SAID: Mapping[str, float] = {
    "requests": 1000, "duration_us": 2_000_000, "bytes": 256_000, "connect": 0, "read": 0, "write": 0, "status": 0,
    "timeout": 0, "mean_us": 81.5, "max_us": 4000, "p50_us": 70, "p75_us": 80, "p90_us": 95, "p99_us": 400,
}  # fmt: skip


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    """An engine in this process."""
    server = await asyncio.get_running_loop().create_server(Connection, HOST, 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def asking(port: int, *, stream: bool, tokens: int, pace_ms: int = 0) -> Ask:
    """A request to the engine."""
    return Ask(HOST, port, JSON, body_of("instant", stream=stream, tokens=tokens, pace_ms=pace_ms))


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that comes."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def got(port: int, request: bytes) -> bytes:
    """The bytes of an answer on a connection that the server closes."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(request)
        return await reader.read(-1)
    finally:
        writer.close()


async def test_the_engine_answers_with_as_many_tokens_as_are_asked_for(port: int) -> None:
    for stream in (False, True):
        for tokens in (1, 7, 100, 250):
            assert await checked(asking(port, stream=stream, tokens=tokens), tokens) > 0
    assert await checked(asking(port, stream=True, tokens=3, pace_ms=1), 3) > 0


async def test_the_engine_writes_each_token_of_a_stream_as_an_event_of_its_own(port: int) -> None:
    answer = await got(port, asking(port, stream=True, tokens=100).raw("close"))
    assert answer.count(b'"content":" tok') == 100
    assert answer.count(b"data: ") == 103  # the reason, the usage and [DONE] besides


async def test_the_engine_keeps_a_connection_for_the_next_request(port: int) -> None:
    one, last = asking(port, stream=False, tokens=1).raw(), asking(port, stream=False, tokens=1).raw("close")
    assert (await got(port, one + one + last)).count(b"HTTP/1.1 200 OK") == 3


async def test_the_engine_answers_what_routers_ask_of_a_worker(port: int) -> None:
    for path in ("/health", "/v1/models", "/get_model_info", "/get_server_info"):
        request = f"GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n".encode()
        assert (await got(port, request)).startswith(b"HTTP/1.1 200 OK")
    unknown = f"GET /other HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n".encode()
    assert (await got(port, unknown)).startswith(b"HTTP/1.1 404")


def streamed_answer(texts: list[str], end: bytes = b"data: [DONE]\n\n") -> bytes:
    """A whole answer of events, without chunks."""
    events = [b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() for text in texts]
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"\n\n".join([*events, end])


def test_tokens_that_arrive_in_one_event_are_right_too() -> None:
    check(streamed_answer([" tok00 tok01", " tok02"]), 3)
    assert text_of(102).endswith(" tok99 tok00 tok01")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (streamed_answer([" tok00"], b'data: {"error": {"message": "gone"}}\n\n'), "DONE.*gone"),
        (streamed_answer([" tok00"]), "2 tokens"),
        (streamed_answer([" tok00", " tok00"]), "2 tokens"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nno", "HTTP 503: no"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{}", "no completion"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc", "in the middle"),
    ],
)
def test_an_answer_that_is_wrong_is_said_to_be(answer: bytes, why: str) -> None:
    with pytest.raises(WrongAnswer, match=why):
        check(answer, 2)


def test_what_wrk_says_at_its_end_is_read() -> None:
    run = wrk.read("Running 2s test\n" + wrk.SAID + json.dumps(SAID) + "\nRequests/sec: 500\n")
    assert (run.requests, run.per_s, run.p50_us, run.p99_us, run.mean_us) == (1000, 500.0, 70, 400, 81.5)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("unable to connect", "unable to connect"),
        (wrk.SAID + json.dumps({**SAID, "status": 3}), "'status': 3"),
        (wrk.SAID + json.dumps({**SAID, "timeout": 1}), "'timeout': 1"),
        (wrk.SAID + json.dumps({**SAID, "requests": 0}), "no answer"),
    ],
)
def test_a_run_with_an_error_is_no_figure(output: str, why: str) -> None:
    with pytest.raises(wrk.WrkError, match=why):
        wrk.read(output)


def test_the_script_of_wrk_holds_headers_as_they_are() -> None:
    ask = Ask(HOST, 1, {"authorization": 'Bearer "a\\b"'}, b"{}")
    assert 'wrk.headers["authorization"] = "Bearer \\"a\\\\b\\""' in wrk.script(ask, Path("/tmp/body"))
    assert "Bearer" not in repr(ask)
    with pytest.raises(ValueError, match="printable"):
        wrk.script(Ask(HOST, 1, {"x": "a\nb"}, b""), Path("/tmp/body"))


async def test_streams_are_timed_and_checked(port: int) -> None:
    found = await streamed([asking(port, stream=True, tokens=20, pace_ms=1)] * 5, 20, 20.0, ramp_s=0.01)
    assert all(0 < one.begun_ns < one.first_ns <= one.last_ns for one in found)
    told = figures(found)
    assert 0 < told["first_p50_ms"] <= told["first_p99_ms"] < told["took_ms"]
    assert told["gap_p99_ms"] <= told["worst_gap_p99_ms"]
    with pytest.raises(WrongAnswer, match="2 of 2 answers are wrong"):
        await streamed([asking(port, stream=True, tokens=20)] * 2, 21, 20.0)


async def test_slow_readers_hold_answers_that_have_begun(port: int) -> None:
    async with SlowReaders([asking(port, stream=True, tokens=500)] * 3, 0) as readers:
        await until(lambda: readers.begun() == 3)


async def test_a_way_carries_packets_in_order_and_loses_as_many_as_it_is_told(tmp_path: Path) -> None:
    (source, put), (take, target) = os.pipe(), os.pipe()
    for end in (source, target):
        os.set_blocking(end, False)
    way = Way(source, target, random.Random(1))
    plan = tmp_path / "plan.json"
    Plan(2.0, 0, 1_000).write(plan)
    way.plan = Plan.read(plan)
    for number in range(3):
        os.write(put, b"packet%d." % number)
        await asyncio.sleep(0.01)
    assert await asyncio.to_thread(os.read, take, 100) == b"packet0.packet1.packet2."
    way.plan = Plan(2.0, 1_000_000, 1_000)
    os.write(put, b"lost")
    await until(lambda: way.lost > 0)
    asyncio.get_running_loop().remove_reader(source)
    for end in (source, put, take, target):
        os.close(end)


async def test_a_rival_that_cannot_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "dead-1").mkdir()
    (tmp_path / "dead-1" / "whole").touch()
    ends = Command((sys.executable, "-c", "import sys; sys.exit('no such worker')"))
    rival = Rival("dead", "a dead one", "dead==1", lambda *_: ends)
    async with Supervisor(tmp_path / "run") as supervisor:
        with pytest.raises(NotMeasured, match=r"it did not start.*ended with status 1"):
            await started(rival, supervisor, tmp_path / "own", tmp_path, "http://127.0.0.1:1")
        (tmp_path / "file").touch()
        with pytest.raises(NotMeasured, match="its environment could not be made"):
            await started(rival, supervisor, tmp_path / "own", tmp_path / "file", "http://127.0.0.1:1")


def test_an_environment_that_is_whole_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "thing-proxy-2").mkdir()
    (tmp_path / "thing-proxy-2" / "whole").touch()
    assert installed("thing[proxy]==2", tmp_path) == tmp_path / "thing-proxy-2"


def test_the_disk_is_measured(tmp_path: Path) -> None:
    found = fdatasync_us(tmp_path)
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert list(tmp_path.iterdir()) == []
