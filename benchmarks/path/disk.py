"""What the disk takes to keep something: the floor under the evidence of personal data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from time import perf_counter_ns

from benchmarks.figures import percentile

WRITES = 200
WRITE_BYTES = 4_096


def fdatasync_us(folder: Path) -> dict[str, float]:
    """Append to a file and wait until the disk has it, again and again. Returns microseconds. Raises OSError."""
    took: list[float] = []
    data = os.urandom(WRITE_BYTES)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(WRITES):
            os.write(file.fileno(), data)
            begun_ns = perf_counter_ns()
            os.fdatasync(file.fileno())
            took.append((perf_counter_ns() - begun_ns) / 1000)
    return {"p50_us": percentile(took, 50), "p99_us": percentile(took, 99)}
