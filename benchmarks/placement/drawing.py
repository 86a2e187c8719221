"""Plots of the comparison as SVG files of their own: lines with bands, and points with names. Pure.

Colours are named in each file and readable on white and on black.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 180, 40, 50
TICKS = 5
OURS = "#d9480f"
COLOURS = (
    "#1c7ed6", "#2f9e44", "#ae3ec9", "#f08c00", "#0c8599", "#868e96", "#c2255c", "#5c940d", "#364fc7", "#a61e4d",
    "#845ef7", "#8d6e63",
)  # fmt: skip
INK = "#808080"


@dataclass(frozen=True, slots=True)
class Line:
    """One line, with a band around it where it has one."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high)."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One point with its name."""

    name: str
    x: float
    y: float
    filled: bool


class _Frame:
    """Axes, and where values lie on them."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], log_x: bool = False) -> None:
        self._log_x = log_x
        found = [math.log10(x) for x in xs] if log_x else list(xs)
        self.x_low, self.x_high = _room(found)
        self.y_low, self.y_high = _room(ys)

    def x(self, value: float) -> float:
        """Return the place of a value on the horizontal axis."""
        at = math.log10(value) if self._log_x else value
        return LEFT + (at - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return the place of a value on the vertical axis."""
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def drawn(self, title: str, x_label: str, y_label: str) -> list[str]:
        """Return the axes with their ticks and labels."""
        parts = [_text(LEFT, 22, title, size=15, bold=True)]
        for step in range(TICKS + 1):
            value = self.y_low + (self.y_high - self.y_low) * step / TICKS
            y = self.y(value)
            parts.append(_level(y, 'stroke-opacity="0.25"'))
            parts.append(_text(LEFT - 8, y + 4, _number(value), anchor="end"))
            at = self.x_low + (self.x_high - self.x_low) * step / TICKS
            x = LEFT + (WIDTH - LEFT - RIGHT) * step / TICKS
            parts.append(_text(x, HEIGHT - BOTTOM + 18, _number(10**at if self._log_x else at), anchor="middle"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label, anchor="middle"))
        parts.append(
            f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle" '
            f'font-size="12" fill="{INK}">{escape(y_label)}</text>'
        )
        return parts


def lines(title: str, x_label: str, y_label: str, drawn: Sequence[Line], aim: float | None = None) -> str:
    """Return a plot of lines; `aim` is drawn as a dashed level."""
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + [y for line in drawn for _, *band in line.band for y in band]
    frame = _Frame(xs, [*ys, *([] if aim is None else [aim])])
    parts = frame.drawn(title, x_label, y_label)
    if aim is not None:
        y = frame.y(aim)
        parts.append(_level(y, 'stroke-dasharray="6 4"'))
        parts.append(_text(WIDTH - RIGHT + 6, y + 4, "aim"))
    for number, line in enumerate(drawn):
        colour = _colour(line.name, number)
        if line.band:
            up = [(x, high) for x, _, high in line.band]
            down = [(x, low) for x, low, _ in reversed(line.band)]
            corners = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in (*up, *down))
            parts.append(f'<polygon points="{corners}" fill="{colour}" fill-opacity="0.15"/>')
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        width = 3 if line.name == "tidegate" else 1.5
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        y = TOP + 16 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{y}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 28, y + 9, line.name))
    return _svg(parts)


def dots(title: str, x_label: str, y_label: str, drawn: Sequence[Dot]) -> str:
    """Return a plot of named points on a logarithmic horizontal axis; hollow ones missed the objective."""
    frame = _Frame([dot.x for dot in drawn], [dot.y for dot in drawn], log_x=True)
    parts = frame.drawn(title, x_label, y_label)
    for number, dot in enumerate(sorted(drawn, key=lambda one: one.name)):
        colour = _colour(dot.name, number)
        fill = colour if dot.filled else "none"
        x, y = frame.x(dot.x), frame.y(dot.y)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{fill}" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(x + 10, y + 4, dot.name, colour=colour, bold=dot.name == "tidegate"))
    return _svg(parts)


def _colour(name: str, number: int) -> str:
    return OURS if name == "tidegate" else COLOURS[number % len(COLOURS)]


def _room(values: Sequence[float]) -> tuple[float, float]:
    """Return bounds a little beyond the values."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _level(y: float, style: str) -> str:
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" {style}/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, bold: bool = False, colour: str = INK
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}>'
        f"{escape(text)}</text>"
    )


def _svg(parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return f"{head}\n{body}\n</svg>\n"
