"""What was measured, as tables for the screen. Pure but for the printing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.path.aims import Aim
from benchmarks.path.rows import Row
from benchmarks.path.summary import Figure, Figures
from benchmarks.path.systems import DIRECT

MISSING = "n/m"
COLUMNS = (
    "p50, 1 conn.",
    "p99",
    "p50, 32 conn.",
    "p99",
    "requests/s, 32",
    "tokens/s, 32",
    "CPU us/request",
    "CPU ms/1,000 tokens",
    "resident MB",
)


def main_table(
    titles: Mapping[str, str],
    figures: Figures,
    memory_bytes: Mapping[str, int],
    lost: Mapping[str, str],
    given_up: Mapping[str, Mapping[str, str]],
) -> Table:
    """Return the table of every system, those that were not measured included."""
    table = Table(title="the same request to the same engine, median of the rounds (x direct; + added)")
    table.add_column("system")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, title in titles.items():
        if name in lost:
            table.add_row(title, f"not measured: {lost[name]}")
        else:
            table.add_row(title, *cells(name, figures.get(name, {}), memory_bytes.get(name)))
    why = [f"{titles[name]}, {load}: {reason}" for name, loads in given_up.items() for load, reason in loads.items()]
    table.caption = f"{MISSING}: not measured. " + "; ".join(why) if why else None
    return table


def cells(name: str, own: Mapping[str, Figure], memory_bytes: int | None) -> list[str]:
    """Return one row, without its title."""
    bare = name == DIRECT
    return [
        *(_latency(own.get(key), bare) for key in ("one_p50_us", "one_p99_us", "many_p50_us", "many_p99_us")),
        *(_rate(own.get(key), bare) for key in ("requests_per_s", "tokens_per_s")),
        _amount_of(own.get("cpu_us_per_request"), 1, 0),
        _amount_of(own.get("cpu_us_per_1000_tokens"), 1000, 2),
        "" if not memory_bytes else f"{memory_bytes / 1e6:,.0f}",
    ]


def cpu_table(title: str, by_system: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]) -> Table:
    """Return the processor time of each process for one request."""
    table = Table(title=title)
    table.add_column("system")
    table.add_column("us of processor time per request, by process")
    for name, spent in by_system.items():
        table.add_row(titles.get(name, name), ", ".join(f"{what} {us:,.0f}" for what, us in spent.items()))
    return table


def aims_table(found: Sequence[Aim]) -> Table:
    """Return every aim with what was measured."""
    table = Table(title="aims")
    for column in ("aim", "bound", "measured", ""):
        table.add_column(column)
    for one in found:
        table.add_row(one.text, one.aim, one.measured, one.verdict)
    return table


def rows_table(found: Sequence[Row], titles: Mapping[str, str]) -> Table:
    """Return the rows that wrk does not fill."""
    table = Table(title="long prompts, many streams, slow readers, a border")
    for column in ("what", "system", "figures"):
        table.add_column(column)
    for row in found:
        table.add_row(row.what, titles.get(row.system, row.system), row_text(row))
    return table


def row_text(row: Row) -> str:
    """Return the figures of a row for people."""
    if row.missing:
        return f"not measured: {row.missing}"
    return ", ".join(f"{_word(name)} {_amount(name, value)}" for name, value in row.figures.items())


def _word(name: str) -> str:
    for unit in _UNITS:
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def _amount(name: str, value: float) -> str:
    unit = next((unit for unit in _UNITS if name.endswith(unit)), "")
    if unit == "_ms":
        return duration(value * 1000)
    digits = 0 if abs(value) >= 100 else 1
    return f"{value:,.{digits}f}{_UNITS.get(unit, '')}"


_UNITS = {
    "_kib_per_stream": " KiB a stream",
    "_ms_per_request": " ms a request",
    "_ms": "",
    "_mb": " MB",
    "_per_s": "/s",
}


def shown(table: Table) -> None:
    """Print a table, as wide as it needs where nobody sees a screen."""
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def duration(us: float) -> str:
    """Return a duration for people."""
    return f"{us:,.0f} us" if abs(us) < 1_000 else f"{us / 1000:,.2f} ms" if abs(us) < 1e5 else f"{us / 1e6:,.2f} s"


def signed(us: float) -> str:
    """Return a difference of durations for people."""
    return ("+" if us >= 0 else "-") + duration(abs(us))


def _amount_of(figure: Figure | None, divisor: float, digits: int) -> str:
    return MISSING if figure is None else f"{figure.value / divisor:,.{digits}f}"


def _latency(figure: Figure | None, bare: bool) -> str:
    if figure is None:
        return MISSING
    value = duration(figure.value)
    return value if bare or figure.added is None else f"{value} ({signed(figure.added)})"


def _rate(figure: Figure | None, bare: bool) -> str:
    if figure is None:
        return MISSING
    value = f"{figure.value:,.0f}"
    return value if bare or figure.direct is None else f"{value} (x{figure.direct:.3f})"
