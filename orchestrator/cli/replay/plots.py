"""Plots drawn as SVG by hand: lines and bars that need nothing but the colours of the page. Pure.

Colours, fonts and light or dark come from the page's style: `a` and `b` are the two that are compared, `n` is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 28, 44
BAR, BAR_GAP, GROUP_GAP = 14, 3, 12
LABEL_WIDTH, VALUE_WIDTH = 150, 130
LABEL_CHARS_MAX = 22
TICKS = 5
LEAST = 1e-200
"""A range narrower than this has no ticks of its own: its powers of ten leave what a float can hold."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line."""

    name: str
    mark: str
    """`a`, `b` or `n`."""
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with its interval where it has one."""

    mark: str
    value: float
    text: str
    """The value with its unit."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Bars that belong together."""

    label: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places along one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, here = self.low, self.high, value
        if self.log:
            low, high, here = log10(low), log10(high), log10(max(value, self.low))
        return self.start + (here - low) / (high - low) * (self.end - self.start)


def line_plot(title: str, x_label: str, y_label: str, series: Sequence[Series], *, log_x: bool = False) -> str:
    """Return a figure with a line for each series. With `log_x`, values of x below a thousandth of the largest meet
    the axis."""
    points = [point for one in series for point in one.points]
    if not points:
        return _figure(title, WIDTH, 40, ['<text class="tick" x="8" y="24">Nothing to show.</text>'])
    largest = max(x for x, _ in points)
    positive = [x for x, _ in points if x > 0]
    if log_x and positive:
        x_scale = _Scale(*_decades(max(min(positive), largest / 1000), largest), LEFT, WIDTH - RIGHT, log=True)
        x_ticks = _log_ticks(x_scale.low, x_scale.high)
    else:
        x_ticks = [tick for tick in _ticks(0, largest) if tick <= largest]
        x_scale = _Scale(0, largest or 1, LEFT, WIDTH - RIGHT)
    y_ticks = _ticks(0, max(y for _, y in points))
    y_scale = _Scale(0, max(y_ticks[-1], 1e-9), HEIGHT - BOTTOM, TOP)
    drawn = [
        *_x_axis(x_label, x_ticks, x_scale),
        *_y_axis(y_label, y_ticks, y_scale),
    ]
    for one in series:
        if one.points:
            path = " ".join(f"{x_scale.at(x):.1f},{y_scale.at(y):.1f}" for x, y in one.points)
            drawn.append(f'<polyline class="line {one.mark}" points="{path}"/>')
    return _figure(title, WIDTH, HEIGHT, [*drawn, *_legend([(one.name, one.mark) for one in series], LEFT + 8)])


def bar_plot(title: str, groups: Sequence[Group], legend: Sequence[tuple[str, str]] = ()) -> str:
    """Return a figure with horizontal bars, their values as text, and whiskers where a bar has an interval.

    `legend` names marks: (name, mark).
    """
    bars = [bar for group in groups for bar in group.bars]
    largest = max((max(bar.value, bar.high or 0) for bar in bars), default=0)
    scale = _Scale(0, largest or 1, LABEL_WIDTH, WIDTH - VALUE_WIDTH)
    drawn = _legend(legend, LABEL_WIDTH)
    top = TOP if legend else 0
    y: float = top + 8
    for group in groups:
        height = len(group.bars) * (BAR + BAR_GAP) - BAR_GAP
        label = group.label if len(group.label) <= LABEL_CHARS_MAX else group.label[: LABEL_CHARS_MAX - 1] + "…"
        drawn.append(
            f'<text class="tick" x="{LABEL_WIDTH - 8}" y="{y + height / 2 + 4:.1f}" text-anchor="end">{escape(label)}'
            f"<title>{escape(group.label)}</title></text>"
        )
        for bar in group.bars:
            drawn += _bar(bar, scale, y)
            y += BAR + BAR_GAP
        y += GROUP_GAP
    drawn.append(f'<line class="axis" x1="{LABEL_WIDTH}" y1="{top}" x2="{LABEL_WIDTH}" y2="{y:.0f}"/>')
    return _figure(title, WIDTH, max(40, y), drawn)


def _bar(bar: Bar, scale: _Scale, y: float) -> list[str]:
    end = scale.at(max(0.0, bar.value))
    beyond = end
    drawn = [
        f'<rect class="bar {bar.mark}" x="{scale.start:.1f}" y="{y:.1f}" width="{max(0.0, end - scale.start):.1f}" '
        f'height="{BAR}"><title>{escape(bar.text)}</title></rect>'
    ]
    if bar.low is not None and bar.high is not None and bar.high > bar.low:
        low, high = scale.at(max(0.0, bar.low)), scale.at(max(0.0, bar.high))
        middle, beyond = y + BAR / 2, max(end, high)
        drawn.append(
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}'
            f'M{low:.1f} {y + 3:.1f}v{BAR - 6}M{high:.1f} {y + 3:.1f}v{BAR - 6}"/>'
        )
    drawn.append(f'<text class="tick" x="{beyond + 6:.1f}" y="{y + BAR - 3:.1f}">{escape(bar.text)}</text>')
    return drawn


def _figure(title: str, width: float, height: float, drawn: Sequence[str]) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(drawn)}</svg></figure>'
    )


def _legend(names: Sequence[tuple[str, str]], x: float) -> list[str]:
    drawn: list[str] = []
    for name, mark in names:
        shown = name if len(name) <= LABEL_CHARS_MAX else name[: LABEL_CHARS_MAX - 1] + "…"
        drawn.append(f'<path class="line {mark}" d="M{x} 12h22"/>')
        drawn.append(f'<text class="tick" x="{x + 28}" y="16">{escape(shown)}</text>')
        x += 44 + 7 * len(shown)
    return drawn


def _x_axis(label: str, ticks: Sequence[float], scale: _Scale) -> list[str]:
    bottom = HEIGHT - BOTTOM
    drawn = [f'<line class="axis" x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}"/>']
    for tick in ticks:
        x = scale.at(tick)
        drawn.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        drawn.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>')
    return drawn


def _y_axis(label: str, ticks: Sequence[float], scale: _Scale) -> list[str]:
    drawn: list[str] = []
    for tick in ticks:
        y = scale.at(tick)
        drawn.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"rotate(-90 14 {middle:.0f})"
    drawn.append(
        f'<text class="label" x="14" y="{middle:.0f}" text-anchor="middle" transform="{turned}">{escape(label)}</text>'
    )
    return drawn


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to at least `high`."""
    if high - low < LEAST:
        return [low]
    rough = (high - low) / TICKS
    size = 10.0 ** floor(log10(rough))
    step = next(size * one for one in (1, 2, 5, 10) if size * one >= rough * 0.999)
    return [low + step * number for number in range(ceil((high - low) / step - 1e-9) + 1)]


def _decades(low: float, high: float) -> tuple[float, float]:
    """Return the ends of a logarithmic axis: round, and apart."""
    begin = _rounded(low, up=False)
    end = _rounded(high, up=True)
    return (begin, end) if end > begin else (begin, begin * 10)


def _rounded(value: float, *, up: bool) -> float:
    size = 10.0 ** floor(log10(value))
    steps = [size * one for one in (1, 2, 5, 10)]
    if up:
        return next(step for step in steps if step >= value * 0.999999)
    return next(step for step in reversed(steps) if step <= value * 1.000001)


def _log_ticks(low: float, high: float) -> list[float]:
    many = log10(high / low) > 3
    found: list[float] = []
    for power in range(floor(log10(low)) - 1, ceil(log10(high)) + 1):
        found += [one * 10.0**power for one in ((1,) if many else (1, 2, 5))]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def _number(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
