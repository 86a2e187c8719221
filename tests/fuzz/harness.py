"""One target under atheris, which guides its inputs by coverage: `harness.py TARGET [libFuzzer's arguments]`.

Runs in an environment of its own (`make fuzz`), because atheris is no part of the product's lock.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found]

READERS = ["node_agent", "orchestrator.engines", "orchestrator.files", "orchestrator.wire"]

with atheris.instrument_imports(include=READERS):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
