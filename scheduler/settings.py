"""Settings of a scheduler. One YAML file, read by the intake and by the driver of the pools."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from orchestrator.bundles.roots import RootSetting
from orchestrator.engines.identity import DeclaredIdentity
from orchestrator.watch.shares import PROCESSES_MAX, WorkerSettings


class ReplicaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Embedded replicas of one pool, placed by Ray."""

    model: str
    """Name under which the model is served."""
    model_dir: str
    """Folder of the prepared model on the GPU nodes."""
    count: int = 1
    slots: int = 4
    """Answers that run at once in one replica."""
    context_tokens: int = 2048
    threads: int = 1
    """Cores that one step of the engine may use."""
    node_labels: dict[str, str] = {}
    """Ray node labels that a node must have, every one: region, jurisdiction, accelerator, model."""
    cpus: int = 1
    """Ray CPUs that one replica reserves."""


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An OpenAI-compatible server as a replica of a pool."""

    name: str
    model: str
    """Our name of the model."""
    base_url: str
    served_model: str
    """The engine's name of the model."""
    slots: int
    """Answers that the engine runs at once. Where others use it too, what they take of these is not free."""
    api_key_file: str | None = None
    resume: Literal["none", "text"] = "none"
    """`text` where it goes on from a partial last message (vLLM, SGLang: `continue_final_message`)."""
    identity: DeclaredIdentity | None = None
    """What the model is. With `resume: text`, answers go on between engines that declare the same."""


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pool of this site."""

    id: str
    waiting_max: int = 256
    """Permitted requests that may wait for a slot; one more is refused."""
    replicas: ReplicaSettings | None = None
    engines: tuple[EngineSettings, ...] = ()


class RaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The Ray cluster that the driver joins. It never starts one."""

    address_file: str
    """File that holds ``host:port`` of the head. Read again at every start of the driver."""
    token_file: str
    namespace: str = "tidegate"


class SchedulerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a scheduler is told."""

    id: str
    side: str
    listen: str
    """``host:port`` for edges."""
    replica_listen: str
    """``host:port`` for replicas; local, and fixed, so that replicas find a restarted intake."""
    control: str
    """``host:port`` of this side's control plane."""
    data_dir: str
    """Bundles, spool and the highest time seen."""
    replica_token_file: str
    """Secret with which replicas dial in."""
    roots: tuple[RootSetting, ...]
    """Pinned roots of both sides."""
    pools: tuple[PoolSettings, ...]
    processes: Annotated[int, msgspec.Meta(ge=1, le=PROCESSES_MAX)] = 1
    """Processes that listen for edges at the one address. Above 1, each has an even share of the slots of every engine,
    of `waiting_max`, `spool_bytes` and `detached_bytes`; pools with replicas of ours are refused."""
    prefix_salt_file: str | None = None
    """Secret that salts the hashes of prefixes by which replicas are chosen; None makes one at every start."""
    ray: RaySettings | None = None
    """None runs without Ray, with configured engines only."""
    spool_bytes: int = 1 << 30
    replica_dead_ms: int = 2_500
    """Silence after which a replica is given up."""
    reattach_ms: int = 3_000
    """How long the answers of an edge whose connection is lost are kept for it."""
    detached_bytes: int = 64 << 20
    """What such answers may take together; beyond it, those of the edge that is away longest are given up."""
    drain_grace_ms: int = 20_000
    """How long running answers have when the program stops."""
    worker: WorkerSettings | None = None
    """Set in the files that a scheduler writes for its own processes, and left out of those that people write."""
