"""Who owns half of an owner owns: countries count through any depth of owners of half and more."""

from __future__ import annotations

import pytest

from orchestrator.policy.entities import Entity, Owner, with_indirect_owners
from orchestrator.policy.ids import EntityId
from orchestrator.policy.jurisdictions import Jurisdiction
from tests.law.worlds import CN, DE, SG, US


def owned(name: str, country: Jurisdiction, *owners: tuple[str, Jurisdiction, int]) -> Entity:
    return Entity(EntityId(name), country, tuple(Owner(EntityId(one), soil, share) for one, soil, share in owners))


def countries(*entities: Entity) -> set[str]:
    """The owner countries of the first."""
    return set(with_indirect_owners({entity.id: entity for entity in entities})[entities[0].id].owner_countries())


def test_a_parents_parent_counts() -> None:
    operator = owned("operator", SG, ("holding", SG, 60))
    assert countries(operator, owned("holding", SG, ("group", CN, 50))) == {"SG", "CN"}


def test_any_depth_counts() -> None:
    chain = [owned(f"e{n}", SG, (f"e{n + 1}", SG, 51)) for n in range(6)]
    assert countries(*chain, owned("e6", SG, ("group", CN, 100))) == {"SG", "CN"}


@pytest.mark.parametrize(("share", "inner"), [(49, 100), (100, 49)])
def test_less_than_half_anywhere_breaks_the_chain(share: int, inner: int) -> None:
    operator = owned("operator", DE, ("holding", US, share))
    found = countries(operator, owned("holding", US, ("group", CN, inner)))
    assert "CN" not in found
    assert ("US" in found) is (share >= 50)


def test_owners_that_own_each_other_end() -> None:
    assert countries(owned("a", SG, ("b", DE, 50)), owned("b", DE, ("a", SG, 50))) == {"DE", "SG"}


def test_an_owner_that_is_not_listed_is_known_by_its_country() -> None:
    assert countries(owned("operator", SG, ("somebody", CN, 50))) == {"CN"}
