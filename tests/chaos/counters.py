"""What the engines count, and what a page of metrics says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

import aiohttp

from tests.chaos.stand import LOOPBACK, Stand

COUNTERS_S = 3.0


async def running_in(stand: Stand, engines: Iterable[str]) -> int:
    """Return how many answers run or wait in these engines. Raises aiohttp.ClientError."""
    total = 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=COUNTERS_S)) as session:
        for name in engines:
            async with session.get(f"http://{LOOPBACK}:{stand.ports[name]}/counters") as response:
                told = await response.json()
            total += told["running"] + told["waiting"]
    return total


async def idle_within(stand: Stand, limit_s: float) -> float | None:
    """Wait until no engine runs anything. Returns the seconds that it took, None when it took longer."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    while await running_in(stand, stand.engines()):
        if loop.time() - begun_s > limit_s:
            return None
        await asyncio.sleep(0.02)
    return loop.time() - begun_s


async def gauge(url: str, name: str) -> dict[str, float]:
    """Return one metric of a page, by its labels. Raises aiohttp.ClientError."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=COUNTERS_S)) as session:
        async with session.get(f"{url}/metrics") as response:
            page = await response.text()
    pattern = re.compile(rf"^{re.escape(name)}(\{{[^}}]*\}})? ([0-9.e+-]+)$", re.MULTILINE)
    return {labels: float(value) for labels, value in pattern.findall(page)}
