"""What `tidegate whatif` prints for people. Pure, apart from the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.cli.amounts import micros, money

SHOWN_MAX = 40
"""Requests that are shown one by one, those that move first."""
TERMS = (("J", "total_pico"), ("gap", "gap_pico"))


def render_moves(told: Mapping[str, Any], console: Console) -> None:
    """Print every request before and after, those that move first, and the sum of it."""
    summary = told["summary"]
    currency = summary["currency"]
    console.print(Text(f"what if {told['change']['option']} {told['change']['value']}"))
    ordered = sorted(told["requests"], key=lambda one: not one["moved"])
    console.print(f"J and the gap to the runner-up in millionths of a {currency}")
    for one in ordered[:SHOWN_MAX]:
        before, after = one["before"], one["after"]
        head = Text(f"{_pool(before)} -> {_pool(after)}" if one["moved"] else f"{_pool(before)} stays")
        head.stylize("yellow" if one["moved"] else "")
        console.print(head.append(f"   {one['name']}", style="dim"))
        terms = [f"{word} {_micros(before[key])} -> {_micros(after[key])}" for word, key in TERMS]
        console.print(Text(f"    {', '.join(terms)}; {one['why']}"))
    if len(ordered) > SHOWN_MAX:
        console.print(f"{len(ordered) - SHOWN_MAX} more are in --json")
    for moved in summary["moves"]:
        source, target = (moved[end] or "refused" for end in ("from", "to"))
        console.print(Text(f"{moved['count']:>6} {source} -> {target}"))
    console.print(
        f"{summary['requests']} requests: {summary['same']} stay, {summary['newly_refused']} newly refused, "
        f"{summary['newly_allowed']} newly allowed"
    )
    if summary["placed_both"]:
        for key, words in (("cost", "tokens and egress"), ("j", "J")):
            difference = int(summary[key]["difference_pico"])
            sign = "+" if difference > 0 else ""
            of = f"over {summary['placed_both']} placed both times"
            console.print(Text(f"{words}, {of}: {sign}{money(difference, currency)}"))
    if summary["differs_from_record"]:
        text = "recorded decisions come out otherwise with this bundle, before any change"
        console.print(Text(f"{summary['differs_from_record']} {text}", style="yellow"))
    for why, count in summary["skipped"].items():
        console.print(Text(f"{count} recorded decisions left out: {why}", style="yellow"))


def _pool(side: Mapping[str, Any]) -> str:
    return str(side["pool"] or f"refused, {side['status']}")


def _micros(amount: str | None) -> str:
    return "none" if amount is None else micros(int(amount))
