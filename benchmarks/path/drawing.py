"""Bars on a logarithmic scale, drawn as SVG by hand. Pure. Colours are readable on white and on black."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
LEFT, RIGHT = 220, 150
TITLE, BAR, GAP, SPACE = 34, 16, 6, 26
INK = "#808080"
OURS, THEIRS, BARE = "#d9480f", "#1c7ed6", "#868e96"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with the spread of the rounds; `value` of None is not measured."""

    name: str
    value: float | None
    text: str
    kind: str
    """`ours`, `theirs` or `bare`."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars that share a scale."""

    title: str
    bars: Sequence[Bar]


def drawn(panels: Sequence[Panel]) -> str:
    """Return panels one below the other."""
    parts: list[str] = []
    y = 8.0
    for panel in panels:
        parts += _panel(panel, y)
        y += TITLE + len(panel.bars) * (BAR + GAP) + SPACE
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" font-family="sans-serif">'
    return f"{head}\n{body}\n</svg>\n"


def _panel(panel: Panel, top: float) -> list[str]:
    values = [
        value for bar in panel.bars for value in (bar.value, bar.low, bar.high) if value is not None and value > 0
    ]
    low = math.floor(math.log10(min(values))) if values else 0
    high = max(low + 1, math.ceil(math.log10(max(values)))) if values else 1
    parts = [_text(LEFT, top + 14, panel.title, bold=True)]
    bottom = top + TITLE + len(panel.bars) * (BAR + GAP)
    for power in range(low, high + 1):
        x = _x(10.0**power, low, high)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + TITLE - 4:.1f}" y2="{bottom:.1f}" stroke="{INK}" '
            'stroke-opacity="0.3"/>'
        )
        parts.append(_text(x, bottom + 12, f"{10**power:,}" if power >= 0 else f"{10.0**power:g}", "middle", 10))
    for number, bar in enumerate(panel.bars):
        parts += _bar(bar, top + TITLE + number * (BAR + GAP), low, high)
    return parts


def _bar(bar: Bar, y: float, low: int, high: int) -> list[str]:
    parts = [_text(LEFT - 8, y + 12, bar.name, "end", bold=bar.kind == "ours")]
    if bar.value is None or bar.value <= 0:
        return [*parts, _text(LEFT + 6, y + 12, bar.text)]
    colour = {"ours": OURS, "bare": BARE}.get(bar.kind, THEIRS)
    end = _x(bar.value, low, high)
    width = max(1.0, end - LEFT)
    parts.append(f'<rect x="{LEFT}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
    if bar.low and bar.high:
        ends = (_x(bar.low, low, high), _x(bar.high, low, high))
        middle = y + BAR / 2
        parts.append(
            f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="{INK}" '
            'stroke-width="2"/>'
        )
        end = max(end, ends[1])
    return [*parts, _text(end + 6, y + 12, bar.text)]


def _x(value: float, low: int, high: int) -> float:
    at = (math.log10(value) - low) / (high - low)
    return LEFT + min(1.0, max(0.0, at)) * (WIDTH - LEFT - RIGHT)


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}"{weight}>'
        f"{escape(text)}</text>"
    )
