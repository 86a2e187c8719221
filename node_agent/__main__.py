"""``python -m node_agent --config FILE``: one edge."""

import os
import sys
from pathlib import Path

from node_agent.settings import EdgeSettings
from node_agent.watch.moving import settle_keys
from node_agent.watch.shares import check, leased_of, settings_of
from orchestrator.config.program import program

PREFIX = "TIDEGATE_EDGE_"


def run(settings: EdgeSettings, config: Path) -> int:
    """Run an edge: in this process, or in several that this one watches over. Returns the exit status."""
    check(settings, str(config))
    if settings.worker is None and settings.processes > 1:
        return _watch(settings)
    # Imported here: the watch holds nothing of what an edge works with.
    from node_agent.assembly import run as serve

    return serve(settings, config)


def _watch(settings: EdgeSettings) -> int:
    # Imported here: who serves holds nothing of what the watch works with.
    from orchestrator.watch.keeper import Kept, keep
    from orchestrator.watch.prepare import prepare

    data_dir = Path(settings.data_dir)

    def prepared() -> list[Path]:
        settle_keys(settings)
        parent_pid = os.getpid()
        return prepare(data_dir, [settings_of(settings, index, parent_pid) for index in range(settings.processes)])

    place = (settings.host, settings.port, data_dir)
    grace_ms = settings.drain_notice_ms + settings.drain_grace_ms
    kept = Kept("node_agent", PREFIX, *place, grace_ms, leased_of(settings))
    return keep(kept, prepared)


if __name__ == "__main__":
    sys.exit(program("node_agent", EdgeSettings, PREFIX, run))
