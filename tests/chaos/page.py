"""What the edges' metrics say of streams that went on after a cut."""

from __future__ import annotations

import re
from dataclasses import dataclass

import aiohttp

from tests.chaos.declared import EDGES
from tests.chaos.stand import Stand

PAGE_S = 3.0
_CONTINUED = re.compile(r'^tidegate_streams_continued_total\{how="(\w+)"\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Continued:
    """Streams that went on, by edge and how. A counter begins again with its process."""

    counts: dict[tuple[str, str], float]

    def reattached_since(self, before: Continued) -> int:
        """Return how many were reattached since, of those that the edges of now know of."""
        total = 0.0
        for (edge, how), count in self.counts.items():
            if how == "reattached":
                earlier = before.counts.get((edge, how), 0.0)
                total += count - earlier if count >= earlier else count
        return int(total)


async def continued(stand: Stand) -> Continued:
    """Read both edges' pages; an edge that does not answer has none."""
    counts: dict[tuple[str, str], float] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PAGE_S)) as session:
        for edge in EDGES:
            try:
                async with session.get(f"{stand.url(edge)}/metrics") as response:
                    page = await response.text()
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue
            counts |= {(edge, how): float(count) for how, count in _CONTINUED.findall(page)}
    return Continued(counts)
