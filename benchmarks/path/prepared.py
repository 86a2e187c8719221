"""Attempts of an edge, permitted, sealed and written beforehand: whoever drives an intake sends them without work.

The edge's own code decides one attempt by the bundle that the edge holds. The others are that one with ids of their
own, each under a real seal of the edge's key. A citation holds for half a minute, so they are made right before they
are sent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from node_agent.border.decider import Asked, Commitment, Decider, Expected
from node_agent.settings import EdgeSettings
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.roots import SigningKey, key_id_of, pinned
from orchestrator.bundles.store import BundleStore
from orchestrator.config.secret import read_secret
from orchestrator.config.settings import load_settings
from orchestrator.evidence.attestation import SEALED_TOGETHER_MAX, seal
from orchestrator.evidence.citation import attestation_bytes
from orchestrator.files.chat import ChatLimits, load_chat_request
from orchestrator.ledger.usage import EdgeCounts
from orchestrator.placement.requests import PoolLoad, PoolView
from orchestrator.policy.ids import (
    RANDOM_BYTES,
    AttemptId,
    EdgeId,
    KeyId,
    PoolId,
    SideId,
    make_attempt_id,
    make_decision_id,
    make_request_id,
)
from orchestrator.policy.labels import Labels
from orchestrator.policy.tenants import Tenant
from orchestrator.wire.convert_session import edge_batch_out
from orchestrator.wire.frames import EdgeFrame, Open, Settle

CREDIT_BYTES = 64 * 1024
"""The first credit, as an edge gives it: more than an answer of a few hundred tokens takes."""
BUDGET_MS = 60_000
CHARS_PER_TOKEN = 4
NOBODY = Commitment(KeyId("nobody"), bytes(32))
"""General data needs no proof of what went in, so nothing is committed to."""


class NotPrepared(Exception):
    """No attempt can be made: there is no bundle, or it permits none."""


@dataclass(frozen=True, slots=True)
class Template:
    """One permitted attempt, not sealed, and who seals it."""

    edge: EdgeId
    key: SigningKey
    intake: str
    """``host:port`` of the intake of the pool that was chosen."""
    opened: Open


@dataclass(frozen=True, slots=True)
class Prepared:
    """One attempt of a session, as bytes of an `EdgeBatch` each. Several of them, one after the other, are one too."""

    attempt: AttemptId
    opened: bytes
    settled: bytes
    """The last word on it, when it was received and delivered whole."""


def template(config: Path, tenant_id: str, body: bytes, now_ms: int) -> Template:
    """Decide once what the edge of these settings would send for a body. Raises NotPrepared, SettingsError, OSError."""
    settings = load_settings(EdgeSettings, config, {}, "")
    roots, side, edge = pinned(settings.roots), SideId(settings.side), EdgeId(settings.id)
    store = BundleStore(Path(settings.data_dir) / "bundles", roots, read_only=True)
    holdings = Holdings(side, store, roots)
    holdings.load()
    bundle = holdings.bundle(side)
    tenant = None if bundle is None else next((one for one in bundle.tenants if one.id == tenant_id), None)
    if bundle is None or tenant is None:
        raise NotPrepared(f"the edge holds no bundle with the tenant {tenant_id}")
    key = SigningKey.from_pem(read_secret(Path(settings.signing_key_file)).reveal())
    asked = _asked(tenant, body, settings.max_tokens_max, now_ms)
    decider = Decider(edge)
    decided = decider.decide(
        asked,
        decider.held(bundle, now_ms, 0),
        Expected(1 + len(body) // CHARS_PER_TOKEN, asked.generation.sampling.max_tokens or 1),
        _views(bundle),
        frozenset(),
        None,
        NOBODY,
        now_ms,
        os.urandom,
    )
    chosen = decided.chosen
    if chosen is None or chosen.pool.intake is None:
        raise NotPrepared(f"no pool behind an intake: {decided.problem}")
    opened = Open(
        stream=1,
        attempt=decided.attempt,
        decision=decided.id,
        request=asked.request,
        pool=chosen.pool.id,
        generation=asked.generation,
        facts=decided.travelling,
        citation=decided.citation,
        key_id=key_id_of(key.public_key),
        signature=b"",
        credit_bytes=CREDIT_BYTES,
        budget_ms=BUDGET_MS,
        inputs=decided.inputs,
    )
    return Template(edge, key, chosen.pool.intake, opened)


def prepare(made_of: Template, sessions: int, each: int, tokens: int, now_ms: int) -> list[list[Prepared]]:
    """Return attempts for the streams 1 to `each` of every session, which will be answered with so many tokens.

    A signature seals as many as one may, and each cites a millisecond of its own, like the turns of a busy edge. What
    is sealed together is dealt to the sessions in turns, so each of them checks the signature.
    """
    found: list[list[Prepared]] = [[] for _ in range(sessions)]
    counts = EdgeCounts(tokens, tokens)
    for turn, begin in enumerate(range(0, sessions * each, SEALED_TOGETHER_MAX)):
        numbers = range(begin, min(begin + SEALED_TOGETHER_MAX, sessions * each))
        citation = replace(made_of.opened.citation, now_ms=now_ms + turn)
        unsealed = [
            replace(
                made_of.opened,
                stream=1 + number // sessions,
                attempt=make_attempt_id(now_ms, os.urandom(RANDOM_BYTES)),
                decision=make_decision_id(now_ms, os.urandom(RANDOM_BYTES)),
                request=make_request_id(now_ms, os.urandom(RANDOM_BYTES)),
                citation=citation,
            )
            for number in numbers
        ]
        seals = seal(made_of.key.sign, [_attested(made_of.edge, one) for one in unsealed])
        for number, one, signature in zip(numbers, unsealed, seals, strict=True):
            sealed = replace(one, signature=signature)
            settle = Settle(one.stream, one.attempt, counts)
            found[number % sessions].append(Prepared(one.attempt, written([sealed]), written([settle])))
    return found


def written(frames: list[EdgeFrame], epoch: int = 0) -> bytes:
    """Return frames as bytes of an `EdgeBatch`."""
    return edge_batch_out(epoch, frames).SerializeToString()


def _attested(edge: EdgeId, opened: Open) -> bytes:
    inputs = None if opened.inputs is None else opened.inputs.digest
    return attestation_bytes(
        edge, opened.attempt, opened.decision, opened.pool, opened.facts, opened.citation, inputs
    )


def _asked(tenant: Tenant, body: bytes, tokens_max: int, now_ms: int) -> Asked:
    request = load_chat_request(body, ChatLimits(tokens_max))
    return Asked(
        make_request_id(now_ms, os.urandom(RANDOM_BYTES)),
        None,
        tenant,
        tenant.keys[0].id,
        request.generation,
        request.capabilities,
        Labels(),
        body,
        BUDGET_MS,
    )


def _views(bundle: Bundle) -> dict[PoolId, PoolView]:
    """Return that every pool is up and idle."""
    return {
        pool.id: PoolView(pool.id, True, 0, PoolLoad(1, pool.slots, 0, 0, pool.slots, 0), 0)
        for pool in bundle.fleet.pools
    }
