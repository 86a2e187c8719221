"""Who calls: an API key, looked up among the tenants of the bundle."""

from __future__ import annotations

import hmac
from hashlib import sha256

import msgspec

from node_agent.front.framing import Head
from orchestrator.bundles.assemble import Bundle
from orchestrator.policy.ids import EdgeId, KeyId, ModelId, parse_api_key
from orchestrator.policy.tenants import Tenant
from orchestrator.wire.catalogue import Problem, ProblemError

PROVED_MAX = 1_024
"""Headers whose caller is remembered."""
_NO_SECRET = "0" * 64
"""Compared with when there is no such key, so that an unknown key costs what a wrong one does."""
_SCHEME = "bearer "
_SCHEME_CHARS = len(_SCHEME)


class Caller(msgspec.Struct, frozen=True):
    """A tenant that proved a key."""

    tenant: Tenant
    key_id: KeyId


class Callers:
    """Who calls an edge. What a header has proved under a bundle it proves again, for as long as that is in use.

    A header is known by its SHA-256, as a key is in the bundle: no key is held, and to be taken for one that was seen
    a header must be the same.
    """

    def __init__(self, edge: EdgeId) -> None:
        self._edge = edge
        self._bundle: Bundle | None = None
        """Under which all of these were proved."""
        self._proved: dict[bytes, Caller] = {}  # bounded: by PROVED_MAX

    def caller(self, head: Head, bundle: Bundle | None) -> Caller:
        """Return who calls. Raises ProblemError: invalid_api_key, no_bundle, not_entitled."""
        if bundle is not self._bundle:
            self._bundle = bundle
            self._proved.clear()
        given = head.once.get("authorization", "")
        digest = sha256(given.encode("latin-1")).digest()
        found = self._proved.get(digest)
        if found is None:
            found = _authenticate(given, bundle, self._edge)
            if len(self._proved) >= PROVED_MAX:
                self._proved.clear()
            self._proved[digest] = found
        return found


def _authenticate(given: str, bundle: Bundle | None, edge: EdgeId) -> Caller:
    """Return who calls. A key that is unknown, wrong or revoked is answered in the same words."""
    key = parse_api_key(given[_SCHEME_CHARS:]) if given[:_SCHEME_CHARS].lower() == _SCHEME else None
    if key is None:
        raise ProblemError(Problem("invalid_api_key"))
    if bundle is None:
        raise ProblemError(Problem("no_bundle"))
    key_id, secret_sha256 = key
    found = bundle.keys.get(key_id)
    matches = hmac.compare_digest(_NO_SECRET if found is None else found.key.secret_sha256, secret_sha256)
    revoked = bundle.revoked
    if found is None or not matches or key_id in revoked.keys or found.tenant.id in revoked.tenants:
        raise ProblemError(Problem("invalid_api_key"))
    if edge not in found.tenant.edges:
        raise ProblemError(Problem("not_entitled", "This tenant is not served at this edge."))
    return Caller(found.tenant, key_id)


def entitled_models(caller: Caller, bundle: Bundle) -> tuple[ModelId, ...]:
    """Return the models that the tenant may use and some declared pool serves, sorted."""
    return tuple(model for model in bundle.fleet.models() if model in caller.tenant.models)
