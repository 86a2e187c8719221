"""Public traffic as neutral rows: when requests arrive, how long they are, and which prefixes they share.

Where the files come from, and under which licence, stands in `benchmarks/data/README.md`.
"""

from __future__ import annotations

import csv
import gzip
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import accumulate, groupby
from pathlib import Path
from random import Random
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "data"

MOONCAKE_BATCH_US = 3_000_000
"""Arrivals of the Mooncake trace come in batches this far apart: what is between them was lost."""
RATE_MODELS = ("m-large", "m-mid", "m-small", "deepseek-r1")
"""Models of ServeGen whose request rates are at hand; 14 days of the first three, one of the last."""
RATE_WINDOW_S = 600
DAY_S = 86_400
DAY_MINUTES = 1_440
TROUGH_MINUTE = 240
"""Local time of the quietest window: assumed, as ServeGen does not say when its clock begins."""
WARP_CELLS = 480
MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace, whoever sent it."""

    at_us: int
    """Arrival, from the start of the trace."""
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Hash of each block of 512 tokens of the prompt, each covering all before it; empty when unknown."""
    session: int
    """Rows of one conversation, tree or agent share it."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """How often blocks repeat, were no cache ever too small."""

    references: int
    unique: int

    @property
    def repeats(self) -> int:
        """References to a block that was seen before."""
        return self.references - self.unique

    @property
    def share(self) -> float:
        """Repeats per reference."""
        return self.repeats / self.references if self.references else 0.0


def block_reuse(rows: Iterable[TraceRow]) -> Reuse:
    """Return how often the blocks of `rows` repeat. The conversation trace of Mooncake gives 36.64 %."""
    references = 0
    seen: set[int] = set()
    for row in rows:
        references += len(row.blocks)
        seen.update(row.blocks)
    return Reuse(references, len(seen))


def mooncake(seed: int) -> tuple[TraceRow, ...]:
    """Return Mooncake's conversation trace (FAST'25), in its order.

    Arrivals are spread evenly inside their batches of three seconds, by `seed`. A session is a conversation, and
    that is the rows with one second block: the first is shared by all, and six of seven rows that repeat a second
    block repeat the whole of an earlier prompt besides its last block.
    """
    chance = Random(seed)
    rows: list[TraceRow] = []
    for at_ms, batch in groupby(_mooncake_lines(), key=lambda line: int(line["timestamp"])):
        lines = list(batch)
        offsets_us = sorted(int(chance.random() * MOONCAKE_BATCH_US) for _ in lines)
        for line, offset_us in zip(lines, offsets_us, strict=True):
            blocks = tuple(line["hash_ids"])
            session = blocks[1] if len(blocks) > 1 else MASK_64 - len(rows)
            at_us = at_ms * 1000 + offset_us
            rows.append(TraceRow(at_us, line["input_length"], line["output_length"], blocks, session))
    # Batches are 2,999 to 3,001 ms apart: the end of one may reach into the next.
    return tuple(sorted(rows, key=lambda row: row.at_us))


def azure_conversation() -> tuple[TraceRow, ...]:
    """Return Azure's conversation trace of November 2023 (Splitwise, ISCA'24).

    It says nothing of prefixes or of who sent what: no blocks, and each row is a session of its own.
    """
    rows: list[TraceRow] = []
    begun: datetime | None = None
    with gzip.open(DATA / "azure_llm_2023_conv.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            at = datetime.fromisoformat(line["TIMESTAMP"])
            begun = begun or at
            since = at - begun
            at_us = (since.days * DAY_S + since.seconds) * 1_000_000 + since.microseconds
            rows.append(TraceRow(at_us, int(line["ContextTokens"]), int(line["GeneratedTokens"]), (), len(rows)))
    return tuple(sorted(rows, key=lambda row: row.at_us))


@dataclass(frozen=True, slots=True)
class DayProfile:
    """How the rate of requests goes up and down over a day at one place."""

    rates: tuple[float, ...]
    """Of equal parts of a day, from midnight, local time; their mean is 1."""

    def at(self, minute: float) -> float:
        """Return the rate at a minute of the day, any number of days on: straight between the middles of parts."""
        parts = len(self.rates)
        where = minute / DAY_MINUTES * parts - 0.5
        part = int(where // 1)
        share = where - part
        return self.rates[part % parts] * (1 - share) + self.rates[(part + 1) % parts] * share

    @property
    def swing(self) -> float:
        """The highest rate over the lowest."""
        return max(self.rates) / min(self.rates)


FLAT = DayProfile((1.0,))
"""A day without ups and downs."""


@cache
def day_profile(model: str) -> DayProfile:
    """Return the mean day of one of RATE_MODELS, hour by hour, with its quietest hour at four in the morning.

    Raises ValueError for another model.
    """
    sums = [0.0] * 24
    with gzip.open(DATA / "servegen_rates_10min.csv.gz", "rt", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["model"] == model:
                sums[int(line["t_s"]) % DAY_S // 3600] += float(line["rate_rps"])
    total = sum(sums)
    if not total:
        raise ValueError(f"no rates of {model}; there are {', '.join(RATE_MODELS)}")
    quietest = sums.index(min(sums))
    turned = [sums[(hour - TROUGH_MINUTE // 60 + quietest) % 24] for hour in range(24)]
    return DayProfile(tuple(rate * 24 / total for rate in turned))


def warp(shares: Sequence[float], rate: Callable[[float], float]) -> list[float]:
    """Return moments of a run, of length 1, so that where `shares` lie evenly, the moments lie as densely as `rate`.

    `shares` are from 0 to 1; `rate` is a function of the share of the run that is over. Order is kept: this is a
    change of time, and bursts stay bursts.
    """
    cells = [max(0.0, rate((cell + 0.5) / WARP_CELLS)) for cell in range(WARP_CELLS)]
    reached = [0.0, *accumulate(cells)]
    total = reached[-1]
    if total <= 0:
        raise ValueError("a rate above zero somewhere")
    moments: list[float] = []
    for share in shares:
        wanted = share * total
        cell = min(bisect_right(reached, wanted) - 1, WARP_CELLS - 1)
        while cells[cell] <= 0:  # only at the very end, after which nothing comes
            cell -= 1
        moments.append(min(1.0, (cell + (wanted - reached[cell]) / cells[cell]) / WARP_CELLS))
    return moments


def mixed(value: int, salt: int) -> int:
    """Return 64 bits that stand for both numbers (the finaliser of splitmix64)."""
    word = (value * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & MASK_64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK_64
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK_64
    return word ^ word >> 31


def _mooncake_lines() -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / "mooncake_conversation_trace.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
