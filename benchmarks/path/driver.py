"""Drives an intake over the session protocol, as an edge would whose every attempt were decided and sealed already.

    python -m benchmarks.path.driver --config EDGE --tenant ID --body FILE --tokens N --watch intake=PID,...

An edge spends more processor time on a request than an intake does, so it cannot show what an intake takes. This does:
it has a session to each process of the intake, as an edge has, keeps a number of attempts in flight over all of them,
and compares each answer with that of `benchmarks.engine`. It runs as a process of its own, prepares what it sends
before anything is measured, and prints what it measured as a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import msgspec
import uvloop

from benchmarks.path.ask import WrongAnswer, text_of
from benchmarks.path.lane import Lane
from benchmarks.path.prepared import NotPrepared, Template, prepare, template, written
from benchmarks.path.watched import Spent, Watch
from orchestrator.config.secret import SettingsError
from orchestrator.policy.ids import RANDOM_BYTES, make_session_id
from orchestrator.wire.channels import open_channel
from orchestrator.wire.frames import SESSION_VERSION, SESSION_VERSION_MIN, STREAMS_MAX, Hello
from orchestrator.wire.outbox import Outbox
from orchestrator.wire.pace import Haste
from orchestrator.wire.session_edge import TICK_MS
from protos.tidegate.v1 import session_pb2 as pb

SESSION = "/tidegate.v1.Intake/Session"
EPOCH = 1
OF_EPOCH = pb.EdgeBatch(epoch=EPOCH).SerializeToString()
DRIVER = "driver"
DIAL_S = 30.0
REDIAL_S = 0.05
WARM_S = 0.5
"""How long it drives before it measures."""
WINDOW_S = 1.0
POLL_S = 0.01
END_S = 15.0
"""How long the last answers and settlements may take."""

Call = grpc.aio.StreamStreamCall[bytes, bytes]


class Window(msgspec.Struct, frozen=True):
    """What was measured in some of the time."""

    requests: int
    """Answers that were whole. One that is not ends the measurement."""
    spent: Spent


class Wire:
    """Carries one lane over one call."""

    def __init__(self, call: Call, lane: Lane) -> None:
        self.lane = lane
        self._call = call
        self._outbox: Outbox[bytes] = Outbox()  # bounded: by what the lane has in flight

    @property
    def over(self) -> bool:
        """Whether every answer was heard and settled."""
        return not self.lane.in_flight and not self._outbox.frames

    def say(self, data: bytes) -> None:
        """Let this leave with the next message, which leaves as soon as that of an edge would."""
        if data:
            self._outbox.put(data, Haste.NOW)

    async def read(self) -> None:
        """Hand the lane what arrives. Raises WrongAnswer at the end of the call."""
        while True:
            message = await self._call.read()
            if not isinstance(message, bytes):
                raise WrongAnswer("the intake ended the session")
            self.say(self.lane.received(message))

    async def write(self) -> None:
        """Send what the lane says."""
        while True:
            await self._outbox.due()
            parts = self._outbox.take()
            if parts:
                await self._call.write(b"".join((OF_EPOCH, *parts)))

    async def tick(self) -> None:
        """Let the lane give signs of life."""
        while True:
            self.say(self.lane.tick(time.monotonic_ns() // 1000))
            await asyncio.sleep(TICK_MS / 1000)


async def drive(
    made_of: Template, tokens: int, each: int, in_flight: int, windows: int, watch: Callable[[], Watch]
) -> list[Window]:
    """Keep so many attempts in flight over all processes of the intake, and measure one second after the other.

    Of `each` attempts for a process, one must be left at the end. Raises WrongAnswer, and grpc.aio.AioRpcError when the
    intake is not there.
    """
    async with AsyncExitStack() as stack:
        calls = await _dialled(made_of, stack)
        attempts = prepare(made_of, len(calls), each, tokens, _now_ms())
        wires = [Wire(call, Lane(one, text_of(tokens), tokens)) for call, one in zip(calls, attempts, strict=True)]
        work = asyncio.create_task(_measured(wires, in_flight, windows, watch))
        tasks = [asyncio.create_task(job()) for wire in wires for job in (wire.read, wire.write, wire.tick)]
        try:
            done, _ = await asyncio.wait([work, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for ended in done - {work}:
                ended.result()
            return await work
        finally:
            for task in (work, *tasks):
                task.cancel()
            await asyncio.gather(work, *tasks, return_exceptions=True)


async def _measured(wires: list[Wire], in_flight: int, windows: int, watch: Callable[[], Watch]) -> list[Window]:
    for index, wire in enumerate(wires):
        wire.say(wire.lane.begin((in_flight + index) // len(wires)))
    await asyncio.sleep(WARM_S)
    found = []
    for _ in range(windows):
        complete, watching = _complete(wires), watch()
        await asyncio.sleep(WINDOW_S)
        found.append(Window(_complete(wires) - complete, watching.spent()))
    if any(wire.lane.ran_out for wire in wires) or not all(window.requests for window in found):
        raise WrongAnswer(f"{_complete(wires)} answers: none for a second, or all that was prepared")
    for wire in wires:
        wire.lane.close()
    async with asyncio.timeout(END_S):
        while not all(wire.over for wire in wires):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(POLL_S)
    return found


def _complete(wires: list[Wire]) -> int:
    return sum(wire.lane.complete for wire in wires)


async def _dialled(made_of: Template, stack: AsyncExitStack) -> list[Call]:
    """Return a call to each process of the intake, greeted. The system chooses whom a connection reaches: dial on."""
    found: dict[int, Call] = {}
    async with asyncio.timeout(DIAL_S):
        while True:
            async with AsyncExitStack() as dialling:
                channel = open_channel(made_of.intake)
                dialling.push_async_callback(channel.close)
                call: Call = channel.stream_stream(SESSION)()
                dialling.callback(call.cancel)
                await call.write(_hello(made_of))
                message = await call.read()
                if not isinstance(message, bytes):
                    raise WrongAnswer("the intake does not answer a greeting")
                welcome = pb.IntakeBatch.FromString(message).frames[0].welcome
                if welcome.process not in found:
                    found[welcome.process] = call
                    stack.push_async_exit(dialling.pop_all())
            if len(found) == max(1, welcome.processes):
                return [found[index] for index in sorted(found)]
            await asyncio.sleep(REDIAL_S)


def _hello(made_of: Template) -> bytes:
    now_ms = _now_ms()
    session = make_session_id(now_ms, os.urandom(RANDOM_BYTES))
    hello = Hello(SESSION_VERSION_MIN, SESSION_VERSION, made_of.edge, session, EPOCH, now_ms, STREAMS_MAX)
    return written([hello], EPOCH)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main() -> int:
    """Run the command line; 1 when it could not measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.path.driver",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="settings of the edge in whose name it calls")
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--body", type=Path, required=True, help="a chat request of that tenant")
    parser.add_argument("--tokens", type=int, required=True, help="how many it asks for")
    parser.add_argument("--each", type=int, default=12_000, help="attempts that are prepared for each process")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--watch", default="", help="name=pid,...: whose processor time is measured")
    parser.add_argument("--ours", type=int, default=os.getpid(), help="from which process everything of ours descends")
    options = parser.parse_args()
    named = (one.partition("=") for one in options.watch.split(",") if one)
    pids = {DRIVER: os.getpid(), **{name: int(pid) for name, _, pid in named}}
    try:
        made_of = template(options.config, options.tenant, options.body.read_bytes(), _now_ms())
        counts = (options.tokens, options.each, options.in_flight)
        work = drive(made_of, *counts, options.seconds, lambda: Watch(pids, options.ours))
        print(msgspec.json.encode(uvloop.run(work)).decode())
    except (NotPrepared, SettingsError, OSError, WrongAnswer, TimeoutError, grpc.aio.AioRpcError) as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
