"""Decision records: the complete account of one permit and placement, in canonical bytes.

A record holds digests, counts, labels, rule ids, places and times, never a payload. It is in the spool before the first
byte leaves. Refusals are recorded too.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from orchestrator.evidence.canonical import JsonValue, spelled, written_part
from orchestrator.evidence.citation import Citation, facts_part
from orchestrator.evidence.duties import Done
from orchestrator.evidence.inputs import InputManifest
from orchestrator.evidence.remembered import Remembered
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import AttemptId, DecisionId, EdgeId, KeyId, ModelId, PoolId, RequestId, SideId, TenantId
from orchestrator.policy.labels import RANK_AXES, SET_AXES, Labels, LabelSources
from orchestrator.policy.packs import Obligation, ObligationKind

RECORD_VERSION = 4
SENT = "sent"
"""The outcome of a decision of an edge after which a payload leaves."""
PERMITTED = "permitted"
"""The outcome of a decision of the pool's side after which it is worked on."""


class DecisionRecord(msgspec.Struct, frozen=True):
    """One decision. `placement` is the account that `placement.explain` makes of it."""

    id: DecisionId
    request: RequestId
    client_request: str | None
    """The client's own `x-request-id`, kept beside ours."""
    attempt: AttemptId | None
    """None when nothing was sent."""
    side: SideId
    program: str
    """`edge` or `scheduler`: who decided."""
    edge: EdgeId
    tenant: TenantId | None
    key_id: KeyId | None
    model: ModelId
    pool: PoolId | None
    outcome: str
    """`sent` or `permitted`, or a code of the error catalogue."""
    sources: LabelSources | None
    """Every voice on the labels; None on the side that was only told the effective one."""
    facts: Facts
    citation: Citation
    placement: msgspec.Struct | msgspec.Raw
    asked: msgspec.Struct | None
    """What the placement was told besides the law, so that it can be made again; None where nothing was placed."""
    inputs: InputManifest | None
    """What went in, where the law wants it proven."""
    commitment: str | None
    """Keyed commitment to the payload."""
    payload_bytes: int
    regulated: bool
    retention: tuple[str, ...]
    """ISO 8601 durations that were promised; the longest holds."""
    discharged: tuple[Done, ...]
    decided_ms: int
    continues: AttemptId | None = None
    """The attempt that was cut, where this one takes its place."""
    first_token: int = 0
    """Where in the whole answer its first token stands."""

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        discharged = [_Discharged(done.did, _duty(done.obligation)) for done in self.discharged]
        return spelled(
            _Written(
                self.asked,
                self.attempt,
                self.citation,
                self.client_request,
                self.commitment,
                self.continues,
                self.decided_ms,
                discharged,
                self.edge,
                facts_part(self.facts),
                self.first_token,
                self.id,
                None if self.inputs is None else self.inputs.written,
                self.key_id,
                "decision",
                None if self.sources is None else sources_part(self.sources),
                self.model,
                self.outcome,
                self.payload_bytes,
                self.placement,
                self.pool,
                self.program,
                self.regulated,
                self.request,
                self.retention,
                self.side,
                self.tenant,
                RECORD_VERSION,
            )
        )


_duty: Remembered[Obligation, str] = Remembered(lambda duty: f"{duty.kind}:{duty.argument}")


class _Discharged(msgspec.Struct, frozen=True):
    did: str
    obligation: str


class _Written(msgspec.Struct, frozen=True):
    """A decision record by the names of its bytes, in their order."""

    asked: msgspec.Struct | None
    attempt: AttemptId | None
    citation: Citation
    client_request: str | None
    commitment: str | None
    continues: AttemptId | None
    decided_ms: int
    discharged: list[_Discharged]
    edge: EdgeId
    facts: msgspec.Raw
    first_token: int
    id: DecisionId
    inputs: msgspec.Raw | None
    key_id: KeyId | None
    kind: str
    labels: msgspec.Raw | None
    model: ModelId
    outcome: str
    payload_bytes: int
    placement: msgspec.Struct | msgspec.Raw
    pool: PoolId | None
    program: str
    regulated: bool
    request: RequestId
    retention: tuple[str, ...]
    side: SideId
    tenant: TenantId | None
    v: int


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


owed: Remembered[tuple[Obligation, ...], Owed] = Remembered(_owed)
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


sources_part: Remembered[LabelSources, msgspec.Raw] = Remembered(lambda sources: written_part(sources_to_json(sources)))
"""Every voice on the labels, as records hold them."""
