"""What a decision was told besides law and facts, as canonical JSON holds it, and back: for records and replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict as fields_of
from dataclasses import replace
from functools import lru_cache
from typing import Any

import msgspec

from orchestrator.evidence.canonical import JsonValue, in_order_part, written_part
from orchestrator.evidence.remembered import remembered
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.decide import Ground
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import ModelId, PathwayId, PoolId
from orchestrator.policy.tenants import Service

CAPABILITIES_MAX = 256
"""Sets of capabilities whose words are remembered."""


class Asked(msgspec.Struct, frozen=True):
    """Everything that a placement rests on and the bundle does not hold."""

    request: PlacementRequest
    views: Mapping[PoolId, PoolView]
    chance: int
    """64 random bits, for ties."""
    revoked_pools: frozenset[PoolId]
    """Pools of the fleet that were revoked."""
    revoked_pathways: frozenset[PathwayId]
    """Pathways among the facts that were revoked."""
    skew_ms: int
    """How far the deciding clock was off."""

    def ground(self, ground: Ground) -> Ground:
        """Return the ground of a bundle as it was at the time of the decision."""
        return replace(
            ground,
            revoked_pools=self.revoked_pools,
            revoked_pathways=self.revoked_pathways,
            skew_ms=self.skew_ms,
        )

    def to_json(self) -> AskedWritten:
        """Return it as a record holds it."""
        return asked_to_json(
            self.request, self.views, self.chance, self.revoked_pools, self.revoked_pathways, self.skew_ms
        )


class AskedWritten(msgspec.Struct, frozen=True):
    """What a decision was told, by the names of a record, in their order."""

    bill_pico: str | None
    """More than a JSON number holds exactly."""
    cached_rebate_pico: str
    canary: bool
    capabilities: tuple[str, ...]
    chance: str
    """64 bits: more than a JSON number holds exactly."""
    entitled: bool
    max_tokens: int | None
    model: ModelId
    output_tokens: int
    prompt_tokens: int
    revision: str | None
    revoked_pathways: list[PathwayId]
    revoked_pools: list[PoolId]
    service: msgspec.Raw | None
    skew_ms: int
    tried: list[PoolId]
    upload_bytes: int
    views: msgspec.Raw


def asked_to_json(
    request: PlacementRequest,
    views: Mapping[PoolId, PoolView],
    chance: int,
    revoked_pools: frozenset[PoolId],
    revoked_pathways: frozenset[PathwayId],
    skew_ms: int,
) -> AskedWritten:
    """Return the fields of an `Asked` as a record holds them."""
    return AskedWritten(
        None if request.bill_pico is None else str(request.bill_pico),
        str(request.cached_rebate_pico),
        request.canary,
        _words(request.capabilities),
        str(chance),
        request.entitled,
        request.max_tokens,
        request.model,
        request.output_tokens,
        request.prompt_tokens,
        request.revision,
        # Sets that are mostly empty are mostly not sorted.
        sorted(revoked_pathways) if revoked_pathways else [],
        sorted(revoked_pools) if revoked_pools else [],
        None if request.service is None else _service_part(request.service),
        skew_ms,
        sorted(request.tried) if request.tried else [],
        request.upload_bytes,
        in_order_part([*map(views.__getitem__, sorted(views))]),
    )


def asked_from_json(value: Mapping[str, Any]) -> Asked:
    """Return what `Asked.to_json` wrote. Raises KeyError, ValueError and TypeError on anything else."""
    return Asked(
        PlacementRequest(
            model=ModelId(value["model"]),
            capabilities=frozenset(Capability(need) for need in value["capabilities"]),
            prompt_tokens=value["prompt_tokens"],
            output_tokens=value["output_tokens"],
            upload_bytes=value["upload_bytes"],
            tried=frozenset(PoolId(pool) for pool in value["tried"]),
            max_tokens=value["max_tokens"],
            revision=value["revision"],
            service=None if value["service"] is None else _service_from_json(value["service"]),
            bill_pico=None if value["bill_pico"] is None else int(value["bill_pico"]),
            cached_rebate_pico=int(value["cached_rebate_pico"]),
            entitled=value["entitled"],
            canary=value["canary"],
        ),
        {PoolId(view["pool"]): _view_from_json(view) for view in value["views"]},
        int(value["chance"]),
        frozenset(PoolId(pool) for pool in value["revoked_pools"]),
        frozenset(PathwayId(pathway) for pathway in value["revoked_pathways"]),
        value["skew_ms"],
    )


@lru_cache(maxsize=CAPABILITIES_MAX)
def _words(capabilities: frozenset[Capability]) -> tuple[str, ...]:
    return tuple(sorted(capability.value for capability in capabilities))


def _service_to_json(service: Service) -> dict[str, JsonValue]:
    return {name: None if value is None else str(value) for name, value in fields_of(service).items()}


_service_part: Callable[[Service], msgspec.Raw] = remembered(lambda service: written_part(_service_to_json(service)))


def _service_from_json(value: Mapping[str, Any]) -> Service:
    return Service(**{name: None if number is None else int(number) for name, number in value.items()})


def _view_from_json(value: Mapping[str, Any]) -> PoolView:
    """Return a view. Every field of it is a plain number, a word or nothing, so its names are its format."""
    load, speed = value["load"], value["speed"]
    return PoolView(
        **{
            **value,
            "load": None if load is None else PoolLoad(**load),
            "speed": None if speed is None else Speed(**speed),
        }
    )
