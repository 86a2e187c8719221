"""Decision records: the complete account of one permit and placement, in canonical bytes.

A record holds digests, counts, labels, rule ids, places and times, never a payload. It is in the spool before the first
byte leaves. Refusals are recorded too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import msgspec

from orchestrator.evidence.canonical import JsonValue, spelled, written_part
from orchestrator.evidence.citation import Citation
from orchestrator.evidence.duties import Done
from orchestrator.evidence.remembered import remembered
from orchestrator.policy.ids import AttemptId, DecisionId, EdgeId, KeyId, ModelId, PoolId, RequestId, SideId, TenantId
from orchestrator.policy.labels import RANK_AXES, SET_AXES, Labels, LabelSources
from orchestrator.policy.packs import Obligation, ObligationKind

RECORD_VERSION = 4
KIND = "decision"
"""What a record of a decision names itself."""
SENT = "sent"
"""The outcome of a decision of an edge after which a payload leaves."""
PERMITTED = "permitted"
"""The outcome of a decision of the pool's side after which it is worked on."""


class DecisionRecord(msgspec.Struct, frozen=True):
    """One decision, by the names of its bytes and in their order. What it holds of larger values was written before."""

    asked: msgspec.Struct | None
    """What the placement was told besides the law, so that it can be made again; None where nothing was placed."""
    attempt: AttemptId | None
    """None when nothing was sent."""
    citation: Citation
    client_request: str | None
    """The client's own `x-request-id`, kept beside ours."""
    commitment: str | None
    """Keyed commitment to the payload."""
    continues: AttemptId | None
    """The attempt that was cut, where this one takes its place."""
    decided_ms: int
    discharged: list[Discharged]
    edge: EdgeId
    facts: msgspec.Raw
    first_token: int
    """Where in the whole answer its first token stands."""
    id: DecisionId
    inputs: msgspec.Raw | None
    """What went in, where the law wants it proven."""
    key_id: KeyId | None
    kind: str
    """`KIND`."""
    labels: msgspec.Raw | None
    """Every voice on the labels; None on the side that was only told the effective one."""
    model: ModelId
    outcome: str
    """`sent` or `permitted`, or a code of the error catalogue."""
    payload_bytes: int
    placement: msgspec.Struct | msgspec.Raw
    """The account that `placement.explain` makes of it."""
    pool: PoolId | None
    program: str
    """`edge` or `scheduler`: who decided."""
    regulated: bool
    request: RequestId
    retention: tuple[str, ...]
    """ISO 8601 durations that were promised; the longest holds."""
    side: SideId
    tenant: TenantId | None
    v: int = RECORD_VERSION

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return spelled(self)


class Discharged(msgspec.Struct, frozen=True):
    """A duty that was done, by the names of a record, in their order."""

    did: str
    obligation: str


_duty: Callable[[Obligation], str] = remembered(lambda duty: f"{duty.kind}:{duty.argument}")


def discharged_part(discharged: tuple[Done, ...]) -> list[Discharged]:
    """Return the duties that were done, as a record holds them."""
    return [Discharged(done.did, _duty(done.obligation)) for done in discharged]


DAY_MS = 24 * 60 * 60 * 1000
# A month and a year are never shorter than this, so nothing is deleted a day too early.
_UNIT_DAYS = (366, 31, 7, 1)
_DURATION = re.compile(r"P(?=[0-9])(?:([0-9]{1,4})Y)?(?:([0-9]{1,4})M)?(?:([0-9]{1,4})W)?(?:([0-9]{1,4})D)?\Z")


def retain_until_ms(retention: tuple[str, ...], now_ms: int) -> int:
    """Return until when a record with these ISO 8601 durations (``P6M``) must be kept; 0 without any.

    Raises ValueError on a duration that is not made of years, months, weeks and days.
    """
    until_ms = 0
    for duration in retention:
        kept_ms = now_ms + _days_of(duration) * DAY_MS
        if kept_ms > until_ms:
            until_ms = kept_ms
    return until_ms


@lru_cache(maxsize=256)
def _days_of(duration: str) -> int:
    found = _DURATION.match(duration)
    if found is None:
        raise ValueError("expected an ISO 8601 duration such as P6M or P1Y6M")
    return sum(int(count or 0) * length for count, length in zip(found.groups(), _UNIT_DAYS, strict=True))


class Owed(msgspec.Struct, frozen=True):
    """What the duties of a verdict ask for, whatever the request."""

    inputs: bool
    """Whether one of them is a proof about the inputs."""
    retention: tuple[str, ...]
    """ISO 8601 durations that a record with them must be kept for."""
    retain_ms: int
    """The longest of them; 0 without any."""


def _owed(obligations: tuple[Obligation, ...]) -> Owed:
    proofs = any(duty.kind is ObligationKind.PROVE_NO_DOMESTIC_INPUT for duty in obligations)
    retention = tuple(sorted(duty.argument for duty in obligations if duty.kind is ObligationKind.RETAIN))
    return Owed(proofs, retention, retain_until_ms(retention, 0))


owed: Callable[[tuple[Obligation, ...]], Owed] = remembered(_owed)
"""What the duties of a verdict ask for. Raises ValueError on a duration that `retain_until_ms` does not take."""
OWED_NOTHING = owed(())


def _labels_to_json(labels: Labels) -> dict[str, JsonValue]:
    """What one source said; what it did not say is null."""
    found: dict[str, JsonValue] = {}
    for axis in RANK_AXES:
        value = getattr(labels, axis)
        found[axis] = None if value is None else value.word
    for axis in SET_AXES:
        members = getattr(labels, axis)
        found[axis] = None if members is None else list[JsonValue](sorted(members))
    return found


def sources_to_json(sources: LabelSources) -> dict[str, JsonValue]:
    """Return every voice on the labels, and where one says less than what counts."""
    return {
        "declared": _labels_to_json(sources.declared),
        "attested": _labels_to_json(sources.attested),
        "floor": _labels_to_json(sources.floor),
        "detected": _labels_to_json(sources.detected),
        "soil": list[JsonValue](sorted(sources.soil)),
        "mismatches": [
            {"axis": one.axis, "source": one.source, "said": one.said, "effective": one.effective}
            for one in sources.mismatches()
        ],
    }


sources_part: Callable[[LabelSources], msgspec.Raw] = remembered(lambda sources: written_part(sources_to_json(sources)))
"""Every voice on the labels, as records hold them."""
