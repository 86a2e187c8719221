"""What is measured: systems that answer the same request from the same engine, and what each of them costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from benchmarks import engine
from benchmarks.path.ask import Ask
from benchmarks.stand import INSTANT, LOOPBACK, TWO_HOP, Scale, Stand

DIRECT = "direct"
GENERAL = "tidegate"
PERSONAL = "tidegate-personal"
ENGINE = "engine"
OFF_PATH = ("engine", "control", "etcd")
"""Processes whose time is no cost of a router: what answers, and what stands beside the data path."""
SCALE = Scale(
    slots=1_250,
    context_tokens=131_072,
    edge={"requests_max": 4_096, "tenant_requests_max": 4_096},
)
"""Slots for more than a thousand streams. One engine by one URL, as the rivals have."""


class NotMeasured(Exception):
    """A system cannot be measured here; the reason becomes its row."""


@dataclass(frozen=True, slots=True)
class System:
    """One way to the engine."""

    name: str
    title: str
    model: str
    """The name by which its tenants ask for the engine's model."""
    ask: Callable[[bytes], Ask]
    """From a body to a request."""
    processes: Mapping[str, int]
    """By what they are, the first process of each; its descendants count with it."""
    upstream: str
    """What it sends to the engine for a request that is not streamed."""
    seconds_min: int = 1
    """A slow one needs a longer run for any answer at all."""
    rounds_max: int = 1_000


def of_stand(stand: Stand) -> list[System]:
    """Return the engine called directly, and Tidegate for both tenants. The stand must run."""
    instant = next(one for one in stand.engines if one.name == INSTANT)
    pids = {name: stand.process(name).pid for name in ("edge", "scheduler", "control", "etcd")}
    path = {"edge": pids["edge"], "intake": pids["scheduler"], "control": pids["control"], "etcd": pids["etcd"]}
    model = instant.model(TWO_HOP)
    streamed = "stream: true with usage; the edge gathers the answer"
    return [
        System(DIRECT, "engine, direct", engine.MODEL, _asker(instant.port, {}), {}, "it is the engine"),
        System(GENERAL, "Tidegate, general", model, _asker(stand.edge_port, _key(stand.api_key)), path, streamed),
        System(
            PERSONAL,
            "Tidegate, personal (fsync)",
            model,
            _asker(stand.edge_port, _key(stand.personal_api_key)),
            path,
            streamed,
        ),
    ]


def engine_pid(stand: Stand) -> int:
    """Return the process of the engine."""
    return stand.process(next(one for one in stand.engines if one.name == INSTANT).spec.name).pid


def cpu_us(pid: int) -> float:
    """Return the processor time of a process, its threads and its descendants, in microseconds."""
    return sum((times.user + times.system) * 1e6 for times in (one.cpu_times() for one in _family(pid)))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants."""
    return sum(one.memory_info().rss for one in _family(pid))


def _family(pid: int) -> list[psutil.Process]:
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def _key(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"}


def _asker(port: int, headers: Mapping[str, str]) -> Callable[[bytes], Ask]:
    whole = {"content-type": "application/json", **headers}
    return lambda body: Ask(LOOPBACK, port, whole, body)
