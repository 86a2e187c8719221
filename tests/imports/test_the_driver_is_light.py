"""What places replicas only names them: it holds none of the libraries that an engine works with."""

from __future__ import annotations

import subprocess
import sys

from tests.imports import alone

TIMEOUT_S = 60
HEAVY = ("torch", "transformers", "numpy")
LOADED = f"import sys, scheduler.pools.__main__; print([name for name in {HEAVY} if name in sys.modules])"


def test_the_driver_of_a_site_holds_no_engine() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=alone.ROOT, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    assert asked.stdout.strip() == "[]"
