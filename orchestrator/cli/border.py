"""A border on one machine: a TCP proxy that adds distance, keeps what crossed, and can be stalled or cut.

``python -m orchestrator.cli.border --listen 127.0.0.1:0 --to 127.0.0.1:9000 --rtt-ms 220``

Each chunk is delivered half a round trip after it arrived, in order, in both directions. Up to ``--window-mib`` are on
the way per direction, so throughput is the window divided by half the round trip; beyond that the sender is held back.
Opening a connection costs one round trip before the first byte moves, as it would. A half-close and a reset arrive on
the other side with the same delay. When the target refuses, the client's connection is reset.

``--capture DIR`` keeps every byte that entered the border in ``<n>-up.bin`` (from the client) and ``<n>-down.bin``.
``--control-file FILE`` is read ten times a second; its one word is ``open``, ``stall`` (nothing moves, nothing closes,
new connections hang: a border that went silent) or ``cut`` (every connection is reset, new ones too).

When it listens, it prints one line: ``ready 127.0.0.1:<port>``. SIGTERM or SIGINT ends it with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import math
import random
import re
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import uvloop

DEFAULT_WINDOW_BYTES = 4 << 20
WRITE_BATCH_BYTES = 1 << 20
MAX_PASSAGES = 1024
CONNECT_LIMIT_S = 10.0
CONTROL_PERIOD_S = 0.1

_CAPTURE_NAME = re.compile(r"(\d+)-(?:up|down)\.bin")


@dataclass(frozen=True, slots=True)
class BorderSettings:
    """Where the border listens and leads to, and how far away that is.

    Up to ``jitter_ms`` is added to each chunk's half round trip, by chance from ``seed``.
    """

    listen: tuple[str, int]
    to: tuple[str, int]
    rtt_ms: float
    jitter_ms: float = 0.0
    seed: int = 0
    window_bytes: int = DEFAULT_WINDOW_BYTES
    capture: Path | None = None
    control_file: Path | None = None


class BorderState(enum.Enum):
    """What the border does with what arrives."""

    OPEN = "open"
    STALL = "stall"
    CUT = "cut"


class _Mark(enum.Enum):
    """What can stand in a line beside bytes."""

    END = enum.auto()
    RESET = enum.auto()


class _Line:
    """The bytes on their way in one direction of one connection; none sets out before `set_out`."""

    def __init__(self, border: Border, keep: BinaryIO | None) -> None:
        self._border = border
        self._keep = keep
        self._queue: deque[tuple[float, bytes | _Mark]] = deque()  # bounded: window_bytes, then reading pauses
        self._held_bytes = 0
        self._last_due_s = math.inf
        self._timer: asyncio.Handle | None = None
        self._source_paused = False
        self._target_full = False
        self._dead = False
        self.source: asyncio.Transport | None = None
        self.target: asyncio.Transport | None = None
        self.ended = False
        self.on_end: Callable[[], None] | None = None

    def put(self, item: bytes | _Mark) -> None:
        """Takes what arrived; it will be delivered half a round trip from now, after all that came before."""
        if self._dead:
            return
        # Infinity until `set_out`, so that nothing is due before; from then on never before what came earlier.
        self._last_due_s = max(self._last_due_s, time.monotonic() + self._border.half_trip_s())
        self._queue.append((self._last_due_s, item))
        if isinstance(item, bytes):
            if self._keep is not None:
                self._keep.write(item)
            self._held_bytes += len(item)
            full = self._held_bytes >= self._border.settings.window_bytes
            if full and not self._source_paused and self.source is not None:
                self._source_paused = True
                self.source.pause_reading()
        if self._timer is None:
            self._arm()

    def set_out(self) -> None:
        """Starts the way of all that waits and of all that will come."""
        self._last_due_s = time.monotonic() + self._border.half_trip_s()
        self._queue = deque((self._last_due_s, item) for _, item in self._queue)  # bounded: as it was
        self.move()

    def target_full(self, full: bool) -> None:
        """Whether the target takes no more for now."""
        self._target_full = full
        if not full:
            self.move()

    def move(self) -> None:
        """Delivers what is due, and sees to the rest later."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._dead or self.target is None or self._target_full or self._border.state is not BorderState.OPEN:
            return
        self._deliver(self.target)
        if self._source_paused and self._held_bytes < self._border.settings.window_bytes // 2:
            self._source_paused = False
            if self.source is not None and not self.source.is_closing():
                self.source.resume_reading()
        self._arm()

    def drop(self) -> None:
        """Forgets everything: the target is gone."""
        self._dead = True
        self._queue.clear()
        self._held_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._keep is not None:
            self._keep.close()

    def _arm(self) -> None:
        if not self._queue or self._dead or self._target_full or self._last_due_s == math.inf:
            return
        # Timers have a resolution of 1 ms. Rounded up, they never make a chunk early and never spin.
        wait_s = math.ceil(max(0.0, self._queue[0][0] - time.monotonic()) * 1000) / 1000
        self._timer = self._border.loop.call_later(wait_s, self.move)

    def _deliver(self, target: asyncio.Transport) -> None:
        now_s = time.monotonic()
        ready: list[bytes] = []
        ready_bytes = 0
        mark: _Mark | None = None
        while self._queue and self._queue[0][0] <= now_s and ready_bytes < WRITE_BATCH_BYTES and mark is None:
            item = self._queue.popleft()[1]
            if isinstance(item, bytes):
                ready.append(item)
                ready_bytes += len(item)
            else:
                mark = item
        self._held_bytes -= ready_bytes
        if ready:
            target.writelines(ready)
        if mark is _Mark.END and not target.is_closing():
            target.write_eof()
            self.ended = True
            if self.on_end is not None:
                self.on_end()
        elif mark is _Mark.RESET:
            _reset(target)


class _Side(asyncio.Protocol):
    """One end of a connection: what it reads goes into ``out``, what comes through ``back`` is written to it."""

    def __init__(self, passage: _Passage, out: _Line, back: _Line) -> None:
        self._passage = passage
        self._out = out
        self._back = back
        self.transport: asyncio.Transport | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BATCH_BYTES)
        self._out.source = self.transport
        self._back.target = self.transport
        self._passage.arrived(self, self.transport)

    def data_received(self, data: bytes) -> None:
        self._out.put(data)

    def eof_received(self) -> bool:
        self._out.put(_Mark.END)
        return True

    def pause_writing(self) -> None:
        self._back.target_full(True)

    def resume_writing(self) -> None:
        self._back.target_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._back.drop()
        self._out.source = None
        if not self._passage.finished():
            self._out.put(_Mark.RESET)
        self._passage.left()

    def abort(self) -> None:
        if self.transport is not None and not self.lost:
            _reset(self.transport)


class _Passage:
    """One connection across the border."""

    def __init__(self, border: Border, number: int) -> None:
        self._border = border
        self.up = _Line(border, border.open_capture(number, "up"))
        self.down = _Line(border, border.open_capture(number, "down"))
        self.up.on_end = self.down.on_end = self._close_if_ended
        self.client = _Side(self, self.up, self.down)
        self._target: _Side | None = None
        self.dial: asyncio.Task[None] | None = None

    def finished(self) -> bool:
        """Whether both directions were closed in order; what is still unsent then must not be reset."""
        return self.up.ended and self.down.ended

    def arrived(self, side: _Side, transport: asyncio.Transport) -> None:
        """A side has its connection. The client's bytes set out only once the target's connection stands."""
        if side is not self.client:
            self._target = side
            self.down.set_out()
        elif self._border.admits(self):
            self.dial = self._border.loop.create_task(self._connect(transport), name="border-dial")
        else:
            _reset(transport)

    def left(self) -> None:
        """A side has lost its connection."""
        if self.dial is not None and self.client.lost:
            self.dial.cancel()
        if self.client.lost and (self._target is None or self._target.lost):
            self.up.drop()
            self.down.drop()
            self._border.forget(self)

    def abort(self) -> None:
        """Resets both sides at once."""
        self.client.abort()
        if self._target is not None:
            self._target.abort()

    async def _connect(self, client: asyncio.Transport) -> None:
        half_s = self._border.settings.rtt_ms / 2000
        await asyncio.sleep(half_s)
        await self._border.until_open()
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                host, port = self._border.settings.to
                await self._border.loop.create_connection(lambda: _Side(self, self.down, self.up), host, port)
        except (OSError, TimeoutError):
            await asyncio.sleep(half_s)
            _reset(client)
            return
        await asyncio.sleep(half_s)
        self.up.set_out()

    def _close_if_ended(self) -> None:
        if self.finished() and self._target is not None:
            for side in (self.client, self._target):
                if side.transport is not None:
                    side.transport.close()


class Border:
    """The listening border and all connections across it. Lives in one running event loop."""

    def __init__(self, settings: BorderSettings) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.state = BorderState.OPEN
        self._opened = asyncio.Event()
        self._opened.set()
        self._chance = random.Random(settings.seed)  # noqa: S311  # shapes delays, guards nothing
        self._passages: set[_Passage] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._count = 0
        self._server: asyncio.Server | None = None
        self._control_timer: asyncio.TimerHandle | None = None
        self._complained_of = ""

    async def start(self) -> tuple[str, int]:
        """Listens; returns the bound address.

        Raises:
            OSError: the address cannot be bound, or the capture folder cannot be made.
        """
        if self.settings.capture is not None:
            self._count = _last_capture(self.settings.capture)
        host, port = self.settings.listen
        self._server = await self.loop.create_server(self._accept, host, port)
        self._read_control()
        bound = self._server.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    async def close(self) -> None:
        """Stops listening and resets every connection, one that arrives now as well; returns when all are gone."""
        self._closing = True
        if self._control_timer is not None:
            self._control_timer.cancel()
        if self._server is not None:
            self._server.close()
        dials = [passage.dial for passage in self._passages if passage.dial is not None]
        self._reset_all()
        await self._idle.wait()
        if dials:
            await asyncio.wait(dials)

    def half_trip_s(self) -> float:
        """How long the next chunk is on its way."""
        return (self.settings.rtt_ms / 2 + self._chance.random() * self.settings.jitter_ms) / 1000

    def set_state(self, state: BorderState) -> None:
        """Opens, stalls or cuts the border."""
        if state is self.state:
            return
        self.state = state
        if state is BorderState.OPEN:
            self._opened.set()
            for passage in tuple(self._passages):
                passage.up.move()
                passage.down.move()
            return
        self._opened.clear()
        if state is BorderState.CUT:
            self._reset_all()

    async def until_open(self) -> None:
        """Waits while the border is stalled; a cut ends the waiter's connection and with it the wait."""
        await self._opened.wait()

    def admits(self, passage: _Passage) -> bool:
        """Whether a new connection may come in; remembers it when so."""
        if self._closing or self.state is BorderState.CUT or len(self._passages) >= MAX_PASSAGES:
            return False
        self._passages.add(passage)
        self._idle.clear()
        return True

    def forget(self, passage: _Passage) -> None:
        """A connection is over."""
        self._passages.discard(passage)
        if not self._passages:
            self._idle.set()

    def open_capture(self, number: int, direction: str) -> BinaryIO | None:
        """The file that keeps one direction of one connection, unbuffered; None without ``--capture``."""
        if self.settings.capture is None:
            return None
        return (self.settings.capture / f"{number}-{direction}.bin").open("ab", buffering=0)

    def _accept(self) -> asyncio.Protocol:
        self._count += 1
        return _Passage(self, self._count).client

    def _reset_all(self) -> None:
        for passage in tuple(self._passages):
            passage.abort()

    def _read_control(self) -> None:
        path = self.settings.control_file
        if path is None:
            return
        word = ""
        with contextlib.suppress(FileNotFoundError):
            word = path.read_text(encoding="utf-8", errors="replace").strip()
        if word in {state.value for state in BorderState}:
            self.set_state(BorderState(word))
        elif word and word != self._complained_of:
            self._complained_of = word
            sys.stderr.write("border: the control file's word is none of open, stall, cut\n")
        self._control_timer = self.loop.call_later(CONTROL_PERIOD_S, self._read_control)


def _reset(transport: asyncio.Transport) -> None:
    """Closes a connection so that the peer sees a reset, not an orderly end; unsent bytes are dropped."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _last_capture(folder: Path) -> int:
    """Makes the folder and returns the highest connection number in it, so that no file is shared by two."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(match[1]) for path in folder.iterdir() if (match := _CAPTURE_NAME.fullmatch(path.name))]
    return max(numbers, default=0)


def parse_address(text: str) -> tuple[str, int]:
    """Reads ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_arguments(arguments: Sequence[str]) -> BorderSettings:
    """Reads the command line.

    Raises:
        SystemExit: with status 2, when it is not as documented.
    """
    parser = argparse.ArgumentParser(prog="orchestrator.cli.border", description="A TCP proxy that adds distance.")
    parser.add_argument("--listen", type=parse_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--to", type=parse_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--rtt-ms", type=float, required=True, help="round trip that the border adds")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="at most this much more per chunk and direction")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter")
    parser.add_argument("--window-mib", type=int, default=DEFAULT_WINDOW_BYTES >> 20, help="on the way, per direction")
    parser.add_argument("--capture", type=Path, help="folder for what crossed")
    parser.add_argument("--control-file", type=Path, help="its one word opens, stalls or cuts the border")
    parsed = parser.parse_args(arguments)
    if not 0 <= parsed.rtt_ms <= 60_000 or not 0 <= parsed.jitter_ms <= 60_000 or not 1 <= parsed.window_mib <= 1024:
        parser.error("--rtt-ms and --jitter-ms are between 0 and 60000, --window-mib between 1 and 1024")
    return BorderSettings(
        listen=parsed.listen,
        to=parsed.to,
        rtt_ms=parsed.rtt_ms,
        jitter_ms=parsed.jitter_ms,
        seed=parsed.seed,
        window_bytes=parsed.window_mib << 20,
        capture=parsed.capture,
        control_file=parsed.control_file,
    )


async def serve(settings: BorderSettings) -> int:
    """Runs the border until SIGTERM or SIGINT; returns the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    border = Border(settings)
    try:
        host, port = await border.start()
    except OSError as error:
        print(f"border: {error}", file=sys.stderr)
        return 1
    print(f"ready [{host}]:{port}" if ":" in host else f"ready {host}:{port}", flush=True)
    await stop.wait()
    await border.close()
    return 0


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(serve(parse_arguments(sys.argv[1:]))))
