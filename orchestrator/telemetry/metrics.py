"""The metrics of one process: cells that a program counts in, with a bound on the number of series.

A program asks once for the series of a metric and then writes to their cells, which are plain numbers: what a request
costs here is a look-up and an addition. They belong to one thread, that of the event loop; other threads hand over what
is to be counted.

As in `logs`: an unknown metric, or as many values as it has no labels, is a mistake in the program and raises
TelemetryError; a label value that is not allowed comes from outside and becomes `other`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Final

from orchestrator.telemetry.logs import TelemetryError
from orchestrator.telemetry.names import METRICS, TELEMETRY_FAULTS, Label, Metric, MetricKind
from orchestrator.telemetry.series import Cell, Number, Series, Spread

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
IDS_MAX: Final = 512
"""The most ids that one label takes in the life of a process; later ones are `other`."""

_ID_CHARS_MAX = 128


class Metrics:
    """The series of every metric in `names`."""

    def __init__(self) -> None:
        self._admitted: dict[str, set[str]] = {}
        self._numbers: dict[Metric, Series[Number]] = {}
        self._spreads: dict[Metric, Series[Spread]] = {}
        for metric in METRICS:
            self._add(metric)
        self._faults = self.counter(TELEMETRY_FAULTS)

    def admit(self, label: Label, ids: Iterable[str]) -> int:
        """Allows ids as values of an open label, and returns how many found no room. Ids are never taken back."""
        if label.values is not None:
            raise TelemetryError(f"the label {label.name} has a closed set of values")
        admitted = self._admitted.setdefault(label.name, set())
        refused = 0
        for candidate in ids:
            if candidate in admitted:
                continue
            if len(admitted) < IDS_MAX and 0 < len(candidate) <= _ID_CHARS_MAX and candidate.isprintable():
                admitted.add(candidate)
            else:
                refused += 1
        return refused

    def counter(self, metric: Metric) -> Series[Number]:
        """The series of a counter. Raises TelemetryError for what is none of `names`."""
        return self._of(metric, MetricKind.COUNTER, self._numbers)

    def gauge(self, metric: Metric) -> Series[Number]:
        """The series of a gauge. Raises TelemetryError for what is none of `names`."""
        return self._of(metric, MetricKind.GAUGE, self._numbers)

    def histogram(self, metric: Metric) -> Series[Spread]:
        """The series of a histogram. Raises TelemetryError for what is none of `names`."""
        return self._of(metric, MetricKind.HISTOGRAM, self._spreads)

    def log_fault(self, what: str) -> None:
        """Counts a log line with a value that was replaced, `log_value`, or one that was lost, `log_line`.

        From any thread: of two counts in one moment one may be lost.
        """
        self._faults[what].value += 1

    def render(self) -> bytes:
        """All series in the text format of Prometheus; its content type is `CONTENT_TYPE`.

        A loop calls `load_exposition` in a thread first: what writes the text takes a while to import.
        """
        from orchestrator.telemetry.exposition import page

        return page(self._series())

    def _series(self) -> Iterator[Series[Number] | Series[Spread]]:
        for metric in METRICS:
            yield self._spreads[metric] if metric.kind is MetricKind.HISTOGRAM else self._numbers[metric]

    def _add(self, metric: Metric) -> None:
        if metric.kind is MetricKind.HISTOGRAM:
            self._spreads[metric] = Series(metric, lambda: Spread(metric.buckets), self._admitted, self._refused)
        else:
            self._numbers[metric] = Series(metric, Number, self._admitted, self._refused)

    @staticmethod
    def _of(metric: Metric, kind: MetricKind, all_: dict[Metric, Series[Cell]]) -> Series[Cell]:
        series = all_.get(metric)
        if series is None or metric.kind is not kind:
            raise TelemetryError(f"{metric.name} is not a {kind.value} of names")
        return series

    def _refused(self) -> None:
        self._faults["label_value"].value += 1


def load_exposition() -> None:
    """Import what writes the text: 2 MB, which a process that nobody scrapes does not need. Quick from then on."""
    importlib.import_module("orchestrator.telemetry.exposition")
