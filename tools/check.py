"""Runs every check that needs no running program, two at a time, and sums up. Exit 1 when one of them fails.

    python tools/check.py             all of them
    python tools/check.py lint types  these only
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AT_ONCE = 2
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Check:
    """One check: a name, what it holds, and its command, run from the root."""

    name: str
    holds: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one check ended."""

    check: Check
    passed: bool
    output: str
    took_s: float


PYTHON = sys.executable
# The slow ones first: the quick ones then fill the gaps.
CHECKS = (
    Check("types", "mypy, strict", (PYTHON, "-m", "mypy")),
    Check("tidy", "the style guide as tests", (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/tidy")),
    Check("contracts", "who may import whom", ("lint-imports", "--no-logo")),
    Check("lint", "ruff", (PYTHON, "-m", "ruff", "check", ".")),
    Check("protos", "stubs fit the .proto files", (PYTHON, "tools/protos.py", "--check")),
    Check("locks", "requirements/ fits pyproject.toml", (PYTHON, "tools/lock.py", "--check")),
)


def run(check: Check) -> Outcome:
    """Run one check to its end."""
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"}
    started = time.monotonic()
    try:
        done = subprocess.run(
            check.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Outcome(check, False, str(error), time.monotonic() - started)
    return Outcome(check, done.returncode == 0, done.stdout, time.monotonic() - started)


def run_all(checks: Sequence[Check]) -> list[Outcome]:
    """Run the checks, AT_ONCE at a time; each says how it ended, and a failed one says why."""
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(max_workers=AT_ONCE) as executor:
        for future in as_completed([executor.submit(run, check) for check in checks]):
            outcome = future.result()
            outcomes.append(outcome)
            word = "ok    " if outcome.passed else "FAILED"
            print(f"check: {word} {outcome.check.name:<10} {outcome.took_s:5.1f} s  {outcome.check.holds}", flush=True)
            if not outcome.passed:
                print(outcome.output.rstrip(), flush=True)
    return outcomes


def main() -> int:
    """Run the checks named on the command line, or all."""
    names = sys.argv[1:]
    unknown = set(names) - {check.name for check in CHECKS}
    if unknown:
        print(f"check: no check is named {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    started = time.monotonic()
    outcomes = run_all([check for check in CHECKS if not names or check.name in names])
    failed = [outcome.check.name for outcome in outcomes if not outcome.passed]
    verdict = f"failed: {', '.join(failed)}" if failed else "all passed"
    print(f"check: {len(outcomes)} checks, {verdict}, {time.monotonic() - started:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
