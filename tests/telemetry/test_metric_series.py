"""Metrics: known names, bounded series, and nothing of a tenant in a label."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import node_agent
import orchestrator
import scheduler
from orchestrator.placement.pick import Drop
from orchestrator.spool.records import FullReason
from orchestrator.telemetry import names
from orchestrator.telemetry.logs import TelemetryError
from orchestrator.telemetry.metrics import IDS_MAX, Metrics

CANARY = "canary5531"


class Outcome(Enum):
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
    metrics.count(names.REQUESTS, outcome=Outcome.ANSWERED)
    metrics.count(names.REQUESTS, 2, outcome="answered")
    metrics.count(names.TOKENS, 40, pool="hz-1", count="delivered")
    metrics.set(names.MANIFEST_NUMBER, 3, side="domestic")
    metrics.set(names.REQUESTS_ACTIVE, 2)
    metrics.observe(names.FIRST_TOKEN_SECONDS, 0.2, pool="hz-1")
    got = samples(metrics)
    assert got["tidegate_requests_total", (("outcome", "answered"),)] == 3
    assert got["tidegate_tokens_total", (("count", "delivered"), ("pool", "hz-1"))] == 40
    assert got["tidegate_manifest_number", (("side", "domestic"),)] == 3
    assert got["tidegate_requests_active", ()] == 2
    assert got["tidegate_first_token_seconds_count", (("pool", "hz-1"),)] == 1
    assert got["tidegate_first_token_seconds_bucket", (("le", "0.25"), ("pool", "hz-1"))] == 1
    assert b"_created" not in metrics.render()


@pytest.mark.parametrize("metric", names.METRICS, ids=lambda metric: metric.name)
def test_every_metric_can_be_used_as_it_is_declared(metric: names.Metric) -> None:
    metrics = Metrics()
    labels: dict[str, str | Enum] = {}
    for label in metric.labels:
        labels[label.name] = min(label.values) if label.values is not None else "id-1"
        if label.values is None:
            metrics.admit(label, ["id-1"])
    use: dict[names.MetricKind, Callable[..., None]] = {
        names.MetricKind.COUNTER: metrics.count,
        names.MetricKind.GAUGE: metrics.set,
        names.MetricKind.HISTOGRAM: metrics.observe,
    }
    use[metric.kind](metric, 1, **labels)
    assert f"\n{metric.name}".encode() in metrics.render()
    assert names.OTHER.encode() not in re.sub(rb"# .*", b"", metrics.render())
    for kind, wrong in use.items():
        if kind is not metric.kind:
            with pytest.raises(TelemetryError):
                wrong(metric, 1, **labels)


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
    for use in (
        lambda: metrics.count(stranger, outcome="answered"),
        lambda: metrics.count(names.REQUESTS),
        lambda: metrics.count(names.REQUESTS, outcome="answered", tenant="t"),
        lambda: metrics.count(names.REQUESTS, result="answered"),
        lambda: metrics.count(names.REQUESTS, -1, outcome="answered"),
        lambda: metrics.admit(names.OUTCOME, ["new"]),
    ):
        with pytest.raises(TelemetryError):
            use()


def test_a_label_value_from_outside_becomes_other_and_is_counted() -> None:
    metrics = Metrics()
    metrics.admit(names.POOL, ["hz-1"])
    metrics.count(names.REQUESTS, outcome=CANARY)
    metrics.count(names.PLACEMENTS, pool=CANARY)
    metrics.count(names.PLACEMENTS, pool="hz-1")
    got = samples(metrics)
    assert got["tidegate_requests_total", (("outcome", "other"),)] == 1
    assert got["tidegate_placements_total", (("pool", "other"),)] == 1
    assert got["tidegate_placements_total", (("pool", "hz-1"),)] == 1
    assert got["tidegate_telemetry_faults_total", (("what", "label_value"),)] == 2
    assert CANARY.encode() not in metrics.render()


def test_the_number_of_series_is_bounded_whatever_comes() -> None:
    metrics = Metrics()
    assert metrics.admit(names.POOL, [f"pool-{number}" for number in range(IDS_MAX + 100)]) == 100
    assert metrics.admit(names.POOL, ["pool-1"]) == 0
    for number in range(IDS_MAX + 100):
        metrics.count(names.PLACEMENTS, pool=f"pool-{number}")
    series = [key for key in samples(metrics) if key[0] == "tidegate_placements_total"]
    assert len(series) == IDS_MAX + 1
    assert samples(metrics)["tidegate_placements_total", (("pool", "other"),)] == 100


@pytest.mark.parametrize("bad", ["", "a\nb", "x" * 129, "\x1b[0m"])
def test_an_id_that_is_no_id_is_not_admitted(bad: str) -> None:
    assert Metrics().admit(names.POOL, [bad]) == 1


def test_two_registries_know_nothing_of_each_other() -> None:
    first, second = Metrics(), Metrics()
    first.count(names.REQUESTS, outcome="answered")
    assert ("tidegate_requests_total", (("outcome", "answered"),)) not in samples(second)
