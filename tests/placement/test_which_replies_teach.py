"""Where many replies end few of them teach a speed, and all of them teach everything else."""

from __future__ import annotations

from collections import Counter

import pytest

from orchestrator.placement.outliers import LOOK_EVERY_US
from orchestrator.placement.speed import LEARN_EVERY_US, LEARN_SAVED_US, SpeedLearner
from orchestrator.policy.ids import ModelId, PoolId
from tests.placement.test_choice import MODEL
from tests.placement.test_sight import COMPLETE, DECLARED, FASTER, HERE, THERE, Told, counts, measured
from tests.values import replace

COUNT = LEARN_SAVED_US // LEARN_EVERY_US
"""So many teach of a burst."""


def samples(sight: Told, at_us: int, pool: PoolId = HERE, model: ModelId = MODEL) -> int:
    speed = sight.seen(at_us, pool, model).speed
    return 0 if speed is None else speed.samples


def end_at(sight: Told, name: str, at_us: int) -> int:
    """One attempt ends then. Returns how many replies have taught by then."""
    sight.go(name, at_us - 20_000)
    sight.speak(name, at_us - 10_000)
    sight.end(name, COMPLETE, at_us)
    return samples(sight, at_us)


def test_a_burst_after_a_calm_teaches_with_each_reply_as_long_as_its_replies_count() -> None:
    sight = measured()
    found = [end_at(sight, str(number), 1_000_000) for number in range(COUNT + 30)]
    assert found[:COUNT] == list(range(1, COUNT + 1))
    # Then one that comes beyond what was saved, two passed over, one, six, one, twelve, one.
    more = [one - COUNT for one in found[COUNT:]]
    assert more == [1, 1, 1, *[2] * 7, *[3] * 13, *[4] * 7]


def test_a_reply_after_a_calm_teaches_whatever_was_to_be_passed_over() -> None:
    sight = measured()
    for number in range(COUNT + 1):
        end_at(sight, str(number), 1_000_000)
    assert end_at(sight, "soon", 1_000_000 + LEARN_SAVED_US - 1) == COUNT + 1
    assert [end_at(sight, f"late{number}", 1_000_000 + LEARN_SAVED_US) for number in range(COUNT)] == [
        COUNT + 2 + number for number in range(COUNT)
    ]


@pytest.mark.parametrize("group", [1, 8, 16, 32])
def test_of_a_steady_stream_few_teach_and_of_every_place_in_its_groups(group: int) -> None:
    learner = SpeedLearner(DECLARED)
    # 3,200 replies a second for ten seconds.
    taught = Counter[int]()
    for number in range(32_000):
        if not learner.passes_over(1_000_000 + number // group * group * 10_000 // 32):
            taught[number % group] += 1
    every = 10_000_000 // LEARN_EVERY_US
    assert every * 0.6 < taught.total() < every * 1.4
    assert min(taught[place] for place in range(group)) > taught.total() / group / 2
    assert max(taught.values()) < taught.total() / group * 2


def test_the_first_reply_of_a_place_a_model_or_other_rates_always_teaches() -> None:
    sight = measured()
    other = ModelId("other")
    firsts = ((HERE, MODEL, DECLARED), (THERE, MODEL, DECLARED), (HERE, other, DECLARED), (HERE, MODEL, FASTER))
    for pool, model, declared in firsts:
        sight.go("a", 0, pool, declared=declared, model=model)
        sight.speak("a", 10_000)
        sight.end("a", COMPLETE, 20_000)
        speed = sight.seen(20_000, pool, model).speed
        assert speed is not None
        assert speed.samples == 1
        assert speed.prefill_ns == pytest.approx(declared.prefill_ns, rel=0.01), "it began from what is declared now"


def test_what_teaches_no_speed_teaches_all_else() -> None:
    sight = measured()
    for number in range(COUNT + 1):
        end_at(sight, f"before{number}", 0)
    for number in range(8):
        sight.go(str(number), 0, blocks=(1, 2), expected_cached=80)
        sight.speak(str(number), 10)
    beliefs = []
    for number in range(3):
        sight.end(str(number), replace(COMPLETE, cached_tokens=0), 20)
        beliefs.append(sight.expect((1, 2, 3), 100, 1_000, 20)[HERE][0])
    assert beliefs == [180, 162, 145]
    assert counts(sight.seen(20)) == (5, 5, 0)
    for number in range(3, 8):
        sight.end(str(number), COMPLETE, 20)
    assert samples(sight, 20) == COUNT + 2
    assert counts(sight.seen(20)) == (0, 0, 0)


def test_a_slow_spell_is_seen_however_close_its_replies_are() -> None:
    sight = Told()
    slow, *others = [PoolId(f"p{number}") for number in range(3)]
    for name, sent_us in (*((other, 8_900_000) for other in others), (slow, 0)):
        for number in range(4):
            sight.go(f"{name}-{number}", sent_us, name)
            sight.speak(f"{name}-{number}", sent_us + 10_000)
    for attempt in [*sight.flights, "look"]:
        at_us = 9_000_000
        if attempt == "look":
            at_us += LOOK_EVERY_US
            sight.go("look", at_us, others[0])
            sight.speak("look", at_us)
        sight.end(attempt, COMPLETE, at_us)
    assert sight.out(MODEL, 9_000_000 + LOOK_EVERY_US) == {slow}
