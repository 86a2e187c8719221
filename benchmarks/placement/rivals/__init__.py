"""The routers that Tidegate's placement is compared with, each as its authors published it.

Lives here: one class per rival, with its published parameters and where they stand, over the world of a replay.
Never here: the simulator, a law (permits come in as a function), an improvement that a rival does not have (where one
is kinder than its source, its docstring says so), or anybody else's code.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from benchmarks.placement.rivals.cache_aware import CacheAware
from benchmarks.placement.rivals.dynamo import Dynamo
from benchmarks.placement.rivals.gorgo import Gorgo
from benchmarks.placement.rivals.llm_d import LlmD
from benchmarks.placement.rivals.simple import (
    CheapestRegion,
    ConsistentHash,
    LeastLoad,
    NearestRegion,
    PowerOfTwo,
    RoundRobin,
)
from benchmarks.placement.rivals.skywalker import SkyWalker
from orchestrator.placement.replay.router import Router
from orchestrator.placement.replay.world import Permits, World

RIVALS: dict[str, Callable[[World, Permits, bool, Random], Router]] = {
    "round_robin": RoundRobin,
    "least_load": LeastLoad,
    "power_of_two": PowerOfTwo,
    "consistent_hash": ConsistentHash,
    "nearest_region": NearestRegion,
    "cheapest_region": CheapestRegion,
    "cache_aware": CacheAware,
    "llm_d": LlmD,
    "skywalker": SkyWalker,
    "gorgo": Gorgo,
    "dynamo": Dynamo,
}
"""By name: the world, the law, whether the rival is confined to what the law permits, and its chance."""
