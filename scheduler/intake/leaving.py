"""How an intake leaves: every stream is finished, handed over, or ended with a word by which its edge can go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from scheduler.intake.sessions import IntakeService
from scheduler.intake.site import Site

POLL_S = 0.05
HAND_OVER_SHARE = 2
"""After one part in so many of the grace, what still waits for a slot is given back: its edge needs time for it too."""
SETTLE_S = 1.0
"""How long edges have at the end to take the last words and to say what they delivered."""


async def drain(site: Site, intake: IntakeService, grace_ms: int) -> None:
    """Take no new work, let running answers end within the grace, and give the rest back."""
    site.draining = True
    intake.drain(grace_ms)
    begun_s = time.monotonic()
    await _until(lambda: site.busy() == 0, begun_s + grace_ms / 1000 / HAND_OVER_SHARE)
    site.hand_over()
    await _until(lambda: site.busy() == 0, begun_s + grace_ms / 1000)
    site.break_off()
    await _until(lambda: site.busy() == 0, time.monotonic() + SETTLE_S)


async def _until(done: Callable[[], bool], end_s: float) -> None:
    while not done() and time.monotonic() < end_s:  # noqa: ASYNC110 - the site is asked, like by its tick
        await asyncio.sleep(POLL_S)
