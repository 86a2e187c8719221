"""An attempt read out by a test: as a generator, which sends when it is first asked and stops the work with its end."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable

from node_agent.uplink.sending import Sendable, Sending, Tally
from orchestrator.wire.deadlines import Deadlines
from orchestrator.wire.frames import StreamFrame

BEYOND_MS = 60_000
"""So much longer than its budget an attempt may take here: of its time the pool speaks first."""


async def sent(
    send: Callable[[Sendable, Tally, Deadlines, int], Sending], sendable: Sendable, tally: Tally
) -> AsyncGenerator[StreamFrame, None]:
    """Send an attempt by `send`, and yield what comes back of it."""
    now_us = _now_us()
    sending = send(sendable, tally, Deadlines(sendable.waits, sendable.budget_ms + BEYOND_MS, now_us), now_us)
    try:
        while (frame := await sending.next(_now_us())) is not None:
            yield frame
    finally:
        await sending.close()


def _now_us() -> int:
    return time.monotonic_ns() // 1000
