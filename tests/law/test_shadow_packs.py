"""A pack in shadow is evaluated and reported, and changes no answer."""

from __future__ import annotations

from hypothesis import given, settings

from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.facts import Facts
from orchestrator.policy.packs import Effect, Mode, Pack
from orchestrator.policy.permit import permit
from orchestrator.policy.places import Movement
from tests.law import chances
from tests.law.worlds import FAR, NOW_MS, SG, facts, infer, open_pack, own, pack, place, plain, rule
from tests.values import replace

HERE = infer(place("here", SG), place("there", SG))


def test_what_shadow_rules_would_have_refused_is_reported() -> None:
    rules = (
        rule("S-2", Effect.FORBID),
        rule("S-1", Effect.REQUIRE),
        rule("S-3", Effect.FORBID, when=()),
        rule("S-4", Effect.GRANT),
        rule("S-5", Effect.OBLIGE),
    )
    shadow = pack("shadow", [SG], *rules, mode=Mode.SHADOW)
    verdict = permit(Law(own(open_pack(SG), shadow), FAR), facts(plain(SG)), HERE, NOW_MS)
    assert (verdict.allowed, verdict.rules, verdict.shadow) == (True, ("OPEN-1",), ("S-1", "S-2"))
    assert verdict.obligations == ()
    enforced = permit(Law(own(open_pack(SG), replace(shadow, mode=Mode.ENFORCE)), FAR), facts(plain(SG)), HERE, NOW_MS)
    assert (enforced.allowed, enforced.rules, enforced.shadow) == (False, ("S-1", "S-2"), ())


def test_a_refusal_reports_its_shadow_too() -> None:
    shadow = pack("shadow", [SG], rule("S-1", Effect.FORBID), mode=Mode.SHADOW)
    verdict = permit(Law(own(shadow), FAR), facts(plain(SG)), HERE, NOW_MS)
    assert (verdict.allowed, verdict.shadow) == (False, ("S-1",))


@settings(max_examples=150, deadline=None)
@given(chances.any_packs, chances.packs_of(chances.any_rules), chances.facts, chances.movements)
def test_a_shadow_pack_changes_no_answer(
    packs: list[AdmittedPack], added: Pack, told: Facts, movement: Movement
) -> None:
    before = permit(Law(packs, FAR), told, movement, NOW_MS)
    shadow = AdmittedPack(replace(added, mode=Mode.SHADOW), added.jurisdictions)
    after = permit(Law([*packs, shadow], FAR), told, movement, NOW_MS)
    assert (after.allowed, after.rules, after.reasons, after.obligations) == (
        before.allowed,
        before.rules,
        before.reasons,
        before.obligations,
    )
    assert set(before.shadow) <= set(after.shadow)
