"""Runs a program whose watch waits for a silent process for a third of the time. All else is as it is.

    python -m tests.workers.soon_hung node_agent --config FILE

Its processes are started by the watch as ever, and none of them comes by here.
"""

from __future__ import annotations

import runpy
import sys

from orchestrator.watch import lending

PARTS = 3
SOON_HUNG = ("-m", "tests.workers.soon_hung")
"""Arguments of the interpreter, in place of `-m`."""


def main() -> None:
    lending.HUNG_US //= PARTS
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
