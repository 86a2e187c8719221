"""The metrics of one process, in a registry of its own, with a bound on the number of series.

As in `logs`: an unknown metric or label is a mistake in the program and raises TelemetryError; a label value that is
not allowed comes from outside and becomes `other`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from orchestrator.telemetry.logs import TelemetryError
from orchestrator.telemetry.names import METRICS, OTHER, TELEMETRY_FAULTS, Label, Metric, MetricKind

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
IDS_MAX: Final = 512
"""The most ids that one label takes in the life of a process; later ones are `other`."""

_ID_CHARS_MAX = 128
LabelValue = str | Enum


class Metrics:
    """Counters, gauges and histograms of `names`, safe to use from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._metrics: dict[Metric, Counter | Gauge | Histogram] = {}
        self._admitted: dict[str, set[str]] = {}
        self._children: dict[tuple[object, ...], Counter | Gauge | Histogram] = {}  # bounded: by the series
        """By metric, names and values of labels: those that were used, and fit."""
        for metric in METRICS:
            self._add(metric)

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

    def count(self, metric: Metric, amount: int = 1, **labels: LabelValue) -> None:
        """Adds to a counter. Raises TelemetryError for names that do not fit."""
        child = self._child(metric, labels)
        if not isinstance(child, Counter) or amount < 0:
            raise TelemetryError(f"{metric.name} is not a counter of names, or was to fall")
        child.inc(amount)

    def set(self, metric: Metric, value: float, **labels: LabelValue) -> None:
        """Sets a gauge. Raises TelemetryError for names that do not fit."""
        child = self._child(metric, labels)
        if not isinstance(child, Gauge):
            raise TelemetryError(f"{metric.name} is not a gauge of names")
        child.set(value)

    def observe(self, metric: Metric, value: float, **labels: LabelValue) -> None:
        """Adds an observation to a histogram. Raises TelemetryError for names that do not fit."""
        child = self._child(metric, labels)
        if not isinstance(child, Histogram):
            raise TelemetryError(f"{metric.name} is not a histogram of names")
        child.observe(value)

    def render(self) -> bytes:
        """All series in the text format of Prometheus; its content type is `CONTENT_TYPE`."""
        return generate_latest(_WithoutCreated(self._registry))

    def _add(self, metric: Metric) -> None:
        names = [label.name for label in metric.labels]
        match metric.kind:
            case MetricKind.COUNTER:
                self._metrics[metric] = Counter(metric.name, metric.help, names, registry=self._registry)
            case MetricKind.GAUGE:
                self._metrics[metric] = Gauge(metric.name, metric.help, names, registry=self._registry)
            case MetricKind.HISTOGRAM:
                self._metrics[metric] = Histogram(
                    metric.name, metric.help, names, registry=self._registry, buckets=metric.buckets
                )

    def _child(self, metric: Metric, labels: dict[str, LabelValue]) -> Counter | Gauge | Histogram | None:
        """Return the series of a metric; None for a metric that is not of `names`. Raises TelemetryError."""
        key = (metric, *labels, *labels.values())
        child = self._children.get(key)
        if child is not None:
            return child
        whole = self._metrics.get(metric)
        if whole is None:
            return None
        values = self._values(metric, labels)
        child = whole.labels(*values) if values else whole
        if OTHER not in values:
            self._children[key] = child
        return child

    def _values(self, metric: Metric, labels: dict[str, LabelValue]) -> list[str]:
        if labels.keys() != {label.name for label in metric.labels}:
            raise TelemetryError(f"{metric.name} was used with other labels than it has in names")
        values: list[str] = []
        for label in metric.labels:
            given = labels[label.name]
            value = str(given.value) if isinstance(given, Enum) else given
            known = self._admitted.get(label.name, ()) if label.values is None else label.values
            if value not in known:
                value = OTHER
                self.count(TELEMETRY_FAULTS, what="label_value")
            values.append(value)
        return values


class _WithoutCreated(Collector):
    """The registry without the `_created` sample that the client adds to every series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
