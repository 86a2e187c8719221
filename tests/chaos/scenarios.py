"""Every scenario on the one stand, in the order in which they run."""

from __future__ import annotations

from tests.chaos.disk_faults import DISK_FAULTS
from tests.chaos.link_faults import LINK_FAULTS
from tests.chaos.process_faults import PROCESS_FAULTS
from tests.chaos.scenario import Scenario
from tests.chaos.use_faults import USE_FAULTS
from tests.values import replace

SCENARIOS: tuple[Scenario, ...] = (*PROCESS_FAULTS, *LINK_FAULTS, *USE_FAULTS, *DISK_FAULTS)

_SHORT = ("edge-killed", "intake-killed", "replica-killed", "home-lost", "partition", "closed")
SHORT = tuple(replace(one, rounds=1) for one in SCENARIOS if one.name in _SHORT)
"""What runs with the tests."""
