"""``python -m node_agent --config FILE``: one edge."""

import sys

from node_agent.assembly import run
from node_agent.settings import EdgeSettings
from orchestrator.config.program import program

if __name__ == "__main__":
    sys.exit(program("node_agent", EdgeSettings, "TIDEGATE_EDGE_", run))
