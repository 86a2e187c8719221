"""A process that takes some steps with a store of keys, says so, and waits to be killed.

    python -m tests.idempotency.victim FILE STEP
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from node_agent.idempotency.rules import KEEP_MS, BodyDigest, KeyDigest, State, TenantDigest, Why
from node_agent.idempotency.store import Bounds, KeyStore
from orchestrator.policy.ids import RequestId

KEY = KeyDigest(b"k" * 32)
TENANT = TenantDigest(b"t" * 32)
BODY = BodyDigest(b"b" * 32)
REQUEST = RequestId("req_" + "1" * 32)
NOW_MS = 1_790_000_000_000


def begun(store: KeyStore) -> None:
    store.begin(KEY, TENANT, BODY, REQUEST, NOW_MS, NOW_MS + KEEP_MS)


def kept(store: KeyStore) -> None:
    store.keep(KEY, TENANT, REQUEST, 3, b"shut" * 10_000)


Step = Callable[[KeyStore], None]
STEPS: tuple[tuple[tuple[Step, ...], State | None], ...] = (
    ((), None),
    ((begun,), State.RUNNING),
    ((begun, lambda store: store.end(KEY, REQUEST, 3, Why.CUT)), State.ENDED),
    ((begun, kept), State.KEPT),
    ((begun, lambda store: store.free(KEY, REQUEST)), None),
)
"""What is done, each in a transaction of its own, and the state that is durable then."""


def main() -> None:
    store = KeyStore(Path(sys.argv[1]), Bounds(9, 9, 1 << 20, 1 << 20))
    for step in STEPS[int(sys.argv[2])][0]:
        with store.transaction():
            step(store)
    # One more that is cut in the middle.
    with store.transaction():
        store.begin(KeyDigest(b"c" * 32), TENANT, BODY, REQUEST, NOW_MS, NOW_MS + KEEP_MS)
        sys.stdout.write("done\n")
        sys.stdout.flush()
        time.sleep(60)


if __name__ == "__main__":
    main()
