"""Writes what a run came to into docs/performance.md, between two marks, and its drawing beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.path.aims import Aim, aims
from benchmarks.path.drawing import Bar, Panel, drawn
from benchmarks.path.rows import Row
from benchmarks.path.stages import LAW
from benchmarks.path.summary import Figure
from benchmarks.path.systems import DIRECT, GENERAL, PERSONAL
from benchmarks.path.tables import COLUMNS, MISSING, cells, duration, row_text

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "performance.md"
FOLDER = "performance"
DRAWING = "bench-path.svg"
BEGIN = "<!-- bench-path: begin; written by `make bench-path ARGS=--write` -->"
END = "<!-- bench-path: end -->"
PANELS = (
    ("one_p50_us", "added at the median, one connection"),
    ("requests_per_s", "short answers/s, 32 connections"),
    ("tokens_per_s", "streamed tokens/s, 32 connections"),
    ("cpu_us_per_request", "processor time of the router per short answer"),
)


def written(result: Mapping[str, Any], page: Path = PAGE) -> list[Path]:
    """Write the page's part and the drawing. Raises ValueError when the page has no marks, and OSError."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page.name}: expected the marks that the benchmark is written between")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    page.write_text(f"{head}{BEGIN}\n\n{told(result)}\n\n{END}{tail}", encoding="utf-8")
    drawing = page.parent / FOLDER / DRAWING
    drawing.parent.mkdir(exist_ok=True)
    drawing.write_text(drawn(panels(result)), encoding="utf-8")
    return [page, drawing]


def told(result: Mapping[str, Any]) -> str:
    """Return the part of the page. Pure."""
    machine, synced = result["machine"], result["fdatasync"]
    titles: Mapping[str, str] = result["titles"]
    parts = [
        f"{result['rounds']} rounds of {result['seconds']} s for each load and system, {result['took_s'] / 60:.0f} "
        f"minutes, on {machine['cores']} cores ({machine['processor']}, Linux {machine['kernel']}); load average "
        f"{machine['load_average_1min']} before, {result['load_average_1min_at_end']} after. fdatasync of 4 KiB: p50 "
        f"{duration(synced['p50_us'])}, p99 {duration(synced['p99_us'])}.",
        f"![Side by side]({FOLDER}/{DRAWING})",
        _table(("system", *COLUMNS), _systems(result)),
        "In brackets: what is added to the direct answers of the same round, or the ratio to them; medians of the "
        f"rounds. {MISSING}: not measured.",
        "\n".join(f"* {line}" for line in _reasons(result)),
        "### Aims",
        _table(("aim", "bound", "measured", ""), [_aim(one) for one in aims(result)]),
        "### What each sends to the engine for a short answer",
        "\n".join(f"* {titles[name]}: {said}" for name, said in result["upstream"].items()),
        "### Processor time by process",
        _by_process(result),
    ]
    parts += [part for one in result.get("stages", []) for part in _stages(one)]
    if result.get("rows"):
        parts += ["### Long prompts, many streams, slow readers, a border", _rows(result)]
    return "\n\n".join(part for part in parts if part)


def panels(result: Mapping[str, Any]) -> list[Panel]:
    """Return what is drawn. Pure."""
    found = []
    for key, title in PANELS:
        bars = []
        for name, shown in result["titles"].items():
            own = result["figures"].get(name, {}).get(key)
            kind = "bare" if name == DIRECT else "ours" if name in (GENERAL, PERSONAL) else "theirs"
            if own is None:
                bars.append(Bar(shown, None, "not measured", kind))
            elif key != "one_p50_us":
                text = f"{own['value']:,.0f}" + (" us" if key.startswith("cpu") else "")
                bars.append(Bar(shown, own["value"], text, kind, own["low"], own["high"]))
            elif name != DIRECT and own["added"] is not None:
                bars.append(Bar(shown, own["added"], duration(own["added"]), kind))
        found.append(Panel(title, bars))
    return found


def _systems(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, title in result["titles"].items():
        if name in result["not_measured"]:
            rows.append([title, "not measured", *[""] * (len(COLUMNS) - 1)])
            continue
        own = {key: Figure(**figure) for key, figure in result["figures"].get(name, {}).items()}
        rows.append([title, *cells(name, own, result["memory_bytes"].get(name))])
    return rows


def _reasons(result: Mapping[str, Any]) -> list[str]:
    titles = result["titles"]
    lines = [f"{titles[name]} was not measured: {why}" for name, why in result["not_measured"].items()]
    for name, loads in result["given_up"].items():
        lines += [f"{titles[name]}, load `{load}`, was given up: {why}" for load, why in loads.items()]
    return lines


def _aim(one: Aim) -> list[str]:
    return [one.text, one.aim, one.measured, one.verdict]


def _by_process(result: Mapping[str, Any]) -> str:
    rows = []
    for load, title in (("many", "short answer, 32"), ("stream", "100 tokens, 32")):
        for name, spent in result["cpu_us_by_process"][load].items():
            told = ", ".join(f"{what} {us:,.0f}" for what, us in spent.items())
            rows.append([title, result["titles"].get(name, name), told])
    return _table(("load", "system", "us per request"), rows)


def _stages(one: Mapping[str, Any]) -> list[str]:
    rows = []
    for program, found in one["stages"].items():
        rows += [[program, row["stage"] + (" *" if row["kind"] == LAW else ""), f"{row['us']:,.1f}"] for row in found]
        rows.append([program, "**in all**", f"**{sum(row['us'] for row in found):,.1f}**"])
        rows.append([program, "the process without the clock", f"{one['unclocked_us'][program]:,.1f}"])
    note = (
        f"Microseconds of a request; the clock counts {one['clock']}. * permits, placement, evidence: "
        f"{one['law_us']:,.1f} in both programs."
    )
    gone = [f"Gone, and counted in the rest: {', '.join(one['missing'])}."] if one["missing"] else []
    return [f"### By stage: {one['load']}", _table(("program", "stage", "us"), rows), note, *gone]


def _rows(result: Mapping[str, Any]) -> str:
    found = []
    for row in result["rows"]:
        one = Row(row["what"], row["system"], row["figures"], row["not_measured"])
        found.append([one.what, result["titles"].get(one.system, one.system), row_text(one)])
    return _table(("what", "system", "figures"), found)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _plain(cell: str) -> str:
    """Return a cell that breaks no table: an error may hold anything."""
    return " ".join(cell.replace("|", "/").split())
