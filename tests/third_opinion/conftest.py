"""What was enumerated is told at the end of the run."""

from __future__ import annotations

import pytest

from tests.third_opinion.plans import Plan

_ASKED = pytest.StashKey[list[tuple[str, int]]]()
"""A line for people on each plan that was asked, and how many situations it has."""


class Report:
    """Where tests say what they asked."""

    def __init__(self, config: pytest.Config) -> None:
        self._asked = config.stash.setdefault(_ASKED, [])

    def add(self, plan: Plan, allowed: int) -> None:
        """Tell of a plan that was asked, and of how many situations in it were allowed."""
        line = f"{plan.line()}; {allowed:,} allowed"
        self._asked.append((line, len(plan.cases)))
        print(line)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Where a test says what it asked."""
    return Report(request.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what Cedar was asked, by jurisdiction and in total."""
    asked = config.stash.get(_ASKED, [])
    if not asked:
        return
    terminalreporter.section("situations that Cedar was asked about")
    for line, _ in asked:
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"in total: {sum(count for _, count in asked):,}")
