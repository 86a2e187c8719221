"""``python -m scheduler --config FILE``: the intake of one site, and its driver beside it."""

import sys

from orchestrator.config.program import program
from scheduler.assembly import run
from scheduler.settings import SchedulerSettings

if __name__ == "__main__":
    sys.exit(program("scheduler", SchedulerSettings, "TIDEGATE_SCHEDULER_", run))
