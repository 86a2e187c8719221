"""The account of a replay: latency, promises kept, money, cache, borders, refusals, and the difference of two runs.

Percentiles are of the requests that finished (nearest rank); what did not finish is counted, never left out of the
promises kept. The difference between two settings is paired by seed, with a 95 % interval by Student's t.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import mean, stdev

from orchestrator.placement.replay.outcome import Outcome, Run
from orchestrator.placement.replay.world import World

SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
# Two-sided 95 % quantiles of Student's t by degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2); 1.96 beyond 30.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Account:
    """One run. Times in microseconds, money in pico-units of the settings' currency."""

    requests: int
    finished: int
    unfinished: int
    """Neither finished nor refused: cut after they had begun, or still under way at the end."""
    refused: int
    violations: int
    """Requests that were sent to a pool that may not see them, whatever became of them."""
    kept: int
    """Requests that finished within their promise, to the first token and per token."""
    first_us: Mapping[str, int]
    end_us: Mapping[str, int]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    span_us: int
    """From the first arrival to the last end."""
    cost_pico: int
    egress_bytes: int
    moved_bytes: Mapping[str, int]
    """Bytes over borders between jurisdictions, by class of traffic."""
    refusals: Mapping[str, int]
    """Requests turned away, by reason; by law, the rules are counted in `rules`."""
    rules: Mapping[str, int]
    attempts: int
    by_pool: Mapping[str, int]
    """Requests by the pool that their last attempt went to."""

    def figures(self) -> dict[str, float]:
        """Return every figure that two runs are compared by."""
        requests = max(1, self.requests)
        tokens = max(1, self.prompt_tokens + self.output_tokens)
        seconds = max(1, self.span_us) / 1e6
        return {
            **{f"first_token_ms_{name}": value / 1000 for name, value in self.first_us.items()},
            **{f"end_to_end_ms_{name}": value / 1000 for name, value in self.end_us.items()},
            "requests_per_s": self.finished / seconds,
            "tokens_per_s": self.output_tokens / seconds,
            "slo_attainment": self.kept / requests,
            "unfinished": self.unfinished,
            "refused": self.refused,
            "cost": self.cost_pico / 1e12,
            "cost_per_million_tokens": self.cost_pico / 1e6 / tokens,
            "cache_hit_share": self.cached_tokens / max(1, self.prompt_tokens),
            "cross_border_bytes": sum(self.moved_bytes.values()),
            "residency_violations": self.violations,
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean over seeds with its 95 % interval; the interval is the mean itself where there is one seed."""

    mean: float
    low: float
    high: float


def account(world: World, run: Run, rules: Mapping[str, int]) -> Account:
    """Return the account of one run."""
    outcomes = run.outcomes
    done = [one for one in outcomes if one.finished]
    kinds = [kind.name for kind in world.kinds]
    moved: Counter[str] = Counter()
    by_pool: Counter[str] = Counter()
    for one in outcomes:
        moved[kinds[one.kind]] += one.moved_bytes
        if one.pool >= 0:
            by_pool[world.pools[one.pool].id] += 1
    refusals = Counter(one.refused for one in outcomes if one.refused is not None)
    first_at = min((one.at_us for one in outcomes), default=0)
    return Account(
        requests=len(outcomes),
        finished=len(done),
        unfinished=sum(1 for one in outcomes if not one.finished and one.refused is None),
        refused=sum(refusals.values()),
        violations=sum(1 for one in outcomes if one.violated),
        kept=sum(1 for one in done if keeps(world, one)),
        first_us=percentiles([one.first_us for one in done if one.first_us is not None]),
        end_us=percentiles([one.end_us for one in done if one.end_us is not None]),
        prompt_tokens=sum(one.prompt_tokens for one in done),
        cached_tokens=sum(one.cached_tokens for one in done),
        output_tokens=sum(one.output_tokens for one in done),
        span_us=max((one.at_us + (one.end_us or 0) for one in outcomes), default=0) - first_at,
        cost_pico=sum(one.cost_pico for one in outcomes),
        egress_bytes=sum(one.egress_bytes for one in outcomes),
        moved_bytes=dict(sorted(moved.items())),
        refusals=dict(sorted(refusals.items())),
        rules=dict(sorted(rules.items())),
        attempts=sum(one.attempts for one in outcomes),
        by_pool=dict(sorted(by_pool.items())),
    )


def keeps(world: World, one: Outcome) -> bool:
    """Whether a finished request kept its promise."""
    promise = world.kinds[one.kind].promise
    if one.first_us is None or one.first_us > promise.first_us:
        return False
    return one.token_us is None or one.token_us <= promise.token_us


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """Return p50, p90 and p99 by nearest rank; zeros for no values."""
    ordered = sorted(values)
    return {name: _rank(ordered, share) for name, share in SHARES.items()}


def _rank(ordered: Sequence[int], share: float) -> int:
    if not ordered:
        return 0
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Return the mean of values, one for each seed, with its 95 % interval."""
    middle = mean(values)
    if len(values) < 2:
        return Spread(middle, middle, middle)
    freedom = len(values) - 1
    half = (T_95[freedom - 1] if freedom <= len(T_95) else NORMAL_95) * stdev(values) / sqrt(len(values))
    return Spread(middle, middle - half, middle + half)


def over_seeds(accounts: Sequence[Account]) -> dict[str, Spread]:
    """Return each figure over the seeds of one setting."""
    return _spreads([one.figures() for one in accounts])


def difference(before: Sequence[Account], after: Sequence[Account]) -> dict[str, Spread]:
    """Return each figure's difference, `after` minus `before`, paired by seed. Raises ValueError on other lengths."""
    pairs = [
        {name: value - first[name] for name, value in second.items()}
        for first, second in zip(
            (one.figures() for one in before), (one.figures() for one in after), strict=True
        )
    ]
    return _spreads(pairs)


def _spreads(rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {name: spread([row[name] for row in rows]) for name in rows[0]} if rows else {}
