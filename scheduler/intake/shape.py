"""The shape of one permitted attempt, as the choice of a replica needs it: lengths, and salted hashes of its prefixes.

The hashes tell nothing of a prompt without the salt, and two tenants, or one tenant's data of two origins, never share
any: each gets a salt of its own, made from the site's. None of it leaves the site.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from orchestrator.bundles.assemble import Bundle
from orchestrator.engines.identity import Continuing
from orchestrator.placement.fleet import PrefixCache, ServedModel
from orchestrator.placement.lengths import DECLARED_CHARS_PER_TOKEN
from orchestrator.placement.prefix import salted
from orchestrator.placement.settings import Worth
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, FlowId, ModelId, PoolId
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


class _Declared(msgspec.Struct, frozen=True):
    """What one bundle says of a model at a pool."""

    served: ServedModel | None
    shared: bool
    """Whether the pool shares what one request brought in with another."""
    worth: Worth
    output_tokens: int
    """Expected of an answer."""


class Shapes:
    """Makes what the choice is told of attempts. What follows from a bundle alone is worked out once for it."""

    def __init__(self, salt: bytes) -> None:
        """`salt` is the site's."""
        self._salt = salt
        self._newest: Bundle | None = None
        self._declared: dict[tuple[PoolId, ModelId], _Declared] = {}
        """By `_newest`. Bounded: by the models that it declares for pools."""

    def asked_of(self, opened: Open, newest: Bundle | None, edge: EdgeId, prompt_chars: int) -> Asked:
        """Return what the choice is told of an attempt of `edge`, by the newest bundle.

        `prompt_chars` are those of all its texts, what was said already included.
        """
        generation = opened.generation
        if newest is not self._newest:
            self._newest, self._declared = newest, {}
        key = (opened.pool, generation.model)
        declared = self._declared.get(key)
        if declared is None:
            declared = _declared(newest, opened.pool, generation.model)
            if declared.served is not None:
                self._declared[key] = declared
        said = generation.said
        expected, most = declared.output_tokens, generation.sampling.max_tokens
        if said is not None:
            expected, most = expected - said.tokens, None if most is None else most - said.tokens
        if most is not None and most < expected:
            expected = most
        return Asked(
            generation.model,
            1 + int(prompt_chars / DECLARED_CHARS_PER_TOKEN),
            expected if expected > 1 else 1,
            self._blocks(opened) if declared.shared else (),
            declared.served,
            declared.worth,
            # Whose turn it takes in a queue: its tenant's entity at one edge. A scheduler knows no tenant.
            FlowId(f"{edge}\x00{opened.facts.tenant.id}"),
            None if said is None else Continuing(said.identity, said.by),
        )

    def _blocks(self, opened: Open) -> tuple[int, ...]:
        texts = [part for said in opened.generation.texts() for part in said]
        return salted(tenant_salt(self._salt, opened.facts), texts)


def _declared(bundle: Bundle | None, pool_id: PoolId, model: ModelId) -> _Declared:
    if bundle is None:
        return _Declared(None, False, TIME_ALONE, EXPECTED_OUTPUT_TOKENS)
    pool, settings = bundle.fleet.pool(pool_id), bundle.settings
    return _Declared(
        None if pool is None else pool.served(model),
        pool is not None and pool.prefix_cache is PrefixCache.SHARED,
        TIME_ALONE if settings is None else settings.worth(None),
        EXPECTED_OUTPUT_TOKENS if settings is None else settings.expected_output_tokens,
    )
