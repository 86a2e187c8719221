"""``python -m orchestrator --config FILE``: the control plane of one side."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from orchestrator.config.settings import load_settings, render_effective, run_program
from orchestrator.control.assembly import run
from orchestrator.control.settings import PREFIX, ControlSettings


def main() -> int:
    """Read the settings, print them with secrets masked, serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator", description="The control plane of one side.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings in YAML")
    arguments = parser.parse_args()
    settings = load_settings(ControlSettings, arguments.config, os.environ, PREFIX)
    logging.basicConfig(
        level=os.environ.get(f"{PREFIX}LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    sys.stdout.write(render_effective(settings))
    sys.stdout.flush()
    try:
        run(settings)
    except OSError as failure:
        sys.stderr.write(f"control cannot run: {failure}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
