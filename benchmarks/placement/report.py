"""Writes what the comparison came to into docs/placement.md, between two marks, and its plots beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.placement.drawing import Dot, Line, dots, lines
from benchmarks.placement.summary import AIM, BOUND_AIM, OBJECTIVE
from benchmarks.placement.tables import FLEET_COLUMNS, ROUTER_COLUMNS, fleet_row, markdown, router_rows, sentence

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "placement.md"
PLOTS = DOCS / "placement"
BEGIN = "<!-- comparison: begin; written by `make bench-placement FULL=1` -->"
END = "<!-- comparison: end -->"
DOT_LOAD = 0.5


def written(result: Mapping[str, Any]) -> list[Path]:
    """Write the page's part and the plots. Raises ValueError when the page has no marks, and OSError."""
    summary = result["summary"]
    page = PAGE.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise ValueError(f"{PAGE.name}: expected the marks that the comparison is written between")
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    PAGE.write_text(f"{head}{BEGIN}\n\n{told(result)}\n\n{END}{tail}", encoding="utf-8")
    PLOTS.mkdir(exist_ok=True)
    paths = [PAGE]
    for name, text in plots(summary).items():
        path = PLOTS / f"{name}.svg"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def told(result: Mapping[str, Any]) -> str:
    """Return the part of the page. Pure."""
    summary, machine = result["summary"], result["machine"]
    requests = sum(cell["cell"]["requests"] * len(cell["scores"]) for cell in result["cells"])
    parts = [
        f"{len(result['cells'])} cells, {requests:,} simulated requests, {result['took_s'] / 60:.0f} minutes on "
        f"{machine['cores']} cores ({machine['processor']}); with Tidegate's router the simulator ran "
        f"{summary['simulated_requests_per_s']:,.0f} requests a second on one core. Digest of the results: "
        f"`{result['digest']}`.",
        "### Over the committed fleets",
        markdown(FLEET_COLUMNS, [fleet_row(one) for one in summary["fleets"]]),
        "![Saved against the cheapest rival that keeps as many promises](placement/saved.svg)",
        "![Cost and wait at load 0.5](placement/cost-and-wait.svg)",
        "![Promises kept](placement/kept.svg)",
        "### One fleet, four workloads",
    ]
    for workload in dict.fromkeys(one["workload"] for one in summary["workloads"]):
        rows = [fleet_row(one) for one in summary["workloads"] if one["workload"] == workload]
        parts += [f"**{workload}**", markdown(FLEET_COLUMNS, rows)]
    for workload in dict.fromkeys(one["workload"] for one in summary["workloads"]):
        parts += [
            f"<details><summary>Every router on {workload}</summary>",
            *(
                f"Load {load}:\n\n{markdown(ROUTER_COLUMNS, router_rows(summary['routers'], workload, load))}"
                for load in dict.fromkeys(
                    one["load"] for one in summary["routers"] if one["workload"] == workload
                )
            ),
            "</details>",
        ]
    better = [sentence(one) for one in summary["dominances"]]
    parts.append("### Where a rival is better on both cost and wait")
    parts.append("\n".join(f"* {one}" for one in better) or "Nowhere.")
    broken = [
        [router, f"{violations:,}", f"{total:,}", f"{violations / total * 100:.1f} %"]
        for router, (violations, total) in summary["published_violations"].items()
    ]
    parts += [
        "### What the rivals as published send where the law forbids it",
        markdown(("router", "requests", "of", "share"), broken),
    ]
    return "\n\n".join(parts)


def plots(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return every plot by its name. Pure."""
    fleets = [one for one in summary["fleets"] if one["saved_median"] is not None]
    saved = Line(
        "tidegate",
        [(one["load"], one["saved_median"] * 100) for one in fleets],
        [(one["load"], one["saved_low"] * 100, one["saved_high"] * 100) for one in fleets],
    )
    routers = [one for one in summary["routers_over_fleets"] if one["mode"] == "confined"]
    names = list(dict.fromkeys(one["router"] for one in routers))
    kept = [
        Line(name, [(one["load"], one["kept"] * 100) for one in routers if one["router"] == name]) for name in names
    ]
    load = min({one["load"] for one in routers}, key=lambda found: abs(found - DOT_LOAD))
    points = [
        Dot(one["router"], one["first_ms_p90"], one["cost_per_million"], one["kept"] >= OBJECTIVE)
        for one in routers
        if one["load"] == load
    ]
    bounds = [(one["load"], one["bound_median"] * 100) for one in summary["fleets"] if one["bound_median"] is not None]
    found = {
        "saved": lines(
            "Saved against the cheapest rival that keeps as many promises",
            "load", "% of its cost; median and middle half of the fleets", [saved], AIM * 100,
        ),
        "kept": lines("Promises kept, mean over fleets", "load", "% of requests", kept, OBJECTIVE * 100),
        "cost-and-wait": dots(
            f"Cost and wait at load {load}; hollow: fewer than {OBJECTIVE:.0%} of the promises kept",
            "time to first token, p90, ms", "$ per million tokens", points,
        ),
    }  # fmt: skip
    if len(bounds) > 1:
        found["bound"] = lines(
            "Above the clairvoyant lower bound", "load", "% of it", [Line("tidegate", bounds)], BOUND_AIM * 100
        )
    return found


