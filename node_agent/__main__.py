"""``python -m node_agent --config FILE``: one edge."""

import sys
from pathlib import Path

from node_agent.settings import EdgeSettings
from node_agent.watch.keeper import keep
from node_agent.watch.shares import check
from orchestrator.config.program import program

PREFIX = "TIDEGATE_EDGE_"


def run(settings: EdgeSettings, config: Path) -> int:
    """Run an edge: in this process, or in several that this one watches over. Returns the exit status."""
    check(settings, str(config))
    if settings.worker is None and settings.processes > 1:
        return keep(settings, PREFIX)
    # Imported here: the watch holds nothing of what an edge works with.
    from node_agent.assembly import run as serve

    return serve(settings, config)


if __name__ == "__main__":
    sys.exit(program("node_agent", EdgeSettings, PREFIX, run))
