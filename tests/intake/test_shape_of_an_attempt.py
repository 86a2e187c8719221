"""What the choice of a replica is told of an attempt: lengths, and hashes that no two tenants share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bundles.assemble import Bundle
from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.placement.fleet import PrefixCache
from orchestrator.placement.prefix import BLOCK_CHARS
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, EntityId, ModelId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.wire.frames import Open
from scheduler.intake.choice import EXPECTED_OUTPUT_TOKENS, TIME_ALONE, Asked
from scheduler.intake.shape import SALT_BYTES, Shapes, site_salt, tenant_salt
from tests.bundles.sides import MODEL
from tests.intake.small_house import DOMESTIC, MILD, POOL, TENANT, House, citation, opened
from tests.values import replace

EDGE = EdgeId("far-edge")
SALT = b"s" * SALT_BYTES
BLOCKS = 5
PREFACE = "A preface. " * (BLOCKS * BLOCK_CHARS // 11 + 1)
FACTS = Facts(TENANT, MILD)


@pytest.fixture(scope="module")
def newest() -> Bundle:
    return House().bundle(DOMESTIC)


@pytest.fixture(scope="module")
def sharing(newest: Bundle) -> Bundle:
    """The same, with a pool whose engines share prefixes."""
    pools = tuple(
        replace(pool, prefix_cache=PrefixCache.SHARED) if pool.id == POOL else pool for pool in newest.fleet.pools
    )
    return replace(newest, fleet=replace(newest.fleet, pools=pools))


def attempt(bundle: Bundle, facts: Facts = FACTS, text: str = PREFACE, max_tokens: int | None = None) -> Open:
    generation = Generation(ModelId(MODEL), (Message(Role.USER, text),), Sampling(max_tokens=max_tokens))
    return replace(opened(facts, citation(bundle)), generation=generation)


def shape_of(one: Open, newest: Bundle | None, edge: EdgeId, salt: bytes) -> Asked:
    return Shapes(salt).asked_of(one, newest, edge, sum(map(len, one.generation.payload())))


def blocks(bundle: Bundle, facts: Facts = FACTS, text: str = PREFACE, salt: bytes = SALT) -> tuple[int, ...]:
    return shape_of(attempt(bundle, facts, text), bundle, EDGE, salt).blocks


def test_what_one_tenant_sends_by_one_edge_is_one_flow(newest: Bundle) -> None:
    other = replace(FACTS, tenant=Entity(EntityId("other"), Jurisdiction("SG")))
    sent = (attempt(newest), attempt(newest, text="Something else."), attempt(newest, other))
    one, again, another = (shape_of(each, newest, EDGE, SALT).flow for each in sent)
    assert one == again != another
    assert shape_of(sent[0], newest, EdgeId("near-edge"), SALT).flow != one


def test_prefixes_are_hashed_only_where_the_pool_shares_them(newest: Bundle, sharing: Bundle) -> None:
    assert blocks(newest) == ()
    assert len(blocks(sharing)) == BLOCKS


def test_prompts_that_begin_alike_share_their_first_blocks(sharing: Bundle) -> None:
    one, other = blocks(sharing), blocks(sharing, text=PREFACE + "x" * BLOCK_CHARS)
    assert other[: len(one)] == one
    assert len(other) == len(one) + 1
    assert blocks(sharing, text="B" + PREFACE[1:])[0] != one[0]


def test_tenants_origins_and_sites_share_no_hash(sharing: Bundle) -> None:
    stranger = replace(FACTS, tenant=Entity(EntityId("other"), Jurisdiction("SG")))
    elsewhere = replace(FACTS, label=replace(MILD, origin=frozenset({Jurisdiction("SG"), Jurisdiction("DE")})))
    found = [
        blocks(sharing),
        blocks(sharing, stranger),
        blocks(sharing, elsewhere),
        blocks(sharing, salt=b"t" * SALT_BYTES),
    ]
    assert len({block for one in found for block in one}) == sum(len(one) for one in found)


NAMES = st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True)
ORIGINS = st.frozensets(st.sampled_from([Jurisdiction(code) for code in ("CN", "DE", "SG", "US")]))


@given(one=st.tuples(NAMES, ORIGINS), other=st.tuples(NAMES, ORIGINS))
def test_one_salt_belongs_to_one_tenant_and_origin(
    one: tuple[str, frozenset[Jurisdiction]], other: tuple[str, frozenset[Jurisdiction]]
) -> None:
    salts = [
        tenant_salt(SALT, Facts(Entity(EntityId(name), Jurisdiction("SG")), replace(MILD, origin=origin)))
        for name, origin in (one, other)
    ]
    assert (salts[0] == salts[1]) == (one == other)
    assert all(len(salt) == SALT_BYTES for salt in salts)


def test_the_salt_of_a_site_is_the_same_after_a_restart_and_not_its_secret() -> None:
    secret = "a mounted secret that is longer than a key of this hash may be, by some words"
    assert site_salt(secret) == site_salt(secret)
    assert site_salt(secret) != site_salt(secret + ".")
    assert len(site_salt(secret)) == SALT_BYTES
    assert secret.encode()[:SALT_BYTES] not in site_salt(secret)


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 256), (16, 16), (4_000, 256)])
def test_an_answer_is_expected_as_the_side_says_and_no_longer_than_allowed(
    newest: Bundle, max_tokens: int | None, expected: int
) -> None:
    assert shape_of(attempt(newest, max_tokens=max_tokens), newest, EDGE, SALT).output_tokens == expected


def test_speed_and_worth_are_those_of_the_newest_bundle(newest: Bundle) -> None:
    asked = shape_of(attempt(newest), newest, EDGE, SALT)
    assert asked.prompt_tokens == 1 + len(PREFACE) // 4
    assert asked.served is not None
    assert (asked.served.prefill_us_per_token, asked.served.decode_us_per_token) == (100, 10_000)
    assert newest.settings is not None
    assert asked.worth == newest.settings.worth(None)


def test_without_settings_time_alone_counts(newest: Bundle) -> None:
    bare = replace(newest, settings=None)
    asked = shape_of(attempt(newest), bare, EDGE, SALT)
    assert (asked.worth, asked.output_tokens) == (TIME_ALONE, EXPECTED_OUTPUT_TOKENS)
    unknown = shape_of(attempt(newest), None, EDGE, SALT)
    assert (unknown.served, unknown.blocks) == (None, ())


def test_what_the_choice_is_told_shows_nothing_of_the_prompt(sharing: Bundle) -> None:
    told = repr(shape_of(attempt(sharing, text="canary " * BLOCK_CHARS), sharing, EDGE, SALT))
    assert "canary" not in told
    assert "blocks" not in told


def test_what_is_remembered_is_of_the_newest_bundle(newest: Bundle, sharing: Bundle) -> None:
    one, shapes = attempt(newest), Shapes(SALT)
    for bundle in (newest, newest, sharing, replace(newest, settings=None), None, sharing, newest):
        told = shapes.asked_of(one, bundle, EDGE, 9)
        assert told == Shapes(SALT).asked_of(one, bundle, EDGE, 9)


def test_models_that_nobody_declares_are_not_remembered(newest: Bundle) -> None:
    shapes, one = Shapes(SALT), attempt(newest)
    shapes.asked_of(one, newest, EDGE, 9)
    for number in range(100):
        unheard = replace(one, generation=replace(one.generation, model=ModelId(f"unheard-of-{number}")))
        assert shapes.asked_of(unheard, newest, EDGE, 9).served is None
    assert len(shapes._declared) == 1
