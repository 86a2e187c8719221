"""What the commands about the law print for people. Pure, apart from the console."""

from __future__ import annotations

from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from orchestrator.cli.amounts import micros, milliseconds, money
from orchestrator.cli.law.check import WARNINGS, Checked
from orchestrator.cli.law.diff import Difference
from orchestrator.cli.law.explain import Explanation
from orchestrator.cli.law.table import Table


def render_check(found: Checked, console: Console) -> None:
    """Print errors, then remarks."""
    for error in found.errors:
        console.print(Text(str(error), style="red"))
    if found.errors:
        console.print(f"{len(found.errors)} files cannot be used")
        return
    for remark in sorted(found.remarks, key=lambda one: (one.kind not in WARNINGS, one.kind.value, one.subject)):
        style = "yellow" if remark.kind in WARNINGS else "dim"
        console.print(Text(f"{remark.kind.value:<15} {remark.sentence}", style=style))
    warnings = len(found.warnings())
    console.print(
        f"{found.packs} packs, {found.rules} rules, {found.vectors} vectors as expected; "
        f"{warnings} warnings, {len(found.remarks) - warnings} remarks"
    )


def render_difference(found: Difference, console: Console) -> None:
    """Print every change, worst first."""
    for change in found.changes:
        word, style = ("newly allowed", "red") if change.newly_allowed else ("newly forbidden", "yellow")
        whose = f" for {change.tenant}" if change.tenant else ""
        console.print(Text(f"{word}: {change.edge} to {change.pool}{whose}: {change.count}", style=style))
        for _, words, rules in change.examples[:5]:
            refusing = f"   [{', '.join(rules)}]" if rules else ""
            console.print(Text(f"    {words}{refusing}"))
    console.print(
        f"{found.classes} classes of payloads and {found.decisions} recorded decisions compared; "
        f"{len(found.changes)} changes"
    )


def render_table(found: Table, console: Console) -> None:
    """Print the matrix."""
    grid = Grid(title="who may send what where" + (f", with the papers of {found.tenant}" if found.tenant else ""))
    for name in ("edge", "origin", "payload", *found.pools):
        grid.add_column(name, overflow="fold")
    for row in found.rows:
        cells = [
            Text("allowed", style="green") if cell.allowed else Text(", ".join(cell.rules), style="red")
            for cell in row.cells
        ]
        grid.add_row(row.edge, row.origin, row.payload, *cells)
    console.print(grid)


def render_explanation(found: Explanation, console: Console) -> None:
    """Print every pool with what each jurisdiction says, and what would be needed."""
    value = cast(dict[str, Any], found.value)
    console.print(f"at {value['at']}, manifest {value['bundle']['manifest']} of {value['bundle']['side']}")
    effective = value["labels"]["effective"]
    told = [f"{axis}={_words(said)}" for axis, said in effective.items()]
    console.print(Text("effective label: " + "  ".join(told)))
    for one in value["labels"]["mismatches"]:
        console.print(Text(f"  mismatch: {one['axis']}: {one['source']} {one['said']}, effective {one['effective']}"))
    for pool in value["pools"]:
        _render_pool(pool, value["chosen"], console)
    if value["placement"] is not None:
        _render_placement(value["pools"], value["placement"], console)
    for sink in value["sinks"]:
        style = "green" if sink["allowed"] else "red"
        word = "may keep it" if sink["allowed"] else f"refused by {', '.join(sink['rules'])}"
        console.print(Text(f"sink {sink['sink']} ({sink['kind']}): {word}", style=style))
    if "replay" in value:
        same = value["replay"]["identical"]
        console.print(Text("made again: " + ("identical" if same else "DIFFERENT"), style="green" if same else "red"))
    console.print(f"status {value['status']}, chosen {value['chosen'] or 'none'}")


def _render_pool(pool: dict[str, Any], chosen: str | None, console: Console) -> None:
    if not pool["allowed"]:
        head = f"refused by {', '.join(pool['rules'])}"
    elif pool["pool"] == chosen:
        head = "permitted, chosen"
    else:
        head = f"permitted{', but ' + pool['drop'] if pool['drop'] else ''}"
    style = "green" if pool["allowed"] else "red"
    console.print(Text(f"pool {pool['pool']} ({', '.join(pool['places'])}): {head}", style=style))
    for movement in pool["movements"]:
        for answer in movement["jurisdictions"]:
            by = ", ".join(answer["grants"] if answer["allowed"] else [r["rule"] for r in answer["reasons"]])
            word = "allows" if answer["allowed"] else "refuses"
            console.print(Text(f"    {movement['action']:<7} {answer['jurisdiction']} {word} by {by}", style="dim"))
    for reason in pool["reasons"]:
        source = reason.get("source")
        where = f" ({source['instrument']}, {source['article']}; {reason['confidence']})" if source else ""
        console.print(Text(f"    {reason['rule']}: {reason['sentence']}{where}"))
    for needs in pool["needs"]:
        console.print(Text(f"    needed: {needs}"))
    if pool["shadow"]:
        console.print(Text(f"    in shadow: {', '.join(pool['shadow'])} would refuse"))
    for duty in pool["obligations"]:
        console.print(Text(f"    duty: {duty['kind']} {duty['argument']}"))


def _render_placement(pools: list[dict[str, Any]], placement: dict[str, Any], console: Console) -> None:
    """Print why this pool: every candidate with its drop reason or all terms of J, the chosen one first."""
    chosen, second = placement["chosen"], placement["runner_up"]
    ordered = sorted(pools, key=lambda one: _rank(one, chosen))
    costs = slim_grid(f"J in millionths of a {placement['currency']}, by the {placement['settings']} settings")
    longest = max((len(one["pool"]) for one in pools), default=0)
    costs.add_column("pool", overflow="fold", min_width=min(longest, POOL_WIDTH_MAX))
    money_terms = _money_terms(pools)
    for name in ("J", *money_terms):
        costs.add_column(name, justify="right", no_wrap=True)
    costs.add_column("", overflow="fold")
    times = slim_grid("expected times in ms; tokens that are cached; streams beside it in its replica")
    times.caption = "~ not measured: as the settings take it"
    times.add_column("pool", overflow="fold", min_width=min(longest, POOL_WIDTH_MAX))
    for name in (*TIME_TERMS, "first", "all", "cached", "beside"):
        times.add_column(name, justify="right", no_wrap=True)
    for one in ordered:
        terms = one["terms"]
        if terms is None:
            costs.add_row(one["pool"], *("" for _ in ("J", *money_terms)), Text(_why_not(one), style="dim"))
            continue
        note = Text("chosen", style="green") if one["pool"] == chosen else Text("")
        if second is not None and one["pool"] == second["pool"]:
            note = Text("runner-up")
        if one["doubtful"]:
            note.append(" doubtful: the estimated prompt exceeds its context", style="yellow")
        amounts = [micros(int(terms[f"{name}_pico"])) for name in ("total", *money_terms)]
        costs.add_row(one["pool"], *amounts, note)
        row = [milliseconds(terms[f"{name}_us"]) for name in (*TIME_TERMS, "first", "time")]
        row[0] = row[0] if terms["rtt_measured"] else f"~{row[0]}"
        times.add_row(one["pool"], *row, str(terms["cached_tokens"]), str(terms["beside"]))
    console.print(costs)
    if times.row_count:
        console.print(times)
    if second is not None:
        total = next(int(one["terms"]["total_pico"]) for one in pools if one["pool"] == chosen)
        console.print(Text(_gap(int(second["gap_pico"]), total, second["pool"], placement["currency"])))


def slim_grid(title: str) -> Grid:
    """Return a table without lines between columns: many numbers fit."""
    return Grid(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


POOL_WIDTH_MAX = 18
TIME_TERMS = ("rtt", "upload", "queue", "prefill", "decode")


def _money_terms(pools: list[dict[str, Any]]) -> list[str]:
    """Return the names of what J is the sum of, as the terms have them."""
    terms: dict[str, Any] = next((one["terms"] for one in pools if one["terms"] is not None), {})
    names = [name.removesuffix("_pico") for name in terms if name.endswith("_pico")]
    return [name for name in names if name != "total"]


def _rank(one: dict[str, Any], chosen: str | None) -> tuple[bool, bool, bool, int, str]:
    terms = one["terms"]
    total = 0 if terms is None else int(terms["total_pico"])
    return one["pool"] != chosen, terms is None, one["doubtful"], total, one["pool"]


def _why_not(one: dict[str, Any]) -> str:
    if not one["allowed"]:
        return f"not permitted: {', '.join(one['rules'])}"
    return str(one["drop"]).replace("_", " ")


def _gap(gap_pico: int, total_pico: int, pool: str, currency: str) -> str:
    """Return how far the runner-up is from the chosen pool."""
    part = f" ({abs(gap_pico) * 100 / total_pico:.1f} %)" if total_pico > 0 else ""
    if gap_pico < 0:
        return f"runner-up {pool} costs {money(-gap_pico, currency)}{part} less: within epsilon, chance chose"
    return f"runner-up {pool} costs {money(gap_pico, currency)}{part} more"


def _words(said: object) -> str:
    return ",".join(map(str, said)) if isinstance(said, list) else str(said)
