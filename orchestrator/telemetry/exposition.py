"""Series as the text format of Prometheus, which `prometheus_client` writes.

Imported when a process is first asked for its metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from orchestrator.telemetry.names import MetricKind
from orchestrator.telemetry.series import Number, Series, Spread


def page(all_series: Iterable[Series[Number] | Series[Spread]]) -> bytes:
    """Return one family for each metric, in their order; in each its series, in the order of their first use."""
    return generate_latest(_Families(all_series))


class _Families(Collector):
    def __init__(self, all_series: Iterable[Series[Number] | Series[Spread]]) -> None:
        self._all_series = all_series

    def collect(self) -> Iterator[Family]:
        return map(_family, self._all_series)


def _family(series: Series[Number] | Series[Spread]) -> Family:
    metric = series.metric
    names = [label.name for label in metric.labels]
    if metric.kind is MetricKind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
        bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
        for labels, cell in series.cells.items():
            if isinstance(cell, Spread):
                histogram.add_metric(labels, list(zip(bounds, accumulate(cell.counts), strict=True)), cell.sum)
        return histogram
    of = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
    family = of(metric.name, metric.help, labels=names)
    for labels, cell in series.cells.items():
        if isinstance(cell, Number):
            family.add_metric(labels, cell.value)
    return family
