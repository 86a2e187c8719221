"""The tables of the comparison, for a terminal and for docs/placement.md. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.figures import table

FLEET_COLUMNS = (
    "load", "fleets", "saved", "middle half", "cheaper", "dearer", "unmatched", "sign p", "kept", "first p90",
    "violations", "over bound",
)  # fmt: skip
ROUTER_COLUMNS = ("router", "mode", "$ per M", "first p50", "first p90", "kept", "cache hits", "finished", "violations")


def rendered(summary: Mapping[str, Any]) -> str:
    """Return every table as text."""
    parts = [table("Over fleets, Azure's conversations", FLEET_COLUMNS, [fleet_row(one) for one in summary["fleets"]])]
    for workload in dict.fromkeys(one["workload"] for one in summary["workloads"]):
        rows = [fleet_row(one) for one in summary["workloads"] if one["workload"] == workload]
        parts.append(table(f"One fleet, {workload}", FLEET_COLUMNS, rows))
        for load in dict.fromkeys(one["load"] for one in summary["routers"] if one["workload"] == workload):
            parts.append(
                table(f"{workload}, load {load}", ROUTER_COLUMNS, router_rows(summary["routers"], workload, load))
            )
    parts += [sentence(one) for one in summary["dominances"]]
    return "\n".join(parts)


def fleet_row(one: Mapping[str, Any]) -> list[str]:
    """Return one row of savings."""
    middle = "-" if one["saved_low"] is None else f"{percent(one['saved_low'])} to {percent(one['saved_high'])}"
    return [
        f"{one['load']}",
        f"{one['cells']}",
        percent(one["saved_median"]),
        middle,
        f"{one['cheaper']}",
        f"{one['dearer']}",
        f"{one['unmatched']}",
        "-" if one["sign_p"] is None else f"{one['sign_p']:.1g}",
        percent(one["kept_median"]),
        milliseconds(one["p90_ms_median"]),
        f"{one['violations']}",
        percent(one["bound_median"]),
    ]


def router_rows(routers: Sequence[Mapping[str, Any]], workload: str, load: float) -> list[list[str]]:
    """Return one row for each router of a workload at a load, the cheapest first within a mode."""
    chosen = [one for one in routers if one["workload"] == workload and one["load"] == load]
    chosen.sort(key=lambda one: (one["mode"], one["cost_per_million"]))
    return [
        [
            one["router"],
            one["mode"],
            f"{one['cost_per_million']:.4f}",
            milliseconds(one["first_ms_p50"]),
            milliseconds(one["first_ms_p90"]),
            percent(one["kept"]),
            percent(one["hit"]),
            percent(one["finished"]),
            f"{one['violations']}",
        ]
        for one in chosen
    ]


def sentence(one: Mapping[str, Any]) -> str:
    """Say where a rival is better on both counts."""
    return (
        f"{one['rival']} is both cheaper ({one['cheaper_by']:.4f} $ per M) and faster ({one['faster_ms']:.0f} ms at "
        f"p90) on {one['workload']} at load {one['load']}; it keeps {percent(one['kept'])} of the promises, Tidegate "
        f"{percent(one['kept_tidegate'])}."
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def percent(value: float | None) -> str:
    """Return a share as a percentage, or a dash."""
    return "-" if value is None else f"{value * 100:.1f} %"


def milliseconds(value: float) -> str:
    """Return a time as people read it."""
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
