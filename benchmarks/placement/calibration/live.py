"""What the live placement predicts against what comes: real programs as processes, measured at the client.

Requests go through the edge and the intake to llama.cpp, in waves of one to four at a time, of several lengths. Every
decision record says when the edge expected the first token and the last one; a client's own id joins the two.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from benchmarks.client import Client, Target, Timed, post
from benchmarks.overhead import CHAT
from benchmarks.placement.calibration.fit import Compared, compared
from benchmarks.placement.calibration.prompts import prompt_of
from benchmarks.placement.calibration.simulated import drawn
from benchmarks.stand import LLAMA, LOOPBACK, TWO_HOP, Stand
from orchestrator.cli.evidence import records

WAVES = (1, 2, 3, 4)
"""Requests at a time, again and again."""
CYCLES = 6
"""How often the waves are gone through: 60 requests."""
PROMPT_TOKENS = (60, 600)
OUTPUT_TOKENS = (8, 64)
STAGGER_S = 0.15
"""Between two requests of a wave."""
PARTS = ((0, 10), (10, 30), (30, 60))
"""Requests that are compared together, by their number: how far off the edge is as it learns."""
Say = Callable[[str], None]


class LiveError(Exception):
    """The edge did not record what was asked of it."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the edge expected of one request, in microseconds, and from what."""

    first_us: int
    time_us: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Lived:
    """One request: what was expected of it, and what came."""

    number: int
    together: int
    """Requests of its wave."""
    expected: Expected
    first_us: int
    last_us: int
    output_tokens: int


async def measured(gguf: Path, seed: int, say: Say) -> list[Lived]:
    """Start a stand, ask all of it, and return every request. Raises what the stand and the client raise, LiveError."""
    with tempfile.TemporaryDirectory(prefix="tidegate-calibration-", ignore_cleanup_errors=True) as folder:
        stand = Stand(Path(folder), gguf)
        try:
            await stand.start()
            sizes = [size for _ in range(CYCLES) for size in WAVES]
            timed = await _asked(stand, sizes, Random(seed), say)
            found = expected_of(list(records(stand.data("edge") / "spool", "decision")))
        finally:
            await stand.stop()
    return joined(timed, found)


async def _asked(stand: Stand, sizes: Sequence[int], chance: Random, say: Say) -> list[tuple[int, Timed]]:
    """Ask wave after wave; return (requests of its wave, times) for each, in order."""
    asks = iter(drawn(chance, sum(sizes), 1.0, PROMPT_TOKENS, OUTPUT_TOKENS))
    found: list[tuple[int, Timed]] = []
    for size in sizes:
        first = len(found)
        wave = []
        for place in range(size):
            ask = next(asks)
            target = _target(stand, first + place, prompt_of(ask.prompt_tokens, chance), ask.output_tokens)
            wave.append(_one(target, place * STAGGER_S))
        found += [(size, timed) for timed in await asyncio.gather(*wave)]
        if len(found) % 20 == 0:
            say(f"  live: {len(found)} of {sum(sizes)} requests")
    return found


async def _one(target: Target, after_s: float) -> Timed:
    await asyncio.sleep(after_s)
    async with Client(target) as client:
        return await client.ask()


def _target(stand: Stand, number: int, text: str, tokens_max: int) -> Target:
    engine = next(engine for engine in stand.engines if engine.name == LLAMA)
    body = {
        "model": engine.model(TWO_HOP),
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": tokens_max,
    }
    headers = {"authorization": f"Bearer {stand.api_key}", "x-request-id": own_id(number)}
    request = post(CHAT, f"{LOOPBACK}:{stand.edge_port}", msgspec.json.encode(body), headers)
    return Target(LOOPBACK, stand.edge_port, request, keeps_connection=False)


def own_id(number: int) -> str:
    """Return the id that the client gives its request; the edge keeps it beside its own."""
    return f"calibration-{number}"


def expected_of(decisions: Sequence[dict[str, Any]]) -> dict[str, Expected]:
    """Return what was expected of each request by the client's id, from decision records: of its last attempt. Pure."""
    found: dict[str, Expected] = {}
    for record in decisions:
        candidates = record["placement"]["candidates"]
        chosen = next((one for one in candidates if one["pool"] == record["pool"]), None)
        if record["client_request"] is None or chosen is None or chosen["terms"] is None:
            continue
        terms, asked = chosen["terms"], record["asked"]
        found[record["client_request"]] = Expected(
            terms["first_us"], terms["time_us"], asked["prompt_tokens"], asked["output_tokens"]
        )
    return found


def joined(timed: Sequence[tuple[int, Timed]], expected: dict[str, Expected]) -> list[Lived]:
    """Join measurements and expectations by request. Pure. Raises LiveError when one has no record."""
    found = []
    for number, (together, one) in enumerate(timed):
        before = expected.get(own_id(number))
        if before is None:
            raise LiveError(f"the edge has no decision record of request {number}")
        found.append(Lived(number, together, before, one.first_ns // 1000, one.last_ns // 1000, one.tokens))
    return found


def learned(lived: Sequence[Lived]) -> list[tuple[str, Compared, Compared]]:
    """Return (which requests, first token, whole answer) for each part of the run, in seconds. Pure."""
    rows = []
    for begin, end in PARTS:
        part = [one for one in lived if begin <= one.number < end]
        first = compared([one.expected.first_us / 1e6 for one in part], [one.first_us / 1e6 for one in part])
        whole = compared([one.expected.time_us / 1e6 for one in part], [one.last_us / 1e6 for one in part])
        rows.append((f"{begin + 1} to {end}", first, whole))
    return rows
