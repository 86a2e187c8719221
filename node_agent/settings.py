"""Settings of an edge."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from orchestrator.bundles.roots import RootSetting
from orchestrator.engines.identity import DeclaredIdentity
from orchestrator.watch.shares import PROCESSES_MAX, WorkerSettings
from orchestrator.wire.frames import MESSAGE_BYTES_MAX


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An in-region engine. The bundle names it; only this file says where it is."""

    name: str
    base_url: str
    served_model: str
    api_key_file: str | None = None
    resume: Literal["none", "text"] = "none"
    """`text` where it goes on from a partial last message (vLLM, SGLang: `continue_final_message`)."""
    identity: DeclaredIdentity | None = None
    """What the model is. With `resume: text`, answers go on between engines that declare the same."""


class EdgeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything an edge is told."""

    id: str
    side: str
    host: str
    port: int
    """Where tenants call. `/healthz`, `/readyz` and `/metrics` answer there without a key."""
    control: str
    """``host:port`` of this side's control plane."""
    data_dir: str
    """Bundles, spool and the highest time seen."""
    signing_key_file: str
    """PEM, Ed25519: with it the edge attests what the law was told. Its public half stands in the fleet."""
    commitment_key_file: str
    """Hex of 32 bytes: key of the payload commitments. Destroying it makes them say nothing."""
    roots: tuple[RootSetting, ...]
    """Pinned roots of both sides."""
    processes: Annotated[int, msgspec.Meta(ge=1, le=PROCESSES_MAX)] = 1
    """Processes that serve on the one port. Above 1, each has an even share of `resume_bytes`, `spool_bytes`,
    `record_trace_bytes` and of what is set for idempotency keys, and leases shares of `requests_max` and
    `tenant_requests_max`."""
    engines: tuple[EngineSettings, ...] = ()
    body_bytes_max: Annotated[int, msgspec.Meta(ge=1, le=MESSAGE_BYTES_MAX * 3 // 4)] = 1 << 20
    """A request and what the law is told of it must fit into one message to a pool."""
    body_timeout_ms: int = 10_000
    max_tokens_max: int = 8_192
    requests_max: int = 1_024
    """Requests in flight of all tenants; one more is told 503. As it is neared, a tenant that holds more than its share
    is told 429 first."""
    tenant_requests_max: int = 256
    """Requests in flight of one tenant; one more is told 429."""
    timeout_ms: int = 600_000
    """The longest a request may take in all, from its head to the last token. A tenant may lower this and the next two
    in its `service`, and this one for a request by the header `x-tidegate-timeout-ms`."""
    first_token_timeout_ms: int = 120_000
    """The longest wait for the first token, queue and prompt included."""
    between_tokens_timeout_ms: int = 30_000
    """The longest silence of a pool in the middle of an answer."""
    resume_bytes: int = 64 << 20
    """Prompts and answers that are kept so that a cut stream can go on elsewhere; one beyond it cannot. In memory."""
    spool_bytes: int = 1 << 30
    keep_bundles_days: int = 30
    """How long manifests that no longer count are kept, so that decisions by them can be explained."""
    record_trace: str | None = None
    """File that a trace of what arrives is written to, for `tidegate replay`: counts, labels, salted hashes of prefixes
    and what became of each request, never a payload. None records nothing."""
    record_trace_bytes: int = 64 << 20
    """When it has grown to this, it becomes `<name>.1`, and a new one begins."""
    idempotency_keys_max: int = 200_000
    """Idempotency keys that are held at once, each for 24 h; a tenant may have a quarter of them."""
    idempotency_results_bytes: int = 256 << 20
    """Results of requests with a key that are kept at once, for tenants who want that; a tenant may have a quarter."""
    drain_notice_ms: Annotated[int, msgspec.Meta(ge=0, le=300_000)] = 0
    """For how long an edge that stops is unready and serves whoever still comes: until balancers send nobody."""
    drain_grace_ms: int = 20_000
    """How long running answers have when the program stops, after the notice."""
    worker: WorkerSettings | None = None
    """Set in the files that an edge writes for its own processes, and left out of those that people write."""
