"""Whose the records in the spool of an edge are: a tenant's, as they say themselves. Pure."""

from __future__ import annotations

import msgspec

from orchestrator.policy.ids import TenantId
from orchestrator.spool.records import Holder, RecordKind


class _Owned(msgspec.Struct):
    tenant: TenantId | None = None


_OWNED = msgspec.json.Decoder(_Owned)


def tenant_of(_kind: RecordKind, data: bytes) -> Holder | None:
    """Return the tenant that a record of this edge names; None where it names none."""
    try:
        tenant = _OWNED.decode(data).tenant
    except msgspec.DecodeError:
        return None  # a record all the same: whoever ships it judges it
    return None if tenant is None else Holder(tenant)
