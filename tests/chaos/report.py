"""What became of the requests of a scenario, summed up and shown. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.chaos.client import Ending, Mode, Told
from tests.chaos.evidence import Findings
from tests.chaos.load import Asked

LOST_TOLD_MAX = 6


@dataclass(slots=True)
class Result:
    """One scenario."""

    name: str
    sent: int = 0
    answered: int = 0
    reattached: int = 0
    """Sessions that went on after their connection was lost, by the edges' logs."""
    resumed: int = 0
    again: int = 0
    """Asked again because the edge itself was gone."""
    unserved: int = 0
    """Of these, tries that a stopping edge closed before any answer began. Told only."""
    refused: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    cancelled: int = 0
    lost: int = 0
    duplicated: int = 0
    recover_ms: list[float] = field(default_factory=list)
    """Of each fault: until the next request that began after it had its first token, at the slowest edge and kind."""
    stall_ms: list[float] = field(default_factory=list)
    """The longest silence of each answered stream that was under way at a fault."""
    findings: Findings = field(default_factory=Findings)
    failures: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled, misplaced, unrecorded or misbilled, and its own checks hold."""
        return not (self.lost or self.duplicated or self.failures) and self.findings.clean

    def to_json(self) -> dict[str, Any]:
        """Return everything for machines."""
        return {"passed": self.passed, **asdict(self)}


def summed(
    name: str,
    asked: Sequence[Asked],
    faults: Sequence[float],
    reattached: int,
    findings: Findings,
    failures: Sequence[str],
    figures: dict[str, float],
) -> Result:
    """Sum up what became of every request."""
    result = Result(name, sent=len(asked), reattached=reattached, findings=findings, figures=dict(figures))
    result.failures.extend(failures)
    refused: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    reasons: list[str] = []
    for one in asked:
        last = one.last
        result.again += len(one.tries) > 1
        result.unserved += sum(1 for told in one.tries if told.ending is Ending.CLOSED and not told.request)
        result.resumed += last.segments > 1
        match last.ending:
            case Ending.ANSWERED:
                result.answered += 1
            case Ending.CANCELLED:
                result.cancelled += 1
            case Ending.REFUSED:
                refused[last.why] += 1
            case Ending.UNREACHED:
                refused["edge_unreached"] += 1
            case Ending.CUT:
                cut[last.why] += 1
            case Ending.DUPLICATED:
                result.duplicated += 1
                reasons.append(f"{last.plan.tag}: {last.why}")
            case _:
                result.lost += 1
                reasons.append(f"{last.plan.tag} at {last.plan.edge}: {last.why or 'closed without a word'}")
        # An earlier try that brought a wrong token is no better for having been asked again.
        for told in one.tries[:-1]:
            result.lost += told.ending is Ending.LOST
            result.duplicated += told.ending is Ending.DUPLICATED
    result.refused, result.cut = dict(refused), dict(cut)
    result.failures += [f"lost: {reason}" for reason in reasons[:LOST_TOLD_MAX]]
    tries = [told for one in asked for told in one.tries]
    result.recover_ms = [found for fault in faults if (found := recovery_ms(tries, fault)) is not None]
    result.stall_ms = stalls_ms(tries, faults)
    return result


def recovery_ms(tries: Iterable[Told], fault_s: float) -> float | None:
    """Return how long after a fault each edge and kind had a first token again, the slowest of them; None without."""
    first: dict[tuple[str, str], float] = {}
    for told in tries:
        if told.plan.mode is Mode.STREAM and told.begun_s >= fault_s and told.first_s is not None:
            key = (told.plan.edge, told.plan.kind)
            first[key] = min(first.get(key, told.first_s), told.first_s)
    return None if not first else (max(first.values()) - fault_s) * 1000


def stalls_ms(tries: Iterable[Told], faults: Sequence[float]) -> list[float]:
    """Return the longest silence of each answered stream that was under way at one of the faults."""
    return [
        told.stall_s * 1000
        for told in tries
        if told.ending is Ending.ANSWERED and any(told.begun_s < fault < told.ended_s for fault in faults)
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so great a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


_HEADS: tuple[str, ...] = (
    *("scenario", "sent", "answered", "reattached", "resumed", "again", "refused", "cut", "hung up"),
    *("LOST", "DOUBLE", "WRONG", "recover ms p50/p99", "stall ms p50/p99", ""),
)
"""`WRONG` are residency violations, sends without a record before them, and wrong bills."""


def table(results: Sequence[Result]) -> str:
    """Return the results as a table, and below it what is wrong."""
    rows = [_HEADS, *map(_row, results)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for result in results:
        told = [*result.failures, *result.findings.sentences]
        parts = [f"refused {code} {count}" for code, count in sorted(result.refused.items())]
        parts += [f"cut {code} {count}" for code, count in sorted(result.cut.items())]
        figures = [f"{name} {value:g}" for name, value in result.figures.items()]
        if result.unserved:
            figures.append(f"closed before any answer began {result.unserved}")
        if result.findings.lost:
            figures.append(f"closed as lost by killed programs {result.findings.lost}")
        if parts or figures:
            lines.append(f"  {result.name}: {', '.join(parts + figures)}")
        lines += [f"  {result.name}: FAILED {sentence}" for sentence in told]
    return "\n".join(lines)


def _row(result: Result) -> tuple[str, ...]:
    counts = (result.sent, result.answered, result.reattached, result.resumed, result.again)
    ends = (sum(result.refused.values()), sum(result.cut.values()), result.cancelled, result.lost, result.duplicated)
    found = result.findings
    wrong = found.violations + found.unrecorded + found.misbilled
    return (
        result.name,
        *map(str, (*counts, *ends, wrong)),
        _span(result.recover_ms),
        _span(result.stall_ms),
        "ok" if result.passed else "FAILED",
    )


def _span(values: Sequence[float]) -> str:
    return "" if not values else f"{percentile(values, 0.5):.0f}/{percentile(values, 0.99):.0f}"
