"""What a process that hosts an engine is started with. Imports nothing heavy, so that a launcher may read it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        # OpenMP's threads wait for each other by spinning. Where another process wants a core, each wait then lasts a
        # time slice: half a token a second instead of fifteen, measured with 2 threads beside one busy process. On
        # cores of its own an engine is about a third faster without this.
        "OMP_WAIT_POLICY": "PASSIVE",
        # One prompt at a time is tokenised; a pool of threads for it would only take cores from the engine.
        "TOKENIZERS_PARALLELISM": "false",
        # Models are prepared beforehand: an engine never reaches for a network.
        "HF_HUB_OFFLINE": "1",
    }
)
"""Environment variables, read by the libraries when they are loaded: too late once torch is imported."""
