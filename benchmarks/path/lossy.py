"""A border made of packets: delay, loss and a bounded rate, under the kernel's own TCP. Linux, and root of it.

    python -m benchmarks.path.lossy --listen HOST:PORT --to HOST:PORT --plan FILE

This process makes two network namespaces that only it holds, with a tunnel device in each, and carries the packets
between the two itself: after half the round trip, at the rate, and some of them never. A connection to `--listen` is
relayed over that way to `--to`. Nothing of the machine's own network is touched, and all of it ends with the process.
FILE holds a JSON object with rtt_ms, loss_ppm and kbit_per_s (0: no bound); SIGHUP has it read again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import random
import signal
import struct
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, IPPROTO_TCP, SOCK_STREAM, TCP_NODELAY, socket

import uvloop

from orchestrator.cli.border import parse_address

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES_MAX = 2_048
QUEUE_BYTES_MAX = 2 << 20
"""What waits for the line, each way; beyond that a packet is dropped, as by a router."""
READS = 64
NEAR, FAR = "198.18.77.1", "198.18.77.2"
"""Addresses for benchmarks (RFC 2544), in namespaces of our own."""
FAR_PORT = 7_000
RELAY_BYTES = 64 * 1024
SETUP_S = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """How the border is."""

    rtt_ms: float
    loss_ppm: int
    kbit_per_s: int

    @staticmethod
    def read(path: Path) -> Plan:
        """Read it from a file. Raises OSError, ValueError and KeyError."""
        said = json.loads(path.read_text(encoding="utf-8"))
        return Plan(float(said["rtt_ms"]), int(said["loss_ppm"]), int(said["kbit_per_s"]))

    def write(self, path: Path) -> None:
        """Write it to a file."""
        said = {"rtt_ms": self.rtt_ms, "loss_ppm": self.loss_ppm, "kbit_per_s": self.kbit_per_s}
        path.write_text(json.dumps(said), encoding="utf-8")


class Namespace:
    """A network namespace with one tunnel device; it lives in one thread, in which its sockets are made."""

    def __init__(self, address: str) -> None:
        """Raises OSError where this machine does not permit it."""
        self.threads = ThreadPoolExecutor(1)
        self.tunnel = self.threads.submit(self._make, address).result()

    def connecting(self) -> socket:
        """Return a new socket of it."""
        return self.threads.submit(_tcp).result()

    def listening(self, address: str, port: int) -> socket:
        """Return a socket of it that listens."""
        return self.threads.submit(_listening, address, port).result()

    @staticmethod
    def _make(address: str) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace may be made here")
        tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tunnel, TUNSETIFF, struct.pack("16sH22x", b"border0", IFF_TUN | IFF_NO_PI))
        for words in (("addr", "add", f"{address}/30", "dev", "border0"), ("link", "set", "border0", "up")):
            ran = subprocess.run(("ip", *words), check=False, capture_output=True, timeout=SETUP_S)
            if ran.returncode:
                raise OSError("the tunnel device cannot be set up")
        return tunnel


class Way:
    """One direction."""

    def __init__(self, source: int, target: int, chance: random.Random) -> None:
        self.plan = Plan(0.0, 0, 0)
        self.lost = 0
        self._source = source
        self._target = target
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, bytes]] = deque()  # bounded: by QUEUE_BYTES_MAX
        self._queued_bytes = 0
        self._free_s = 0.0
        self._loop.add_reader(source, self._take)

    def _take(self) -> None:
        for _ in range(READS):
            try:
                packet = os.read(self._source, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            self._send(packet)

    def _send(self, packet: bytes) -> None:
        plan = self.plan
        if self._chance.randrange(1_000_000) < plan.loss_ppm or self._queued_bytes > QUEUE_BYTES_MAX:
            self.lost += 1
            return
        now_s = self._loop.time()
        self._free_s = max(now_s, self._free_s)
        if plan.kbit_per_s:
            self._free_s += len(packet) * 8 / (plan.kbit_per_s * 1000)
        self._queue.append((self._free_s + plan.rtt_ms / 2000, packet))
        self._queued_bytes += len(packet)
        if len(self._queue) == 1:
            self._loop.call_at(self._queue[0][0], self._leave)

    def _leave(self) -> None:
        now_s = self._loop.time()
        while self._queue and self._queue[0][0] <= now_s + 1e-4:
            _, packet = self._queue.popleft()
            self._queued_bytes -= len(packet)
            try:
                os.write(self._target, packet)
            except BlockingIOError:
                self.lost += 1
        if self._queue:
            self._loop.call_at(self._queue[0][0], self._leave)


async def relay(listen: tuple[str, int], to: tuple[str, int], near: Namespace, far: Namespace) -> list[asyncio.Server]:
    """Relay connections over the way between two namespaces. Returns what listens."""

    async def outward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        crossing = near.connecting()
        try:
            await loop.sock_connect(crossing, (FAR, FAR_PORT))
            there = await asyncio.open_connection(sock=crossing)
        except OSError:
            crossing.close()
            writer.close()
            return
        await _both(reader, writer, *there)

    async def inward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(*to)
        except OSError:
            writer.close()
            return
        await _both(reader, writer, *there)

    arrivals = await asyncio.start_server(inward, sock=far.listening(FAR, FAR_PORT))
    return [arrivals, await asyncio.start_server(outward, *listen)]


async def _both(
    one: asyncio.StreamReader, to_one: asyncio.StreamWriter, other: asyncio.StreamReader, to_other: asyncio.StreamWriter
) -> None:
    try:
        # Cancelled when the border ends: asyncio would complain of a task that nobody asks.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(_pump(one, to_other), _pump(other, to_one))
    finally:
        to_one.close()
        to_other.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(RELAY_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


def _tcp() -> socket:
    made = socket(AF_INET, SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return made


def _listening(address: str, port: int) -> socket:
    made = _tcp()
    made.bind((address, port))
    made.listen(128)
    return made


async def _serve(listen: tuple[str, int], to: tuple[str, int], plan: Path) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    near, far = Namespace(NEAR), Namespace(FAR)
    chance = random.Random(1)
    ways = (Way(near.tunnel, far.tunnel, chance), Way(far.tunnel, near.tunnel, chance))

    def read() -> None:
        said = Plan.read(plan)
        for way in ways:
            way.plan = said

    read()
    loop.add_signal_handler(signal.SIGHUP, read)
    servers = await relay(listen, to, near, far)
    print("ready", flush=True)
    await stop.wait()
    for server in servers:
        server.close()
    return 0


def main() -> int:
    """Serve until a signal ends the process; 1 where this machine does not permit it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.path.lossy", description=__doc__)
    parser.add_argument("--listen", type=parse_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--to", type=parse_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--plan", type=Path, required=True)
    options = parser.parse_args()
    try:
        return uvloop.run(_serve(options.listen, options.to, options.plan))
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as failure:
        sys.stderr.write(f"lossy: {failure}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
