"""What a decision was told besides law and facts, as canonical JSON holds it, and back: for records and replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict as fields_of
from dataclasses import replace
from typing import Any

import msgspec

from orchestrator.evidence.canonical import JsonValue, Writable
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.decide import Ground
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import ModelId, PathwayId, PoolId
from orchestrator.policy.tenants import Service


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

    def to_json(self) -> dict[str, Writable]:
        """Return it as `canonical.written` takes it: sets stand for their sorted words, structs for their fields."""
        request, views = self.request, self.views
        # By name, as they are written: what is in order is quickly sorted.
        return {
            # More than a JSON number holds exactly.
            "bill_pico": None if request.bill_pico is None else str(request.bill_pico),
            "cached_rebate_pico": str(request.cached_rebate_pico),
            "canary": request.canary,
            "capabilities": request.capabilities,
            # 64 bits: more than a JSON number holds exactly.
            "chance": str(self.chance),
            "entitled": request.entitled,
            "max_tokens": request.max_tokens,
            "model": request.model,
            "output_tokens": request.output_tokens,
            "prompt_tokens": request.prompt_tokens,
            "revision": request.revision,
            "revoked_pathways": self.revoked_pathways,
            "revoked_pools": self.revoked_pools,
            "service": None if request.service is None else _service_to_json(request.service),
            "skew_ms": self.skew_ms,
            "tried": request.tried,
            "upload_bytes": request.upload_bytes,
            "views": [*map(views.__getitem__, sorted(views))],
        }


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


def _service_to_json(service: Service) -> dict[str, JsonValue]:
    return {name: None if value is None else str(value) for name, value in fields_of(service).items()}


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
