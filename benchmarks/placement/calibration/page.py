"""What a calibration came to, as tables for a terminal and for docs/placement.md. Pure but for `written`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import table
from benchmarks.placement.calibration.fit import Compared, Fitted, Residual
from benchmarks.placement.calibration.published import PUBLISHED
from benchmarks.placement.tables import markdown

PAGE = Path(__file__).parents[3] / "docs" / "placement.md"
BEGIN = "<!-- calibration: begin -->"
END = "<!-- calibration: end -->"
WORDS: Mapping[str, str] = {
    "The fit": "The embedded engine (torch, one thread, SmolLM2 135M in float32, 4 slots, prompts taken in by chunks "
    "of 32 tokens), measured in process. Times are processor time of its thread, medians over repeats; the parameters "
    "are least squares of relative errors.",
    "Its residuals": "A stretch is a prompt taken in alone, streams that decode, or both. This engine takes in a chunk "
    "and decodes in two passes over the weights, where the model, as engines on GPUs do, has one: so no three numbers "
    "fit a prompt alone and a prompt beside others. Attention over a longer context, which the model leaves out, shows "
    "in the longest prompt.",
    "First token": "A mixed load (Poisson arrivals; prompts of 48 to 1,000 tokens and answers of 8 to 64, uniform in "
    "their logarithm), answered by the engine as it came, and by the simulator from the same arrivals and lengths. "
    "The *own* clock stands still while another process has the engine's core, and arrivals are timed by it; by the "
    "*wall* clock the model is slowed by the share of a core that the engine got on the whole. Times in seconds; "
    "errors are relative, means over requests.",
    "Whole answer": "The same requests, to their last token.",
    "Published figures": "The cards of the comparison (`benchmarks/placement/sites.py`) at the workloads of others. "
    "Where a parameter was taken from a figure, the row shows only what the model makes of it; no parameter was "
    "changed for the others.",
    "The running system": "Sixty requests of 60 to 600 prompt tokens, one to four at a time, through edge and intake "
    "to llama.cpp with one slot: what the edge expected in its decision records, joined by request with what the "
    "client measured, in seconds. Declared speeds are the first guess; replies teach.",
}
"""What each table shows, by its title."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table. WORDS say under its title what it shows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One replay, predicted in one way."""

    load: float
    """Of what the engine can carry."""
    clock: str
    fit: str
    share: float
    """Of a core that the engine got."""
    first: Compared
    whole: Compared


def fit_tables(fits: Mapping[str, tuple[Fitted, Sequence[Residual]]]) -> list[Table]:
    """Return the parameters of each fit, and every stretch beside what each fit says of it."""
    parameters = tuple(
        (name, f"{model.step_ns / 1e6:.1f}", f"{model.stream_ns / 1e6:.1f}", f"{model.prefill_ns / 1e6:.2f}")
        for name, (model, _) in fits.items()
    )
    every = [residuals for _, residuals in fits.values()]
    stretches = tuple(
        (
            *(beside[0].sample.name, f"{beside[0].sample.took_ns / 1e6:.0f}"),
            *(cell for one in beside for cell in (f"{one.predicted_ns / 1e6:.0f}", percent(one.error))),
        )
        for beside in zip(*every, strict=True)
    )
    errors = [cell for name in fits for cell in (f"{name}: ms", "error")]
    return [
        Table("The fit", ("fitted to", "ms per step", "ms per stream", "ms per prompt token"), parameters),
        Table("Its residuals", ("stretch of steps", "measured ms", *errors), stretches),
    ]


COMPARED_COLUMNS = ("p50, s", "predicted", "p90, s", "predicted", "mean error", "bias", "correlation")


def replay_tables(rows: Sequence[Row]) -> list[Table]:
    """Return how predicted answers stand to measured ones: first tokens, and whole answers."""
    columns = ("load", "requests", "clock", "fitted to", "share of a core", *COMPARED_COLUMNS)
    found = []
    for title, pick in (("First token", "first"), ("Whole answer", "whole")):
        cells = []
        for row in rows:
            one: Compared = getattr(row, pick)
            name = (f"{row.load:.1f}", f"{one.count}", row.clock, row.fit, f"{row.share:.2f}")
            cells.append((*name, *compared_cells(one)))
        found.append(Table(title, columns, tuple(cells)))
    return found


def compared_cells(one: Compared) -> tuple[str, ...]:
    """Return the cells of COMPARED_COLUMNS."""
    times = (one.measured_p50, one.predicted_p50, one.measured_p90, one.predicted_p90)
    correlation = "-" if one.correlation is None else f"{one.correlation:.3f}"
    return (*(f"{time:.2f}" for time in times), percent(one.error_mean, sign=False), percent(one.bias), correlation)


def published_table() -> Table:
    """Return every published figure beside what the model makes of the same workload."""
    rows = []
    for one in PUBLISHED:
        predicted = one.predicted()
        rows.append(
            (
                one.card,
                one.what,
                f"{one.value:,g} {one.unit}",
                f"{predicted:,.4g} {one.unit}",
                percent(predicted / one.value - 1),
                "its source" if one.parameter else "",
                one.source,
            )
        )
    columns = ("card", "workload", "published", "the model", "error", "of a parameter", "source")
    return Table("Published figures", columns, tuple(rows))


def live_table(learned: Sequence[tuple[str, Compared, Compared]]) -> Table:
    """Return how far off the edge was, as it learned."""
    rows = [
        (name, what, *compared_cells(one), percent(one.error_median, sign=False))
        for name, first, whole in learned
        for what, one in (("first token", first), ("whole answer", whole))
    ]
    columns = ("requests", "time to", *COMPARED_COLUMNS, "median error")
    return Table("The running system", columns, tuple(rows))


def percent(value: float, sign: bool = True) -> str:
    """Return a share as a percentage, with its sign where that says which way."""
    return f"{value * 100:{'+' if sign else ''}.0f} %"


def rendered(tables: Sequence[Table]) -> str:
    """Return tables for a terminal."""
    return "\n".join(table(one.title, one.columns, one.rows) for one in tables)


def preface(result: Mapping[str, Any]) -> str:
    """Return what stands before the tables of the page."""
    facts = result["machine"]
    busy = ", ".join(f"{value} {when}" for when, value in result["load_averages_1min"].items())
    return (
        f"`python -m benchmarks.placement.calibration --write`, {result['took_s'] / 60:.0f} minutes on "
        f"{facts['cores']} cores ({facts['processor']}), which other work shared: load average {busy}."
    )


def told(before: str, tables: Sequence[Table]) -> str:
    """Return the part of the page. Raises KeyError for a table without words."""
    parts = [before]
    for one in tables:
        parts += [f"**{one.title}.** {WORDS[one.title]}", markdown(one.columns, one.rows)]
    return "\n\n".join(parts)


def placed(page: str, part: str) -> str:
    """Return the page with the part between the two marks. Raises ValueError when the page has no such marks."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no marks that the calibration is written between")
    return f"{head}{BEGIN}\n\n{part}\n\n{END}{tail}"


def written(part: str) -> Path:
    """Put the part into the page. Raises ValueError without the marks, and OSError."""
    PAGE.write_text(placed(PAGE.read_text(encoding="utf-8"), part), encoding="utf-8")
    return PAGE
