"""The border adds distance and nothing else: every byte arrives, in order, late, and is kept when asked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes.marks import ROOT, Marked

SLACK_S = 0.25
"""What a busy machine may add to a measured time."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
StartBorder = Callable[..., Awaitable["RunningBorder"]]
Serve = Callable[[Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class RunningBorder:
    process: subprocess.Popen[bytes]
    port: int

    async def connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture
async def border(marked: Marked) -> AsyncIterator[StartBorder]:
    """Starts real border processes in front of a port."""
    running: list[RunningBorder] = []

    async def start(to_port: int, *options: str, rtt_ms: float = 20) -> RunningBorder:
        process = await asyncio.to_thread(
            subprocess.Popen,
            [
                *(sys.executable, "-m", "orchestrator.cli.border", "--listen", "127.0.0.1:0"),
                *("--to", f"127.0.0.1:{to_port}", "--rtt-ms", str(rtt_ms), *options),
            ],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **marked.environment},
        )
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line.startswith(b"ready 127.0.0.1:")
        running.append(RunningBorder(process, int(line.rpartition(b":")[2])))
        return running[-1]

    yield start
    for one in running:
        one.process.terminate()
        assert await asyncio.to_thread(one.process.wait, 5) == 0
        assert one.process.stdout is not None
        one.process.stdout.close()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts real servers; returns their ports."""
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> int:
        async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with contextlib.suppress(ConnectionError):
                await handle(reader, writer)

        servers.append(await asyncio.start_server(closing, "127.0.0.1", 0))
        return int(servers[-1].sockets[0].getsockname()[1])

    yield start
    for server in servers:
        server.close()
    for writer in writers:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def test_every_exchange_takes_the_round_trip_and_little_more(border: StartBorder, serve: Serve) -> None:
    crossing = await border(await serve(echo), rtt_ms=80)
    reader, writer = await crossing.connect()
    times = []
    for _ in range(6):
        start = time.perf_counter()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        times.append(time.perf_counter() - start)
    assert min(times) >= 0.08
    assert min(times) < 0.08 + SLACK_S
    assert times[0] >= 0.16, "the first exchange also waits for the connection, one round trip"
    await close(writer)


async def test_jitter_only_ever_adds(border: StartBorder, serve: Serve) -> None:
    crossing = await border(await serve(echo), "--jitter-ms", "30", "--seed", "7", rtt_ms=20)
    reader, writer = await crossing.connect()
    times = []
    for _ in range(12):
        start = time.perf_counter()
        writer.write(b"ping")
        await reader.readexactly(4)
        times.append(time.perf_counter() - start)
    assert min(times) >= 0.02
    assert max(times[1:]) - min(times[1:]) > 0.005
    await close(writer)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_chunks_arrive_exact_in_both_directions_at_once(
    border: StartBorder, serve: Serve, seed: int
) -> None:
    chance = random.Random(seed)
    upward, downward = chance.randbytes(3_000_000), chance.randbytes(2_000_000)
    sizes = [1, 2, 17, 1_400, 65_536, 300_000]
    received = bytearray()
    whole = asyncio.Event()

    async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
        offset = 0
        while offset < len(data):
            size = chance.choice(sizes)
            writer.write(data[offset : offset + size])
            offset += size
            await writer.drain()
            if chance.random() < 0.05:
                await asyncio.sleep(0.002)
        writer.write_eof()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sending = asyncio.ensure_future(send(writer, downward))
        while data := await reader.read(1 << 16):
            received.extend(data)
        whole.set()
        await sending

    crossing = await border(await serve(answer), "--jitter-ms", "5", "--window-mib", "1", rtt_ms=10)
    reader, writer = await crossing.connect()
    _, back = await asyncio.gather(send(writer, upward), reader.read(-1))
    assert back == downward
    async with asyncio.timeout(10):
        await whole.wait()
    assert bytes(received) == upward
    await close(writer)


async def test_a_half_closed_connection_still_carries_the_answer(border: StartBorder, serve: Serve) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read(-1)
        writer.write(b"you said " + question)
        writer.write_eof()

    crossing = await border(await serve(answer), rtt_ms=40)
    reader, writer = await crossing.connect()
    writer.write(b"all of it")
    writer.write_eof()
    start = time.perf_counter()
    async with asyncio.timeout(10):
        assert await reader.read(-1) == b"you said all of it"
    assert time.perf_counter() - start >= 0.04
    await close(writer)


async def test_a_large_answer_is_whole_although_the_border_closes_before_it_is_read(
    border: StartBorder, serve: Serve
) -> None:
    answer_bytes = random.Random(5).randbytes(3_000_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.write(answer_bytes)
        writer.write_eof()

    crossing = await border(await serve(answer))
    reader, writer = await crossing.connect()
    writer.write_eof()
    await asyncio.sleep(0.5)
    async with asyncio.timeout(10):
        assert await reader.read(-1) == answer_bytes
    await close(writer)


async def test_a_reset_arrives_as_a_reset_after_what_was_sent_before(border: StartBorder, serve: Serve) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        writer.write(b"half of the ans")
        await asyncio.sleep(0.1)
        reset(writer)

    crossing = await border(await serve(answer), rtt_ms=40)
    reader, writer = await crossing.connect()
    writer.write(b"hello")
    async with asyncio.timeout(10):
        assert await reader.readexactly(15) == b"half of the ans"
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
    await close(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_client_that_is_gone_is_noticed_by_the_target(border: StartBorder, serve: Serve) -> None:
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(100):
                pass
            seen.set_result("ended")
        except ConnectionResetError:
            seen.set_result("reset")

    crossing = await border(await serve(answer))
    _, writer = await crossing.connect()
    writer.write(b"hello")
    await asyncio.sleep(0.2)
    reset(writer)
    async with asyncio.timeout(5):
        assert await seen == "reset"


async def test_a_refusing_target_closes_the_clients_connection(border: StartBorder, serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    crossing = await border(port, rtt_ms=40)
    start = time.perf_counter()
    reader, writer = await crossing.connect()
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
    assert time.perf_counter() - start >= 0.04
    await close(writer)


async def test_a_target_that_does_not_read_holds_the_sender_back(border: StartBorder, serve: Serve) -> None:
    go = asyncio.Event()
    total = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal total
        await go.wait()
        while data := await reader.read(1 << 20):
            total += len(data)
        writer.write_eof()

    crossing = await border(await serve(answer), "--window-mib", "1", rtt_ms=4)
    reader, writer = await crossing.connect()
    writer.transport.set_write_buffer_limits(high=1 << 16)
    chunk, sent = b"x" * (1 << 20), 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            while sent < 64 << 20:
                writer.write(chunk)
                sent += len(chunk)
                await writer.drain()
    # Kernel buffers on four sockets hold several MiB beside the border's own window.
    assert sent < 48 << 20
    go.set()
    async with asyncio.timeout(10):
        await writer.drain()
        writer.write_eof()
        assert await reader.read(-1) == b""
    assert total == sent
    await close(writer)


async def test_bulk_flows_by_the_window_and_not_by_the_round_trip(border: StartBorder, serve: Serve) -> None:
    total = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal total
        while data := await reader.read(1 << 20):
            total += len(data)
        writer.write_eof()

    crossing = await border(await serve(answer), rtt_ms=60)
    reader, writer = await crossing.connect()
    start = time.perf_counter()
    for _ in range(20):
        writer.write(b"x" * (1 << 20))
        await writer.drain()
    writer.write_eof()
    async with asyncio.timeout(30):
        assert await reader.read(-1) == b""
    print(f"{total / (1 << 20) / (time.perf_counter() - start):.0f} MiB/s")
    assert total == 20 << 20
    await close(writer)


async def test_what_crossed_is_kept_per_connection_and_direction(
    border: StartBorder, serve: Serve, tmp_path: Path
) -> None:
    port = await serve(echo)
    for run in (0, 2):
        crossing = await border(port, "--capture", str(tmp_path / "seen"))
        for offset in (1, 2):
            number = run + offset
            reader, writer = await crossing.connect()
            writer.write(f"canary-{number}".encode())
            await reader.readexactly(len(f"canary-{number}"))
            await close(writer)
            kept = f"canary-{number}".encode()
            assert (tmp_path / "seen" / f"{number}-up.bin").read_bytes() == kept
            assert (tmp_path / "seen" / f"{number}-down.bin").read_bytes() == kept


async def test_a_stalled_border_is_silent_and_loses_nothing(border: StartBorder, serve: Serve, tmp_path: Path) -> None:
    control = tmp_path / "control"
    crossing = await border(await serve(echo), "--control-file", str(control))
    reader, writer = await crossing.connect()
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"
    control.write_text("stall\n")
    await asyncio.sleep(0.3)
    writer.write(b"two")
    late_reader, late_writer = await crossing.connect()
    late_writer.write(b"new")
    waits = [asyncio.create_task(reader.readexactly(3)), asyncio.create_task(late_reader.readexactly(3))]
    done, _ = await asyncio.wait(waits, timeout=0.4)
    assert not done
    control.write_text("open\n")
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waits) == [b"two", b"new"]
    await close(writer)
    await close(late_writer)


async def test_a_cut_border_resets_old_and_new_connections_until_it_opens(
    border: StartBorder, serve: Serve, tmp_path: Path
) -> None:
    control = tmp_path / "control"
    crossing = await border(await serve(echo), "--control-file", str(control))
    reader, writer = await crossing.connect()
    writer.write(b"one")
    await reader.readexactly(3)
    control.write_text("cut")
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        with pytest.raises(ConnectionResetError):
            await use_once(crossing)
        control.write_text("open")
        await asyncio.sleep(0.3)
        await use_once(crossing)
    await close(writer)


async def use_once(crossing: RunningBorder) -> None:
    reader, writer = await crossing.connect()
    try:
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"
    finally:
        await close(writer)


async def test_a_signal_ends_the_border_with_its_connections(border: StartBorder, serve: Serve) -> None:
    crossing = await border(await serve(echo))
    reader, writer = await crossing.connect()
    writer.write(b"one")
    await reader.readexactly(3)
    crossing.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
    assert await asyncio.to_thread(crossing.process.wait, 5) == 0
    await close(writer)


async def test_a_signal_ends_the_border_while_connections_arrive(border: StartBorder, serve: Serve) -> None:
    crossing = await border(await serve(echo))
    await use_once(crossing)
    arriving: list[Streams] = []
    crossing.process.send_signal(signal.SIGSTOP)
    # They wait in the backlog: the loop accepts some of them in the turn that hears of the signal, or after it.
    for _ in range(100):
        arriving.append(await crossing.connect())
    crossing.process.send_signal(signal.SIGTERM)
    crossing.process.send_signal(signal.SIGCONT)
    assert await asyncio.to_thread(crossing.process.wait, 5) == 0
    for _, writer in arriving:
        await close(writer)


@pytest.mark.parametrize(
    "options", [("--to", "nowhere"), ("--to", "h:70000"), ("--to", "h:1", "--rtt-ms", "-1"), ("--to", "h:1")]
)
async def test_wrong_arguments_are_refused(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "orchestrator.cli.border", "--listen", "127.0.0.1:0", *options]
    result = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, timeout=10)
    assert result.returncode == 2
