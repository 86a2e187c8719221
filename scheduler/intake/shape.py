"""The shape of one permitted attempt, as the choice of a replica needs it: lengths, and salted hashes of its prefixes.

The hashes tell nothing of a prompt without the salt, and two tenants, or one tenant's data of two origins, never share
any: each gets a salt of its own, made from the site's. None of it leaves the site.
"""

from __future__ import annotations

from hashlib import blake2b

from orchestrator.bundles.assemble import Bundle
from orchestrator.engines.identity import Continuing
from orchestrator.placement.fleet import PrefixCache
from orchestrator.placement.lengths import DECLARED_CHARS_PER_TOKEN
from orchestrator.placement.prefix import salted
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId
from orchestrator.wire.frames import Open
from scheduler.intake.choice import EXPECTED_OUTPUT_TOKENS, TIME_ALONE, Asked

SALT_BYTES = 32


def site_salt(secret: str) -> bytes:
    """Return the site's salt from its mounted secret, of whatever length."""
    return blake2b(secret.encode(), digest_size=SALT_BYTES, person=b"tidegate-prefix").digest()


def tenant_salt(salt: bytes, facts: Facts) -> bytes:
    """Return the salt of one tenant entity and of the jurisdictions of its subjects."""
    # Neither holds a NUL, so that no two lists of names run together.
    name = "\x00".join((facts.tenant.id, *sorted(facts.label.origin)))
    return blake2b(name.encode(), key=salt, digest_size=SALT_BYTES).digest()


def flow_of(edge: EdgeId, facts: Facts) -> str:
    """Return whose turn an attempt takes in a queue: its tenant's entity at one edge. A scheduler knows no tenant."""
    return f"{edge}\x00{facts.tenant.id}"


def asked_of(opened: Open, newest: Bundle | None, edge: EdgeId, salt: bytes) -> Asked:
    """Return what the choice is told of an attempt of `edge`, by the newest bundle. `salt` is the site's."""
    generation = opened.generation
    pool = None if newest is None else newest.fleet.pool(opened.pool)
    settings = None if newest is None else newest.settings
    chars = sum(map(len, generation.payload()))
    said = generation.said
    expected = EXPECTED_OUTPUT_TOKENS if settings is None else settings.expected_output_tokens
    most = generation.sampling.max_tokens
    if said is not None:
        expected, most = expected - said.tokens, None if most is None else most - said.tokens
    if most is not None and most < expected:
        expected = most
    shared = pool is not None and pool.prefix_cache is PrefixCache.SHARED
    return Asked(
        generation.model,
        1 + int(chars / DECLARED_CHARS_PER_TOKEN),
        expected if expected > 1 else 1,
        _blocks(opened, salt) if shared else (),
        None if pool is None else pool.served(generation.model),
        TIME_ALONE if settings is None else settings.worth(None),
        flow_of(edge, opened.facts),
        None if said is None else Continuing(said.identity, said.by),
    )


def _blocks(opened: Open, salt: bytes) -> tuple[int, ...]:
    texts = [part for said in opened.generation.texts() for part in said]
    return salted(tenant_salt(salt, opened.facts), texts)
