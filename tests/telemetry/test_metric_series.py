"""Metrics: known names, bounded series, and nothing of a tenant in a label."""

from __future__ import annotations

import inspect
import io
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import node_agent
import orchestrator
import scheduler
from orchestrator.placement.pick import Drop
from orchestrator.spool.records import FullReason
from orchestrator.telemetry import names
from orchestrator.telemetry.logs import LogSink, TelemetryError, logger, report_faults
from orchestrator.telemetry.metrics import IDS_MAX, Metrics
from orchestrator.telemetry.names import Event
from orchestrator.telemetry.series import Labels

CANARY = "canary5531"


class Outcome(StrEnum):
    ANSWERED = "answered"


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_gauges_and_histograms_are_rendered() -> None:
    metrics = Metrics()
    metrics.admit(names.POOL, ["hz-1"])
    metrics.counter(names.REQUESTS)[Outcome.ANSWERED].value += 1
    metrics.counter(names.REQUESTS)["answered"].value += 2
    metrics.counter(names.TOKENS)["hz-1", "delivered"].value += 40
    metrics.gauge(names.MANIFEST_NUMBER)["domestic"].value = 3
    metrics.gauge(names.REQUESTS_ACTIVE)[()].value = 2
    metrics.histogram(names.FIRST_TOKEN_SECONDS)["hz-1"].observe(0.2)
    got = samples(metrics)
    assert got["tidegate_requests_total", (("outcome", "answered"),)] == 3
    assert got["tidegate_tokens_total", (("count", "delivered"), ("pool", "hz-1"))] == 40
    assert got["tidegate_manifest_number", (("side", "domestic"),)] == 3
    assert got["tidegate_requests_active", ()] == 2
    assert got["tidegate_first_token_seconds_count", (("pool", "hz-1"),)] == 1
    assert got["tidegate_first_token_seconds_bucket", (("le", "0.25"), ("pool", "hz-1"))] == 1
    assert b"_created" not in metrics.render()


def use(metrics: Metrics, metric: names.Metric, labels: Labels, value: float) -> None:
    match metric.kind:
        case names.MetricKind.COUNTER:
            metrics.counter(metric)[labels].value += value
        case names.MetricKind.GAUGE:
            metrics.gauge(metric)[labels].value = value
        case names.MetricKind.HISTOGRAM:
            metrics.histogram(metric)[labels].observe(value)


@pytest.mark.parametrize("metric", names.METRICS, ids=lambda metric: metric.name)
def test_every_metric_can_be_used_as_it_is_declared(metric: names.Metric) -> None:
    metrics = Metrics()
    labels: list[str] = []
    for label in metric.labels:
        labels.append(min(label.values) if label.values is not None else "id-1")
        if label.values is None:
            metrics.admit(label, ["id-1"])
    use(metrics, metric, tuple(labels), 1)
    assert f"\n{metric.name}".encode() in metrics.render()
    assert names.OTHER.encode() not in re.sub(rb"# .*", b"", metrics.render())
    uses = {
        names.MetricKind.COUNTER: metrics.counter,
        names.MetricKind.GAUGE: metrics.gauge,
        names.MetricKind.HISTOGRAM: metrics.histogram,
    }
    for kind, wrong in uses.items():
        if kind is not metric.kind:
            with pytest.raises(TelemetryError):
                wrong(metric)


class Reference:
    """The same metrics as `prometheus_client` keeps and writes them itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.all = {metric: self._made(metric) for metric in names.METRICS}

    def _made(self, metric: names.Metric) -> Counter | Gauge | Histogram:
        about = (metric.name, metric.help, [label.name for label in metric.labels])
        if metric.kind is names.MetricKind.HISTOGRAM:
            return Histogram(*about, registry=self.registry, buckets=metric.buckets)
        kind = Counter if metric.kind is names.MetricKind.COUNTER else Gauge
        return kind(*about, registry=self.registry)

    def use(self, metric: names.Metric, labels: tuple[str, ...], value: float) -> None:
        whole = self.all[metric]
        cell = whole.labels(*labels) if labels else whole
        if isinstance(cell, Counter):
            cell.inc(value)
        elif isinstance(cell, Gauge):
            cell.set(value)
        else:
            cell.observe(value)

    def page(self) -> bytes:
        lines = generate_latest(self.registry).splitlines(keepends=True)
        return b"".join(line for line in lines if b"_created" not in line)


IDS = ("hz-1", 'an "id" \\ of 1', "ünï")
Use = tuple[names.Metric, tuple[str, ...], float]
VALUES = st.one_of(
    st.integers(0, 2**40), st.floats(0, 1e300), st.sampled_from([0.0005, 0.25, 300.0, 300.1, 1e16, float("inf")])
)


@st.composite
def used(draw: st.DrawFn) -> Use:
    metric = draw(st.sampled_from(names.METRICS))
    labels = tuple(draw(st.sampled_from(sorted(label.values or IDS))) for label in metric.labels)
    return metric, labels, draw(VALUES)


@given(st.lists(used(), max_size=40))
def test_a_page_is_what_the_client_of_prometheus_would_write(uses: list[Use]) -> None:
    metrics, reference = Metrics(), Reference()
    for metric in names.METRICS:
        for label in metric.labels:
            if label.values is None:
                metrics.admit(label, IDS)
    for metric, labels, value in uses:
        use(metrics, metric, labels[0] if len(labels) == 1 else labels, value)
        reference.use(metric, labels, value)
    assert metrics.render() == reference.page()


def test_what_writes_the_page_is_loaded_by_the_first_who_asks() -> None:
    """It takes memory, and a process that nobody scrapes needs none of it."""
    told = "import sys; from orchestrator.telemetry.metrics import Metrics; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, check=True, text=True, timeout=60)
    assert done.stdout == "False\n"


def test_something_counts_every_metric() -> None:
    folders = [Path(inspect.getfile(package)).parent for package in (node_agent, orchestrator, scheduler)]
    paths = [path for folder in folders for path in folder.rglob("*.py") if path != Path(inspect.getfile(names))]
    words = set(re.findall(r"\b[A-Z_]+\b", "\n".join(path.read_text() for path in paths)))
    declared = {name for name, value in vars(names).items() if isinstance(value, names.Metric)}
    assert declared <= words
    assert len(declared) == len(names.METRICS)


def test_labels_have_the_reasons_that_there_are() -> None:
    assert names.NOT_PLACED.values == {drop.value for drop in Drop}
    assert names.SPOOL_FULL.values == {reason.value for reason in FullReason}


def test_a_metric_of_another_place_and_other_labels_are_mistakes() -> None:
    metrics = Metrics()
    stranger = names.Metric("tidegate_requests_total", names.MetricKind.COUNTER, "A copy.", (names.OUTCOME,))
    for mistake in (
        lambda: metrics.counter(stranger),
        lambda: metrics.counter(names.REQUESTS)[()],
        lambda: metrics.counter(names.REQUESTS)["answered", "t"],
        lambda: metrics.counter(names.TOKENS)["hz-1"],
        lambda: metrics.gauge(names.REQUESTS_ACTIVE)["answered"],
        lambda: metrics.admit(names.OUTCOME, ["new"]),
    ):
        with pytest.raises(TelemetryError):
            mistake()


def test_a_label_value_from_outside_becomes_other_and_is_counted() -> None:
    metrics = Metrics()
    metrics.admit(names.POOL, ["hz-1"])
    metrics.counter(names.REQUESTS)[CANARY].value += 1
    metrics.counter(names.PLACEMENTS)[CANARY].value += 1
    metrics.counter(names.PLACEMENTS)["hz-1"].value += 1
    got = samples(metrics)
    assert got["tidegate_requests_total", (("outcome", "other"),)] == 1
    assert got["tidegate_placements_total", (("pool", "other"),)] == 1
    assert got["tidegate_placements_total", (("pool", "hz-1"),)] == 1
    assert got["tidegate_telemetry_faults_total", (("what", "label_value"),)] == 2
    assert CANARY.encode() not in metrics.render()


def test_what_a_log_line_loses_is_counted() -> None:
    metrics = Metrics()
    with LogSink(stream := io.StringIO(), "node_agent"):
        report_faults(metrics.log_fault)
        logger("node_agent.front").info(Event.REQUEST_REFUSED, duration_ms=1.5)
        stream.close()
        logger("node_agent.front").info(Event.REQUEST_REFUSED, code="no_bundle")
    got = samples(metrics)
    assert got["tidegate_telemetry_faults_total", (("what", "log_value"),)] == 1
    assert got["tidegate_telemetry_faults_total", (("what", "log_line"),)] == 1


def test_other_as_a_value_from_outside_is_not_allowed_either() -> None:
    metrics = Metrics()
    for _ in range(2):
        metrics.counter(names.REQUESTS)[names.OTHER].value += 1
    got = samples(metrics)
    assert got["tidegate_requests_total", (("outcome", "other"),)] == 2
    assert got["tidegate_telemetry_faults_total", (("what", "label_value"),)] == 2


def test_an_id_that_is_admitted_later_is_told_from_then_on() -> None:
    metrics = Metrics()
    placements = metrics.counter(names.PLACEMENTS)
    placements["hz-1"].value += 1
    metrics.admit(names.POOL, ["hz-1"])
    placements["hz-1"].value += 1
    got = samples(metrics)
    assert got["tidegate_placements_total", (("pool", "other"),)] == 1
    assert got["tidegate_placements_total", (("pool", "hz-1"),)] == 1


def test_the_number_of_series_is_bounded_whatever_comes() -> None:
    metrics = Metrics()
    assert metrics.admit(names.POOL, [f"pool-{number}" for number in range(IDS_MAX + 100)]) == 100
    assert metrics.admit(names.POOL, ["pool-1"]) == 0
    for number in range(IDS_MAX + 100):
        metrics.counter(names.PLACEMENTS)[f"pool-{number}"].value += 1
    assert len(metrics.counter(names.PLACEMENTS)) == IDS_MAX
    series = [key for key in samples(metrics) if key[0] == "tidegate_placements_total"]
    assert len(series) == IDS_MAX + 1
    assert samples(metrics)["tidegate_placements_total", (("pool", "other"),)] == 100


@pytest.mark.parametrize("bad", ["", "a\nb", "x" * 129, "\x1b[0m"])
def test_an_id_that_is_no_id_is_not_admitted(bad: str) -> None:
    assert Metrics().admit(names.POOL, [bad]) == 1


def test_two_registries_know_nothing_of_each_other() -> None:
    first, second = Metrics(), Metrics()
    first.counter(names.REQUESTS)["answered"].value += 1
    assert ("tidegate_requests_total", (("outcome", "answered"),)) not in samples(second)
