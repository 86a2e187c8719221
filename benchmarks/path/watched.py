"""Who got the machine's processor time for a while: programs that are named, and whatever else runs on it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
import psutil

from benchmarks.path.systems import cpu_us

BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
"""What a machine's time is spent on, where it is not idle."""


class Spent(msgspec.Struct, frozen=True):
    """What was spent in a while."""

    seconds: float
    cpu_us: Mapping[str, float]
    """Microseconds of processor time by program, each with its descendants."""
    others_cores: float
    """Cores that programs had which are none of ours."""

    def cores(self, name: str) -> float:
        """Return how many cores a program got."""
        return self.cpu_us[name] / 1e6 / self.seconds


class Watch:
    """Begins when it is made."""

    def __init__(self, pids: Mapping[str, int], ours: int) -> None:
        """Watch programs by name; `ours` is the process from which everything of ours descends."""
        self._pids = pids
        self._ours = ours
        self._begun = self._now()

    def spent(self) -> Spent:
        """Return what was spent since it began."""
        begun_s, before, ours_before_us, busy_before_us = self._begun
        now_s, cpu, ours_us, busy_us = self._now()
        found = {name: now_us - before[name] for name, now_us in cpu.items()}
        others_us = (busy_us - busy_before_us) - (ours_us - ours_before_us)
        return Spent(now_s - begun_s, found, max(0.0, others_us / 1e6 / (now_s - begun_s)))

    def _now(self) -> tuple[float, dict[str, float], float, float]:
        cpu = {name: cpu_us(pid) for name, pid in self._pids.items()}
        # Of children that have ended only the process that waited for them tells.
        own, machine = psutil.Process(self._ours).cpu_times(), psutil.cpu_times()
        ours_us = cpu_us(self._ours) + (own.children_user + own.children_system) * 1e6
        busy_us = sum(getattr(machine, name, 0.0) for name in BUSY) * 1e6
        return time.monotonic(), cpu, ours_us, busy_us
