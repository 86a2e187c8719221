"""The aims of the data path, each against what was measured in the same run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.path.rounds import MANY, ONE
from benchmarks.path.stages import LAW_AIM_US
from benchmarks.path.systems import DIRECT, GENERAL, PERSONAL

VLLM, SGLANG, LITELLM = "vllm-router", "sglang-router", "litellm"
ADDED_P50_US, ADDED_P99_US = 1_200.0, 2_500.0
P99_FACTOR = 2.0
LITELLM_FACTOR = 50.0
PERSONAL_SHARE = 0.8
AGENT_MB = 90.0
SLOW_KIB = 128.0
GROUP_WAIT_US = 5_000.0
"""The longest that a record waits for others to share its fsync."""


@dataclass(frozen=True, slots=True)
class Aim:
    """One aim."""

    text: str
    aim: str
    measured: str
    met: bool | None
    """None where it was not measured."""

    @property
    def verdict(self) -> str:
        """Whether it is met, in a word."""
        return "not measured" if self.met is None else "met" if self.met else "missed"


def aims(result: Mapping[str, Any]) -> list[Aim]:
    """Return every aim with what a run came to."""
    return [*_throughput(result), *_latency(result), *_law(result), *_personal(result), *_memory(result)]


def _throughput(result: Mapping[str, Any]) -> list[Aim]:
    tokens = _values(result, "tokens_per_s")
    requests = _values(result, "requests_per_s")
    routers = _greatest(tokens, VLLM, SGLANG)
    lite = requests.get(LITELLM)
    return [
        _at_least("streamed tokens/s above both Rust routers", routers, tokens.get(GENERAL)),
        _at_least("requests/s at 32 connections: vllm-router's", requests.get(VLLM), requests.get(GENERAL)),
        _at_least("the floor: half of vllm-router's", _times(requests.get(VLLM), 0.5), requests.get(GENERAL)),
        _at_least("the moonshot: sglang-router's", requests.get(SGLANG), requests.get(GENERAL)),
        _at_least("50 times LiteLLM's", _times(lite, LITELLM_FACTOR), requests.get(GENERAL)),
    ]


def _latency(result: Mapping[str, Any]) -> list[Aim]:
    better = _least(_values(result, "many_p99_us"), VLLM, SGLANG)
    return [
        _at_most("added p50 at one connection", ADDED_P50_US, _added(result, GENERAL, "one_p50_us"), "us"),
        _at_most("added p99 at one connection", ADDED_P99_US, _added(result, GENERAL, "one_p99_us"), "us"),
        _at_most(
            "p99 at 32 connections: twice the better Rust router's",
            _times(better, P99_FACTOR),
            _values(result, "many_p99_us").get(GENERAL),
            "us",
        ),
    ]


def _law(result: Mapping[str, Any]) -> list[Aim]:
    measured = {one["load"]: float(one["law_us"]) for one in result.get("stages", [])}
    text = "both permits, placement, evidence: processor time of a request"
    return [_at_most(f"{text}, {one.title}", LAW_AIM_US, measured.get(one.title), "us") for one in (ONE, MANY)]


def _personal(result: Mapping[str, Any]) -> list[Aim]:
    requests = _values(result, "requests_per_s")
    bound = ADDED_P50_US + float(result["fdatasync"]["p50_us"]) + GROUP_WAIT_US
    return [
        _at_most(
            "personal: added p50 at one connection: the same, fdatasync p50 and a group wait of 5 ms",
            bound,
            _added(result, PERSONAL, "one_p50_us"),
            "us",
        ),
        _at_least(
            "personal: 80 % of general's requests/s",
            _times(requests.get(GENERAL), PERSONAL_SHARE),
            requests.get(PERSONAL),
        ),
    ]


def _memory(result: Mapping[str, Any]) -> list[Aim]:
    rows = [row for row in result.get("rows", []) if row["system"] == GENERAL]
    peak = next((row["figures"]["edge_peak_mb"] for row in rows if "edge_peak_mb" in row["figures"]), None)
    slow = [row["figures"]["edge_kib_per_stream"] for row in rows if "edge_kib_per_stream" in row["figures"]]
    return [
        _at_most("edge with 1,000 streams read at speed", AGENT_MB, peak, "MB"),
        _at_most("edge, for each slow stream", SLOW_KIB, max(slow) if slow else None, "KiB"),
    ]


def _values(result: Mapping[str, Any], name: str) -> dict[str, float]:
    return {system: float(own[name]["value"]) for system, own in result["figures"].items() if name in own}


def _added(result: Mapping[str, Any], system: str, name: str) -> float | None:
    own = result["figures"].get(system, {}).get(name)
    return None if own is None or own["added"] is None or DIRECT not in result["figures"] else float(own["added"])


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _greatest(values: Mapping[str, float], *names: str) -> float | None:
    return max(values[name] for name in names) if all(name in values for name in names) else None


def _least(values: Mapping[str, float], *names: str) -> float | None:
    return min(values[name] for name in names) if all(name in values for name in names) else None


def _at_least(text: str, aim: float | None, measured: float | None) -> Aim:
    met = None if aim is None or measured is None else measured >= aim
    return Aim(text, "n/m" if aim is None else f"{aim:,.0f}", "n/m" if measured is None else f"{measured:,.0f}", met)


def _at_most(text: str, aim: float | None, measured: float | None, unit: str) -> Aim:
    met = None if aim is None or measured is None else measured <= aim
    bound, found = ("n/m" if value is None else f"{value:,.0f} {unit}" for value in (aim, measured))
    return Aim(text, bound, found, met)
