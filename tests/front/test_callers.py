"""Who calls is proved once under a bundle, and anew under every other."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.front import tenants
from node_agent.front.framing import Head, read_head
from node_agent.front.tenants import Callers
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.revocations import Revoked
from orchestrator.policy.ids import EdgeId, KeyId, TenantId
from orchestrator.wire.catalogue import ProblemError
from tests.front.room import ACME, ACME_SECOND, BETA, ELSEWHERE, Key, bundle_in, request_bytes
from tests.values import replace


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_in(tmp_path)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the secrets that are kept were compared with."""
    seen: list[str] = []

    def watched(expected: str, given: str) -> bool:
        seen.append(given)
        return expected == given

    monkeypatch.setattr("node_agent.front.tenants.hmac.compare_digest", watched)
    return seen


def head_with(key: Key, scheme: str = "Bearer") -> Head:
    return read_head(request_bytes("POST", "/", [("Host", "e"), ("Authorization", f"{scheme} {key.text()}")]))


def refused(callers: Callers, head: Head, bundle: Bundle | None) -> str:
    with pytest.raises(ProblemError) as refusal:
        callers.caller(head, bundle)
    return refusal.value.problem.code


def test_a_header_is_proved_once(bundle: Bundle, compared: list[str]) -> None:
    callers = Callers(EdgeId("sg-edge"))
    found = [callers.caller(head_with(key), bundle) for key in (ACME, ACME_SECOND, BETA, ACME)]
    assert [(one.tenant.id, one.key_id) for one in found] == [
        ("acme", ACME.id), ("acme", ACME_SECOND.id), ("beta", BETA.id), ("acme", ACME.id)
    ]  # fmt: skip
    assert len(compared) == 3


def test_what_is_refused_is_refused_each_time_after_the_same_comparison(bundle: Bundle, compared: list[str]) -> None:
    callers = Callers(EdgeId("sg-edge"))
    callers.caller(head_with(ACME), bundle)
    for key, code in ((Key(ACME.id), "invalid_api_key"), (Key("nobodykey1"), "invalid_api_key")):
        assert [refused(callers, head_with(key), bundle) for _ in range(2)] == [code, code]
    assert refused(callers, head_with(ACME, "Basic"), bundle) == "invalid_api_key"
    assert len(compared) == 5
    assert [refused(callers, head_with(ELSEWHERE), bundle) for _ in range(2)] == ["not_entitled", "not_entitled"]
    assert refused(callers, read_head(b"GET / HTTP/1.1\r\nHost: e\r\n\r\n"), bundle) == "invalid_api_key"


@pytest.mark.parametrize(
    "revoked", [Revoked(keys=frozenset({KeyId(ACME.id)})), Revoked(tenants=frozenset({TenantId("acme")}))]
)
def test_another_bundle_is_asked_anew(bundle: Bundle, revoked: Revoked) -> None:
    callers = Callers(EdgeId("sg-edge"))
    assert callers.caller(head_with(ACME), bundle).tenant.id == "acme"
    assert refused(callers, head_with(ACME), replace(bundle, revoked=revoked)) == "invalid_api_key"
    assert callers.caller(head_with(ACME), bundle).tenant.id == "acme"
    assert refused(callers, head_with(ACME), None) == "no_bundle"


def test_what_is_remembered_is_bounded_and_holds_no_key(
    bundle: Bundle, compared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "PROVED_MAX", 4)
    callers = Callers(EdgeId("sg-edge"))
    schemes = [f"{one}{two}arer" for one in "bB" for two in ("e", "E")]
    for scheme in (*schemes, "BEARER"):
        callers.caller(head_with(ACME, scheme), bundle)
        assert len(callers._proved) <= 4
        assert ACME.text() not in repr(callers._proved)
    callers.caller(head_with(ACME, "BEARER"), bundle)
    assert len(compared) == 5
    callers.caller(head_with(ACME, schemes[0]), bundle)
    assert len(compared) == 6
