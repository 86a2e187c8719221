"""``python -m scheduler --config FILE``: the intake of one site, and its driver beside it."""

import os
import sys
from pathlib import Path

from orchestrator.config.program import program
from scheduler.settings import SchedulerSettings
from scheduler.shares import address_of, check, leased_of, settings_of

PREFIX = "TIDEGATE_SCHEDULER_"


def run(settings: SchedulerSettings, config: Path) -> int:
    """Run a scheduler: in this process, or in several that this one watches over. Returns the exit status."""
    check(settings, str(config))
    if settings.worker is None and settings.processes > 1:
        return _watch(settings)
    # Imported here: the watch holds nothing of what an intake works with.
    from scheduler.assembly import run as serve

    return serve(settings, config)


def _watch(settings: SchedulerSettings) -> int:
    # Imported here: who serves holds nothing of what the watch works with.
    from orchestrator.watch.keeper import Kept, keep
    from orchestrator.watch.prepare import prepare

    data_dir = Path(settings.data_dir)

    def prepared() -> list[Path]:
        parent_pid = os.getpid()
        return prepare(data_dir, [settings_of(settings, index, parent_pid) for index in range(settings.processes)])

    address, leased = address_of(settings.listen), leased_of(settings)
    kept = Kept("scheduler", PREFIX, *address, data_dir, settings.drain_grace_ms, leased)
    return keep(kept, prepared)


if __name__ == "__main__":
    sys.exit(program("scheduler", SchedulerSettings, PREFIX, run))
