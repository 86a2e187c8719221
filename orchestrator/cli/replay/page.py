"""A replay as one page: figures, plots and counts, for light and dark, that needs nothing else. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from orchestrator.cli.replay.figures import FIGURES, TALLIES, Figure, Unit, counted, rows_of, tally
from orchestrator.cli.replay.plots import Bar, Group, Series, bar_plot, line_plot

MONEY_FIGURES = ("cost_per_million_tokens", "cost")
MARKS = (("a", "A"), ("b", "B"))
STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--soft:#59636e;--line:#d6dbe1;--page:#fff;--a:#0a66b7;--b:#b4500b;
--good:#1a6b33;--bad:#a3231c}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ee;--soft:#9aa5b1;--line:#343c46;--page:#14181d;--a:#6cb2f5;
--b:#f0a15c;--good:#6fcf8b;--bad:#f28b82}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1080px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}p,dd{color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.3rem .8rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{font-weight:600}.wide{overflow-x:auto}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1rem}
figure{margin:0;border:1px solid var(--line);border-radius:6px;padding:.7rem}figcaption{font-weight:600}
svg{width:100%;height:auto}.tick,.label{fill:var(--soft);font-size:12px}.label{font-size:13px}
.grid{stroke:var(--line);stroke-width:.6}.axis{stroke:var(--soft)}.line{fill:none;stroke-width:2}
.line.a{stroke:var(--a)}.line.b{stroke:var(--b);stroke-dasharray:7 3}.line.n{stroke:var(--soft);stroke-dasharray:2 3}
.bar.a{fill:var(--a)}.bar.b{fill:var(--b)}.whisker{stroke:var(--ink);fill:none;stroke-width:1.4}
.better{color:var(--good)}.worse{color:var(--bad)}.key-a{color:var(--a)}.key-b{color:var(--b)}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Nothing is loaded from anywhere, and nothing runs."""


def to_html(told: Mapping[str, Any]) -> str:
    """Return the page."""
    sides = [side for side in (told["a"], told.get("b")) if side is not None]
    title = "Replay: two settings over one trace" if len(sides) > 1 else "Replay: one setting over a trace"
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<p>Placement that runs live, over a recorded trace, in a simulated fleet.</p>",
        _about(told, sides),
        "<h2>Figures</h2>",
        _figures(told),
        "<h2>Latency</h2>",
        f'<div class="plots">{_latency(sides)}</div>',
        "<h2>Over the run</h2>",
        f'<div class="plots">{_over_time(told, sides)}</div>',
        "<h2>Money</h2>",
        f'<div class="plots">{_money(sides)}</div>',
        "<h2>Where requests went, and why not</h2>",
        f'<div class="plots">{_counts(sides)}</div>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _about(told: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        ("trace", str(told["trace"])),
        ("fleet", str(told["fleet"])),
        ("requests", f"{told['requests']:,} in each run, {told['speed']:g} times as fast as recorded"),
        ("seeds", f"{told['seed_count']}, from {told['first_seed']} on"),
    ]
    terms = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows]
    for (mark, name), side in zip(MARKS, sides, strict=False):
        law = "law: the classes of the fleet file" if side["bundle"] is None else f"law: bundle {side['bundle']}"
        terms.append(f'<dt class="key-{mark}">{name}</dt><dd>{escape(side["settings"])}; {escape(law)}</dd>')
    return f"<dl>{''.join(terms)}</dl>"


def _figures(told: Mapping[str, Any]) -> str:
    two = told.get("b") is not None
    heads = ["figure", "A", "B", "B − A", "95 % interval", "B is"] if two else ["figure", "A"]
    rows = []
    for row in rows_of(told):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in (row.title, *row.sides))
        if two:
            cells += f"<td>{escape(row.change)}</td><td>{escape(row.interval)}</td>"
            cells += f'<td class="{row.verdict or "same"}">{row.verdict}</td>'
        rows.append(f"<tr>{cells}</tr>")
    note = "Means over seeds ± half of the 95 % interval (Student's t)."
    if two:
        note += " Differences are paired by seed; a verdict needs the whole interval on one side of zero."
    if told["seed_count"] == 1:
        note = "One seed has no interval: more of them tell a difference from chance."
    return f'<div class="wide">{_table(heads, rows)}</div><p>{escape(note)}</p>'


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _latency(sides: Sequence[Mapping[str, Any]]) -> str:
    plots = []
    for key, words in (("first_token_ms", "time to first token"), ("end_to_end_ms", "time to last token")):
        series = [
            Series(name, mark, [(ms, float(percent)) for percent, ms in enumerate(side["curves"][key])])
            for (mark, name), side in zip(MARKS, sides, strict=False)
        ]
        title = f"{words[0].upper()}{words[1:]}: share of finished requests within it"
        plots.append(line_plot(title, f"{words}, ms (logarithmic)", "requests, %", series, log_x=True))
    return "".join(plots)


def _over_time(told: Mapping[str, Any], sides: Sequence[Mapping[str, Any]]) -> str:
    over = [side["curves"]["over_time"] for side in sides]
    arrived = Series("arrived", "n", [(one["at_s"], one["arrived"]) for one in over[0]])
    finished = [
        Series(f"{name} finished", mark, [(one["at_s"], one["finished"]) for one in slices])
        for (mark, name), slices in zip(MARKS, over, strict=False)
    ]
    waited = [
        Series(name, mark, [(one["at_s"], one["first_token_ms"]) for one in slices])
        for (mark, name), slices in zip(MARKS, over, strict=False)
    ]
    slice_s = over[0][1]["at_s"] if len(over[0]) > 1 else 0
    per = f"requests per {slice_s:.3g} s" if slice_s else "requests"
    seed = f"seed {told['first_seed']}"
    return line_plot(f"Requests by their arrival ({seed})", "arrival, s", per, [arrived, *finished]) + line_plot(
        f"Mean time to first token by arrival ({seed})", "arrival, s", "first token, ms", waited
    )


def _money(sides: Sequence[Mapping[str, Any]]) -> str:
    plots = []
    for name in MONEY_FIGURES:
        figure = next(one for one in FIGURES if one.name == name)
        title = f"{figure.title[0].upper()}{figure.title[1:]}, {sides[0]['currency']}"
        groups = [_money_group(letter, mark, side, figure) for mark, letter, side in _named(sides)]
        plots.append(bar_plot(title, groups))
    return "".join(plots)


def _named(sides: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [(mark, letter, side) for (mark, letter), side in zip(MARKS, sides, strict=False)]


def _money_group(letter: str, mark: str, side: Mapping[str, Any], figure: Figure) -> Group:
    spread = side["figures"][figure.name]
    text = figure.shown(spread["mean"], side["currency"])
    return Group(letter, (Bar(mark, spread["mean"], text, spread["low"], spread["high"]),))


def _counts(sides: Sequence[Mapping[str, Any]]) -> str:
    plots = []
    for key, title, unit in TALLIES:
        tallies = [tally(side, key) for side in sides]
        names = sorted({name for one in tallies for name in one})
        shown = f"{title[0].upper()}{title[1:]}, mean over seeds"
        if names:
            legend = [(letter, mark) for mark, letter, _ in _named(sides)] if len(sides) > 1 else []
            plots.append(bar_plot(shown, [_group(name, tallies, unit) for name in names], legend))
    return "".join(plots)


def _group(name: str, tallies: Sequence[Mapping[str, float]], unit: Unit) -> Group:
    bars = []
    for (mark, _), one in zip(MARKS, tallies, strict=False):
        number = one.get(name, 0.0)
        bars.append(Bar(mark, number, counted(number, unit)))
    return Group(name, bars)
