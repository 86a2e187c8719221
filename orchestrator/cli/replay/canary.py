"""`tidegate canary`: what the settings on trial did, beside the side's own at the same time, from a recorded trace."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from orchestrator.cli.amounts import significant
from orchestrator.cli.law.commands import JsonOption
from orchestrator.cli.law.render import slim_grid
from orchestrator.files.document import FileError
from orchestrator.files.traces import TraceLine, read_recorded
from orchestrator.ledger.usage import Outcome
from orchestrator.placement.replay.arms import Compared, Sample, Verdict, compare

EXIT_BAD_INPUT = 2
CANARY_VERSION = 1
BY_LAW = frozenset({"residency_blocked"})
"""Outcomes that no settings change."""
FIGURES: Mapping[str, tuple[str, str, str, str]] = {
    "first_token_ms_mean": ("first token, mean", "ms", "sooner", "later"),
    "first_token_ms_p90": ("first token, p90", "ms", "sooner", "later"),
    "end_to_end_ms_mean": ("end to end, mean", "ms", "sooner", "later"),
    "end_to_end_ms_p90": ("end to end, p90", "ms", "sooner", "later"),
    "cost_per_million_tokens": ("cost per million tokens", "currency units", "less", "more"),
    "cached_share": ("prompt tokens from the cache", "%", "less", "more"),
    "failed_share": ("failures", "%", "less", "more"),
}
"""By name: title, unit, and the words for less and for more."""
STYLES = {Verdict.BETTER.value: "green", Verdict.WORSE.value: "red", Verdict.NOT_ENOUGH.value: "dim"}


def canary_command(
    trace: Annotated[Path, typer.Option("--trace", help="Trace that an edge recorded, with what became of requests.")],
    json: JsonOption = False,
) -> None:
    """Compare the canary's settings with the side's own, over the requests of a recorded trace."""
    try:
        value = _compare(trace)
    except FileError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(EXIT_BAD_INPUT) from None
    if json:
        sys.stdout.write(dumps(value, indent=2) + "\n")
    else:
        _render(value, Console())


def _compare(trace: Path) -> dict[str, Any]:
    lines = read_recorded(trace)
    if not lines:
        raise FileError(str(trace), 0, "", "expected at least one request")
    kinds = [_kind(line) for line in lines]
    if all(kind == "unknown" for kind in kinds):
        raise FileError(str(trace), 0, "outcome", "expected requests with what became of them, as an edge records them")
    samples = [_sample(line, kind) for line, kind in zip(lines, kinds, strict=True)]
    counts = Counter(("canary" if line.canary else "base", kind) for line, kind in zip(lines, kinds, strict=True))
    arms = {
        arm: {
            "requests": sum(count for (name, _), count in counts.items() if name == arm),
            **{kind: counts[arm, kind] for kind in ("finished", "failed", "cancelled", "refused_by_law", "unknown")},
        }
        for arm in ("base", "canary")
    }
    return {
        "v": CANARY_VERSION,
        "trace": str(trace),
        "arms": arms,
        "figures": [_figure_to_json(one) for one in compare(samples)],
    }


def _kind(line: TraceLine) -> str:
    """Say how a request counts: whoever left early, and whom the law refuses, says nothing of the settings."""
    if line.outcome is None:
        return "unknown" if line.end_us is None else "finished"
    if line.outcome == Outcome.COMPLETE.value:
        return "finished"
    if line.outcome == Outcome.CANCELLED.value:
        return "cancelled"
    return "refused_by_law" if line.outcome in BY_LAW else "failed"


def _sample(line: TraceLine, kind: str) -> Sample:
    return Sample(
        line.canary,
        kind == "failed",
        kind == "finished",
        line.prompt_tokens,
        line.cached_tokens,
        line.output_tokens,
        line.first_us,
        line.end_us,
        None if line.cost_pico is None else int(line.cost_pico),
    )


def _figure_to_json(one: Compared) -> dict[str, Any]:
    return {
        "name": one.name,
        "base": {"requests": one.base.count, "value": one.base.value},
        "canary": {"requests": one.canary.count, "value": one.canary.value},
        "difference": one.difference,
        "low": one.low,
        "high": one.high,
        "verdict": one.verdict.value,
        "sentence": _sentence(one),
    }


def _sentence(one: Compared) -> str:
    """Return the verdict as a sentence: with 95 % confidence, between which ends the difference lies."""
    title, unit, _, _ = FIGURES[one.name]
    if one.difference is None:
        return f"{title}: not enough data: one arm has no request to tell it from"
    if one.low is None or one.high is None:
        return f"{title}: not enough data: {one.base.count} and {one.canary.count} requests are too few for an interval"
    ends = f"{_signed(one, one.low)} to {_signed(one, one.high)} {unit}"
    if one.verdict is Verdict.NOT_ENOUGH:
        few = one.low > 0 or one.high < 0
        why = "too few requests" if few else "it may be either way"
        return f"{title}: not enough data: {why} ({ends})"
    words = FIGURES[one.name][2 if one.difference < 0 else 3]
    size = _number(one, abs(one.difference))
    return f"{title}: {one.verdict.value}: {size} {unit} {words} ({ends})"


def _number(one: Compared, value: float) -> str:
    return significant(value * (100 if FIGURES[one.name][1] == "%" else 1), 3)


def _signed(one: Compared, value: float) -> str:
    text = _number(one, value)
    return f"+{text}" if value > 0 and text != "0" else text


def _render(value: Mapping[str, Any], console: Console) -> None:
    arms: Mapping[str, Mapping[str, int]] = value["arms"]
    grid = slim_grid("requests")
    grid.add_column("")
    for name in arms["base"]:
        grid.add_column(name.replace("_", " "), justify="right")
    for arm, counts in arms.items():
        grid.add_row(arm, *(str(count) for count in counts.values()))
    console.print(grid)
    figures = slim_grid("figures; the difference is the canary's minus the base's")
    figures.add_column("figure", overflow="fold")
    for name in ("base", "canary", "difference"):
        figures.add_column(name, justify="right")
    for one in value["figures"]:
        title, unit, _, _ = FIGURES[one["name"]]
        numbers = (one["base"]["value"], one["canary"]["value"], one["difference"])
        figures.add_row(f"{title}, {unit}", *(_shown(one["name"], number) for number in numbers))
    console.print(figures)
    _say_verdicts(value["figures"], console)


def _say_verdicts(figures: Sequence[Mapping[str, Any]], console: Console) -> None:
    for one in figures:
        console.print(Text(one["sentence"], style=STYLES[one["verdict"]]))
    console.print("Each interval is one of 95 %: of twenty that show nothing, one seems to show something.")


def _shown(name: str, number: float | None) -> str:
    return "" if number is None else significant(number * (100 if FIGURES[name][1] == "%" else 1))
