"""``python -m orchestrator --config FILE``: the control plane of one side."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestrator.config.program import program
from orchestrator.control.assembly import run
from orchestrator.control.settings import PREFIX, ControlSettings


def main(settings: ControlSettings, _config: Path) -> int:
    """Serve until SIGTERM or SIGINT."""
    run(settings)
    return 0


if __name__ == "__main__":
    sys.exit(program("orchestrator", ControlSettings, PREFIX, main))
