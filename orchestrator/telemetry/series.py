"""The cells of a metric, in which a program counts. Plain numbers: a count is a look-up and an addition."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TypeVar

from orchestrator.telemetry.logs import TelemetryError
from orchestrator.telemetry.names import OTHER, Label, Metric

Labels = str | tuple[str, ...]
"""The values of a metric's labels in their order: the value itself where there is one label, `()` where there is none.
"""


class Number:
    """The cell of a counter, which only ever rises, or of a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Spread:
    """The cell of a histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How many observations are at or below each bound and above the one before; the last are above all."""
        self.sum: float = 0

    def observe(self, value: float) -> None:
        """Adds an observation."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


Cell = TypeVar("Cell", Number, Spread)


class Series(dict[Labels, Cell]):
    """The cells of one metric by their labels: `series["hz-1"].value += 1`. One that is new is made when it is named.

    Raises TelemetryError for as many values as there are not labels. Bounded: ids are, and no other value is kept.
    """

    __slots__ = ("_admitted", "_make", "_refused", "cells", "metric")

    def __init__(
        self,
        metric: Metric,
        make: Callable[[], Cell],
        admitted: dict[str, set[str]],
        refused: Callable[[], None],
    ) -> None:
        """`admitted` are the ids of open labels, by label; `refused` is called for each value that is not allowed."""
        super().__init__()
        self.metric = metric
        self.cells: dict[tuple[str, ...], Cell] = {}
        """By the values that are shown: with those of `other`, which are not found under the values that were given."""
        self._make: Callable[[], Cell] = make
        self._admitted = admitted
        self._refused = refused
        if not metric.labels:
            self.__missing__(())  # told from the start, as nothing

    def __missing__(self, given: Labels) -> Cell:
        values = (given,) if isinstance(given, str) else given
        labels = self.metric.labels
        if len(values) != len(labels):
            raise TelemetryError(f"{self.metric.name} was used with other labels than it has in names")
        shown = tuple(map(self._shown, labels, values))
        cell = self.cells.get(shown)
        if cell is None:
            cell = self.cells[shown] = self._make()
        if OTHER not in shown:
            self[given] = cell
        return cell

    def _shown(self, label: Label, value: str) -> str:
        known = self._admitted.get(label.name, ()) if label.values is None else label.values
        if value in known:
            return str(value)
        self._refused()
        return OTHER
